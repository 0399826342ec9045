"""How far a bundle may be from float32 before the accuracy gate fails it: the limits, and their options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Limits:
    """The most that is allowed of each of `edge.gate.CRITERIA`; a value that reaches its limit passes.

    The fields have the names of the options of ``make.py`` and ``calibration.regate``, and of the manifest.
    """

    max_auc_drop: float = 0.01
    max_mean_difference: float = 0.01
    max_changed_decisions: float = 0.02
    max_sensitivity_drop: float = 0.02

    def to_json(self) -> dict[str, float]:
        """As the manifest's gate entry has them."""
        return asdict(self)

    def exceeded(self, figures: Mapping[str, float | None]) -> list[str]:
        """Names of the limits that `figures`, by the same names, go beyond; what is not known goes beyond none."""
        allowed = self.to_json()
        # A difference of shares is not exact: 0.90 - 0.88 is 0.020000000000000018 in binary arithmetic.
        return [name for name, value in figures.items() if value is not None and value > allowed[name] + _ROUNDING]


DEFAULTS = Limits()
_ROUNDING = 1e-12
HELP = {
    "max_auc_drop": "mean AUC that may be lost against float32",
    "max_mean_difference": "how far a probability may be from float32's on average",
    "max_changed_decisions": "share of decisions (image by finding, at the thresholds) that may differ from float32's",
    "max_sensitivity_drop": "mean sensitivity, at the thresholds, that may be lost against float32",
}
NAMES = tuple(field.name for field in fields(Limits))


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """An option for each limit, from ``--max-auc-drop`` on."""
    defaults = DEFAULTS.to_json()
    for name, what in HELP.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=fraction,
            default=defaults[name],
            metavar="X",
            help=f"{what} (default: %(default)s)",
        )


def limits_of(options: argparse.Namespace) -> Limits:
    """What the options say."""
    return Limits(**{name: getattr(options, name) for name in NAMES})


def fraction(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
