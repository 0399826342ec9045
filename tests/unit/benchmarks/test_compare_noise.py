"""benchmarks.compare_noise: the slowed bundle is slowed by what it says, and the command runs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from benchmarks import compare_noise
from edge.backends import Outputs


class Backend:
    name, facts = "still", {}

    def __init__(self):
        self.closed = False

    def infer(self, images):
        return Outputs(np.zeros((len(images), 1), np.float32), None, None)

    def close(self):
        self.closed = True


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_slowed_backend_goes_on_for_its_share_of_the_call(monkeypatch, share):
    """The plain backend takes 1 by the clock: with a share of 0.1 the call ends at the first look after 1.1."""
    looks = itertools.chain([0.0, 1.0], itertools.count(1.0, 0.03))
    asked = []

    def clock():
        asked.append(next(looks))
        return asked[-1]

    monkeypatch.setattr(compare_noise.time, "perf_counter", clock)
    inner = Backend()
    with compare_noise.SlowedBackend(inner, share) as slowed:
        assert len(slowed.infer(np.zeros((2, 1, 4, 4), np.uint8)).logits) == 2
    assert inner.closed
    assert asked[-2] < 1 + share <= asked[-1]


def test_the_command_counts_what_was_right(monkeypatch, tiny_bundle_directory, capsys):
    found = {
        "verdict": "as expected.",
        "rows": [{"what": "infer, p50", "ratio": 1.0}],
        "log_ratios": [0.0],
        "taints": [{"what": "other load", "detail": "none"}],
    }
    answers = iter(["no difference", "slower", "no difference", "undecided"])
    monkeypatch.setattr(compare_noise, "compare", lambda *_, **__: {**found, "finding": next(answers)})
    monkeypatch.setattr("sys.argv", ["compare_noise", str(tiny_bundle_directory), "--rounds", "2"])
    assert compare_noise.main() == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"0%": "2 of 2 right", "10%": "1 of 2 right"}
