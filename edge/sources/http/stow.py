"""DICOMweb STOW-RS: the Store transaction of PS3.18 10.5. Each instance is an image like any other."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from python_multipart.exceptions import FormParserError
from starlette.responses import Response

from edge.dicom.reader import is_dicom, read_file
from edge.errors import InputRefusedError
from edge.service import BusyError, Service, StorageFullError
from edge.sources.http.answers import RETRY_AFTER, Refusal, documented, retry_after
from edge.sources.http.bodies import check_encoding, pieces
from edge.sources.http.context import MB, Context, client_of, log_received
from edge.sources.http.multipart import Fault, Part, PartReader, boundary_of

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
INSTANCES = 1000
"""Instances in one request, at most: each costs a line of the answer, even if there is nothing to it."""
COPIES = 2
"""An instance's content, and its pixel data once more while its identifiers are read."""
RETRY_SECONDS = 5.0

# Failure Reason (0008,1197): PS3.18 Table I.2-2, where a byte may be free for the server's own meaning.
OUT_OF_RESOURCES = 0xA700
OTHER_STUDY = 0xA901
CANNOT_UNDERSTAND = 0xC000

_SOP_INSTANCE, _STUDY = 0x0008_0018, 0x0020_000D
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_LONGEST_UID = 64

_BODY = {
    "requestBody": {
        "description": f'DICOM files, one a part; the Content-Type has type="{DICOM}" and the boundary.',
        "required": True,
        "content": {
            "multipart/related": {"schema": {"type": "string", "format": "binary", "minLength": 1}},
        },
    }
}


_RETRY = {"headers": {"Retry-After": RETRY_AFTER}}


@dataclass
class Stored:
    """What became of the instances of one request."""

    taken: list[tuple[str, str]] = field(default_factory=list)
    """SOP Class and Instance UID of each instance that is safe on the disk."""
    failed: list[tuple[str, str, int]] = field(default_factory=list)
    """The same of each one that was not taken, and the reason."""
    unnamed: list[int] = field(default_factory=list)
    """The reasons of the parts whose identifiers could not be read."""
    retry_seconds: float = RETRY_SECONDS

    def status(self) -> int:
        """PS3.18 Table 10.5.3-1."""
        reasons = [*(reason for *_, reason in self.failed), *self.unnamed]
        if not reasons:
            return 200
        if self.taken:
            return 202
        return 503 if set(reasons) == {OUT_OF_RESOURCES} else 409

    def data_set(self) -> dict[str, Any]:
        """The Store Instances Response Module, PS3.18 Table I.2-1, in the DICOM JSON model."""
        content: dict[str, Any] = {"00081190": {"vr": "UR"}}  # nothing can be retrieved from here
        if self.failed:
            content["00081198"] = _sequence([{**_reference(*uids), **_reason(reason)} for *uids, reason in self.failed])
        if self.taken:
            content["00081199"] = _sequence([_reference(*uids) for uids in self.taken])
        if self.unnamed:
            content["0008119A"] = _sequence([_reason(reason) for reason in self.unnamed])
        return content


def router(context: Context) -> APIRouter:
    """The Store transaction's two routes."""
    routes = APIRouter(tags=["DICOMweb"])
    answer = {"content": {DICOM_JSON: {"schema": {"type": "object"}}}}
    responses: dict[int | str, dict[str, Any]] = {
        200: {"description": "Every instance was taken.", **answer},
        202: {"description": "Some instances were taken; the answer says which were not, and why.", **answer},
        **documented(400, 406, 408, 413, 415),
        409: {"description": "No instance was taken; the answer says why.", **answer},
        503: {"description": "The daemon is out of resources: send them again after Retry-After.", **answer, **_RETRY},
    }

    @routes.post(
        "/studies",
        summary="Store instances (STOW-RS)",
        response_class=Response,
        responses=responses,
        openapi_extra=_BODY,
    )
    async def store(request: Request) -> Response:
        return await _store(context, request, None)

    @routes.post(
        "/studies/{study}",
        summary="Store instances of one study (STOW-RS)",
        response_class=Response,
        responses=responses,
        openapi_extra=_BODY,
    )
    async def store_study(
        request: Request,
        study: Annotated[str, Path(json_schema_extra={"pattern": f"^{_UID.pattern}$", "maxLength": _LONGEST_UID})],
    ) -> Response:
        if not _is_uid(study):
            raise Refusal(400, "the path's study is no UID, expected digits and dots, 64 at most: check the address")
        return await _store(context, request, study)

    return routes


