"""Measures a bundle under the four load scenarios of MLPerf Inference (Reddi et al., ISCA 2020), on the real pipeline.

The whole path is timed, from an image's arrival to its result: reading and decoding too, if files are given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge.backends import Backend
from edge.bench_load import WARM_UP, Load, require_done, warm_up
from edge.bundle import Bundle
from edge.errors import MachineError, UsageError
from edge.rate_search import Trial, describe, highest_rate
from edge.report import build_report
from edge.statistics import nearest_rank, samples_needed
from edge.telemetry import Sampler, machine_facts

SAMPLES_PER_QUERY = 8
"""Images of one multi-stream query, as MLPerf Inference has it."""

SEED = 0

GENERATORS = ("auto", "loadgen", "own")

TRIAL_SECONDS = 5.0
"""The least that one rate is tried, in the search for the highest."""

CONFIRMATIONS, SLOWER = 5, 0.97
"""Whole runs at most that may have to confirm a rate, each of them slower by this factor."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many seconds of it are over."""


@dataclass
class Measured:
    """What a scenario did."""

    results: list[dict[str, Any]] = field(default_factory=list)
    query_ms: list[float] | None = None
    """Latency of each query, where a query is more than one image."""
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class _Run:
    """The seconds that are measured, told to whoever shows progress."""

    def __init__(self, scenario: str, duration: float, rate: float, progress: Progress | None) -> None:
        self.scenario = scenario
        self.start = time.monotonic()
        self.duration = duration
        self.rate = rate
        """Mean number of images a second that a server is sent."""
        self._progress = progress

    def restart(self) -> None:
        self.start = time.monotonic()

    def goes_on(self) -> bool:
        """Whether the run's duration is not over."""
        elapsed = time.monotonic() - self.start
        if self._progress is not None:
            self._progress("measuring", min(int(elapsed), int(self.duration)), int(self.duration))
        return elapsed < self.duration


def run_bench(
    bundle: Bundle,
    open_backend: Callable[[], Backend],
    images: Sequence[Path] | None = None,
    scenario: str = "single-stream",
    duration: float = 10.0,
    *,
    rate: float | None = None,
    target_p99_ms: float | None = None,
    generator: str = "auto",
    guard: bool = True,
    progress: Progress | None = None,
    root: Path = Path("/"),
) -> dict[str, Any]:
    """Run `scenario` for `duration` seconds and return its report (`edge.report.build_report`).

    `images` are files, used over and over in their order; without any it takes the bundle's golden inputs, which are
    decoded and resized already. `rate` is the server scenario's mean number of images a second (None: half of what a
    short burst shows the pipeline to do), or with `target_p99_ms` the highest at which 99 % of the images have their
    result in that time: it is searched for in shorter runs, and the report is that of a whole run at it. `generator` is
    who decides when images are sent: ``loadgen`` (`edge.loadgen`), ``own``, or ``auto``, LoadGen where it is installed.
    `guard` is that of `edge.pipeline.Pipeline`; the report says where it is off. The warm-up is not part of the report.
    `root` is where the machine's own files are read (`edge.telemetry`).

    Raises `UsageError` for an unknown scenario, or a duration, rate or target that is not positive;
    `InputRefusedError` if none of the images can be used; `MachineError` if no rate meets the target; what opening and
    running the backend raises.
    """
    _check(scenario, duration, rate, target_p99_ms)
    send = _sender(generator)
    load = Load(bundle, open_backend, images or (), guard)
    with load.pipeline:
        warm_up(load)
        if target_p99_ms is not None:
            measured, wall_seconds, samples = _run_at_highest_rate(load, send, target_p99_ms, duration, progress, root)
        else:
            if scenario == "server" and rate is None:
                rate = _burst_rate(load) / 2
            run = _Run(scenario, duration, rate or 0.0, progress)
            measured, wall_seconds, samples = _run_whole(load, send, run, root)
    require_done(measured.results)
    return build_report(
        measured.results,
        kind="bench",
        scenario=scenario,
        wall_seconds=wall_seconds,
        bundle_manifest=bundle.manifest,
        bundle_sha256=bundle.sha256,
        backend_facts={"name": load.pipeline.backend_name, **load.pipeline.backend_facts},
        machine_facts=machine_facts(root),
        samples=samples,
        settings={
            "duration_s": duration,
            "images": f"{load.distinct} {'golden inputs of the bundle' if not images else 'files'}",
            "warm_up_images": WARM_UP,
            **({} if guard else {"guard": "off"}),
            **measured.settings,
        },
        query_ms=measured.query_ms,
        notes=measured.notes,
    )


