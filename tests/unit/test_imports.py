"""Who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"edge", "mdconv", "calibration", "build_engine"}
MAY_IMPORT = {
    "edge": {"edge"},
    "mdconv": {"mdconv", "edge"},
    "calibration": {"calibration", "edge"},
    "build_engine": {"build_engine", "mdconv", "calibration", "edge"},
}
HEAVY = {"torch", "onnx"}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and top-level module of each import in `source`, also of those inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the package's name"
            yield node.lineno, (node.module or "").split(".")[0]


def violations(package: str, source: str) -> list[tuple[int, str]]:
    forbidden = (OURS - MAY_IMPORT[package]) | (HEAVY if package == "edge" else set())
    return [(line, module) for line, module in imported(source) if module in forbidden]


@pytest.mark.parametrize("package", sorted(OURS))
def test_package_imports_only_what_it_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): violations(package, file.read_text()) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("edge", "import torch"),
        ("edge", "def f():\n    from onnx import helper"),
        ("edge", "from mdconv.layers import MDConv"),
        ("mdconv", "import calibration"),
        ("calibration", "import build_engine.make"),
    ],
)
def test_a_forbidden_import_is_found(package: str, source: str) -> None:
    assert violations(package, source)


@pytest.mark.parametrize(
    ("library", "modules"),
    [
        ("onnxruntime", ["edge/backends/onnxruntime.py"]),
        ("ray", ["edge/archive/cluster.py"]),
        ("pyarrow", ["edge/archive/cluster.py", "edge/archive/output.py"]),
    ],
)
def test_the_libraries_of_extras_stay_where_they_are_needed(library: str, modules: list[str]) -> None:
    users = [
        file
        for file in sorted((ROOT / "edge").rglob("*.py"))
        if library in {module for _, module in imported(file.read_text())}
    ]
    assert [file.relative_to(ROOT).as_posix() for file in users] == modules
