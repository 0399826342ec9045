"""From the results of many images to ``report.json``: every figure that the page shows is worked out here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from edge.gate import gate_notes, gate_verdict, notice_of
from edge.report.layers import layer_rows
from edge.report.lowerings import lowering_comparison
from edge.report.precisions import layer_precisions
from edge.report.taints import find_taints
from edge.report.time_series import energy_j, time_series
from edge.report.timings import kept_timings
from edge.results import STAGES
from edge.statistics import PERCENTILES, nearest_rank, samples_needed, summary
from edge.telemetry import UNAVAILABLE

SCHEMA_VERSION = 2
"""Of ``report.schema.json``: raised when an entry goes away or changes its meaning, not when one is added."""

ELSEWHERE = ("comparison", "timed_on")
"""Of the manifest's ``lowering``, what the report's ``lowerings`` holds."""

RESEARCH_USE = "Research use only. Not a medical device."

CURVE = (
    "0.1",
    "1",
    "5",
    "10",
    "20",
    "30",
    "40",
    "50",
    "60",
    "70",
    "80",
    "85",
    "90",
    "92",
    "94",
    "95",
    "96",
    "97",
    "98",
)
CURVE_TAIL = ("98.5", "99", "99.3", "99.5", "99.7", "99.8", "99.9", "99.95", "99.98", "99.99")


def build_report(
    results: Iterable[Mapping[str, Any]],
    *,
    kind: str,
    scenario: str,
    wall_seconds: float,
    bundle_manifest: Mapping[str, Any],
    bundle_sha256: str,
    backend_facts: Mapping[str, Any],
    machine_facts: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    query_ms: Sequence[float] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The report of a run, ready for JSON: durations in milliseconds, `wall_seconds` in seconds.

    `results` are results of images ("The result of one image": ``status``, ``timings_ms``, ``time``; ``ended`` too, in
    seconds of `time.monotonic`, where there are samples); refused ones are counted, not timed. `kind` is "bench" or
    "ledger"; `scenario` names how the images came, `settings` its parameters; `query_ms` are latencies of whole
    queries, where a query is more than one image. `samples` are a `Sampler`'s.
    """
    done, refused = [], 0
    for result in results:
        if result["status"] == "done":
            # A ledger may hold millions.
            done.append({key: result[key] for key in ("timings_ms", "time", "ended") if key in result})
        else:
            refused += 1
    stages = _stages(done)
    query = None if query_ms is None else summary(query_ms)
    gpu = [result["timings_ms"]["gpu"] for result in done if "gpu" in result["timings_ms"]]
    energy = energy_j(samples or (), wall_seconds)
    layers = layer_rows(backend_facts, bundle_manifest)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "notice": notice_of(bundle_manifest, RESEARCH_USE),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "scenario": scenario,
        "settings": dict(settings or {}),
        "wall_seconds": wall_seconds,
        "throughput": len(done) / wall_seconds if wall_seconds > 0 else None,
        "counts": {"done": len(done), "refused": refused},
        "stages": stages,
        "query": query,
        "images": kept_timings(done),
        "percentile_curve": _curve([result["timings_ms"]["total"] for result in done]),
        "gpu_ms": summary(gpu) if gpu else UNAVAILABLE,
        "energy_per_image_j": energy["joules"] / len(done) if energy and done else UNAVAILABLE,
        "energy": energy or UNAVAILABLE,
        "layers": layers or UNAVAILABLE,
        "lowerings": lowering_comparison(bundle_manifest) or UNAVAILABLE,
        "precisions": layer_precisions(bundle_manifest) or UNAVAILABLE,
        "time_series": time_series(done, samples or ()),
        "taints": find_taints(machine_facts, samples or ()),
        "machine": dict(machine_facts),
        "bundle": bundle_identity(bundle_manifest, bundle_sha256),
        "backend": {key: value for key, value in backend_facts.items() if key != "layers"},
        "notes": [
            *notes,
            *gate_notes(bundle_manifest),
            *_notes(stages, query, energy),
            *_layer_notes(layers, backend_facts),
        ],
    }
    report["verdict"] = verdict(report)
    return report


