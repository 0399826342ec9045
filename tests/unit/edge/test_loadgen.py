"""LoadGen as the generator of edge.bench, on backends of a known pace; its own log is the reference for our figures."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.bench import SAMPLES_PER_QUERY, WARM_UP, run_bench
from edge.bench_load import Load, warm_up
from edge.bundle import Bundle
from edge.errors import MachineError, UsageError
from edge.statistics import nearest_rank
from tests.unit.edge.test_bench import SCENARIOS, PacedBackend

loadgen = pytest.importorskip("edge.loadgen", reason="LoadGen is not installed: pip install 'mdconv-edge[bench]'")


@pytest.fixture
def paced(tiny_bundle: Bundle) -> Callable[..., Callable[[], Any]]:
    return lambda seconds, **options: lambda: PacedBackend(len(tiny_bundle.labels), seconds, **options)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_is_reported_as_one_of_our_own(
    tiny_bundle: Bundle, paced: Callable[..., Callable[[], Any]], scenario: str
) -> None:
    rate = 100.0 if scenario == "server" else None
    reports = {
        generator: run_bench(tiny_bundle, paced(0.002), scenario=scenario, duration=0.4, rate=rate, generator=generator)
        for generator in ("loadgen", "own")
    }
    ours, theirs = reports["own"], reports["loadgen"]
    assert theirs["settings"]["generator"].startswith("mlcommons-loadgen ")
    assert ours["settings"]["generator"] == "own"
    assert theirs["counts"]["done"] > 10
    assert theirs["counts"]["refused"] == 0
    assert theirs["stages"].keys() == ours["stages"].keys()
    assert theirs["settings"].keys() - ours["settings"].keys() == set()
    if scenario == "multi-stream":
        assert theirs["counts"]["done"] == theirs["query"]["count"] * SAMPLES_PER_QUERY
        assert theirs["query"]["mean"] >= 16  # the backend alone takes 2 ms for each of the 8 images


@pytest.fixture
def load(tiny_bundle: Bundle, paced: Callable[..., Callable[[], Any]]) -> Iterator[Load]:
    load = Load(tiny_bundle, paced(0.01), (), guard=True)
    with load.pipeline:
        warm_up(load)
        yield load


@pytest.mark.parametrize(("scenario", "rate"), [("single-stream", 1.0), ("server", 60.0)])
def test_our_percentiles_are_those_of_its_own_log(load: Load, scenario: str, rate: float) -> None:
    generator = loadgen.Generator(load, scenario, 2.0, rate, SAMPLES_PER_QUERY)
    generator.run(lambda: None)
    totals = sorted(result["timings_ms"]["total"] for result in generator.results)
    for percentile in ("50", "90"):
        found = re.search(rf"^{percentile}\.00 percentile latency \(ns\)\s*: (\d+)", generator.summary, re.MULTILINE)
        assert found is not None, generator.summary
        assert nearest_rank(totals, percentile) == pytest.approx(int(found[1]) / 1e6, rel=0.03)


def test_both_generators_find_the_same_latency(tiny_bundle: Bundle, paced: Callable[..., Callable[[], Any]]) -> None:
    """In turns, on a backend that takes 40 ms: p50 and p90 agree within 3 %, each the least of some runs.

    What else the machine does can only add to a latency.
    """
    found: dict[str, list[tuple[float, float]]] = {"loadgen": [], "own": []}
    for _ in range(5):
        for generator, figures in found.items():
            report = run_bench(tiny_bundle, paced(0.04), duration=1.0, generator=generator)
            figures.append((report["stages"]["total"]["p50"], report["stages"]["total"]["p90"]))
    for theirs, ours in zip(zip(*found["loadgen"]), zip(*found["own"])):
        assert min(theirs) == pytest.approx(min(ours), rel=0.03)


def test_a_backend_that_fails_ends_the_run(tiny_bundle: Bundle, paced: Callable[..., Callable[[], Any]]) -> None:
    for scenario in SCENARIOS:
        with pytest.raises(MachineError, match="the device went away"):
            run_bench(
                tiny_bundle,
                paced(0.001, fails_after=4 * WARM_UP if scenario in ("single-stream", "multi-stream") else 2000),
                scenario=scenario,
                duration=3.0,
                rate=900.0 if scenario == "server" else None,
                generator="loadgen",
            )


def test_an_unknown_generator_is_wrong_use(tiny_bundle: Bundle, paced: Callable[..., Callable[[], Any]]) -> None:
    with pytest.raises(UsageError, match="is none of auto, loadgen, own"):
        run_bench(tiny_bundle, paced(0.001), generator="dice")


def test_without_loadgen_our_own_sends(
    tiny_bundle: Bundle, paced: Callable[..., Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "edge.loadgen", None)
    monkeypatch.delattr("edge.loadgen")
    assert run_bench(tiny_bundle, paced(0.001), duration=0.1)["settings"]["generator"] == "own"
    with pytest.raises(MachineError, match=r"pip install 'mdconv-edge\[bench\]'"):
        run_bench(tiny_bundle, paced(0.001), duration=0.1, generator="loadgen")


def test_an_interrupt_ends_it_at_once_with_its_status(tiny_bundle: Bundle) -> None:
    command = [Path(sys.executable).with_name("edge-infer"), "bench", "--bundle", tiny_bundle.directory]
    command += ["--backend", "onnxruntime", "--generator", "loadgen", "--duration", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "measuring" not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "edge-infer: interrupted"
