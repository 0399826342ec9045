"""Write phantoms as a folder in the layout of ChestX-ray14.

    python -m mdconv.data.phantom --output DIR --count N --seed S [--size 1024]

Case i is the phantom of seed S + i. `labels.csv` beside the 8-bit gray PNGs has the columns `Image Index`,
`Finding Labels` (joined by "|", or "No Finding") and `Patient ID`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edge.errors import EdgeError, UsageError
from mdconv.data.phantom import DEMO_SEEDS
from mdconv.data.phantom.folder import write_folder


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mdconv.data.phantom", description="Write synthetic chest radiographs."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=int, required=True, help="number of images")
    parser.add_argument("--seed", type=int, default=DEMO_SEEDS.start, help="seed of the first (default: %(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="pixels a side (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.count < 1 or options.seed < 0 or not 32 <= options.size <= 4096:
            raise UsageError(
                f"--count {options.count} --seed {options.seed} --size {options.size}: "
                "expected a count of 1 or more, a seed of 0 or more and a size from 32 to 4096"
            )
        write_folder(options.output, options.count, options.seed, options.size)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(f"{options.output}: {options.count} synthetic phantoms and labels.csv; research use only")
    return 0


if __name__ == "__main__":
    sys.exit(main())
