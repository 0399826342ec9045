"""edge.report.openmetrics: read back by prometheus_client's own parser of OpenMetrics."""

from __future__ import annotations

import itertools
from datetime import datetime

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from edge.errors import MachineError
from edge.report import write_openmetrics
from edge.report.openmetrics import openmetrics
from tests.unit.edge.report_cases import MANIFEST, STAGES, full_report, image, images, report_of

REPORTS = {
    "none done": report_of([], wall_seconds=0.0),
    "one": report_of(images(1)),
    "all alike": report_of([image({"total": 5.0}, i) for i in range(20)]),
    "queries": report_of(images(200), query_ms=[1.0, 2.0, 3.0], settings={"samples_per_query": 8}),
    "everything": full_report(1500),
}


def read(report):
    """{sample's name: [(labels, value, timestamp)]}, and the families by name."""
    families = {family.name: family for family in text_string_to_metric_families(openmetrics(report))}
    samples = {}
    for family in families.values():
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value, sample.timestamp))
    return samples, families


@pytest.mark.parametrize("name", REPORTS)
def test_what_is_written_is_read_by_the_parser_with_its_units_labels_and_time(name):
    report = REPORTS[name]
    samples, families = read(report)
    made = datetime.fromisoformat(report["created"]).timestamp()
    for found in samples.values():
        for labels, _, timestamp in found:
            assert labels["bundle"] == MANIFEST["name"]
            assert labels["backend"] == "onnxruntime"
            assert labels["scenario"] == "single-stream"
            assert float(timestamp) == made
    for family in families.values():
        unit = next((unit for unit in ("seconds", "joules") if family.name.endswith(f"_{unit}")), "")
        assert family.unit == unit
        assert family.documentation


@pytest.mark.parametrize("name", ["one", "all alike", "queries", "everything"])
def test_histograms_hold_the_reports_counts_in_seconds(name):
    report = REPORTS[name]
    samples, _ = read(report)
    for stage, summary in report["stages"].items():
        buckets = [
            (float(labels["le"]), value)
            for labels, value, _ in samples["edge_infer_report_stage_seconds_bucket"]
            if labels["stage"] == stage
        ]
        counts = summary["histogram"]["counts"]
        assert [count for _, count in buckets] == [*itertools.accumulate(counts), summary["count"]]
        assert [limit for limit, _ in buckets[:-1]] == pytest.approx(
            [edge / 1e3 for edge in summary["histogram"]["edges"][1:]]
        )
        [total] = [
            value for labels, value, _ in samples["edge_infer_report_stage_seconds_sum"] if labels["stage"] == stage
        ]
        assert total == pytest.approx(summary["mean"] * summary["count"] / 1e3)


def test_quantiles_are_the_percentiles_that_the_count_supports():
    samples, _ = read(REPORTS["everything"])
    found = samples["edge_infer_report_stage_quantiles_seconds"]
    for stage, summary in {**REPORTS["everything"]["stages"], "gpu": REPORTS["everything"]["gpu_ms"]}.items():
        values = {labels["quantile"]: value for labels, value, _ in found if labels["stage"] == stage}
        expected = {"0.5": "p50", "0.9": "p90", "0.95": "p95", "0.99": "p99", "0.999": "p99.9"}
        assert values == pytest.approx({key: summary[name] / 1e3 for key, name in expected.items()})
    few = read(report_of(images(20)))[0]["edge_infer_report_stage_quantiles_seconds"]
    assert {labels["quantile"] for labels, _, _ in few} == {"0.5", "0.9", "0.95"}
    assert {labels["stage"] for labels, _, _ in few} == set(STAGES)


def test_counts_throughput_energy_and_taints():
    samples, _ = read(REPORTS["everything"])
    values = {name: found[0][1] for name, found in samples.items() if len(found) == 1}
    assert {labels["status"]: value for labels, value, _ in samples["edge_infer_report_images_total"]} == {
        "done": 1500,
        "refused": 0,
    }
    assert values["edge_infer_report_throughput"] == 750
    assert values["edge_infer_report_wall_seconds"] == 2.0
    assert values["edge_infer_report_energy_joules"] == pytest.approx(22.0)
    assert values["edge_infer_report_image_energy_joules"] == pytest.approx(22.0 / 1500)
    tainted = {labels["suspect"]: value for labels, value, _ in samples["edge_infer_report_tainted"]}
    assert tainted["throttling"] == 1
    assert tainted["other load"] == 0
    assert "power mode" not in tainted, "unknown is not 0"


def test_what_is_unavailable_is_absent_not_zero():
    samples, _ = read(REPORTS["none done"])
    assert not [name for name in samples if "energy" in name or "throughput" in name or "stage" in name]


def test_the_run_is_described_and_odd_texts_survive():
    odd = 'line\nbreak "quoted" back\\slash é'
    samples, _ = read(report_of(images(3), bundle_manifest={**MANIFEST, "precision": odd}))
    [(labels, value, _)] = samples["edge_infer_report_run_info"]
    assert value == 1
    assert labels["precision"] == odd
    assert labels["bundle_sha256"] == "ab" * 32


def test_no_image_is_named():
    results = [image({"total": 1.0}, i) | {"id": f"Doe^Jane {i}", "source": "/x/Doe.dcm"} for i in range(30)]
    assert "Doe" not in openmetrics(report_of(results))


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be written"):
        write_openmetrics(REPORTS["one"], tmp_path / "file" / "report.txt")