async def _store(context: Context, request: Request, study: str | None) -> Response:
    if not _accepts_dicom_json(request.headers.get("accept", "*/*")):
        raise Refusal(406, f"the answer would be {DICOM_JSON}, which Accept does not have: accept it")
    check_encoding(request)
    boundary = boundary_of(request, DICOM)
    stored = Stored()
    try:
        await _read(context, request, study, boundary, stored)
    except FormParserError:
        stored.unnamed.append(CANNOT_UNDERSTAND)
        if not stored.taken:
            raise Refusal(
                400,
                "the body is no multipart/related with that boundary, expected parts up to its closing boundary: "
                "send it whole",
            ) from None
    status = stored.status()
    headers = retry_after(stored.retry_seconds) if status == 503 else None
    return Response(json.dumps(stored.data_set()), status, headers, media_type=DICOM_JSON)


async def _read(context: Context, request: Request, study: str | None, boundary: bytes, stored: Stored) -> None:
    """Read the body and hand over its instances one by one. Raises `FormParserError` if it is malformed."""
    config, service = context.config, context.service
    count, client = 0, client_of(request)
    async with context.memory.hold(0, config.body_seconds) as held:
        reader = PartReader(boundary, service.max_bytes, COPIES, held)
        async for piece in pieces(request, config.max_request_mb * MB, config.body_seconds):
            for part in reader.feed(piece):
                count += 1
                if count > INSTANCES:
                    stored.unnamed.append(OUT_OF_RESOURCES)
                    return
                await context.service_threads.run(_hand_over, service, part, study, stored, client)
                held.give_back(part.held)
    if not reader.ended or not count:
        raise FormParserError


def _hand_over(service: Service, part: Part, study: str | None, stored: Stored, client: str) -> None:
    if part.fault:
        stored.unnamed.append(OUT_OF_RESOURCES if part.fault is Fault.NO_MEMORY else CANNOT_UNDERSTAND)
        return
    try:
        sop_class, instance, instance_study = _identifiers(part, service.max_bytes)
    except InputRefusedError:
        stored.unnamed.append(CANNOT_UNDERSTAND)
        return
    if study not in (None, instance_study):
        stored.failed.append((sop_class, instance, OTHER_STUDY))
        return
    try:
        log_received(service.receive(part.content, origin="stow", instance=instance), client)
        stored.taken.append((sop_class, instance))
    except BusyError as error:
        stored.retry_seconds = error.retry_after
        stored.failed.append((sop_class, instance, OUT_OF_RESOURCES))
    except StorageFullError:
        stored.failed.append((sop_class, instance, OUT_OF_RESOURCES))
    except InputRefusedError:
        stored.failed.append((sop_class, instance, CANNOT_UNDERSTAND))


def _identifiers(part: Part, max_bytes: int) -> tuple[str, str, str]:
    """SOP Class, SOP Instance and Study Instance UID. Raises `InputRefusedError` if the part is no DICOM file."""
    kind = part.headers.get("content-type", DICOM).partition(";")[0].strip().lower()
    if kind != DICOM or not is_dicom(part.content):
        raise InputRefusedError("the part is no DICOM file: send DICOM files only")
    file = read_file(part.content, (_SOP_INSTANCE, _STUDY), max_bytes)
    found = (file.sop_class, file.data_set.text(_SOP_INSTANCE), file.data_set.text(_STUDY))
    if not all(map(_is_uid, found)):
        raise InputRefusedError("the part has no SOP Class, SOP Instance and Study Instance UID: send whole instances")
    return found


def _is_uid(text: str) -> bool:
    return len(text) <= _LONGEST_UID and _UID.fullmatch(text) is not None


def _accepts_dicom_json(accept: str) -> bool:
    kinds = {kind.partition(";")[0].strip().lower() for kind in accept.split(",")}
    return not kinds.isdisjoint(("*/*", "application/*", DICOM_JSON, "application/json"))


def _sequence(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": items}


def _reference(sop_class: str, instance: str) -> dict[str, Any]:
    return {"00081150": {"vr": "UI", "Value": [sop_class]}, "00081155": {"vr": "UI", "Value": [instance]}}


def _reason(reason: int) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [reason]}}
