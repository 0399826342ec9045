"""Results in a real PACS (Orthanc), by C-STORE and by STOW-RS, and what a failing PACS leads to."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from pynetdicom import AE, evt

from edge.bundle import Bundle
from edge.errors import UsageError
from edge.sinks import SinkError, SinkRefusedError
from edge.sinks.dicom import PacsSink
from edge.sinks.dicom_study import derived_uid
from edge.sinks.pacs_config import PacsConfig
from edge.sources.dicom import DicomServer
from edge.sources.dicom_config import DicomConfig
from tests.system.dicom_peers import Inbox, certificate, free_port, needs, on_a_free_port, write_radiograph
from tests.system.dicom_results import delivery_of

# pynetdicom leaves it to Python to close the socket of a connection that failed; Python warns, and closes it at once.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

REPORT_CLASS, CAPTURE_CLASS = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.7"
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
needs_dicomweb = pytest.mark.skipif(not DICOMWEB.exists(), reason="needs Debian's orthanc-dicomweb")


class Orthanc:
    """A running PACS, and what its REST API says of it."""

    def __init__(self, dicom_port: int, http_port: int) -> None:
        self.dicom_port, self.http_port = dicom_port, http_port
        self.url = f"http://127.0.0.1:{http_port}"

    def get(self, path: str) -> Any:
        answer = requests.get(self.url + path, auth=("edge", "secret"), timeout=20)
        answer.raise_for_status()
        return answer.json()

    def instances(self, study: str) -> dict[str, str]:
        """SOP class by SOP instance of all that is in `study`."""
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": study}, "Expand": True}
        answer = requests.post(f"{self.url}/tools/find", json=query, auth=("edge", "secret"), timeout=20)
        tags = [self.get(f"/instances/{found['ID']}/simplified-tags") for found in answer.json()]
        return {tag["SOPInstanceUID"]: tag["SOPClassUID"] for tag in tags}


@contextmanager
def running_orthanc(directory: Path) -> Iterator[Orthanc]:
    log = (directory / "orthanc.log").open("w")

    def start() -> tuple[subprocess.Popen[Any], Orthanc]:
        orthanc = Orthanc(free_port(), free_port())
        config = {
            "StorageDirectory": str(directory / "storage"),
            "IndexDirectory": str(directory / "storage"),
            "DicomAet": "PACS",
            "DicomPort": orthanc.dicom_port,
            "HttpPort": orthanc.http_port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {"edge": "secret"},
            "OverwriteInstances": False,
            "Plugins": [str(DICOMWEB)] if DICOMWEB.exists() else [],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        path = directory / "orthanc.json"
        path.write_text(json.dumps(config))
        return subprocess.Popen(["Orthanc", path], stdout=log, stderr=log), orthanc

    def ready(orthanc: Orthanc) -> bool:
        try:
            return bool(orthanc.get("/system"))
        except requests.ConnectionError:
            return False

    with log, on_a_free_port(start, ready) as orthanc:
        yield orthanc


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def check_stored_once(orthanc: Orthanc, path: Path, sink: PacsSink, bundle: Bundle, seed: int) -> None:
    """Deliver twice; the image's study then holds one report and one picture."""
    delivery = delivery_of(bundle, path, seed=seed)
    sink.deliver(delivery)
    sink.deliver(delivery)
    sink.close()
    stored = orthanc.instances(str(pydicom.dcmread(path).StudyInstanceUID))
    assert sorted(stored.values()) == [CAPTURE_CLASS, REPORT_CLASS]


