"""An environment of its own for NVIDIA's ModelOpt, whose versions of ONNX and ONNX Runtime are not ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edge.errors import MachineError, describe_os_error

MODELOPT = "nvidia-modelopt==0.47.0"
REQUIREMENTS = Path(__file__).with_name("modelopt-requirements.txt")


def is_ready(directory: Path) -> bool:
    """Whether `prepare` made `directory` for these versions."""
    mark = _mark(directory)
    return mark.is_file() and mark.read_text("utf-8") == _wanted()


def prepare(directory: Path) -> Path:
    """The Python of an environment that has ModelOpt: the one in `directory`, which is made unless it is ready.

    Raises `MachineError`, with pip's own last word, if it cannot be made.
    """
    python = directory / "bin" / "python"
    if is_ready(directory):
        return python
    if directory.is_dir() and any(directory.iterdir()) and not (directory / "pyvenv.cfg").is_file():
        raise MachineError(f"{directory} is no virtual environment: name an empty folder, or one that is not there yet")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", str(directory)], f"cannot make a virtual environment in {directory}")
    _run([*pip, "--requirement", str(REQUIREMENTS)], f"pip cannot install {REQUIREMENTS.name}")
    _run([*pip, "--no-deps", MODELOPT], f"pip cannot install {MODELOPT}")
    _mark(directory).write_text(_wanted(), "utf-8")  # last: its presence says that the environment is whole
    return python


def _wanted() -> str:
    return f"{MODELOPT}\n{REQUIREMENTS.read_text('utf-8')}"


def _mark(directory: Path) -> Path:
    return directory / ".modelopt"


def _run(command: Sequence[str], problem: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise MachineError(f"{problem}: {describe_os_error(error)}") from None
    if done.returncode:
        raise MachineError(f"{problem}: {last_line(done.stderr or done.stdout) or f'status {done.returncode}'}")


def last_line(text: str) -> str:
    """The last line with an error in it, else the last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1]
