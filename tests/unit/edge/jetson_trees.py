"""Reproduced procfs and sysfs trees: file name to content, from public descriptions (`edge.telemetry.sysfs`)."""

from __future__ import annotations

from pathlib import Path


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def monitor(number: int, chip: str, **files: str) -> dict[str, str]:
    folder = f"sys/class/hwmon/hwmon{number}"
    return {f"{folder}/name": f"{chip}\n", **{f"{folder}/{name}": f"{value}\n" for name, value in files.items()}}


def rail(channel: int, label: str, millivolts: int, milliamperes: int) -> dict[str, str]:
    return {
        f"in{channel}_label": label,
        f"in{channel}_input": str(millivolts),
        f"curr{channel}_input": str(milliamperes),
    }


def zones(**celsius: float) -> dict[str, str]:
    files = {}
    for index, (name, value) in enumerate(celsius.items()):
        files[f"sys/class/thermal/thermal_zone{index}/type"] = f"{name}-thermal\n"
        files[f"sys/class/thermal/thermal_zone{index}/temp"] = f"{round(value * 1000)}\n"
    return files


def cooling(*names: str) -> dict[str, str]:
    files = {}
    for index, name in enumerate(names):
        files[f"sys/class/thermal/cooling_device{index}/type"] = f"{name}\n"
        files[f"sys/class/thermal/cooling_device{index}/cur_state"] = "0\n"
    return files


def devfreq(name: str, current: int, low: int, high: int, governor: str) -> dict[str, str]:
    """Clocks in MHz, of which the files hold hertz."""
    clocks = {"cur_freq": current, "min_freq": low, "max_freq": high}
    folder = f"sys/class/devfreq/{name}"
    return {
        f"{folder}/governor": f"{governor}\n",
        **{f"{folder}/{file}": f"{mhz}000000\n" for file, mhz in clocks.items()},
    }


def policy(number: int, current: int, low: int, high: int, governor: str = "schedutil") -> dict[str, str]:
    """Clocks in kHz."""
    folder = f"sys/devices/system/cpu/cpufreq/policy{number}"
    return {
        f"{folder}/scaling_cur_freq": f"{current}\n",
        f"{folder}/scaling_min_freq": f"{low}\n",
        f"{folder}/scaling_max_freq": f"{high}\n",
        f"{folder}/scaling_governor": f"{governor}\n",
    }


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
    "proc/self/status": "Name:\tpython\nVmRSS:\t  204800 kB\n",
    **zones(cpu=51.718, gpu=48.906, cv0=-256.0),
    **cooling("pwm-fan", "gpu-throttle-alert"),
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    **devfreq("17000000.gpu", 624, 306, 1020, "nvhost_podgov"),
    "sys/class/devfreq/15480000.nvdec/cur_freq": "1\n",
    "sys/kernel/debug/bpmp/debug/clk/emc/rate": "2133000000\n",
    **monitor(
        0,
        "ina3221",
        **rail(1, "VDD_IN", 4984, 1856),
        **rail(2, "VDD_CPU_GPU_CV", 4976, 500),
        in3_label="VDD_SOC",
        in3_input="4976",
        in7_label="sum of shunt voltages",
        in7_input="5",
    ),
    **monitor(1, "soctherm_oc", oc1_event_cnt="0", oc3_event_cnt="27"),
    **policy(0, 1728000, 115200, 1728000),
    **policy(4, 729600, 115200, 1728000),
}
"""JetPack 6, without root's rights but for the memory clock's debugfs."""

AGX_ORIN = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=MODE_15W >\n"
    "< POWER_MODEL ID=2 NAME=MODE_30W >\n< POWER_MODEL ID=3 NAME=MODE_50W >\n",
    "var/lib/nvpmodel/status": "pmode:0000\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    **zones(cpu=45.5, gpu=42.25, tj=45.5),
    **cooling("cpu-throttle-alert", "gpu-throttle-alert", "hot-surface-alert", "devfreq-17000000.gpu"),
    **devfreq("17000000.gpu", 1300, 1300, 1300, "nvhost_podgov"),
    **monitor(
        2,
        "ina3221",
        **rail(1, "VDD_GPU_SOC", 19000, 400),
        **rail(2, "VDD_CPU_CV", 19000, 100),
        **rail(3, "VIN_SYS_5V0", 5000, 900),
    ),
    **monitor(3, "ina3221", **rail(1, "NC", 0, 0), **rail(2, "VDDQ_VDD2_1V8AO", 5000, 200), **rail(3, "NC", 0, 0)),
    **monitor(4, "soctherm_oc", oc1_event_cnt="0", oc2_event_cnt="0", oc3_event_cnt="0"),
    **policy(0, 2201600, 2201600, 2201600),
}
"""JetPack 6 after ``jetson_clocks``, in the mode MAXN."""

THOR = {
    "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
    "etc/nv_tegra_release": "# R38 (release), REVISION: 4.0, GCID: 43443517, BOARD: generic, EABI: aarch64\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
    "var/lib/nvpmodel/status": "pmode:0001\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/cpuinfo": "processor\t: 0\nCPU part\t: 0xd83\n",
    **zones(cpu=53.7, soc012=55.1, soc345=53.7, tj=55.1),
    "sys/class/thermal/thermal_zone4/type": "gpu-thermal\n",  # without a temperature: a GPU without power
    **cooling("pwm-fan", "cpu-throttle-alert", "gpu-throttle-alert", "soc012-throttle-alert", "devfreq-gpu-gpc-0"),
    **devfreq("gpu-gpc-0", 1575, 306, 1575, "nvhost_podgov"),
    **devfreq("gpu-nvd-0", 1692, 306, 1692, "nvhost_podgov"),
    **devfreq("bwmgr", 3200, 665, 4266, "userspace"),
    **monitor(
        2,
        "ina3221",
        **rail(1, "VDD_GPU", 19500, -20),  # as calibrated: a GPU that does nothing may read below nothing
        **rail(2, "VDD_CPU_SOC_MSS", 19500, 330),
        **rail(3, "VIN_SYS_5V0", 5000, 1300),
    ),
    **monitor(3, "ina238", label="VIN", power1_input="41500000", in1_input="19600", curr1_input="2117"),
    **policy(0, 972000, 972000, 2601000),
}
"""JetPack 7."""