def _stages(done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summary of each stage over the images that passed it, in the order in which an image does."""
    values = {stage: [r["timings_ms"][stage] for r in done if stage in r["timings_ms"]] for stage in STAGES}
    return {stage: summary(found) for stage, found in values.items() if found}


def _curve(totals: Sequence[float]) -> dict[str, list[Any]]:
    """Latency by percentile, as far into the tail as the count supports: what the percentile plot draws."""
    ordered = sorted(totals)
    shown = [p for p in CURVE + CURVE_TAIL if ordered and len(ordered) >= samples_needed(p)]
    return {"percentile": [float(p) for p in shown], "ms": [nearest_rank(ordered, p) for p in shown]}


def bundle_identity(manifest: Mapping[str, Any], sha256: str) -> dict[str, Any]:
    """What a reader needs to know of a bundle, to tell it from another."""
    model = manifest["model"]
    return {
        "name": manifest["name"],
        "sha256": sha256,
        "created": manifest["created"],
        "network": model["network"],
        "input_size": model["input_size"],
        "batch": model["batch"],
        "precision": manifest["precision"],
        "lowering": {key: value for key, value in manifest["lowering"].items() if key not in ELSEWHERE},
        "built_for": manifest["backend"],
        "gate": gate_verdict(manifest),
    }


def _notes(stages: Mapping[str, Any], query: Mapping[str, Any] | None, energy: Mapping[str, Any] | None) -> list[str]:
    """Why a figure is missing, or what it leaves out: in the report, not in a manual."""
    notes = []
    counts = {figures["count"] for figures in stages.values()}
    for percentile in PERCENTILES:
        short = [count for count in counts if count < samples_needed(percentile)]
        if short:
            needed = samples_needed(percentile)
            notes.append(f"p{percentile} is not given below {needed} samples; stages here have {_either(short)}")
    if query and query["p99"] is None:
        notes.append(f"the query latency's p99 needs {samples_needed('99')} queries, this run has {query['count']}")
    if stages and "decode" not in stages:
        notes.append("the images came decoded and resized from the bundle: there are no decode and preprocess stages")
    if energy:
        rails = " + ".join(energy["rails"])
        notes.append(f"energy is the mean of {rails} over the run, idle power included, divided by the images done")
    return notes


def _layer_notes(layers: Sequence[Mapping[str, Any]], backend_facts: Mapping[str, Any]) -> list[str]:
    if not layers or "layers" in backend_facts or backend_facts.get("engine") == "bundle":
        return []
    used = backend_facts.get("engine") or backend_facts.get("name")
    return [f"the layers are those of the engine in the bundle, which this run did not use (but: {used})"]


def _either(counts: Iterable[int]) -> str:
    ordered = sorted(counts)
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def verdict(report: Mapping[str, Any]) -> str:
    """The run in a sentence, and in one more where the machine throttled."""
    return f"{_headline(report)} {throttle_warning(report)}".rstrip()


def throttle_warning(report: Mapping[str, Any]) -> str:
    """That the machine throttled, when and by what; empty if it did not, or did not tell."""
    periods = report["time_series"]["throttled"]
    if not periods or periods == UNAVAILABLE:
        return ""
    found = next(taint["detail"] for taint in report["taints"] if taint["what"] == "throttling")
    begin, first_sample = periods[0]["from_s"], report["time_series"]["machine"]["t_s"][0]
    when = f"first {_figure(begin)} s into the run" if begin > first_sample else "from the start on"
    return f"The machine throttled, {when} ({found}): these figures are slower than what it can do."


def _headline(report: Mapping[str, Any]) -> str:
    """The figure that the run's scenario is about, with the percentile that its count supports."""
    done, throughput = report["counts"]["done"], report["throughput"]
    if not done:
        return "No image was classified, so there is nothing to time."
    speed = f"{_figure(throughput)} images/s"
    if report["scenario"] == "offline":
        return f"{speed} with the pipeline kept full ({done} images)."
    figures, noun = report["stages"]["total"], "images"
    if report["query"] is not None:
        per_query = report["settings"].get("samples_per_query")
        figures, noun = report["query"], f"queries of {per_query} images"
    wanted = {"single-stream": "90", "multi-stream": "99", "server": "99"}.get(report["scenario"], "99")
    given = [p for p in PERCENTILES if figures[f"p{p}"] is not None and float(p) <= float(wanted)]
    if not given:
        return f"{done} {'image was' if done == 1 else 'images were'} classified: too few for percentiles; {speed}."
    value = figures[f"p{given[-1]}"]
    return f"{given[-1]} % of {noun} were answered within {_figure(value)} ms; {speed}."


def _figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"
