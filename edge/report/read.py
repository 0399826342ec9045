"""Reads ``report.json`` back, and refuses what is none or is of a version that this program does not know."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from edge.errors import UsageError, describe_os_error
from edge.report.build import SCHEMA_VERSION

REPORT_JSON = "report.json"
SCHEMA = "report.schema.json"


def read_report(path: Path) -> dict[str, Any]:
    """The report in `path`: a ``report.json``, or a folder that holds one.

    Raises `UsageError` if it cannot be read, is no report, or is of another version than `SCHEMA_VERSION`.
    """
    path = path / REPORT_JSON if path.is_dir() else path
    try:
        report = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise UsageError(f"the report cannot be read: {describe_os_error(error)}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is no JSON: name a {REPORT_JSON}, or the folder that --report was given") from None
    version = report.get("schema_version") if isinstance(report, dict) else None
    if version != SCHEMA_VERSION:
        raise UsageError(f"{path} {_other_version(report, version)}")
    _validate(path, report)
    assert isinstance(report, dict)
    return report


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _other_version(report: Any, version: Any) -> str:
    if type(version) is int and version > SCHEMA_VERSION:
        return (
            f"is a report of version {version}, this program reads {SCHEMA_VERSION}: read it with the program that "
            "wrote it, or a later one"
        )
    if type(version) is int or (isinstance(report, dict) and report.get("format") == 1):
        return f"is a report of an earlier version, this program reads {SCHEMA_VERSION}: measure again with this one"
    return f"is no latency report of version {SCHEMA_VERSION}: name a {REPORT_JSON} of `edge-infer bench` or `report`"


def _validate(path: Path, report: Any) -> None:
    from fastjsonschema import JsonSchemaValueException  # here: only reading a report needs it

    try:
        _validator()(report)
    except JsonSchemaValueException as error:
        place = (error.name or "").removeprefix("data").lstrip(".") or "it"
        raise UsageError(
            f"{path} is no whole report of version {SCHEMA_VERSION}: {place} breaks the rule {error.rule!r} of "
            f"{SCHEMA}: write the report anew"
        ) from None


@functools.cache
def _validator() -> Callable[[Any], Any]:
    import fastjsonschema

    schema = json.loads(resources.files("edge.report").joinpath(SCHEMA).read_text(encoding="utf-8"))
    compiled: Callable[[Any], Any] = fastjsonschema.compile(schema)
    return compiled
