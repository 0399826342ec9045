"""Reports compared and exported, and bundles run against each other, as a user does: real processes, real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.system.conftest import edge_infer


@pytest.fixture
def bench(tiny_bundle_directory, tmp_path):
    """Runs ``edge-infer bench`` on the tiny bundle, onnxruntime, with more arguments."""

    def run(*arguments):
        shared = ("--bundle", tiny_bundle_directory, "--backend", "onnxruntime")
        return edge_infer("bench", *shared, *arguments, cwd=tmp_path)

    return run


def test_reports_are_compared_and_exported(bench, tmp_path):
    for name, scenario in (("a", "single-stream"), ("b", "offline")):
        run = bench("--duration", "0.5", "--scenario", scenario, "--report", tmp_path / name)
        assert run.returncode == 0, run.stderr
    compared = edge_infer("report", "--compare", "a", "b/report.json", "--report", "compared", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    comparison = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    lines = compared.stdout.splitlines()
    assert lines[-1] == str(Path("compared", "comparison.html"))
    assert lines[-2] == comparison["verdict"]
    assert f"warning: {comparison['warnings'][0]}" in lines
    assert any("scenario: single-stream against offline" in warning for warning in comparison["warnings"])
    for row in comparison["rows"]:  # on a busy machine there may be too few images for an interval
        assert row["low"] is None or row["low"] <= row["ratio"] <= row["high"]

    exported = edge_infer("report", "--from", "a", "--openmetrics", "out/a.txt", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    names = {family.name for family in text_string_to_metric_families((tmp_path / "out" / "a.txt").read_text())}
    assert {"edge_infer_report_stage_seconds", "edge_infer_report_images", "edge_infer_report_run"} <= names


def test_two_bundles_are_run_against_each_other(bench, tiny_bundle_directory, tmp_path):
    run = bench(
        *("--against", tiny_bundle_directory, "--duration", "0.5", "--margin", "50", "--report", tmp_path / "report")
    )
    assert run.returncode == 0, run.stderr
    comparison = json.loads((tmp_path / "report" / "comparison.json").read_text())
    lines = run.stdout.splitlines()
    assert lines[-2:] == [comparison["verdict"], str(tmp_path / "report" / "comparison.html")]
    assert comparison["paired"] is True
    assert comparison["margin"] == 0.5
    assert comparison["warnings"] == []
    assert len(comparison["log_ratios"]) >= 10


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("bench", "--bundle", "x", "--margin", "3"), 2, "--margin is for --against"),
        (("bench", "--bundle", "x", "--against", "x", "--rate", "3"), 2, "--rate does not go with --against"),
        (("bench", "--bundle", "x", "--against", "y"), 3, "x"),
        (("report",), 2, "one of the arguments --state --from --compare is required"),
        (("report", "--compare", "x", "y"), 2, "the report cannot be read: No such file or directory (x)"),
        (("report", "--compare", "x", "y", "--openmetrics", "z"), 2, "--openmetrics is for one report"),
        (("report", "--from", "newer.json"), 2, "newer.json is a report of version 3, this program reads 2"),
    ],
)
def test_wrong_use_is_one_line(arguments, status, message, tmp_path):
    (tmp_path / "newer.json").write_text('{"schema_version": 3}')
    run = edge_infer(*arguments, cwd=tmp_path)
    assert run.returncode == status
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert run.stdout == ""
