"""Does a comparison tell no difference from ten per cent, on a machine where other programs run?

    python -m benchmarks.compare_noise out/mobilenet_v2-int8-onnxruntime [--rounds 10] [--seconds 10]

Runs what `edge-infer bench --against` runs, `--rounds` times with the same bundle on both sides, and as often with one
of them slowed: after each call its backend computes on for a tenth of the time that the call took. The two kinds take
turns. Right is "no difference" for the first, and for the second "slower". Prints each verdict and how many were right.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backends import CHOICES, Backend, Outputs, open_backend
from edge.bench_against import run_against
from edge.bundle import load_bundle

SLOWED = 0.10

RIGHT = {0.0: "no difference", SLOWED: "slower"}
"""The verdict that is right, by how much B is slowed."""


class SlowedBackend:
    """Another backend whose every call takes longer by a share of the time that it took."""

    def __init__(self, backend: Backend, share: float) -> None:
        self._backend = backend
        self._share = share
        self.name = backend.name
        self.facts = backend.facts

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        start = time.perf_counter()
        outputs = self._backend.infer(images)
        end = time.perf_counter()
        while time.perf_counter() < end + self._share * (end - start):
            pass  # a sleep would be longer than asked, by as much as is to be found
        return outputs

    def close(self) -> None:
        self._backend.close()

    def __enter__(self) -> SlowedBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def compare(directory: Path, backend: str, share: float, seconds: float, seed: int) -> dict[str, Any]:
    """The comparison of a bundle with itself, `share` slower."""
    bundle = load_bundle(directory)
    plain: Callable[[], Backend] = functools.partial(open_backend, bundle, backend)
    slowed = plain if share == 0 else lambda: SlowedBackend(plain(), share)
    return run_against((bundle, plain), (bundle, slowed), duration=seconds, seed=seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", choices=CHOICES, default="auto")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="the least that one comparison takes")
    options = parser.parse_args()
    right = dict.fromkeys(RIGHT, 0)
    for number in range(options.rounds):
        for share, expected in RIGHT.items():
            start = time.monotonic()
            found = compare(options.bundle, options.backend, share, options.seconds, seed=number)
            right[share] += found["finding"] == expected
            rows = {row["what"]: row for row in found["rows"]}
            other = next(taint["detail"] for taint in found["taints"] if taint["what"] == "other load")
            print(
                f"{share:.0%} slower: {found['verdict']} infer {rows['infer, p50']['ratio']:.3f}; "
                f"{len(found['log_ratios'])} openings in {time.monotonic() - start:.0f} s; {other}; "
                f"load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    print(json.dumps({f"{share:.0%}": f"{count} of {options.rounds} right" for share, count in right.items()}))
    return 0 if all(count == options.rounds for count in right.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
