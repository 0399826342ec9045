from __future__ import annotations

import argparse

import pytest

from calibration.limits import DEFAULTS, HELP, NAMES, Limits, add_limit_options, limits_of
from edge.gate import CRITERIA


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_limit_options(made)
    return made


def test_every_criterion_has_a_limit_and_an_option() -> None:
    assert tuple(CRITERIA) == tuple(HELP) == NAMES == tuple(DEFAULTS.to_json())
    assert limits_of(parser().parse_args([])) == DEFAULTS == Limits()
    for number, name in enumerate(NAMES, start=1):
        option = f"--{name.replace('_', '-')}"
        wanted = {**DEFAULTS.to_json(), name: number / 8}
        assert limits_of(parser().parse_args([option, str(number / 8)])) == Limits(**wanted)
        assert f"{option} X" in parser().format_help()


def test_what_reaches_its_limit_or_is_not_known_exceeds_nothing() -> None:
    limits = Limits(0.1, 0.2, 0.3, 0.4)
    assert limits.exceeded(limits.to_json()) == []
    assert limits.exceeded(dict.fromkeys(NAMES)) == []
    for name, value in limits.to_json().items():
        assert limits.exceeded({**limits.to_json(), name: value + 1e-9}) == [name]


def test_a_drop_that_is_its_limit_but_for_rounding_passes() -> None:
    drop = 45 / 50 - 44 / 50
    assert drop > 0.02  # binary arithmetic
    assert Limits(max_sensitivity_drop=0.02).exceeded({"max_sensitivity_drop": drop}) == []


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "much"])
def test_a_limit_is_a_share(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([f"--max-changed-decisions={value}"])
    assert "--max-changed-decisions" in capsys.readouterr().err.splitlines()[-1]
