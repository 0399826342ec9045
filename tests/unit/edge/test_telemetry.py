"""edge.telemetry on reproduced procfs and sysfs trees: a Jetson Orin Nano, a Thor, an AGX Orin, and nothing at all."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from edge import telemetry
from edge.telemetry import UNAVAILABLE, Sampler, machine_facts


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


ORIN_NANO = {
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "etc/nvpmodel.conf": "# comment\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=1 NAME=25W >\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n",
    "var/lib/nvpmodel/status": "pmode:0001\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n\nprocessor\t: 1\nCPU part\t: 0xd42\n",
    "proc/meminfo": "MemTotal:        7802772 kB\nMemFree:          123456 kB\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51718\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "48906\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
    "sys/class/devfreq/15480000.nvdec/cur_freq": "1\n",
    "sys/class/hwmon/hwmon0/name": "ina3221\n",
    "sys/class/hwmon/hwmon0/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon0/in1_input": "4984\n",
    "sys/class/hwmon/hwmon0/curr1_input": "1856\n",
    "sys/class/hwmon/hwmon0/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon0/in2_input": "4976\n",
    "sys/class/hwmon/hwmon0/curr2_input": "500\n",
    "sys/class/hwmon/hwmon0/in3_label": "VDD_SOC\n",
    "sys/class/hwmon/hwmon0/in3_input": "4976\n",
    "sys/class/hwmon/hwmon0/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon0/in7_input": "5\n",
    "sys/class/hwmon/hwmon1/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon1/oc3_event_cnt": "27\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "115200\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1728000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_min_freq": "115200\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_governor": "schedutil\n",
    "proc/self/status": "Name:\tpython\nVmRSS:\t  204800 kB\n",
}


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
    }


def test_facts_where_nothing_can_be_read(tmp_path):
    facts = machine_facts(tmp_path)
    for key in ("cpu", "memory_mb", "jetson", "l4t", "power_mode"):
        assert facts[key] == UNAVAILABLE
    assert facts["clocks"] == {"cpu": UNAVAILABLE, "gpu": UNAVAILABLE}
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
    assert telemetry.gpu_mhz(root) == 624.75
    assert telemetry.cpu_mhz(root) == pytest.approx((1728 + 729.6) / 2)
    assert telemetry.throttle_events(root) == 27
    assert telemetry.throttle_alerts(root) == []
    tree(root, {"sys/class/thermal/cooling_device1/cur_state": "1"})
    assert telemetry.throttle_alerts(root) == ["gpu-throttle-alert"]


def test_readings_of_a_thor(tmp_path):
    root = tree(
        tmp_path,
        {
            "sys/class/hwmon/hwmon3/name": "ina238\n",
            "sys/class/hwmon/hwmon3/power1_input": "41500000\n",
            "sys/class/hwmon/hwmon3/in1_label": "VIN\n",
            "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000\n",
            "sys/class/devfreq/gpu-nvd-0/cur_freq": "1692000000\n",
        },
    )
    assert telemetry.rails_w(root) == {"VIN": 41.5}
    assert telemetry.gpu_mhz(root) == 1575


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
