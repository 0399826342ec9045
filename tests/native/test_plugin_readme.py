"""plugin/README.md says what the code does: its tables are the code's, its files are there."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import re
from types import ModuleType

import pytest

from tests.native.build import PLUGIN, ROOT
from tests.native.layer import DTYPES
from tests.native.plugin_harness import FORMATS, TYPES, Plugin, Tensor, create, floats, ints, text

README = (PLUGIN / "README.md").read_text()


def section(name: str) -> list[list[str]]:
    """The cells of the tables between ``<!-- name -->`` and ``<!-- end -->``, without their rules."""
    body = README.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line.startswith("|")]
    return [row for row in rows if not set("".join(row)) <= {"-"}]


def plugin(dtype: str) -> Plugin:
    scales = {"x_scale": floats(0.1), "y_scale": floats(0.1)} if dtype == "int8" else {}
    fields = {"kernel_sizes": ints(3, 5), "channel_splits": ints(4, 4), "stride": ints(1), "activation": text("relu")}
    made = create({**fields, **scales})
    assert made is not None
    return made


def test_types_and_formats() -> None:
    """Every type of TensorRT's in every format is offered to the plugin; it takes those of the table."""
    taken = set()
    for dtype, layout in itertools.product(TYPES, FORMATS):
        node = plugin("int8" if dtype == "int8" else "float32")
        if node.supports(0, [Tensor((1, 8, 9, 9), dtype, layout)] * (5 if dtype == "int8" else 4)):
            taken.add((dtype, f"k{layout.upper()}"))
    assert taken == {(row[0], row[1]) for row in section("formats")[1:]}
    assert {row[0] for row in section("formats")[1:]} == set(DTYPES)


def test_instructions() -> None:
    with (PLUGIN / "instructions.csv").open() as file:
        assert section("instructions") == list(csv.reader(file))


def test_least_times_are_marked_and_reproduced() -> None:
    roofline = benchmark("kernel_roofline")
    tables = [row for dtype in ("int8", "float16") for row in roofline.table(dtype)]
    assert [tuple(row) for row in section("roofline")] == tables
    assert README.split("<!-- roofline -->")[1].count("modelled:") == 2


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named_files() -> list[str]:
    return sorted(set(re.findall(r"`((?:[\w.]+/)*\w+\.(?:cuh?|cpp|h|py|csv))`", README)))


@pytest.mark.parametrize("name", named_files())
def test_files_are_there(name: str) -> None:
    assert any((folder / name).is_file() for folder in (PLUGIN, ROOT)), name