def _sender(generator: str) -> Send:
    """How a scenario is sent. Raises `UsageError` for an unknown generator, `MachineError` for one that is missing."""
    if generator not in GENERATORS:
        raise UsageError(f"generator {generator!r} is none of {', '.join(GENERATORS)}")
    if generator != "own":
        try:
            from edge import loadgen  # noqa: F401
        except ImportError as error:
            if generator == "loadgen":
                raise MachineError(f"LoadGen cannot be loaded ({error}): pip install 'mdconv-edge[bench]'") from None
        else:
            return _send_by_loadgen
    return _send_ourselves


def _send_ourselves(load: Load, run: _Run) -> Measured:
    measured = SCENARIOS[run.scenario](load, run)
    measured.settings["generator"] = "own"
    return measured


def _send_by_loadgen(load: Load, run: _Run) -> Measured:
    from edge import loadgen

    rate = run.rate or (_burst_rate(load) if run.scenario == "offline" else 1.0)
    run.restart()
    generator = loadgen.Generator(load, run.scenario, run.duration, rate, SAMPLES_PER_QUERY)
    generator.run(run.goes_on)
    measured = Measured(generator.results, settings={"generator": loadgen.version()})
    if run.scenario == "multi-stream":
        totals = {result["id"]: result["timings_ms"]["total"] for result in generator.results}
        measured.query_ms = [max(totals[image] for image in query) for query in generator.queries]
        measured.settings["samples_per_query"] = SAMPLES_PER_QUERY
    if run.scenario == "server":
        sent = len(generator.results)
        measured.settings |= {"rate": rate, "due": sent + generator.unsent, "sent": sent}
        measured.notes += _behind(measured)
    return measured


def _run_whole(load: Load, send: Send, run: _Run, root: Path) -> tuple[Measured, float, list[dict[str, Any]]]:
    """What the scenario did, in how many seconds, and the machine's samples beside it."""
    with Sampler(root=root) as sampler:
        run.restart()
        measured = send(load, run)
        wall_seconds = time.monotonic() - run.start
    return measured, wall_seconds, sampler.samples


def _run_at_highest_rate(
    load: Load, send: Send, target_ms: float, duration: float, progress: Progress | None, root: Path
) -> tuple[Measured, float, list[dict[str, Any]]]:
    """A server's run at the highest rate that meets the target; slower, a little at a time, where a whole run does not.

    Raises `MachineError` if no rate that was tried meets it.
    """

    def seconds(rate: float, least: float) -> float:
        return max(least, 1.2 * samples_needed("99") / rate)

    def try_rate(rate: float) -> float:
        return _p99_ms(_server(load, _Run("server", seconds(rate, TRIAL_SECONDS), rate, progress)))

    rate, trials = highest_rate(try_rate, _burst_rate(load), target_ms)
    if rate is None:
        raise MachineError(
            f"no rate meets a 99th percentile of {target_ms:g} ms ({describe(trials)}): give a longer --target-p99"
        )
    for _ in range(CONFIRMATIONS):
        run = _Run("server", seconds(rate, duration), rate, progress)
        measured, wall_seconds, samples = _run_whole(load, send, run, root)
        found = _p99_ms(measured)
        if found <= target_ms:
            break
        trials.append(Trial(rate, found))
        rate *= SLOWER
    else:
        measured.notes.append(
            f"the target of {target_ms:g} ms was met in shorter runs, and not in {CONFIRMATIONS} whole ones"
        )
    measured.settings |= {"target_p99_ms": target_ms, "tried": describe(trials)}
    return measured, wall_seconds, samples


