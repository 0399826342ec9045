"""edge.report.read and report.schema.json: against another implementation of JSON Schema, and on damaged reports."""

from __future__ import annotations

import copy
import json
from importlib import resources

import jsonschema_rs
import pytest

from edge.errors import UsageError
from edge.report import REPORT_JSON, write_report
from edge.report.build import SCHEMA_VERSION
from edge.report.read import read_report
from edge.report.timings import KEPT
from tests.unit.edge.report_cases import COMPARED, MANIFEST, full_report, image, images, report_of

SCHEMA = json.loads(resources.files("edge.report").joinpath("report.schema.json").read_text())
REFERENCE = jsonschema_rs.validator_for(SCHEMA)

MIXED = {
    **{"left": ["a"], "of": 2, "reason": "the gate", "images": 8},
    "layers": {"a": {"mean_difference": 0.1, "max_difference": 0.2, "auc_drop": None}},
}
LAYER = {"Name": "conv1", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Int8 NC/32HW32"}]}

REPORTS = {
    "none done": report_of([], wall_seconds=0.0),
    "one": report_of(images(1)),
    "queries": report_of(images(80), query_ms=[1.0, 2.0], settings={"samples_per_query": 8}),
    "everything": {
        **full_report(30),
        **{
            key: value
            for key, value in report_of(
                images(5), bundle_manifest={**MANIFEST, "lowering": COMPARED, "mixed_precision": MIXED}
            ).items()
            if key in ("lowerings", "precisions")
        },
        "layers": report_of([], bundle_manifest={**MANIFEST, "platform": {"layers": [LAYER]}})["layers"],
    },
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_are_what_the_schema_says_and_are_read_back(name, tmp_path):
    write_report(REPORTS[name], tmp_path)
    content = json.loads((tmp_path / REPORT_JSON).read_text())
    REFERENCE.validate(content)
    assert read_report(tmp_path) == read_report(tmp_path / REPORT_JSON) == content
    assert content["schema_version"] == SCHEMA_VERSION == SCHEMA["properties"]["schema_version"]["const"]


def test_the_schema_itself_is_sound_and_names_every_entry():
    jsonschema_rs.meta.validate(SCHEMA)
    assert set(SCHEMA["required"]) == set(SCHEMA["properties"]) == set(REPORTS["everything"])


def damaged():
    """(what, report) for every entry taken away or turned into something else, down to the third level."""
    whole = json.loads(json.dumps(REPORTS["everything"]))

    def paths(value, path=()):
        for key, inner in value.items():
            yield (*path, key)
            if isinstance(inner, dict) and len(path) < 2:
                yield from paths(inner, (*path, key))

    for path in paths(whole):
        for change in ("missing", None, -1, "text", [{}], {"a": {}}):
            report = copy.deepcopy(whole)
            place = report
            for key in path[:-1]:
                place = place[key]
            if change == "missing":
                del place[path[-1]]
            else:
                place[path[-1]] = change
            yield f"{'.'.join(path)}: {change!r}", report


def test_a_damaged_report_is_refused_exactly_where_the_reference_refuses_it(tmp_path):
    refused = 0
    for what, report in damaged():
        (tmp_path / REPORT_JSON).write_text(json.dumps(report))
        expected = REFERENCE.is_valid(report)
        try:
            read_report(tmp_path)
        except UsageError as error:
            assert not expected, what
            assert str(tmp_path) in str(error)
            refused += 1
        else:
            assert expected, what
    assert refused > 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON: name a report.json"),
        ('{"schema_version": 2, "wall_seconds": NaN}', "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no latency report of version 2"),
        ("{}", "is no latency report of version 2"),
        ('{"schema_version": "2"}', "is no latency report of version 2"),
        ('{"schema_version": 1, "kind": "comparison"}', "is a report of an earlier version"),
        ('{"format": 1}', "is a report of an earlier version, this program reads 2: measure again"),
        (
            '{"schema_version": 3}',
            "is a report of version 3, this program reads 2: read it with the program",
        ),
        ('{"schema_version": 2}', "is no whole report of version 2: it breaks the rule 'required'"),
    ],
)
def test_what_is_no_report_of_this_version_is_refused(content, message, tmp_path):
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_report(path)
    assert f"{path} {message}" in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_what_cannot_be_read_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / REPORT_JSON).write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot be read|is no JSON"):
        read_report(tmp_path)


# What is kept of single images


def test_single_images_are_kept_in_their_order_without_a_name():
    results = [image({"total": float(i)}, i) | {"id": "Doe^Jane", "source": "Doe"} for i in range(50)]
    report = report_of(results)
    assert report["images"] == {"of": 50, "ms": {"total": [float(i) for i in range(50)]}}
    assert "Doe" not in json.dumps(report)


def test_a_stage_that_only_some_passed_has_gaps():
    kept = report_of([image({"total": 1.0}, 0), image({"decode": 2.0, "total": 3.0}, 1)])["images"]
    assert kept["ms"] == {"decode": [None, 2.0], "total": [1.0, 3.0]}


def test_of_many_images_a_random_choice_is_kept():
    """Images that come in turns of four: each turn is kept about equally often, which every n-th would not."""
    kept = report_of([image({"total": float(i)}, i) for i in range(4 * KEPT)])["images"]
    totals = kept["ms"]["total"]
    assert kept["of"] == 4 * KEPT
    assert len(totals) == KEPT
    assert totals == sorted(totals)
    turns = [sum(total % 4 == turn for total in totals) for turn in range(4)]
    assert min(turns) > 0.8 * KEPT / 4
