from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.doctor import Finding, examine, render

MEMINFO = "MemTotal:        7802772 kB\nMemFree:          123456 kB\nMemAvailable:    {kb} kB\n"


def look(root: Path = Path("/"), bundle: Path | None = None) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(bundle, root)}


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in {"proc/meminfo": MEMINFO.format(kb=4_000_000), **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def doctor(code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own, after `code`."""
    script = f"import sys\n{code}\nfrom edge.cli import main\nsys.exit(main(['doctor']))"
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_here_a_bundle_can_run(tiny_bundle_directory: Path) -> None:
    found = look(bundle=tiny_bundle_directory)
    assert found["onnxruntime"].ok
    assert found["backend"].ok
    assert "files verified" in found["bundle"].detail
    assert all(finding.ok for finding in found.values() if finding.needed)
    assert all(finding.advice for finding in found.values() if not finding.ok)


def test_a_bundle_that_does_not_load_is_named(tmp_path: Path) -> None:
    finding = look(bundle=tmp_path / "nowhere")["bundle"]
    assert not finding.ok
    assert finding.needed
    assert "no bundle at" in finding.detail


def test_a_jetson_is_recognised(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=1 NAME=25W >\n",
            "var/lib/nvpmodel/status": "pmode:0001\n",
            "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
            "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
        },
    )
    found = look(root)
    assert found["Jetson"].detail == "NVIDIA Jetson Orin Nano Developer Kit, L4T 36.4.3"
    assert found["power mode"].detail == "25W"
    assert not found["GPU clocks"].ok
    assert "jetson_clocks" in found["GPU clocks"].advice
    assert not found["power sensors"].ok
    assert "unavailable" in found["power sensors"].advice


@pytest.mark.parametrize(("kb", "ok"), [(4_000_000, True), (100_000, False)])
def test_little_memory_is_told(tmp_path: Path, kb: int, ok: bool) -> None:
    assert look(machine(tmp_path, {"proc/meminfo": MEMINFO.format(kb=kb)}))["memory"].ok is ok


def test_the_command_says_what_there_is_and_ends_with_0() -> None:
    done = doctor()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "onnxruntime" in done.stdout
    assert "auto takes" in done.stdout


def test_without_any_backend_the_command_says_so_and_ends_with_3() -> None:
    done = doctor("sys.modules['onnxruntime'] = sys.modules['openvino'] = sys.modules['tensorrt'] = None")
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert any("MISSING" in line and "none works here" in line for line in lines)
    assert any("pip install 'mdconv-edge[onnxruntime]'" in line for line in lines)


@pytest.mark.parametrize("module", ["cv2", "pydicom", "simplejpeg"])
def test_what_nothing_works_without_is_missing_and_ends_with_3(module: str) -> None:
    done = doctor(f"sys.modules[{module!r}] = None")
    assert done.returncode == 3
    assert done.stdout.count("MISSING") == 1
    assert "Traceback" not in done.stderr


def test_a_missing_decoder_is_named_with_what_brings_it() -> None:
    done = doctor("sys.modules['pyjpegls'] = sys.modules['jpeg_ls'] = None")
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["-", "DICOM", "JPEG-LS", "refused"] in lines
    assert ["->", "pip", "install", "pyjpegls"] in lines
    assert ["ok", "DICOM", "RLE", "decoded"] in lines


def test_a_library_that_breaks_on_import_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise RuntimeError('libnvinfer.so.10:\\n cannot open shared object file')")
    done = doctor(PYTHONPATH=str(tmp_path))
    assert done.returncode == 0
    assert "TensorRT" in done.stdout
    assert "cannot be loaded: libnvinfer.so.10: cannot open shared object file" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("version", "mark"), [("8.6.2", "-"), ("10.3.0", "ok"), ("11.4.0.106", "ok"), ("12.0", "-")])
def test_other_releases_of_tensorrt_are_told(tmp_path: Path, version: str, mark: str) -> None:
    (tmp_path / "tensorrt.py").write_text(f"__version__ = {version!r}")
    lines = [line.split() for line in doctor(PYTHONPATH=str(tmp_path)).stdout.splitlines()]
    assert [mark, "TensorRT", version] in lines


def test_rendering_marks_what_is_missing_and_advises_only_there() -> None:
    findings = [
        Finding("first", True, "1.0", advice="never shown"),
        Finding("second", False, "gone", advice="get it", needed=True),
        Finding("third", False, "gone too", advice="perhaps get it"),
    ]
    text = render(findings)
    assert [line.split() for line in text.splitlines()] == [
        ["ok", "first", "1.0"],
        ["MISSING", "second", "gone"],
        ["->", "get", "it"],
        ["-", "third", "gone", "too"],
        ["->", "perhaps", "get", "it"],
    ]
    assert "\033" not in text
    assert "\033" in render(findings, color=True)


def test_the_plugin_that_the_variable_names_is_shown_or_what_is_wrong_with_it(tmp_path: Path) -> None:
    import numpy

    library = next(Path(numpy.__file__).parent.rglob("_multiarray_umath*.so"))
    done = doctor(MDCONV_PLUGIN=str(library))
    assert f"{library} (MDCONV_PLUGIN, SHA-256 " in done.stdout
    done = doctor(MDCONV_PLUGIN=str(tmp_path / "none.so"))
    assert done.returncode == 0
    assert f"MDCONV_PLUGIN names {tmp_path}/none.so, which is missing" in done.stdout
    assert "runs its fallback model" in done.stdout
