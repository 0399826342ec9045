"""The tables of settings in the docs are the settings: each one, with its default."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from edge.sinks.mqtt_config import MqttConfig
from edge.sinks.pacs_config import PacsConfig
from edge.sources.dicom_config import DicomConfig

DOCS = Path(__file__).parents[3] / "docs"


def documented(page: str, section: str) -> dict[str, str]:
    """Default, as it is written, by setting, of the table of `section`."""
    table = (DOCS / page).read_text().split(f"| setting of `[{section}]`")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\|", table, re.MULTILINE))


def written(default: Any) -> str:
    if default is None or default is PydanticUndefined:
        return ""
    return json.dumps(list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize(
    ("page", "section", "settings"),
    [("dicom.md", "dicom", DicomConfig), ("dicom.md", "pacs", PacsConfig), ("mqtt.md", "mqtt", MqttConfig)],
)
def test_every_setting_is_documented(page: str, section: str, settings: type[BaseModel]) -> None:
    assert documented(page, section) == {name: written(field.default) for name, field in settings.model_fields.items()}
    assert all(field.description for field in settings.model_fields.values())
