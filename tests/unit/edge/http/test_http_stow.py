"""STOW-RS as dicomweb-client and others speak it, and every part that is not taken."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset

from edge.errors import BusyError, InputRefusedError, StorageFullError
from edge.sources.http.server import HttpServer
from edge.sources.http.stow import INSTANCES
from tests.system.daemon import wait_for
from tests.unit.edge.dicom_writer import CR_CLASS, radiograph, to_bytes
from tests.unit.edge.http.conftest import Serve
from tests.unit.edge.http.service import FakeService

STUDY = "1.2.826.0.1.3680043.9"
OUT_OF_RESOURCES, OTHER_STUDY, CANNOT_UNDERSTAND = 42752, 43265, 49152
KIND = 'multipart/related; type="application/dicom"; boundary=parted'


def instance(number: int, study: str = STUDY) -> Dataset:
    pixels = np.random.default_rng(number).integers(0, 4096, (40, 30)).astype(np.uint16)
    dataset = radiograph(
        pixels, bits=12, SOPInstanceUID=f"1.2.3.{number}", StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1"
    )
    to_bytes(dataset)  # gives it a file's header
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def body(*parts: bytes, headers: str = "Content-Type: application/dicom\r\n") -> bytes:
    return b"".join(f"--parted\r\n{headers}\r\n".encode() + part + b"\r\n" for part in parts) + b"--parted--"


def post(client: httpx.Client, *parts: bytes, path: str = "/studies", **headers: str) -> httpx.Response:
    return client.post(path, content=body(*parts), headers={"Content-Type": KIND, **headers})


def answer(response: httpx.Response) -> Dataset:
    assert response.headers["Content-Type"] == "application/dicom+json"
    return Dataset.from_json(response.text)


def uids(sequence: Sequence[Dataset]) -> list[str]:
    return [str(item.ReferencedSOPInstanceUID) for item in sequence]


@pytest.fixture
def archive(start: Callable[..., HttpServer]) -> DICOMwebClient:
    return DICOMwebClient(f"http://127.0.0.1:{start().port}")


@pytest.mark.parametrize("study", [None, STUDY])
def test_dicomweb_client_stores_instances(archive: DICOMwebClient, service: FakeService, study: str | None) -> None:
    sent = [instance(i) for i in range(3)]
    response = archive.store_instances(sent, study_instance_uid=study)
    assert uids(response.ReferencedSOPSequence) == [one.SOPInstanceUID for one in sent]
    assert {str(item.ReferencedSOPClassUID) for item in response.ReferencedSOPSequence} == {CR_CLASS}
    assert "FailedSOPSequence" not in response
    assert [(one.origin, one.instance) for one in service.received] == [("stow", one.SOPInstanceUID) for one in sent]
    for one, kept in zip(sent, service.received, strict=True):
        assert pydicom.dcmread(io.BytesIO(kept.content), force=True) == one  # it comes without a preamble


def test_dicomweb_client_is_told_of_another_study(archive: DICOMwebClient, service: FakeService) -> None:
    mixed = [instance(1), instance(2, study="1.2.9")]
    response = archive.store_instances(mixed, study_instance_uid=STUDY)
    assert uids(response.ReferencedSOPSequence) == ["1.2.3.1"]
    assert uids(response.FailedSOPSequence) == ["1.2.3.2"]
    assert response.FailedSOPSequence[0].FailureReason == OTHER_STUDY
    with pytest.raises(requests.HTTPError, match="409"):
        archive.store_instances(mixed[1:], study_instance_uid=STUDY)
    assert len(service.received) == 1


def test_content_goes_through_byte_by_byte_whatever_is_in_it(serve: Serve, service: FakeService) -> None:
    """Parts that hold what looks like a boundary, arrive in pieces of every size, with text around them."""
    file = to_bytes(instance(1)) + b"\r\n--part\r\n--parte\r\n-\r\n"
    whole = b"\r\n" + body(file, file, headers="Content-Type: application/dicom; transfer-syntax=*\r\nX: y\r\n")
    client = serve()
    for size in (7, 64, 1000, len(whole)):
        pieces = (whole[i : i + size] for i in range(0, len(whole), size))
        response = client.post("/studies", content=pieces, headers={"Content-Type": KIND})
        assert response.status_code == 200
    assert {one.content for one in service.received} == {file}
    assert len(service.received) == 8


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (BusyError("full", 7.0), 503, OUT_OF_RESOURCES),
        (StorageFullError("full"), 503, OUT_OF_RESOURCES),
        (InputRefusedError("no image"), 409, CANNOT_UNDERSTAND),
    ],
)
def test_each_refusal_of_the_daemon_has_its_reason(
    serve: Serve, service: FakeService, error: Exception, status: int, reason: int
) -> None:
    service.error = error
    response = post(serve(), to_bytes(instance(1)))
    assert response.status_code == status
    assert ("Retry-After" in response.headers) == (status == 503)
    failed = answer(response).FailedSOPSequence
    assert [(one.ReferencedSOPInstanceUID, one.FailureReason) for one in failed] == [("1.2.3.1", reason)]


def test_parts_that_are_no_instances_are_counted_and_the_others_taken(serve: Serve, service: FakeService) -> None:
    nameless = radiograph(np.zeros((4, 4), np.uint16))  # no study
    forged = to_bytes(instance(5)).replace(STUDY.encode(), b"DOE^JANE".ljust(len(STUDY)))
    parts = [b"", b"text", to_bytes(instance(1)), to_bytes(nameless), forged, b"x" * 2_000_000]
    response = post(serve(), *parts)
    assert response.status_code == 202
    found = answer(response)
    assert uids(found.ReferencedSOPSequence) == ["1.2.3.1"]
    assert [item.FailureReason for item in found[0x0008119A].value] == [CANNOT_UNDERSTAND] * 5
    assert b"DOE" in forged
    assert "DOE" not in response.text
    assert len(service.received) == 1
    assert post(serve(), b"text").status_code == 409


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"--parted--", 400),
        (b"nonsense", 400),
        (b"--parted\r\n\r\n" + b"x" * 100, 400),
        (b"--parted\r\nA: " + b"x" * 100_000, 400),
        (b"--parted\r\nbad header\r\n\r\nx\r\n--parted--", 400),
    ],
)
def test_a_body_that_is_not_parted_is_malformed(
    serve: Serve, content: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    response = serve().post("/studies", content=content, headers={"Content-Type": KIND})
    assert (response.status_code, set(response.json())) == (status, {"error"})
    wait_for(lambda: bool(caplog.records))  # it is told once it is answered
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"http: refused with {status}: method POST, route /studies, from 127.0.0.1"]


def test_what_came_before_the_break_is_kept_and_said(serve: Serve, service: FakeService) -> None:
    cut = body(to_bytes(instance(1)), to_bytes(instance(2)))[:-500]
    response = serve().post("/studies", content=cut, headers={"Content-Type": KIND})
    assert response.status_code == 202
    found = answer(response)
    assert uids(found.ReferencedSOPSequence) == ["1.2.3.1"]
    assert found[0x0008119A].value[0].FailureReason == CANNOT_UNDERSTAND
    assert len(service.received) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/dicom"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=parted"}, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=parted'}, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, 400),
        ({"Content-Type": 'multipart/related; type="application/dicom"; boundary=' + "x" * 300}, 400),
        ({"Content-Type": KIND, "Accept": "application/dicom+xml"}, 406),
        ({"Content-Type": KIND, "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": KIND, "Accept": "text/html, application/*;q=0.8"}, 200),
        ({"Content-Type": KIND.replace('"', "")}, 200),
        ({"Content-Type": "multipart/related; boundary=parted"}, 200),
    ],
)
def test_other_types(serve: Serve, headers: dict[str, Any], status: int) -> None:
    response = serve().post("/studies", content=body(to_bytes(instance(1))), headers=headers)
    assert response.status_code == status


def test_a_path_that_is_no_uid_is_malformed(serve: Serve) -> None:
    client = serve()
    for study in ("x", "1", "1.2.", "1" * 65, "1." + "2" * 63, "1.2%0A"):
        assert post(client, to_bytes(instance(1)), path=f"/studies/{study}").status_code == 400


def test_a_request_is_bounded_in_bytes_and_in_parts(serve: Serve, service: FakeService) -> None:
    client = serve(max_request_mb=1)
    assert post(client, *[b"x" * 300_000] * 4).status_code == 413
    response = post(client, *[b""] * (INSTANCES + 200))
    assert response.status_code == 409
    assert len(answer(response)[0x0008119A].value) == INSTANCES + 1


def test_a_part_that_finds_no_memory_is_out_of_resources(serve: Serve, service: FakeService) -> None:
    service.max_bytes = 10_000_000
    client = serve(max_memory_mb=1)
    response = post(client, b"x" * 900_000)
    assert response.status_code == 503
    assert answer(response)[0x0008119A].value[0].FailureReason == OUT_OF_RESOURCES
    one_by_one = post(client, *[b"x" * 200_000] * 5)  # each gives back what it took
    assert [item.FailureReason for item in answer(one_by_one)[0x0008119A].value] == [CANNOT_UNDERSTAND] * 5
    assert post(client, to_bytes(instance(1))).status_code == 200