def _p99_ms(measured: Measured) -> float:
    """The 99th percentile of a server's run; infinite where not all images were sent, or too few were done."""
    totals = sorted(result["timings_ms"]["total"] for result in measured.results if result["status"] == "done")
    if measured.settings["sent"] < measured.settings["due"] or len(totals) < samples_needed("99"):
        return math.inf
    return nearest_rank(totals, "99")


def _check(scenario: str, duration: float, rate: float | None, target_p99_ms: float | None) -> None:
    if scenario not in SCENARIOS:
        raise UsageError(f"scenario {scenario!r} is none of {', '.join(SCENARIOS)}")
    if not 0 < duration < math.inf:
        raise UsageError(f"duration {duration:g} is not a positive number of seconds: give one, such as 10")
    for what, value in (("rate", rate), ("target of the 99th percentile", target_p99_ms)):
        if value is not None and scenario != "server":
            raise UsageError(f"a {what} is for the scenario server, not {scenario}: leave it out, or take server")
    if target_p99_ms is not None and (rate is not None or not 0 < target_p99_ms < math.inf):
        raise UsageError(
            f"a target of {target_p99_ms:g} ms, expected a positive number and no rate, which is then looked for"
        )
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(f"rate {rate:g} is not a positive number of images a second: give one, or leave it out")


def _burst_rate(load: Load) -> float:
    """Images a second that the pipeline does when it is kept full, from a second's try."""
    start, sent = time.monotonic(), 0
    while time.monotonic() < start + 1 or sent < WARM_UP:
        load.submit()
        sent += 1
    load.collect(sent)
    return sent / (time.monotonic() - start)


def _single_stream(load: Load, run: _Run) -> Measured:
    """The next image is sent when the one before it has its result."""
    measured = Measured()
    while not measured.results or run.goes_on():
        load.submit()
        measured.results += load.collect(1)
    return measured


def _multi_stream(load: Load, run: _Run) -> Measured:
    """Queries of `SAMPLES_PER_QUERY` images, each sent when all of the one before have results; the last one counts."""
    measured = Measured(query_ms=[], settings={"samples_per_query": SAMPLES_PER_QUERY})
    assert measured.query_ms is not None
    while not measured.results or run.goes_on():
        received = time.monotonic()
        for _ in range(SAMPLES_PER_QUERY):
            load.submit(received)
        query = load.collect(SAMPLES_PER_QUERY)
        measured.query_ms.append(max(result["timings_ms"]["total"] for result in query))
        measured.results += query
    return measured


def _server(load: Load, run: _Run) -> Measured:
    """Images are due at the moments of a Poisson process, drawn beforehand, and timed from when they were due.

    So an image that had to wait for those before it counts its wait: no coordinated omission. If the pipeline falls
    behind by the run's whole duration the rest is not sent, and the report says so.
    """
    gaps = np.random.default_rng(SEED).exponential(1 / run.rate, size=max(1, round(run.rate * run.duration)))
    due = (run.start + np.cumsum(gaps)).tolist()
    sent = 0
    for moment in due:
        time.sleep(max(0.0, moment - time.monotonic()))
        if time.monotonic() - moment > run.duration:
            break
        load.submit(moment)
        sent += 1
        run.goes_on()
    measured = Measured(load.collect(sent), settings={"rate": run.rate, "seed": SEED, "due": len(due), "sent": sent})
    measured.notes += _behind(measured)
    return measured


def _behind(measured: Measured) -> list[str]:
    due, sent = measured.settings["due"], measured.settings["sent"]
    return [f"the pipeline did not keep up: {due - sent} of {due} images due were never sent"] if sent < due else []


def _offline(load: Load, run: _Run) -> Measured:
    """Images are sent as fast as the pipeline takes them; each is timed from when it was taken."""
    sent = 0
    while not sent or run.goes_on():
        load.submit()
        sent += 1
    return Measured(load.collect(sent))


Send = Callable[[Load, _Run], Measured]

SCENARIOS: dict[str, Send] = {
    "single-stream": _single_stream,
    "multi-stream": _multi_stream,
    "server": _server,
    "offline": _offline,
}
