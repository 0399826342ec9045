"""The commands that measure and report: ``bench`` and ``report``."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge.backends import open_backend
from edge.bundle import Bundle, load_bundle
from edge.daemon_commands import Command
from edge.errors import UsageError
from edge.gate import require_gate
from edge.signature import configured_key

SCENARIOS = ("single-stream", "multi-stream", "server", "offline")

DEFAULT_SCENARIO = "single-stream"


def add_measure_commands(command: Command, bundle_options: Sequence[argparse.ArgumentParser]) -> None:
    """Add the commands, and their options; `bundle_options` are those that choose a bundle and how it runs."""
    sub = command("bench", _bench, "measure latency and throughput, or two bundles against each other", bundle_options)
    sub.add_argument("--images", type=Path, nargs="+", default=[], metavar="PATH", help="default: the golden inputs")
    sub.add_argument("--scenario", choices=SCENARIOS, help=f"default: {DEFAULT_SCENARIO}")
    sub.add_argument("--duration", type=_seconds, default=10.0, metavar="SECONDS", help="default: %(default)s")
    sub.add_argument(
        "--generator",
        choices=("auto", "loadgen", "own"),
        help="who sends: MLCommons' LoadGen, or our own; default: auto, LoadGen where it is installed",
    )
    rates = sub.add_mutually_exclusive_group()
    rates.add_argument(
        "--rate", type=float, metavar="R", help="server: images a second; default: half of what it can do"
    )
    rates.add_argument(
        "--target-p99", type=float, metavar="MS", help="server: find the highest rate that keeps 99 %% within this time"
    )
    sub.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="run the bundle (A) and this one (B) side by side, in turns, and say which is faster and by how much",
    )
    sub.add_argument(
        "--margin", type=float, metavar="PERCENT", help="--against: the smallest difference that matters; default: 3"
    )
    sub.add_argument("--report", type=Path, metavar="DIR", help="write the report there, as JSON and as a page")

    sub = command("report", _report, "latency report of what the daemon did; compare or export reports", [])
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--state", type=Path, metavar="DIR", help="the daemon's state directory")
    source.add_argument(
        "--from", dest="source", type=Path, metavar="R", help="a report.json, or the folder that has it"
    )
    source.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="two reports: ratios B / A with their intervals"
    )
    sub.add_argument(
        "--report", type=Path, metavar="DIR", help="where to write it; default with --state: `report` in that directory"
    )
    sub.add_argument("--openmetrics", type=Path, metavar="FILE", help="write the report's figures there as OpenMetrics")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive number of seconds")
    return value


# The modules that measure and draw are imported by the commands that need them, so that the others start at once.


def _bench(options: argparse.Namespace) -> int:
    if options.against is not None:
        return _bench_against(options)
    if options.margin is not None:
        raise UsageError("--margin is for --against: name the bundle to compare with, or leave it out")
    bundle, opener = _bundle_and_opener(options, options.bundle)
    from edge.bench import run_bench
    from edge.progress import ProgressLine

    with ProgressLine("bench") as progress:
        report = run_bench(
            bundle,
            opener,
            options.images,
            options.scenario or DEFAULT_SCENARIO,
            options.duration,
            rate=options.rate,
            generator=options.generator or "auto",
            target_p99_ms=options.target_p99,
            guard=options.guard,
            progress=progress,
        )
    return _present(report, options.report)


def _bench_against(options: argparse.Namespace) -> int:
    for name in ("scenario", "generator", "rate", "target_p99"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} does not go with --against: one image is under way at a time")
    from edge.bench_against import MARGIN, run_against
    from edge.progress import ProgressLine

    with ProgressLine("bench") as progress:
        comparison = run_against(
            _bundle_and_opener(options, options.bundle),
            _bundle_and_opener(options, options.against),
            options.images,
            options.duration,
            margin=MARGIN if options.margin is None else options.margin / 100,
            guard=options.guard,
            progress=progress,
        )
    return _present_comparison(comparison, options.report)


def _bundle_and_opener(options: argparse.Namespace, directory: Path) -> tuple[Bundle, Callable[[], Any]]:
    bundle = load_bundle(directory, configured_key(options.public_key))
    require_gate(bundle.manifest, options.allow_failed_gate)
    return bundle, functools.partial(open_backend, bundle, options.backend)


def _report(options: argparse.Namespace) -> int:
    if options.compare is not None:
        return _compare(options)
    if options.source is not None:
        from edge.report.read import read_report

        report, directory = read_report(options.source), options.report
    else:
        from edge.ledger import read_ledger
        from edge.ledger_report import NEEDED, report_from_ledger

        report = report_from_ledger(read_ledger(options.state, NEEDED))
        directory = options.report or options.state / "report"
    if options.openmetrics is not None:
        from edge.report import write_openmetrics

        write_openmetrics(report, options.openmetrics)
    return _present(report, directory)


def _compare(options: argparse.Namespace) -> int:
    if options.openmetrics is not None:
        raise UsageError("--openmetrics is for one report, not for a comparison: use --from or --state")
    from edge.report.compare import compare_reports
    from edge.report.read import read_report

    return _present_comparison(compare_reports(*map(read_report, options.compare)), options.report)


def _present(report: dict[str, Any], directory: Path | None) -> int:
    if report["notice"]:
        print(f"edge-infer: {report['notice']}", file=sys.stderr)
    for stage, figures in report["stages"].items():
        columns = (
            f"{name} {figures[name]:.2f}" for name in ("mean", "p50", "p99", "max") if figures.get(name) is not None
        )
        print(f"{stage:<12} {'  '.join(columns)} ms  ({figures['count']} images)")
    rate = f", {report['throughput']:.1f} a second" if report["throughput"] is not None else ""
    counts = report["counts"]
    print(f"{counts['done']} images in {report['wall_seconds']:.1f} s{rate}; {counts['refused']} refused")
    if directory is not None:
        from edge.report import write_report

        print(write_report(report, directory))
    return 0


def _present_comparison(comparison: dict[str, Any], directory: Path | None) -> int:
    print(f"edge-infer: {comparison['notice']}", file=sys.stderr)
    from edge.report.comparison_page import ratio_text

    for row in comparison["rows"]:
        print(f"{row['what']:<18} A {row['a']:.4g}  B {row['b']:.4g} {row['unit']}  B / A {ratio_text(row)}")
    for warning in comparison["warnings"]:
        print(f"warning: {warning}")
    print(comparison["verdict"])
    if directory is not None:
        from edge.report import write_comparison

        print(write_comparison(comparison, directory))
    return 0
