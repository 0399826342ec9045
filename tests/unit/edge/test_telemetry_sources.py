"""Where the kernel's files do not tell: tegrastats as a process, NVML by a stand-in for its library."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.telemetry import UNAVAILABLE, Sampler, machine_facts
from edge.telemetry.nvml import DRIVER, open_nvml
from edge.telemetry.tegrastats import PLACE, open_tegrastats, parse
from tests.unit.edge.jetson_trees import ORIN_NANO, THOR, tree

# As owners of these boards published them.
ORIN_NANO_LINE = (
    "11-30-2025 13:26:01 RAM 2461/7620MB (lfb 3x2MB) SWAP 1243/3810MB (cached 5MB) "
    "CPU [19%@729,14%@729,22%@729,8%@729,15%@1728,off] EMC_FREQ 4%@2133 GR3D_FREQ 0%@[305] NVDEC off NVJPG off "
    "VIC off OFA off APE 200 cpu@46.531C soc2@47.312C soc0@46.593C gpu@48.218C tj@48.843C cv0@-256C "
    "VDD_IN 5704mW/5704mW VDD_CPU_GPU_CV 831mW/900mW VDD_SOC 1624mW/1624mW"
)
AGX_ORIN_LINE = (
    "RAM 2731/62841MB (lfb 1x4MB) CPU [1%@2201,0%@2201] GR3D_FREQ 0% cpu@45.5C tboard@38C tj@45.5C "
    "VDD_GPU_SOC 2381mW/2381mW VDD_CPU_CV 396mW/396mW VIN_SYS_5V0 3024mW/3024mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 302mW/302mW NC 0mW/0mW"
)
THOR_LINE = (
    "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972,8%@972] EMC_FREQ 0%@2750 "
    "GR3D_FREQ @[314,314,314] NVENC0_FREQ @314 VIC off OFA_FREQ @315 PVA0_FREQ off APE 300 cpu@37.343C tj@38.875C "
    "soc012@37.468C gpu@38.875C soc345@37.406C VDD_GPU -392mW/1962mW VDD_CPU_SOC_MSS 5887mW/5887mW "
    "VIN_SYS_5V0 5635mW/5635mW VIN 19780mW/19780mW"
)
THOR_39_LINE = (
    "07-02-2026 13:45:44 RAM 36529/125749MB (lfb 12x4MB) SWAP 11/4096MB (cached 9MB) CPU [2%@972,1%@2601] "
    "cpu@60.406C tj@63.281C soc012@58.468C gpu@62.906C soc345@63.281C VDD_GPU 37528mW/37528mW/37528mW "
    "VDD_CPU_SOC_MSS 18961mW/18961mW/18961mW VIN_SYS_5V0 18331mW/18331mW/18331mW VIN 87426mW/43713mW/87426mW"
)


def test_a_line_of_an_orin_nano():
    assert parse(ORIN_NANO_LINE) == {
        "power_w": {"VDD_IN": 5.704, "VDD_CPU_GPU_CV": 0.831, "VDD_SOC": 1.624},
        "temperature_c": {
            **{"cpu-thermal": 46.531, "soc2-thermal": 47.312, "soc0-thermal": 46.593},
            **{"gpu-thermal": 48.218, "tj-thermal": 48.843},
        },
        "cpu_mhz": pytest.approx((4 * 729 + 1728) / 5),
        "gpu_mhz": 305.0,
        "emc_mhz": 2133.0,
    }


def test_a_line_of_an_agx_orin_without_root_rights():
    found = parse(AGX_ORIN_LINE)
    assert found["power_w"] == {
        "VDD_GPU_SOC": 2.381,
        "VDD_CPU_CV": 0.396,
        "VIN_SYS_5V0": 3.024,
        "VDDQ_VDD2_1V8AO": 0.302,
    }
    assert found["cpu_mhz"] == 2201
    assert {"gpu_mhz", "emc_mhz"}.isdisjoint(found)


def test_lines_of_a_thor():
    found = parse(THOR_LINE)
    assert found["power_w"] == {"VDD_GPU": -0.392, "VDD_CPU_SOC_MSS": 5.887, "VIN_SYS_5V0": 5.635, "VIN": 19.78}
    assert (found["gpu_mhz"], found["emc_mhz"], found["cpu_mhz"]) == (314, 2750, 972)
    assert found["temperature_c"]["soc345-thermal"] == 37.406
    newer = parse(THOR_39_LINE)
    assert newer["power_w"]["VIN"] == 87.426
    assert {"gpu_mhz", "emc_mhz"}.isdisjoint(newer)


@pytest.mark.parametrize("line", ["", "tegrastats: not found", "CPU [off,off] GR3D_FREQ 0% VDD_IN", "\x00\xff"])
def test_a_line_that_tells_nothing_gives_nothing(line):
    assert parse(line) == {}


@pytest.mark.parametrize("line", [ORIN_NANO_LINE, AGX_ORIN_LINE, THOR_LINE, THOR_39_LINE])
def test_a_line_cut_anywhere_is_read_as_far_as_it_goes(line):
    whole = parse(line)
    for end in range(len(line)):
        assert set(parse(line[:end])) <= set(whole)


# The tool as a process


def tegrastats(root: Path, body: str) -> Path:
    tree(root, {PLACE: f"#!/bin/sh\n{body}\n"})
    (root / PLACE).chmod(0o755)
    return root


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_tool_fills_in_what_the_files_do_not_tell(tmp_path):
    files = {name: text for name, text in ORIN_NANO.items() if "hwmon" not in name and "emc" not in name}
    root = tegrastats(tree(tmp_path, files), f'while true; do echo "$@ {ORIN_NANO_LINE}"; sleep 0.05; done')
    with Sampler(0.05, root) as sampler:
        wait_for(lambda: sampler.samples[-1]["power_w"])
    sample = sampler.samples[-1]
    assert sample["power_w"]["VDD_IN"] == 5.704
    assert sample["emc_mhz"] == 2133
    assert sample["gpu_mhz"] == 624  # by the kernel's file, not by the line
    assert sample["temperature_c"]["cpu-thermal"] == 51.718
    assert sample["temperature_c"]["tj-thermal"] == 48.843


def test_the_tool_is_told_the_samplers_interval_and_ends_with_it(tmp_path):
    root = tegrastats(tmp_path, 'echo "$$ $@" > "$(dirname "$0")/asked"; exec sleep 600')
    with Sampler(0.25, root):
        wait_for((tmp_path / "usr/bin/asked").exists)
        wait_for((tmp_path / "usr/bin/asked").read_text)
    process, *arguments = (tmp_path / "usr/bin/asked").read_text().split()
    assert arguments == ["--interval", "250"]
    assert not Path(f"/proc/{process}").exists()


def test_a_machine_whose_files_tell_all_runs_no_tool(tmp_path):
    root = tegrastats(tree(tmp_path, THOR), 'touch "$(dirname "$0")/asked"')
    with Sampler(0.05, root) as sampler:
        wait_for(lambda: len(sampler.samples) > 3)
    assert not (tmp_path / "usr/bin/asked").exists()


def test_an_old_line_is_no_reading(tmp_path):
    root = tegrastats(tmp_path, f'echo "{THOR_LINE}"; exec sleep 600')
    tool = open_tegrastats(root, 0.1)
    try:
        wait_for(tool.read)
        wait_for(lambda: not tool.read())
    finally:
        tool.close()


@pytest.mark.parametrize("body", ["exit 3", "kill -9 $$", "printf 'no end of line'; exit 0"])
def test_a_tool_that_fails_leaves_figures_unavailable(tmp_path, body):
    with Sampler(0.02, tegrastats(tmp_path, body)) as sampler:
        wait_for(lambda: len(sampler.samples) > 3)
    assert all(sample["power_w"] == {} and sample["gpu_mhz"] is None for sample in sampler.samples)


def test_a_tool_that_cannot_be_started_is_none(tmp_path):
    tree(tmp_path, {PLACE: "not a program"})
    assert open_tegrastats(tmp_path, 0.5) is None


# NVML


class FakeNvmlError(Exception):
    pass


def fake_nvml(**changes):
    """A stand-in for the module ``pynvml``: an answer, or what is raised, for each function that we call."""
    answers = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetName": "NVIDIA RTX 2000 Ada Generation",
        "nvmlSystemGetDriverVersion": "580.95.05",
        "nvmlDeviceGetClockInfo": 1620,
        "nvmlDeviceGetPowerUsage": 47_300,
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x1,  # idle
        **changes,
    }
    module = SimpleNamespace(NVMLError=FakeNvmlError, NVML_CLOCK_SM=1, NVML_TEMPERATURE_GPU=0, calls=[])

    def function(name, answer):
        def call(*arguments):
            module.calls.append((name, *arguments))
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    for name, answer in answers.items():
        setattr(module, name, function(name, answer))
    # The bits as in nvml.h.
    for name, bit in {
        **{"SwPowerCap": 0x4, "HwSlowdown": 0x8, "SwThermalSlowdown": 0x20},
        **{"HwThermalSlowdown": 0x40, "HwPowerBrakeSlowdown": 0x80},
    }.items():
        setattr(module, f"nvmlClocksThrottleReason{name}", bit)
    return module


@pytest.fixture
def pc(tmp_path):
    return tree(tmp_path, {DRIVER: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05\n"})


def test_a_gpu_by_nvml(pc, monkeypatch):
    library = fake_nvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    with Sampler(60, pc) as sampler:
        pass
    sample = sampler.samples[0]
    assert sample["gpu_mhz"] == 1620
    assert sample["power_w"] == {"GPU board": 47.3}
    assert sample["temperature_c"] == {"GPU": 61.0}
    assert sample["throttle_alerts"] == []
    assert ("nvmlDeviceGetClockInfo", "handle", 1) in library.calls
    assert library.calls[-1] == ("nvmlShutdown",)
    assert machine_facts(pc)["gpu"] == {"name": "NVIDIA RTX 2000 Ada Generation", "driver": "580.95.05"}
    assert [call[0] for call in library.calls].count("nvmlInit") == [c[0] for c in library.calls].count("nvmlShutdown")


@pytest.mark.parametrize(
    ("reasons", "alerts"),
    [
        (0x0, []),
        (0x1 | 0x2 | 0x10 | 0x100, []),  # idle, set clocks, sync boost, display
        (0x4, ["GPU at its power limit"]),
        (0x8 | 0x40, ["GPU slowed down by hardware", "GPU slowed down by heat (hardware)"]),
        (0x20, ["GPU slowed down by heat (driver)"]),
        (0x80, ["GPU slowed down by the power supply"]),
    ],
)
def test_why_a_gpu_throttles(pc, monkeypatch, reasons, alerts):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlDeviceGetCurrentClocksThrottleReasons=reasons))
    with Sampler(60, pc) as sampler:
        pass
    assert sampler.samples[0]["throttle_alerts"] == alerts


def test_what_a_gpu_does_not_support_is_left_out(pc, monkeypatch):
    unsupported = dict.fromkeys(
        ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetClockInfo", "nvmlDeviceGetCurrentClocksThrottleReasons"),
        FakeNvmlError("Not Supported"),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**unsupported))
    assert open_nvml(pc).read() == {"temperature_c": {"GPU": 61.0}}


def test_of_several_gpus_the_facts_say_which(pc, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlDeviceGetCount=2))
    assert machine_facts(pc)["gpu"]["note"] == "the first of 2 GPUs"


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetHandleByIndex"])
def test_a_library_that_finds_no_gpu_is_none(pc, monkeypatch, fails):
    library = fake_nvml(**{fails: FakeNvmlError("Driver Not Loaded")})
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert open_nvml(pc) is None
    assert machine_facts(pc)["gpu"] == UNAVAILABLE
    assert (("nvmlShutdown",) in library.calls) == (fails != "nvmlInit")


def test_without_the_library_there_is_no_gpu_and_no_complaint(pc, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_nvml(pc) is None


def test_without_a_driver_the_library_is_not_asked(tmp_path, monkeypatch):
    library = fake_nvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert open_nvml(tmp_path) is None
    assert library.calls == []


def test_the_real_library_has_all_that_is_asked_of_it():
    pynvml = pytest.importorskip("pynvml")
    for name, stand_in in vars(fake_nvml()).items():
        if name != "calls":
            real = getattr(pynvml, name)
            assert callable(real) or real == stand_in, name
