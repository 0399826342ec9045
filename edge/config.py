"""The daemon's settings: from flags, else the environment, else a TOML file, else defaults; checked before all else.

`EDGE_INFER_BUNDLE` stands for ``bundle``, `EDGE_INFER_HTTP__PORT` for ``port`` in ``[http]``. A section that is absent
is a source or sink that the daemon has not, and does not load.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from edge.errors import UsageError, describe_os_error
from edge.places import default_state
from edge.setting_types import UserPath
from edge.sinks.mqtt_config import MqttConfig
from edge.sinks.pacs_config import PacsConfig
from edge.sources.dicom_config import DicomConfig
from edge.sources.http.config import HttpConfig
from edge.sources.video_config import VideoConfig

PREFIX = "EDGE_INFER_"


def _split(value: Any) -> Any:
    return value.split(os.pathsep) if isinstance(value, str) else value


class Section(BaseModel):
    """One table of the file. A key that is not known is an error: it may be a misspelt one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class QueueConfig(Section):
    """``[queue]``: what is received and not under way yet."""

    max_images: int = Field(1000, ge=1, description="images that may wait; more are refused for now")
    max_mb: int = Field(4000, ge=1, description="megabytes that the images that wait may have together")
    min_free_mb: int = Field(200, ge=0, description="megabytes of the disk that are kept free for results")
    batch_wait_ms: float = Field(0.0, ge=0, le=10_000, description="how long a batch that is not full waits for more")


class RetentionConfig(Section):
    """``[retention]``: how long results are kept, once every sink has them."""

    days: float | None = Field(90.0, gt=0, description="age; absent: for ever")
    max_mb: int | None = Field(2000, ge=1, description="size of the ledger, pictures included")
    pictures: bool = Field(False, description="keep what the network saw, and its maps, for the page")


class LogConfig(Section):
    """``[log]``, on standard error."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class SelfTestConfig(Section):
    """``[self_test]``: the golden inputs, once more while serving."""

    every_hours: float = Field(24.0, ge=0, description="0: only when a bundle is loaded")


class ShadowConfig(Section):
    """``[shadow]``: a share of the images is run on the float32 reference too, and what differs is counted."""

    fraction: float = Field(0.0, ge=0, le=1, description="share of the images")


class MemoryConfig(Section):
    """``[memory]``: the daemon finishes what is under way and ends, for its supervisor to start it anew."""

    limit_mb: int | None = Field(None, ge=64, description="resident memory; absent: no limit")


class JsonlConfig(Section):
    """``[jsonl]``: one JSON object a line."""

    path: UserPath = Field(description="file that results are appended to")


class Config(BaseSettings):
    """All settings of ``edge-infer serve``."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__")

    bundle: UserPath = Field(description="the bundle to run")
    state: UserPath = Field(default_factory=default_state, description="the ledger's place")
    watch: Annotated[tuple[UserPath, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="folders whose images are taken; in the environment separated by colons"
    )
    backend: Literal["auto", "tensorrt", "openvino", "onnxruntime"] = "auto"
    public_key: UserPath | None = Field(None, description="Ed25519 key (PEM) that must have signed the bundle")
    allow_failed_gate: bool = Field(False, description="run a bundle that failed its accuracy gate")
    guard: bool = Field(True, description="refuse images that the network was not made for")
    keep_names: bool = Field(False, description="keep file names with the results (they may hold patients' names)")
    drain: bool = Field(False, description="stop once the folders hold nothing new and all is done")
    queue: QueueConfig = QueueConfig()
    retention: RetentionConfig = RetentionConfig()
    log: LogConfig = LogConfig()
    self_test: SelfTestConfig = SelfTestConfig()
    shadow: ShadowConfig = ShadowConfig()
    memory: MemoryConfig = MemoryConfig()
    http: HttpConfig | None = None
    dicom: DicomConfig | None = None
    video: tuple[VideoConfig, ...] = ()
    jsonl: JsonlConfig | None = None
    pacs: PacsConfig | None = None
    mqtt: MqttConfig | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before the environment before the file; no other source."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_config(file: Path | None, flags: Mapping[str, Any]) -> Config:
    """The settings from `flags`, the environment and the TOML `file`. Raises `UsageError`, whose text names the key."""

    class FromFile(Config):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        if file is not None:
            file.open("rb").close()  # a file that is missing would else be passed over
        return FromFile(**flags)
    except OSError as error:
        raise UsageError(f"--config: {describe_os_error(error)}") from None
    except ValidationError as error:
        where = f" (flags, environment{f', {file}' if file else ''})"
        raise UsageError("; ".join(_described(entry) for entry in error.errors()[:5]) + where) from None
    except (SettingsError, ValueError) as error:  # tomllib's error is a ValueError
        raise UsageError(f"--config {file}: {' '.join(str(error).split())}: correct it") from None


def _described(entry: Any) -> str:
    key, kind = ".".join(str(part) for part in entry["loc"]), entry["type"]
    if kind == "missing":
        flag = f"--{key}, " if key in ("bundle", "state", "watch") else ""
        return f"{key} is missing: give {flag}{PREFIX}{key.upper().replace('.', '__')} or `{key}` in the file"
    if kind == "extra_forbidden":
        return f"{key} is no setting: check its spelling, and its section"
    given = f", got {entry['input']!r}" if isinstance(entry["input"], (str, int, float)) else ""
    return f"{key}: {entry['msg'][:1].lower()}{entry['msg'][1:]}{given}"
