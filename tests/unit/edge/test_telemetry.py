"""edge.telemetry on reproduced procfs and sysfs trees: a Jetson Orin Nano, a Thor, an AGX Orin, and nothing at all."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from edge import telemetry
from edge.report.taints import find_taints
from edge.telemetry import UNAVAILABLE, Sampler, machine_facts
from tests.unit.edge.jetson_trees import AGX_ORIN, ORIN_NANO, THOR, tree


def test_facts_of_a_jetson(tmp_path):
    facts = machine_facts(tree(tmp_path, ORIN_NANO))
    assert facts["os"] == "Ubuntu 22.04.5 LTS"
    assert facts["cpu"] == "Arm Cortex-A78AE"
    assert facts["memory_mb"] == 7619
    assert facts["jetson"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert facts["l4t"] == "36.4.3"
    assert facts["power_mode"] == {"id": 1, "name": "25W", "modes": {"15W": 0, "25W": 1, "MAXN_SUPER": 2}}
    assert facts["clocks"] == {
        "cpu": {"min_mhz": 115.2, "max_mhz": 1728.0, "governor": "schedutil", "locked": False},
        "gpu": {"min_mhz": 306.0, "max_mhz": 1020.0, "governor": "nvhost_podgov", "locked": False},
        "emc": UNAVAILABLE,
    }
    assert facts["jetson_clocks"] == "off"


def test_facts_of_a_thor(tmp_path):
    facts = machine_facts(tree(tmp_path, THOR))
    assert facts["cpu"] == "Arm Neoverse V3AE"
    assert facts["l4t"] == "38.4.0"
    assert facts["power_mode"]["name"] == "120W"
    assert facts["clocks"]["gpu"] == {"min_mhz": 306, "max_mhz": 1575, "governor": "nvhost_podgov", "locked": False}
    assert facts["clocks"]["emc"] == {"min_mhz": 665, "max_mhz": 4266, "governor": "userspace", "locked": False}


@pytest.mark.parametrize("clock", [None, "devfreq/17000000.gpu", "cpufreq/policy0", "devfreq/bwmgr"])
def test_jetson_clocks_is_on_if_no_clock_can_move(tmp_path, clock):
    root = tree(tmp_path, AGX_ORIN)
    lower = {"devfreq/17000000.gpu": "min_freq", "cpufreq/policy0": "scaling_min_freq", "devfreq/bwmgr": "min_freq"}
    if clock == "devfreq/bwmgr":
        tree(root, {f"sys/class/{clock}/max_freq": "3199000000"})
    if clock:
        folder = "sys/devices/system/cpu" if "cpu" in clock else "sys/class"
        tree(root, {f"{folder}/{clock}/{lower[clock]}": "204000"})
    assert machine_facts(root)["jetson_clocks"] == ("off" if clock else "on")
    states = {taint["what"]: taint["state"] for taint in find_taints(machine_facts(root), [])}
    assert states["clocks not locked"] == ("tainted" if clock else "clean")
    assert states["power mode"] == "clean"


def test_a_pc_has_no_jetson_clocks(tmp_path):
    root = tree(tmp_path, {name: text for name, text in AGX_ORIN.items() if not name.startswith("proc/device-tree")})
    assert machine_facts(root)["jetson_clocks"] == UNAVAILABLE


def test_facts_where_nothing_can_be_read(tmp_path):
    facts = machine_facts(tmp_path)
    for key in ("cpu", "memory_mb", "jetson", "l4t", "power_mode", "jetson_clocks", "gpu"):
        assert facts[key] == UNAVAILABLE
    assert facts["clocks"] == {"cpu": UNAVAILABLE, "gpu": UNAVAILABLE, "emc": UNAVAILABLE}
    assert facts["libraries"]["numpy"]


def test_facts_of_this_machine_name_neither_host_nor_user():
    facts = machine_facts()
    text = json.dumps(facts)
    assert facts["cores"] >= 1
    assert facts["memory_mb"] > 100
    assert f'"{socket.gethostname()}"' not in text
    assert str(Path.home()) not in text


def test_mode_without_a_readable_configuration_keeps_its_number(tmp_path):
    tree(tmp_path, {"var/lib/nvpmodel/status": "pmode:0003"})
    assert telemetry.power_mode(tmp_path) == {"id": 3, "name": "mode 3", "modes": {}}


@pytest.mark.parametrize(
    ("changes", "locked"),
    [
        ({"min_freq": "1020000000"}, True),
        ({"governor": "performance"}, True),
        ({"min_freq": "1019000000"}, False),
    ],
)
def test_a_clock_is_locked_if_it_cannot_move(tmp_path, changes, locked):
    tree(tmp_path, ORIN_NANO)
    tree(tmp_path / "sys/class/devfreq/17000000.gpu", changes)
    assert telemetry.clocks(tmp_path)["gpu"]["locked"] is locked


def test_the_cpu_is_locked_only_if_all_its_clocks_are(tmp_path):
    tree(tmp_path, ORIN_NANO)
    policies = tmp_path / "sys/devices/system/cpu/cpufreq"
    tree(policies, {"policy0/scaling_min_freq": "1728000"})
    assert telemetry.clocks(tmp_path)["cpu"]["locked"] is False
    tree(policies, {"policy4/scaling_min_freq": "1728000"})
    assert telemetry.clocks(tmp_path)["cpu"]["locked"] is True


def test_readings_of_a_jetson(tmp_path):
    root = tree(tmp_path, ORIN_NANO)
    assert telemetry.temperatures_c(root) == {"cpu-thermal": 51.718, "gpu-thermal": 48.906}
    # 4984 mV * 1856 mA; VDD_SOC shows no current, and in7 is no rail.
    assert telemetry.rails_w(root) == pytest.approx({"VDD_IN": 9.250304, "VDD_CPU_GPU_CV": 2.488})
    assert telemetry.gpu_mhz(root) == 624
    assert telemetry.cpu_mhz(root) == pytest.approx((1728 + 729.6) / 2)
    assert telemetry.emc_mhz(root) == 2133
    assert telemetry.throttle_events(root) == 27
    assert telemetry.throttle_alerts(root) == []
    tree(root, {"sys/class/thermal/cooling_device1/cur_state": "1"})
    assert telemetry.throttle_alerts(root) == ["gpu-throttle-alert"]


def test_readings_of_an_agx_orin(tmp_path):
    root = tree(tmp_path, AGX_ORIN)
    rails = telemetry.rails_w(root)
    assert rails == pytest.approx({"VDD_GPU_SOC": 7.6, "VDD_CPU_CV": 1.9, "VIN_SYS_5V0": 4.5, "VDDQ_VDD2_1V8AO": 1.0})
    assert telemetry.board_rails(rails) == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert telemetry.temperatures_c(root) == {"cpu-thermal": 45.5, "gpu-thermal": 42.25, "tj-thermal": 45.5}
    assert telemetry.gpu_mhz(root) == 1300
    assert telemetry.emc_mhz(root) is None
    assert (telemetry.throttle_events(root), telemetry.throttle_alerts(root)) == (0, [])


def test_readings_of_a_thor(tmp_path):
    root = tree(tmp_path, THOR)
    rails = telemetry.rails_w(root)
    assert rails == pytest.approx({"VDD_GPU": -0.39, "VDD_CPU_SOC_MSS": 6.435, "VIN_SYS_5V0": 6.5, "VIN": 41.5})
    assert telemetry.board_rails(rails) == ("VIN",)
    assert telemetry.temperatures_c(root) == {
        **{"cpu-thermal": 53.7, "soc012-thermal": 55.1, "soc345-thermal": 53.7, "tj-thermal": 55.1}
    }
    assert telemetry.gpu_mhz(root) == 1575
    assert telemetry.emc_mhz(root) == 3200
    assert telemetry.cpu_mhz(root) == 972
    assert telemetry.throttle_events(root) is None
    assert telemetry.throttle_alerts(root) == []


@pytest.mark.parametrize(
    ("device", "alerts"),
    [(0, []), (2, ["gpu-throttle-alert"]), (3, ["soc012-throttle-alert"]), (4, ["devfreq-gpu-gpc-0"])],
)
def test_a_cap_on_a_clock_is_throttling_and_a_fan_is_not(tmp_path, device, alerts):
    root = tree(tmp_path, {**THOR, f"sys/class/thermal/cooling_device{device}/cur_state": "18"})
    assert telemetry.throttle_alerts(root) == alerts


def test_a_pc_counts_each_core_and_its_package_once(tmp_path):
    for cpu in (0, 1):
        folder = f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
        tree(tmp_path, {f"{folder}/core_throttle_count": f"{cpu + 1}", f"{folder}/package_throttle_count": "10"})
    assert telemetry.throttle_events(tmp_path) == 1 + 2 + 10


def test_a_monitor_without_a_label_is_the_boards_input(tmp_path):
    tree(tmp_path, {"sys/class/hwmon/hwmon3/name": "ina238\n", "sys/class/hwmon/hwmon3/power1_input": "7000000\n"})
    assert telemetry.rails_w(tmp_path) == {"VIN": 7.0}


@pytest.mark.parametrize(
    ("rails", "board"),
    [
        ({"VDD_IN": 9.0, "VDD_SOC": 1.0}, ("VDD_IN",)),
        ({"VIN": 41.5, "VDD_GPU": 10.0}, ("VIN",)),
        (
            {"VDD_GPU_SOC": 5.0, "VDD_CPU_CV": 2.0, "VIN_SYS_5V0": 4.0, "VDDQ_VDD2_1V8AO": 1.0},
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        ),
        ({"VDD_GPU_SOC": 5.0, "VDD_CPU_CV": 2.0}, None),
        ({}, None),
    ],
)
def test_only_rails_that_feed_the_module_are_its_power(rails, board):
    assert telemetry.board_rails(rails) == board


def test_readings_where_nothing_can_be_read_are_absent_not_zero(tmp_path):
    with Sampler(0.01, tmp_path) as sampler:
        pass
    assert len(sampler.samples) >= 2
    for sample in sampler.samples:
        assert sample.pop("time") > 0
        assert sample.pop("temperature_c") == {}
        assert sample.pop("power_w") == {}
        assert set(sample.values()) == {None}


def test_sampler_tells_its_own_load_from_that_of_others(tmp_path):
    own = " ".join(["S", *["0"] * 10, "{user}", "{system}", "0", "0", *["0"] * 10])
    root = tree(tmp_path, {"proc/stat": "cpu  100 0 100 800 0 0 0 0 0 0\n", "proc/self/stat": f"1 (a ) b) {own}"})
    (root / "proc/self/stat").write_text("1 (a ) b) " + own.format(user=50, system=50))
    with Sampler(60.0, root) as sampler:
        # 1000 more ticks: 600 idle and waiting for the disk, 400 busy, of which 100 our own.
        (root / "proc/stat").write_text("cpu  300 0 250 1300 100 0 0 50 0 0\n")
        (root / "proc/self/stat").write_text("1 (a ) b) " + own.format(user=100, system=100))
    first, last = sampler.samples
    assert first["cpu_load"] is None
    assert last["cpu_load"] == pytest.approx(0.4)
    assert last["other_load"] == pytest.approx(0.3)


def test_sampler_samples_until_it_is_left():
    with Sampler(0.005) as sampler:
        while len(sampler.samples) < 5:
            pass
    assert "telemetry" not in {thread.name for thread in threading.enumerate()}
    times = [sample["time"] for sample in sampler.samples]
    assert times == sorted(times)
    assert sampler.samples[-1]["rss_mb"] > 1
