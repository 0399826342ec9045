"""What the docs name exists: commands, options, files, pages."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mdconv.cost_table import compare
from mdconv.data.box_statistics import read_sizes, summarise

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}


def help_of(*command: str) -> str:
    shown = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
    return shown.stdout


def helps_of(modules: list[str]) -> dict[str, str]:
    """What ``python -m`` shows for each module, in one process: each of its own would import torch again."""
    code = """
import contextlib, io, json, runpy, sys
shown = {}
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            assert not ended.code, (module, ended.code)
    shown[module] = output.getvalue()
print(json.dumps(shown))
"""
    command = [sys.executable, "-c", code, *modules]
    shown: dict[str, str] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True).stdout)
    return shown


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every line in a code block; lines that end in a backslash are joined."""
    found = []
    for page, text in TEXT.items():
        for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL):
            found += [(page, line.split("#")[0].strip()) for line in block.replace("\\\n", " ").splitlines()]
    return found


def options_of(prefix: str) -> list[tuple[str, str, str]]:
    """(page, subcommand or module or "", option) for each option given to a command that contains `prefix`."""
    found = []
    for page, line in commands():
        if prefix in line:
            words = line.split(prefix, 1)[1].split()
            first = words[0] if words and not words[0].startswith("-") else ""
            found += [(page, first, word.split("=")[0]) for word in words if word.startswith("--")]
    return found


@pytest.mark.parametrize("page", sorted(TEXT))
def test_links_and_paths_exist(page: str) -> None:
    here = (ROOT / page).parent
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXT[page]) if "://" not in link]
    assert [link for link in links if not (here / link).exists()] == []
    named = re.findall(r"`((?:edge|mdconv|calibration|build_engine|benchmarks|tests|docs)/[\w./]*)`", TEXT[page])
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_options_of_make_exist() -> None:
    shown = help_of("build_engine/make.py")
    given = options_of("build_engine/make.py")
    assert len(given) >= 3
    assert [option for option in given if option[2] not in shown] == []
    table = re.findall(r"^\| `(--[a-z0-9-]+)", TEXT["docs/build.md"], re.MULTILINE)
    assert [option for option in table if option not in shown] == []
    documented = set(re.findall(r"--[a-z0-9-]+", TEXT["docs/build.md"]))
    assert set(re.findall(r"--[a-z0-9][a-z0-9-]+", shown)) - {"--help"} <= documented, "every option is documented"


def test_options_of_edge_infer_exist() -> None:
    given = options_of("edge-infer ")
    assert {name for _, name, _ in given} >= {"classify", "serve", "bench", "report", "selftest"}
    for name in {name for _, name, _ in given}:
        shown = help_of("-m", "edge", name)
        assert [option for option in given if option[1] == name and option[2] not in shown] == []


def test_modules_and_their_options_exist() -> None:
    given = options_of(" -m ")
    assert given
    modules = {module for _, module, _ in given if module.split(".")[0] in ("mdconv", "build_engine", "calibration")}
    for module, shown in helps_of(sorted(modules)).items():
        assert "--help" in shown, module
        assert [option for option in given if option[1] == module and option[2] not in shown] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for _, line in commands() if line.startswith("make ")}
    assert {"demo", "test"} <= named <= targets


def figure_commands() -> list[list[str]]:
    """The words of every command in the running text of the pages of figures: the programs themselves, not options."""
    text = TEXT["docs/figures.md"] + (ROOT / "plugin" / "README.md").read_text()
    spans = re.findall(r"`([^`\n]*(?:\n[^`\n|]+)?)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    named = (span.split() for span in spans)
    return [words for words in named if words[:1] and words[0] in ("python", "make", "edge-infer") and len(words) > 1]


def test_every_command_of_the_figures_exists() -> None:
    found = figure_commands()
    assert len(found) >= 30
    modules: dict[str, set[str]] = {}
    for words in found:
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        if words[:3] == ["python", "-m", "pytest"]:
            assert (ROOT / words[3]).exists(), words
        elif words[:2] == ["python", "-m"]:
            modules.setdefault(words[2], set()).update(options)
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words
            modules.setdefault(words[1].removesuffix(".py").replace("/", "."), set()).update(options)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        else:
            assert all(option in help_of("-m", "edge", words[1]) for option in options), words
    plain = {"benchmarks.kernel_traffic", "benchmarks.kernel_roofline"}  # they take no options, and no time to ask
    assert all(not modules[module] and importlib.util.find_spec(module) for module in plain)
    for module, shown in helps_of(sorted(modules.keys() - plain)).items():
        assert "--help" in shown, module
        assert [option for option in sorted(modules[module]) if option not in shown] == [], module


def test_the_first_lines_of_the_readme_are_the_two_commands() -> None:
    lines = [line for line in TEXT["README.md"].splitlines() if line and not line.startswith(("#", "```"))]
    assert [line.split("#")[0].strip() for line in lines[:2]] == ["make demo", "make test"]


def table_of(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading of docs/paper.md."""
    section = TEXT["docs/paper.md"].split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = re.findall(r"^\|(.*)\|$", section.split("\n| ", 1)[1].split("\n\n")[0], re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in table[1:]]


def test_the_cost_table_is_what_the_command_computes() -> None:
    """docs/paper.md: the published cost, ours counted so, convolutions and linear layers alone, parameters."""
    rows, compared = table_of("Costs"), compare()
    assert len(rows) == len(compared)
    for (_, published, counted, macs, parameters), each in zip(rows, compared):
        assert float(published) == each.row.million
        assert counted.split()[0] == f"{each.operations / 1e6:.1f}"
        assert macs == f"{each.macs / 1e6:.1f}"
        of_the_paper = each.row.million_parameters
        shown = f"{each.parameters / 1e6:.2f}"
        assert parameters == (shown if of_the_paper is None else f"{shown} (paper: {of_the_paper:.1f})")


def test_figure_1_is_what_the_command_computes() -> None:
    """docs/paper.md: boxes, then smallest, quartiles and largest of the square root of the area, in pixels."""
    rows = table_of("Figure 1")
    found = {summary.finding: summary for summary in summarise(read_sizes()) if summary.measure == "sqrt(area)"}
    assert [row[0] for row in rows] == list(found)
    for finding, *shown in rows:
        of = found[finding]
        sides = (of.minimum, of.lower, of.median, of.upper, of.maximum)
        assert [int(number) for number in shown] == [of.boxes, *(round(side) for side in sides)]
