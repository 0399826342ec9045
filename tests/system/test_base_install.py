"""What the base install does alone, and what it says of what it lacks: in processes that cannot import the rest."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edge.backends import X86
from tests.unit.edge.dicom_writer import radiograph, to_bytes
from tests.unit.edge.test_dicom_gdcm import SELECTION_1, encode

ROOT = Path(__file__).parents[2]
OURS = "mdconv-edge"
ON_X86 = platform.machine() in X86
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed: pip install '.[openvino]'"
)

START = """
import os, sys
sys.modules.update(dict.fromkeys(os.environ["BLOCKED"].split(), None))  # an import raises ImportError
"""
"""``sitecustomize.py``: Python runs it at the start of every process."""


class EdgeInfer:
    """The command, in processes that cannot import some modules, nor can those that they start."""

    def __init__(self, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(START)
        self._path = os.pathsep.join(map(str, (folder, ROOT)))

    def __call__(self, blocked: Iterable[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": self._path, "BLOCKED": " ".join(blocked)}
        command = [sys.executable, "-m", "edge", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr, done.stderr
        return done


@pytest.fixture
def edge_infer(tmp_path_factory: pytest.TempPathFactory) -> EdgeInfer:
    return EdgeInfer(tmp_path_factory.mktemp("start"))


def base_distributions() -> set[str]:
    """What ``pip install .`` installs, by canonical name."""
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    todo = [json.loads(line.strip().rstrip(",")) for line in listed[1].splitlines()]
    found = {OURS}
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found.add(name)
            todo += metadata.requires(name) or []
    return found


@pytest.fixture(scope="module")
def all_but_the_base() -> list[str]:
    """Every module that is installed here and would not be with the base alone."""
    base = base_distributions()
    owners = metadata.packages_distributions()
    blocked = [name for name, by in owners.items() if not base & set(map(canonicalize_name, by))]
    assert {"onnxruntime", "gdcm", "torch", "fastapi", "pytest"} <= set(blocked)
    assert not {"numpy", "cv2", "pydicom", "pydantic_core", "edge"} & set(blocked)
    return blocked


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    noise = np.random.default_rng(5).integers(0, 256, (90, 70), dtype=np.uint8)
    assert cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 3))
    return path


def test_the_base_alone_runs_what_needs_no_backend(
    edge_infer: EdgeInfer, all_but_the_base: list[str], tiny_bundle_directory: Path
) -> None:
    for arguments in (["--help"], ["passport", "--bundle", tiny_bundle_directory]):
        done = edge_infer(all_but_the_base, *arguments)
        assert done.returncode == 0, done.stderr


def test_the_base_alone_says_which_backends_can_be_installed(
    edge_infer: EdgeInfer, all_but_the_base: list[str], tiny_bundle_directory: Path, picture: Path, tmp_path: Path
) -> None:
    bundle = ["--bundle", tiny_bundle_directory]
    for arguments in (
        ["classify", picture, *bundle],
        ["selftest", *bundle],
        ["bench", *bundle, "--duration", "1", "--report", tmp_path / "bench"],
    ):
        done = edge_infer(all_but_the_base, *arguments)
        assert done.returncode == 3
        told = done.stderr.splitlines()[-1]
        assert "no backend works: tensorrt cannot run here (" in told
        assert "pip install 'mdconv-edge[onnxruntime]'" in told
        assert ("pip install 'mdconv-edge[openvino]'" in told) == ON_X86


def test_doctor_tells_what_the_base_alone_lacks(edge_infer: EdgeInfer, all_but_the_base: list[str]) -> None:
    done = edge_infer(all_but_the_base, "doctor")
    assert done.returncode == 3
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "MISSING backend none works here" in lines
    assert "-> it runs bundles without a GPU: pip install 'mdconv-edge[onnxruntime]'" in lines
    assert lines[lines.index("- DICOM JPEG lossless refused") + 1] == "-> pip install 'mdconv-edge[gdcm]'"
    for codec in ("JPEG-LS", "JPEG 2000", "RLE"):
        assert f"ok DICOM {codec} decoded" in lines
    assert done.stdout.count("MISSING") == 1


def test_a_backend_asked_for_that_is_not_installed_is_named(
    edge_infer: EdgeInfer, tiny_bundle_directory: Path, picture: Path
) -> None:
    """Never another one in its place."""
    bundle = ["--bundle", tiny_bundle_directory, "--backend", "onnxruntime"]
    done = edge_infer(["onnxruntime"], "classify", picture, *bundle)
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr.splitlines()[-1].endswith("pip install 'mdconv-edge[onnxruntime]'")


@needs_openvino
def test_without_onnx_runtime_and_gdcm_openvino_runs_all_but_jpeg_lossless(
    edge_infer: EdgeInfer, tiny_bundle_directory: Path, picture: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(6).integers(0, 1 << 12, (64, 64)).astype(np.uint16)
    lossless, plain = tmp_path / "lossless.dcm", tmp_path / "plain.dcm"
    lossless.write_bytes(to_bytes(radiograph(pixels, bits=12), SELECTION_1, encode(pixels, 12, 1)))
    plain.write_bytes(to_bytes(radiograph(pixels, bits=12)))
    files = [picture, lossless, plain]
    options = ["--bundle", tiny_bundle_directory, "--backend", "openvino", "--json"]
    done = edge_infer(["onnxruntime", "gdcm"], "classify", *files, *options)
    assert done.returncode == 1
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["status"] for result in results] == ["done", "refused", "done"]
    assert results[1]["reason"].endswith("decoder that is not installed: pip install 'mdconv-edge[gdcm]'")


@needs_openvino
def test_shadow_mode_without_onnx_runtime_does_not_start_and_doctor_knows(
    edge_infer: EdgeInfer, tiny_bundle_directory: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.toml"
    (tmp_path / "inbox").mkdir()
    settings.write_text(
        f'bundle = "{tiny_bundle_directory}"\nstate = "{tmp_path / "state"}"\nwatch = ["{tmp_path / "inbox"}"]\n'
        'backend = "openvino"\ndrain = true\n[shadow]\nfraction = 1.0\n'
    )
    done = edge_infer(["onnxruntime"], "serve", "--config", settings)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].endswith("pip install 'mdconv-edge[onnxruntime]'")
    examined = edge_infer(["onnxruntime"], "doctor", "--config", settings)
    assert examined.returncode == 3
    lines = [" ".join(line.split()) for line in examined.stdout.splitlines()]
    advice = "edge-infer serve would not start: shadow mode runs in it: pip install 'mdconv-edge[onnxruntime]'"
    assert f"-> {advice}" in lines
