"""What nvcc makes of the kernels for Jetson Orin (sm_87): registers, and instructions an output element.

    python benchmarks/kernel_instructions.py [--write]

Builds the plugin (nvcc, CMake) and takes it apart (cuobjdump). The figures are those of the straight-line arithmetic of
a 3x3 and of a 5x5 kernel, weights loaded and results finished, and their mean: half of the channels each. --write
records them in plugin/instructions.csv, with which tests/native/test_compiled.py compares.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.native.real_plugin import real_plugin  # noqa: E402
from tests.native.sass import instructions_per_output, resources  # noqa: E402

HEAD = ("type", "layout", "stride", "rows", "registers", "3x3", "5x5", "mean")


def rows(library: Path) -> list[tuple[str, ...]]:
    registers = resources(library, "87")
    table = []
    for instance, figures in sorted(instructions_per_output(library, "87").items()):
        mean = (figures[3] + figures[5]) / 2
        facts = (instance.dtype, instance.layout, instance.stride, instance.rows, registers[instance].registers)
        table.append((*map(str, facts), *(f"{value:.2f}" for value in (figures[3], figures[5], mean))))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record the figures in plugin/instructions.csv")
    options = parser.parse_args()
    try:
        table = rows(real_plugin())
    except pytest.skip.Exception as missing:
        sys.exit(f"kernel_instructions: {missing}")
    print(f"| {' | '.join(HEAD)} |")
    print("|---" * len(HEAD) + "|")
    for row in table:
        print(f"| {' | '.join(row)} |")
    if options.write:
        with (ROOT / "plugin" / "instructions.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEAD, *table])


if __name__ == "__main__":
    main()
