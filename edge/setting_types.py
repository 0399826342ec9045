"""Types that the sections of the settings share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

UserPath = Annotated[Path, BeforeValidator(lambda value: Path(value).expanduser())]
"""A path, in which ``~`` stands for the user's home."""
