"""Measures two bundles against each other, side by side: short blocks of images in turns, on the same machine at once.

What the machine does meanwhile (clocks, heat, other programs) then meets both, and a ratio is told from far noisier
latencies than in two runs apart. Four blocks make one comparison, A B B A or B A A B by lot: what grows steadily
through them falls out. And both are opened anew many times, since where a backend happens to lie in memory and on which
cores its threads happen to run moves its latency by some per cent until it is closed: the interval is
told from how far whole openings lie apart, however long each is measured (Kalibera and Jones, ISMM 2013).
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.backends import Backend
from edge.bench import Progress
from edge.bench_load import WARM_UP, Load, warm_up
from edge.bundle import Bundle
from edge.errors import InputRefusedError, UsageError
from edge.gate import notice_of
from edge.intervals import CONFIDENCE, Interval, middle, of_groups
from edge.report.build import RESEARCH_USE, bundle_identity
from edge.report.compare import comparison_of, differences, row
from edge.report.taints import find_taints
from edge.results import STAGES
from edge.statistics import nearest_rank
from edge.telemetry import Sampler, machine_facts

MARGIN = 0.03
"""The smallest difference that matters, as a share, unless told."""

SETTLE = 1
"""Images of a block that are not timed: the caches hold what the other bundle left."""

IMAGES = 8
"""Timed images of a block, of fast bundles more."""

OPENINGS = 10
"""Openings at least; each is measured for so many parts of the duration."""

LEAST_FOURS, MOST_FOURS = 2, 15
"""Comparisons in an opening, at least and at most."""

LONGEST = 10
"""The run may take so many times its duration, if the machine is too noisy to tell earlier."""

SHARP = 1 / 3
"""The run goes on until its interval reaches no further, to either side, than this share of the margin. That looks at
the width alone and not at which bundle is ahead, so that stopping favours no answer."""

SEED = 0

Times = Mapping[str, list[float]]
"""Milliseconds of each stage of a block's timed images that were classified."""


class Four(NamedTuple):
    """One comparison: four blocks, two of each bundle."""

    blocks: Mapping[str, Sequence[Times]]

    def log_ratio(self, stage: str) -> float | None:
        """log(B / A) of the blocks' medians; None if a block has no time for the stage."""
        logs = {}
        for name, blocks in self.blocks.items():
            medians = [float(np.median(times.get(stage, [0.0]))) for times in blocks]
            if min(medians) <= 0:
                return None
            logs[name] = sum(map(math.log, medians)) / len(medians)
        return logs["b"] - logs["a"]


