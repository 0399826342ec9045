"""Builds the CUDA plugin where the machine has nvcc and TensorRT's headers; all else is in pyproject.toml.

An editable install builds it on a Jetson only: elsewhere it takes minutes that few want, and `make plugin` does it.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LIBRARY = "edge/lib/libmdconv_plugin.so"
NOT_BUILT = "edge/lib/not_built.txt"
JETSON = Path("/etc/nv_tegra_release").exists()


def build_plugin(build: Path, target: Path) -> str:
    """Build the library into the folder `target`, using the folder `build`; returns why that failed, or nothing."""
    if shutil.which("cmake") is None:
        return "cmake is missing: apt-get install cmake"
    for step in (
        ["cmake", "-S", ROOT / "plugin", "-B", build, f"-DPython3_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", build, "--parallel"],
        ["cmake", "--install", build, "--prefix", target],
    ):
        done = subprocess.run(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(done.stdout, file=sys.stderr)
        if done.returncode != 0:
            refused = re.search(r"CMake Error at .*?:\n(.*?)\n\n", done.stdout, re.DOTALL)
            return " ".join((refused[1] if refused else f"{step[1]} failed: {done.stdout[-300:]}").split())
    return ""


class BuildPy(build_py):
    """Copies the packages, then builds the plugin beside them. Without the plugin the package works all the same."""

    def run(self) -> None:
        super().run()
        target = ROOT if self.editable_mode else Path(self.build_lib)
        if self.editable_mode and not JETSON:
            print(f"{LIBRARY}: not built by an editable install: run `make plugin`", file=sys.stderr)
            return
        why = build_plugin(Path(self.get_finalized_command("build").build_temp) / "plugin", (target / LIBRARY).parent)
        note = target / NOT_BUILT
        note.unlink(missing_ok=True)
        if (target / LIBRARY).exists():
            # It is for one kind of processor: so is a wheel with it.
            self.distribution.has_ext_modules = lambda: True
        elif why:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(why + "\n")
        print(f"{LIBRARY}: {'not built: ' + why if why else 'built'}", file=sys.stderr)


class BdistWheel(bdist_wheel):
    """Names the wheel after what was built: with a plugin it is for one kind of machine, but for every Python."""

    def run(self) -> None:
        self.run_command("build")
        self.skip_build = True
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        _, _, machine = super().get_tag()
        return "py3", "none", machine


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