@needs("Orthanc")
def test_by_association(orthanc: Orthanc, tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = write_radiograph(tmp_path / "a.dcm", 20)
    sink = PacsSink(PacsConfig(host="127.0.0.1", port=orthanc.dicom_port, aet="PACS"))
    check_stored_once(orthanc, path, sink, tiny_bundle, seed=20)


@needs("Orthanc")
@needs_dicomweb
def test_by_web(orthanc: Orthanc, tiny_bundle: Bundle, tmp_path: Path) -> None:
    path, password = write_radiograph(tmp_path / "a.dcm", 21), tmp_path / "password"
    password.write_text("secret\n")
    url = f"{orthanc.url}/dicom-web"
    sink = PacsSink(PacsConfig(url=url, user="edge", password_file=password))
    check_stored_once(orthanc, path, sink, tiny_bundle, seed=21)
    password.write_text("wrong\n")
    stranger = PacsSink(PacsConfig(url=url, user="edge", password_file=password))
    with pytest.raises(SinkError, match="status 401: check its credentials"):
        stranger.deliver(delivery_of(tiny_bundle, path))
    elsewhere = PacsSink(PacsConfig(url=f"{orthanc.url}/none", user="edge", password_file=tmp_path / "password"))
    with pytest.raises(SinkError):
        elsewhere.deliver(delivery_of(tiny_bundle, path))


@needs("Orthanc")
def test_the_wrong_title_is_named(orthanc: Orthanc, tiny_bundle: Bundle, tmp_path: Path) -> None:
    sink = PacsSink(PacsConfig(host="127.0.0.1", port=orthanc.dicom_port, aet="OTHER"))
    with pytest.raises(SinkError, match=r"rejected the association: check `aet` \(OTHER\)"):
        sink.deliver(delivery_of(tiny_bundle, write_radiograph(tmp_path / "a.dcm")))


def test_nobody_there(tiny_bundle: Bundle, tmp_path: Path) -> None:
    delivery = delivery_of(tiny_bundle, write_radiograph(tmp_path / "a.dcm"))
    for config in (
        PacsConfig(host="127.0.0.1", port=free_port()),
        PacsConfig(host="no-such-host.invalid"),
        PacsConfig(url=f"http://127.0.0.1:{free_port()}/dicom-web"),
    ):
        with pytest.raises(SinkError, match=r"cannot be (reached|found)"):
            PacsSink(config).deliver(delivery)


def test_what_is_not_delivered(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Refused images and PNGs have nothing to file; of a DICOM that is gone, one is told. Nobody is called for any."""
    sink = PacsSink(PacsConfig(host="127.0.0.1", port=free_port()))
    sink.deliver(delivery_of(tiny_bundle, b"\x89PNG\r\n\x1a\n" + bytes(100)))
    sink.deliver(delivery_of(tiny_bundle, write_radiograph(tmp_path / "a.dcm"), reason="it is no radiograph"))
    with pytest.raises(SinkRefusedError, match="no longer kept"):
        sink.deliver(delivery_of(tiny_bundle, None))


@contextmanager
def pacs_that_answers(status: int | None, contexts: tuple[str, ...] = (), strict: bool = False) -> Iterator[int]:
    """The port of a Storage SCP that answers each C-STORE with `status`; that aborts if it is None.

    A `strict` one rejects who does not call it ``PACS``.
    """

    def answer(event: evt.Event) -> int:
        if status is None:
            event.assoc.abort()
            return 0
        return status

    entity = AE("PACS")
    entity.require_called_aet = strict
    for context in contexts or (CAPTURE_CLASS, REPORT_CLASS):
        entity.add_supported_context(context)
    handlers = [(evt.EVT_C_STORE, answer)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (0x0000, None, ""),
        (0xB000, None, ""),
        (0x0111, None, ""),
        (0xA700, SinkError, "A700H"),
        (0x0122, SinkError, "0122H"),
        (0xA900, SinkRefusedError, "A900H"),
        (0xC123, SinkRefusedError, "C123H"),
        (None, SinkError, "association"),
    ],
)
def test_statuses(
    tiny_bundle: Bundle, tmp_path: Path, status: int | None, error: type[Exception] | None, told: str
) -> None:
    delivery = delivery_of(tiny_bundle, write_radiograph(tmp_path / "a.dcm"))
    with pacs_that_answers(status) as port:
        sink = PacsSink(PacsConfig(host="127.0.0.1", port=port))
        if error is None:
            sink.deliver(delivery)
            return
        with pytest.raises(error, match=told) as caught:
            sink.deliver(delivery)
    assert type(caught.value) is error
    assert "1.2.826" not in str(caught.value)


def test_a_rejection_is_told_however_fast_it_comes(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rejection is here, and the connection closed, before pynetdicom looks: it takes that for a failed one."""
    associate = AE.associate

    def associate_late(entity: AE, *arguments: Any, evt_handlers: Sequence[Any] = (), **options: Any) -> Any:
        late = (evt.EVT_REQUESTED, lambda event: time.sleep(0.5))
        return associate(entity, *arguments, evt_handlers=[*evt_handlers, late], **options)

    monkeypatch.setattr(AE, "associate", associate_late)
    delivery = delivery_of(tiny_bundle, write_radiograph(tmp_path / "a.dcm"))
    with (
        pacs_that_answers(0, strict=True) as port,
        pytest.raises(SinkError, match=r"rejected the association: check `aet` \(OTHER\)"),
    ):
        PacsSink(PacsConfig(host="127.0.0.1", port=port, aet="OTHER")).deliver(delivery)


def test_a_class_that_is_not_taken_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    delivery = delivery_of(tiny_bundle, write_radiograph(tmp_path / "a.dcm"))
    with (
        pacs_that_answers(0, contexts=(CAPTURE_CLASS,)) as port,
        pytest.raises(SinkError, match="does not take the report"),
    ):
        PacsSink(PacsConfig(host="127.0.0.1", port=port)).deliver(delivery)


@contextmanager
def web_server(
    status: int, body: bytes = b"", tls: tuple[Path, Path] | None = None
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A DICOMweb root that answers each POST with `status`; and the headers of what came."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(dict(self.headers))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json; charset=utf-8")
            if status in (301, 302, 307):
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/dicom-web", seen
        finally:
            server.shutdown()
            thread.join()


def answer(*, report: int = 0, capture: int = 0) -> bytes:
    """A Store Instances Response about both objects: stored, or failed with that reason (PS3.18 I.2.2)."""
    said = pydicom.Dataset()
    said.ReferencedSOPSequence, said.FailedSOPSequence = [], []
    for sop_class, what, reason in ((REPORT_CLASS, "report", report), (CAPTURE_CLASS, "capture", capture)):
        item = pydicom.Dataset()
        item.ReferencedSOPClassUID = sop_class
        item.ReferencedSOPInstanceUID = derived_uid(f"{4:032x}", what)  # the result of seed 3
        if reason:
            item.FailureReason = reason
        (said.FailedSOPSequence if reason else said.ReferencedSOPSequence).append(item)
    return said.to_json().encode()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, answer(), None),
        (202, answer(capture=0xB000), None),
        (202, answer(report=0x0111, capture=0x0111), None),
        (202, answer(report=0xA700), SinkError),
        (202, answer(capture=0xC000), SinkRefusedError),
        (200, b"", SinkError),
        (200, b"{}", SinkError),
        (302, b"", SinkError),
        (200, b"no JSON", SinkError),
        (400, b"", SinkRefusedError),
        (409, b"", SinkRefusedError),
        (403, b"", SinkError),
        (429, b"", SinkError),
        (503, b"", SinkError),
    ],
)
def test_web_statuses(
    tiny_bundle: Bundle, tmp_path: Path, status: int, body: bytes, error: type[Exception] | None
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    delivery = delivery_of(tiny_bundle, write_radiograph(tmp_path / "a.dcm"))
    with web_server(status, body) as (url, seen):
        sink = PacsSink(PacsConfig(url=url, token_file=token))
        if error is None:
            sink.deliver(delivery)
        else:
            with pytest.raises(error) as caught:
                sink.deliver(delivery)
            assert type(caught.value) is error
        sink.close()
    assert [headers["Authorization"] for headers in seen] == ["Bearer s3cret"]


def test_tls_to_a_web_server(tiny_bundle: Bundle, tmp_path: Path) -> None:
    files, stranger = certificate(tmp_path, "pacs"), certificate(tmp_path, "stranger")
    delivery = delivery_of(tiny_bundle, write_radiograph(tmp_path / "a.dcm"))
    with web_server(200, answer(), files) as (url, seen):
        sink = PacsSink(PacsConfig(url=url, ca=files[0]))
        sink.deliver(delivery)
        sink.close()
        with pytest.raises(SinkError, match=r"cannot be reached \(SSLError"):
            PacsSink(PacsConfig(url=url, ca=stranger[0])).deliver(delivery)
        assert len(seen) == 1


def test_tls_to_the_pacs(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Our own SCP stands for the PACS: it takes pictures. The certificate must be one that we trust, for that name."""
    server_files, stranger = certificate(tmp_path, "pacs"), certificate(tmp_path, "stranger")
    inbox = Inbox()
    config = DicomConfig(port=0, aet="PACS", tls_certificate=server_files[0], tls_key=server_files[1])
    server = DicomServer(inbox, config)  # type: ignore[arg-type]
    server.start()
    try:
        delivery = delivery_of(tiny_bundle, write_radiograph(tmp_path / "a.dcm"))

        def sink(ca: Path) -> PacsSink:
            return PacsSink(PacsConfig(host="localhost", port=server.port, tls=True, ca=ca, report=False))

        sink(server_files[0]).deliver(delivery)
        assert len(inbox.contents) == 1
        with pytest.raises(SinkError, match="cannot be reached"):
            sink(stranger[0]).deliver(delivery)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "host"),
        ({"host": "a", "url": "http://b"}, "not both"),
        ({"host": "a", "report": False, "capture": False}, "nothing to send"),
        ({"host": "a", "aet": "A" * 17}, "AE title"),
        ({"url": "http://user:secret@b"}, "url"),
        ({"url": "http://b", "user": "u"}, "password_file"),
        ({"host": "a", "token_file": "t"}, "for url only"),
        ({"host": "a", "certificate": "c"}, "belong together"),
        ({"host": "a", "password": "p"}, "password"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PacsConfig(**wrong)


def test_secrets_that_cannot_be_read(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    make: Callable[[Path], PacsSink] = lambda path: PacsSink(PacsConfig(url="http://b", token_file=path))  # noqa: E731
    with pytest.raises(UsageError, match="is empty"):
        make(empty)
    with pytest.raises(UsageError, match="check the path"):
        make(tmp_path / "none")
