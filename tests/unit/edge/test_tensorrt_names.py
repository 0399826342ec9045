"""Every name, method and keyword of TensorRT that edge/ uses exists in the real bindings of each release."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.stand_ins.binding_api import api_of
from tests.stand_ins.binding_uses import findings
from tests.stand_ins.build import BINDINGS, available_bindings
from tests.stand_ins.places import stand_in_tensorrt

EDGE = Path(__file__).resolve().parents[3] / "edge"
USERS = ("engine_build_process.py", "engine_cache.py", "backends/tensorrt.py")
RELEASES = tuple(BINDINGS)


def bindings(release: str) -> dict[str, Any]:
    folder = available_bindings().get(release)
    if folder is None:
        pytest.skip(f"NVIDIA published no bindings of TensorRT {release} for this machine and Python")
    if not folder.is_dir():
        pytest.fail("the bindings are not there: run `python tests/stand_ins/build.py`")
    return api_of("tensorrt_bindings", folder)


def rtx() -> dict[str, Any]:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for x86-64 only", exc_type=ImportError)
    return api_of("tensorrt_rtx")


def test_users_are_all_the_modules_that_name_tensorrt() -> None:
    naming = {str(path.relative_to(EDGE)) for path in EDGE.rglob("*.py") if "trt." in path.read_text()}
    assert naming == set(USERS)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("user", USERS)
def test_what_edge_uses_exists(user: str, release: str) -> None:
    found, used = findings((EDGE / user).read_text(), bindings(release))
    assert found == []
    expected: dict[str, set[str]] = {
        "engine_cache.py": set(),
        "engine_build_process.py": {
            "Builder.build_serialized_network",
            "IBuilderConfig.progress_monitor",
            "IBuilderConfig.set_timing_cache",
            "IOptimizationProfile.set_shape",
            "IProgressMonitor.step_complete",
            "ParserError.node_operator",
            "EngineInspector.get_engine_information",
            "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        },
        "backends/tensorrt.py": {
            "Runtime.deserialize_cuda_engine",
            "ICudaEngine.get_tensor_dtype",
            "IExecutionContext.execute_async_v3",
            "IExecutionContext.set_input_shape",
            "IExecutionContext.set_tensor_address",
        },
    }
    assert expected[user] <= used


@pytest.mark.parametrize("module", ["trt", "trt_rtx"])
def test_what_the_builder_uses_exists_in_tensorrt_rtx(module: str) -> None:
    found, used = findings((EDGE / "engine_build_process.py").read_text(), rtx(), module)
    assert found == []
    assert {"trt": "Builder.create_network", "trt_rtx": "IBuilderConfig.set_compute_capability"}[module] in used


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("trt.Bilder(logger)", "trt.Bilder does not exist"),
        ("trt.BuilderFlag.FP32", "BuilderFlag.FP32 does not exist"),
        ("trt.Builder(logger).create_builder_konfig()", "Builder.create_builder_konfig does not exist"),
        (
            "b = trt.Builder(logger)\nc = b.create_builder_config()\nc.progres_monitor = 1",
            "IBuilderConfig.progres_monitor",
        ),
        ("trt.Builder(logger, 3)", "Builder does not take 2 positional arguments"),
        ("trt.Builder()", "Builder does not take 0 positional arguments"),
        ("def f(p: trt.IOptimizationProfile):\n    p.set_shape('x', min=1, opt=2, most=3)", "does not take"),
        ("def f(e: trt.ICudaEngine):\n    e.get_tensor_shape(index=1)", "does not take"),
        (
            "class A:\n    _e: trt.ICudaEngine\n    def f(self):\n        self._e.num_bindings",
            "ICudaEngine.num_bindings",
        ),
        ("def f() -> trt.Runtime: ...\nf().deserialize()", "Runtime.deserialize does not exist"),
        (
            "def f(p: trt.OnnxParser):\n    return [e.text() for e in [p.get_error(i) for i in (0,)]]",
            "ParserError.text",
        ),
        ("class M(trt.IProgressMonitor):\n    def phase_begin(self, a): ...", "IProgressMonitor.phase_begin does not"),
        ("class M(trt.IProgressMonitor):\n    def phase_start(self, a): ...", "phase_start has other parameters"),
        ("def f(x: trt.NoSuch): ...", "trt.NoSuch does not exist"),
    ],
)
def test_a_wrong_name_or_keyword_is_found(source: str, said: str) -> None:
    found, _ = findings(source, bindings("10.13.3.9"))
    assert any(said in line for line in found), found


def test_a_name_that_tensorrt_11_dropped_is_found_there_only() -> None:
    source = "def f(c: trt.IBuilderConfig):\n    c.set_flag(trt.BuilderFlag.FP16)"
    assert findings(source, bindings("10.13.3.9"))[0] == []
    assert findings(source, bindings("11.4.0.106"))[0] == ["line 2: BuilderFlag.FP16 does not exist"]


@pytest.mark.parametrize("release", RELEASES)
def test_the_stand_in_has_the_signatures_of_the_real_bindings(release: str) -> None:
    real = bindings(release)
    compared = 0
    for name, stand_in in vars(stand_in_tensorrt()).items():
        if not name.startswith("_") and inspect.isclass(stand_in) and stand_in.__module__ == "tensorrt":
            compared += compare_class(stand_in, real[name])
    assert compared >= 40


def compare_class(stand_in: type, real: dict[str, Any]) -> int:
    """Assert that each public member exists in the real class, with the same parameter names; returns how many."""
    members = [name for name in vars(stand_in) if not name.startswith("_")]
    if "__init__" in vars(stand_in) and real["members"]["__init__"]["signatures"]:
        members.append("__init__")
    for name in members:
        assert name in real["members"], f"{stand_in.__name__}.{name}"
        member, entry = inspect.getattr_static(stand_in, name), real["members"][name]
        if inspect.isfunction(member):
            parameters = list(inspect.signature(member).parameters)[1:]
            offered = [[p["name"] for p in signature["parameters"]] for signature in entry["signatures"]]
            assert any(parameters == names[: len(parameters)] for names in offered) or not offered, (name, offered)
    return len(members)


def test_the_stand_in_is_no_part_of_edge() -> None:
    assert isinstance(stand_in_tensorrt(), ModuleType)
    assert not any("stand_in" in path.read_text() for path in EDGE.rglob("*.py"))