def run_against(
    a: tuple[Bundle, Callable[[], Backend]],
    b: tuple[Bundle, Callable[[], Backend]],
    images: Sequence[Path] = (),
    duration: float = 10.0,
    *,
    margin: float = MARGIN,
    guard: bool = True,
    seed: int = SEED,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run two bundles, each with what opens its backend, in turns, and return their comparison.

    They are measured for `duration` seconds at least, and up to `LONGEST` times as long until the interval is sharp
    enough to tell a ratio of 1 from one beyond the `margin` (0.03: 3 %). One image is under way at a time; both get the
    same `images` or, without any, each its own golden inputs. `seed` draws the orders.

    Raises `UsageError` for a duration or margin that is not positive; `InputRefusedError` if none of the images can be
    used by both; what opening and running a backend raises.
    """
    _check(duration, margin)
    race = _Race({"a": a, "b": b}, images, guard, duration, random.Random(seed))
    with Sampler() as sampler:
        while not race.is_over(margin):
            race.open_and_measure()
            if progress is not None:
                progress("measuring", int(race.measured), math.ceil(max(duration, race.measured)))
    if not any(race.openings):
        raise InputRefusedError("no block had an image that both bundles could use: give --images that they take")
    machine = machine_facts()
    taints = find_taints(machine, sampler.samples)
    interval = of_groups(log_ratios(race.openings, "total"))
    finding = judge(interval, margin)
    return comparison_of(
        race.sides,
        list(_rows(race.openings)),
        paired=True,
        verdict=in_words(finding, interval, margin),
        warnings=list(differences(race.sides["a"], race.sides["b"])),
        notes=list(_notes(race, taints)),
        finding=finding,
        margin=margin,
        settings={
            "duration_s": duration,
            "images": " and ".join(race.given),
            "warm_up_images": WARM_UP,
            "generator": "own",
            "seed": seed,
            **({} if guard else {"guard": "off"}),
        },
        machine=machine,
        taints=taints,
        log_ratios=[round(middle(ratios), 6) for ratios in log_ratios(race.openings, "total") if len(ratios)],
    )


def _check(duration: float, margin: float) -> None:
    if not 0 < duration < math.inf:
        raise UsageError(f"duration {duration:g} is not a positive number of seconds: give one, such as 10")
    if not 0 < margin < 1:
        raise UsageError(f"a margin of {100 * margin:g} % is not between 0 and 100: give the smallest that matters")


class _Race:
    """Two bundles that are opened and measured together, again and again."""

    def __init__(
        self,
        runners: Mapping[str, tuple[Bundle, Callable[[], Backend]]],
        images: Sequence[Path],
        guard: bool,
        duration: float,
        lots: random.Random,
    ) -> None:
        self.openings: list[list[Four]] = []
        self.measured = 0.0
        """Seconds that were measured, opening and warm-up left out."""
        self.sides: dict[str, dict[str, Any]] = {}
        self.given: tuple[str, ...] = ()
        """What images they were given."""
        self.count = 0
        """Timed images of a block."""
        self._runners, self._images, self._guard = runners, images, guard
        self._duration, self._lots = duration, lots

    def is_over(self, margin: float) -> bool:
        if len(self.openings) < OPENINGS:
            return False
        if self.measured >= LONGEST * self._duration:
            return True
        interval = of_groups(log_ratios(self.openings, "total"))
        return interval is not None and math.log(interval.high / interval.low) / 2 <= SHARP * math.log1p(margin)

    def open_and_measure(self) -> None:
        """Open both, in an order by lot, warm them up, and let them take turns for one part of the duration."""
        loads: dict[str, Load] = {}
        with contextlib.ExitStack() as stack:
            for name in self._lots.sample("ab", 2):  # one after the other: the first load may build an engine
                bundle, opener = self._runners[name]
                loads[name] = Load(bundle, opener, self._images, self._guard)
                stack.enter_context(loads[name].pipeline).wait_until_open()
            for load in loads.values():
                warm_up(load)
            if not self.sides:
                self.sides = {name: _side(self._runners[name][0], loads[name]) for name in sorted(loads)}
                self.given = tuple(dict.fromkeys(_given(loads[name], self._images) for name in sorted(loads)))
                self.count = self._images_a_block(loads)
            self.openings.append(self._measure(loads))

    def _images_a_block(self, loads: Mapping[str, Load]) -> int:
        """`IMAGES`, or as many more as keep the number of comparisons in an opening below `MOST_FOURS`."""
        start = time.monotonic()
        for load in loads.values():
            _block(load, WARM_UP)
        each = (time.monotonic() - start) / (2 * (SETTLE + WARM_UP))
        return max(IMAGES, math.ceil(self._duration / OPENINGS / MOST_FOURS / 4 / each) - SETTLE)

    def _measure(self, loads: Mapping[str, Load]) -> list[Four]:
        """Fours for one part of the duration. One with a block without a result is left out."""
        fours: list[Four] = []
        start, tried = time.monotonic(), 0
        while tried < LEAST_FOURS or time.monotonic() - start < self._duration / OPENINGS:
            blocks: dict[str, list[Times]] = {"a": [], "b": []}
            for name in self._lots.choice(("abba", "baab")):
                blocks[name].append(_block(loads[name], self.count))
            four = Four(blocks)
            if four.log_ratio("total") is not None:
                fours.append(four)
            tried += 1
        self.measured += time.monotonic() - start
        return fours


def _block(load: Load, count: int) -> Times:
    """One image after the other, `SETTLE` and then `count` that are timed."""
    times: dict[str, list[float]] = {}
    for number in range(SETTLE + count):
        load.submit()
        result = load.collect(1)[0]
        if number >= SETTLE and result["status"] == "done":
            for stage, milliseconds in result["timings_ms"].items():
                times.setdefault(stage, []).append(milliseconds)
    return times


def log_ratios(openings: Sequence[Sequence[Four]], stage: str) -> list[NDArray[np.float64]]:
    """log(B / A) of the stage's median in each four that has it, (n,) an opening."""
    found = ([ratio for four in fours if (ratio := four.log_ratio(stage)) is not None] for fours in openings)
    return [np.array(ratios) for ratios in found]


def judge(interval: Interval | None, margin: float) -> str:
    """``no difference``, ``slower`` or ``faster`` (of B), or ``undecided``.

    No difference is a finding of its own, not a failure to find one: the whole interval lies within the margin (two
    one-sided tests; Schuirmann 1987). Slower and faster: the whole interval lies on one side of 1, and not so.
    """
    if interval is None:
        return "undecided"
    if 1 / (1 + margin) <= interval.low and interval.high <= 1 + margin:
        return "no difference"
    return "slower" if interval.low > 1 else "faster" if interval.high < 1 else "undecided"


def in_words(finding: str, interval: Interval | None, margin: float) -> str:
    """The verdict in one sentence, or two."""
    if interval is None:
        return "Undecided: too few blocks for an interval. Give a longer --duration."
    matters = f"the {100 * margin:g} % that matter"
    span = f"{100 * CONFIDENCE:g} % interval"
    ratio = f"{interval.ratio:.3f} times as long as A ({span} {interval.low:.3f} to {interval.high:.3f})"
    if finding == "no difference":
        return f"No difference: B takes {ratio}, within {matters}."
    if finding == "undecided":
        return f"Undecided: B takes {ratio}; a difference beyond {matters} is not ruled out. Give a longer --duration."
    shares = [100 * abs(ratio - 1) for ratio in interval]
    least, most = sorted(shares[1:])
    open_ = "" if least > 100 * (1 - 1 / (1 + margin)) else f" It may be less than {matters}."
    return f"B is {finding} by {shares[0]:.1f} % ({span} {least:.1f} to {most:.1f} %).{open_}"


def _rows(openings: Sequence[Sequence[Four]]) -> Iterator[dict[str, Any]]:
    """The median of each stage that both have, end to end first."""
    fours = [four for opening in openings for four in opening]
    for stage in ("total", *(stage for stage in STAGES if stage != "total"), "gpu"):
        a, b = (
            sorted(value for four in fours for times in four.blocks[name] for value in times.get(stage, []))
            for name in ("a", "b")
        )
        if a and b:
            interval = of_groups(log_ratios(openings, stage))
            yield row(f"{stage}, p50", "ms", nearest_rank(a, "50"), nearest_rank(b, "50"), interval)


def _side(bundle: Bundle, load: Load) -> dict[str, Any]:
    return {
        "notice": notice_of(bundle.manifest, RESEARCH_USE),
        "bundle": bundle_identity(bundle.manifest, bundle.sha256),
        "backend": {
            "name": load.pipeline.backend_name,
            **{key: value for key, value in load.pipeline.backend_facts.items() if key != "layers"},
        },
    }


def _given(load: Load, images: Sequence[Path]) -> str:
    return f"{load.distinct} {'files' if images else 'golden inputs of the bundle'}"


def _notes(race: _Race, taints: Sequence[Mapping[str, str]]) -> Iterator[str]:
    yield (
        f"both were opened {len(race.openings)} times and compared {sum(map(len, race.openings))} times, each in four "
        f"blocks of {SETTLE} untimed and {race.count} timed images, A B B A or B A A B by lot, one image under way"
    )
    yield (
        "a comparison is the ratio of the blocks' medians; the ratio is the middle of all comparisons (Hodges and "
        "Lehmann), its interval comes from leaving out one opening at a time (jackknife)"
    )
    for taint in taints:
        if taint["state"] == "tainted":
            yield f"while it ran: {taint['what']} ({taint['detail']}); it met both bundles alike"
