"""Receiving by DICOM, from the programs of DCMTK and from pynetdicom as senders."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless
from pynetdicom import AE

from edge.dicom import RAW_CLASS
from edge.errors import InputRefusedError, MachineError, UsageError
from edge.preprocess import Preprocess, decode
from edge.service import BusyError, StorageFullError
from edge.sources.dicom import DicomServer
from edge.sources.dicom_config import DicomConfig
from tests.system.dicom_peers import (
    Inbox,
    certificate,
    chest,
    data_set_of,
    needs,
    run,
    syntax_of,
    wait_for,
    write_radiograph,
)
from tests.system.fuzz_dicom import record
from tests.unit.edge.dicom_writer import CR_CLASS, CT_CLASS, radiograph, to_bytes

Start = Callable[..., tuple[DicomServer, Inbox]]
STORE = ("storescu", "-aec", "MDCONV_EDGE", "127.0.0.1")
VERBOSE = ("storescu", "-v", "-aec", "MDCONV_EDGE", "127.0.0.1")


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[DicomServer] = []

    def make(inbox: Inbox | None = None, **config: Any) -> tuple[DicomServer, Inbox]:
        inbox = inbox or Inbox()
        server = DicomServer(inbox, DicomConfig(port=0, **config))  # type: ignore[arg-type]
        server.start()
        servers.append(server)
        return server, inbox

    yield make
    for server in servers:
        server.stop()


def send(server: DicomServer, dataset: pydicom.Dataset, priority: int = 2, aet: str = "MDCONV_EDGE") -> pydicom.Dataset:
    """C-STORE by pynetdicom; the status data set."""
    entity = AE("TESTER")
    entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", server.port, ae_title=aet)
    assert association.is_established
    status = association.send_c_store(dataset, priority=priority)
    association.release()
    return status


def file_of(path: Path) -> pydicom.FileDataset:
    return pydicom.dcmread(path)


@needs("storescu", "echoscu")
def test_echo_and_an_image_arrive_as_sent(start: Start, tmp_path: Path) -> None:
    server, inbox = start()
    assert run("echoscu", "-aec", "MDCONV_EDGE", "127.0.0.1", server.port.__str__()).returncode == 0
    path = write_radiograph(tmp_path / "a.dcm")
    assert run(*STORE, str(server.port), path).returncode == 0
    (content,), (facts,) = inbox.contents, inbox.calls
    assert data_set_of(content) == data_set_of(path)
    assert facts == {"origin": "dicom", "instance": str(file_of(path).SOPInstanceUID), "stat": False}


@needs("storescu", "dcmconv", "dcmcjpeg", "dcmcjpls", "dcmcrle")
@pytest.mark.parametrize(
    ("encoder", "sender", "syntax"),
    [
        (("dcmconv", "+ti"), "-xi", "1.2.840.10008.1.2"),
        (("dcmconv", "+te"), "-xe", "1.2.840.10008.1.2.1"),
        (("dcmconv", "+tb"), "-xb", "1.2.840.10008.1.2.2"),
        (("dcmconv", "+td"), "-xd", "1.2.840.10008.1.2.1.99"),
        (("dcmcjpeg", "+eb"), "-xy", "1.2.840.10008.1.2.4.50"),
        (("dcmcjpeg", "+e1"), "-xs", "1.2.840.10008.1.2.4.70"),
        (("dcmcjpls",), "-xt", "1.2.840.10008.1.2.4.80"),
        (("dcmcjpls", "+en", "+md", "2"), "-xu", "1.2.840.10008.1.2.4.81"),
        (("dcmcrle",), "-xr", "1.2.840.10008.1.2.5"),
    ],
)
def test_transfer_syntaxes(start: Start, tmp_path: Path, encoder: tuple[str, ...], sender: str, syntax: str) -> None:
    """Each arrives undecoded, and decodes to what the file on the disk decodes to."""
    server, inbox = start()
    plain, coded = write_radiograph(tmp_path / "plain.dcm", BitsStored=12), tmp_path / "coded.dcm"
    if syntax.endswith(".50"):  # 8 bits
        plain.write_bytes(
            to_bytes(radiograph((chest() >> 4).astype(np.uint8), StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1"))
        )
    made = run(*encoder, plain, coded)
    assert made.returncode == 0, made.stderr
    sent = run("storescu", sender, *STORE[1:], str(server.port), coded)
    assert sent.returncode == 0, sent.stderr
    (content,) = inbox.contents
    assert syntax_of(content) == syntax
    padding = b"\0" if syntax.endswith(".99") else b""  # storescu pads a deflated stream to even length
    assert data_set_of(content).removesuffix(padding) == data_set_of(coded).removesuffix(padding)
    np.testing.assert_array_equal(decode(content, Preprocess(64)), decode(coded.read_bytes(), Preprocess(64)))


def test_what_cannot_be_decoded_is_not_taken(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sender that proposes uncompressed beside it then sends that."""
    lossless = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
    missing = dict.fromkeys(lossless, "'mdconv-edge[gdcm]'")
    monkeypatch.setattr("edge.sources.dicom.missing_packages", lambda syntax: missing.get(syntax, ""))
    server, inbox = start()
    assert [record.getMessage().split(": ")[-1] for record in caplog.records if record.levelname == "WARNING"] == [
        "pip install 'mdconv-edge[gdcm]'"
    ] * 2
    entity = AE("TESTER")
    for syntax in (*lossless, RLELossless, JPEG2000Lossless):
        entity.add_requested_context(CR_CLASS, syntax)
    entity.add_requested_context(CR_CLASS, [*lossless, "1.2.840.10008.1.2.1"])
    association = entity.associate("127.0.0.1", server.port, ae_title="MDCONV_EDGE")
    taken = {context.transfer_syntax[0] for context in association.accepted_contexts}
    association.release()
    assert taken == {RLELossless, JPEG2000Lossless, "1.2.840.10008.1.2.1"}
    assert send(server, file_of(write_radiograph(tmp_path / "a.dcm"))).Status == 0
    assert len(inbox.contents) == 1


@needs("storescu")
def test_jpeg_2000(start: Start, tmp_path: Path) -> None:
    server, inbox = start()
    pixels = chest()
    path = tmp_path / "a.dcm"
    dataset = file_of(write_radiograph(path))
    dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    dataset.save_as(path)
    sent = run("storescu", "-xv", *STORE[1:], str(server.port), path)
    assert sent.returncode == 0, sent.stderr
    assert syntax_of(inbox.contents[0]) == JPEG2000Lossless
    assert decode(inbox.contents[0], Preprocess(64)).shape == pixels.shape


@pytest.mark.parametrize(("priority", "stat"), [(0, False), (1, True), (2, False)])
def test_high_priority_is_stat(start: Start, tmp_path: Path, priority: int, stat: bool) -> None:
    server, inbox = start()
    assert send(server, file_of(write_radiograph(tmp_path / "a.dcm")), priority).Status == 0
    assert inbox.calls[0]["stat"] is stat


@needs("echoscu")
def test_titles_and_addresses(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    def echo(server: DicomServer, called: str, calling: str) -> tuple[int, str]:
        done = run("echoscu", "-v", "-aec", called, "-aet", calling, "127.0.0.1", str(server.port))
        return done.returncode, done.stderr

    server, _ = start(aet="OURS", calling_aets=("CT1", "DX 2"), addresses=("10.0.0.0/8", "127.0.0.1"))
    assert echo(server, "OURS", "DX 2")[0] == 0
    assert "Called AE Title Not Recognized" in echo(server, "THEIRS", "CT1")[1]
    assert "Calling AE Title Not Recognized" in echo(server, "OURS", "CT3")[1]
    assert "association from 127.0.0.1 rejected: the AE title that it calls is not `aet`" in caplog.text
    assert "association from 127.0.0.1 rejected: its own AE title is not in `calling_aets`" in caplog.text
    assert not [name for name in ("THEIRS", "CT3") if name in caplog.text]
    far, _ = start(addresses=("10.0.0.0/8", "fd00::/8"))
    assert echo(far, "MDCONV_EDGE", "CT1")[0] != 0
    assert "connection from 127.0.0.1 refused: it is not in `addresses`" in caplog.text
    anyone, _ = start(require_called_aet=False)
    assert echo(anyone, "WHATEVER", "CT1")[0] == 0


@needs("echoscu", "storescu")
def test_tls(start: Start, tmp_path: Path) -> None:
    """Clients need TLS, and a certificate that our CA signed; one that says nothing keeps nobody waiting."""
    ours, client, stranger = (certificate(tmp_path, name) for name in ("ours", "client", "stranger"))
    server, inbox = start(tls_certificate=ours[0], tls_key=ours[1], tls_client_ca=client[0])
    target = ("-aec", "MDCONV_EDGE", "127.0.0.1", str(server.port))
    with socket.create_connection(("127.0.0.1", server.port)):  # never begins its handshake
        path = write_radiograph(tmp_path / "a.dcm")
        trusted = ("+tls", client[1], client[0], "+cf", ours[0])
        sent = run("storescu", *trusted, *target, path)
        assert sent.returncode == 0, sent.stderr
    assert data_set_of(inbox.contents[0]) == data_set_of(path)
    assert run("echoscu", *target, timeout=30).returncode != 0
    assert run("echoscu", "+tls", stranger[1], stranger[0], "+cf", ours[0], *target).returncode != 0
    assert run("echoscu", *trusted, *target).returncode == 0
    ours[0].write_text("no certificate")
    with pytest.raises(UsageError):
        server.reload()
    renewed = certificate(tmp_path, "ours")
    server.reload()
    trusted = ("+tls", client[1], client[0], "+cf", renewed[0])
    assert run("echoscu", *trusted, *target).returncode == 0


@needs("storescu")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BusyError("full", 2.0), 0xA700),
        (StorageFullError("full"), 0xA700),
        (MachineError("the ledger broke"), 0xA700),
        (InputRefusedError("too large"), 0xC000),
        (KeyError("Doe^Jane"), 0x0110),
    ],
)
def test_failures_become_statuses(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, status: int
) -> None:
    server, inbox = start(Inbox(error=error))
    path = write_radiograph(tmp_path / "a.dcm")
    answer = send(server, file_of(path))
    assert answer.Status == status
    assert 0 < len(answer.ErrorComment) <= 64
    assert run(*STORE, str(server.port), path).returncode != 0
    inbox.error = None
    assert send(server, file_of(path)).Status == 0
    assert not [record for record in caplog.records if "Doe" in record.getMessage() or "1.2.826" in record.getMessage()]


class RawSender:
    """C-STORE requests that no well-behaved sender makes, through pynetdicom's own messages."""

    def __init__(self, port: int, syntax: str = "1.2.840.10008.1.2.1", calling: str = "TESTER", **how: Any) -> None:
        entity = AE(calling)
        entity.dimse_timeout = 10
        entity.add_requested_context(CR_CLASS, syntax)
        self.association = entity.associate("127.0.0.1", port, ae_title="MDCONV_EDGE", **how)
        assert self.association.is_established
        (self.context,) = self.association.accepted_contexts

    def store(self, data_set: bytes, instance: str, sop_class: str = CR_CLASS) -> int | None:
        import io

        from pynetdicom.dimse_primitives import C_STORE

        request = C_STORE()
        request.MessageID, request.Priority = 7, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, instance
        request.DataSet = io.BytesIO(data_set)
        self.association._reactor_checkpoint.clear()
        while not self.association._is_paused:
            threading.Event().wait(0.01)
        self.association.dimse.send_msg(request, self.context.context_id)
        _, answer = self.association.dimse.get_msg(block=True)
        self.association._reactor_checkpoint.set()
        return None if answer is None else answer.Status


def test_contradictions(start: Start, tmp_path: Path) -> None:
    server, inbox = start()
    path = write_radiograph(tmp_path / "a.dcm")
    good, instance = data_set_of(path), str(file_of(path).SOPInstanceUID)
    other = data_set_of(write_radiograph(tmp_path / "b.dcm", SOPClassUID=CT_CLASS))
    raw = RawSender(server.port)
    for evil in ("../../etc/passwd", "1.2..3", "1.02.3", "1.2.3\n4", "1", "1.2.3;rm"):
        assert raw.store(good, evil) == 0x0117, evil
    assert raw.store(other, instance) == 0xA900
    assert raw.store(good, instance, CT_CLASS) in (0xA900, None)
    raw = RawSender(server.port)
    assert raw.store(good, "1.2.3.4.5") == 0xC000
    assert raw.store(b"\xff" * 200, instance) == 0xC000
    assert inbox.contents == []
    raw = RawSender(server.port)
    assert raw.store(good, instance) == 0
    assert len(inbox.contents) == 1
    assert held(server) == 0  # though the association is still open


@needs("storescu")
@pytest.mark.parametrize("sop_class", [CT_CLASS, RAW_CLASS])
def test_what_could_never_be_classified_is_not_negotiated(start: Start, tmp_path: Path, sop_class: str) -> None:
    server, inbox = start()
    sent = run(*VERBOSE, str(server.port), write_radiograph(tmp_path / "a.dcm", SOPClassUID=sop_class))
    assert sent.returncode != 0
    assert "No valid Presentation Context ID" in sent.stderr
    assert inbox.contents == []


@needs("storescu", "echoscu")
def test_too_large_a_data_set_aborts(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server, inbox = start(Inbox(max_bytes=1_500_000))
    path = write_radiograph(tmp_path / "a.dcm")
    dataset = file_of(path)
    dataset.Rows, dataset.Columns, dataset.PixelData = 1000, 1000, bytes(2_000_000)
    dataset.save_as(path)
    assert run(*STORE, str(server.port), path).returncode != 0
    assert inbox.contents == []
    assert "a data set of more than 1,500,000 bytes" in caplog.text
    assert run("echoscu", "-aec", "MDCONV_EDGE", "127.0.0.1", str(server.port)).returncode == 0


@needs("echoscu")
def test_a_declared_length_reserves_nothing(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A PDU that says it has 4 GiB ends its connection, before anything of it is read."""
    server, _ = start()
    for kind in (1, 4):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
            peer.sendall(struct.pack(">BBI", kind, 0, 0xFFFFFFFF))
            while peer.recv(1024):
                pass
    assert "a PDU of 4,294,967,295 bytes" in caplog.text
    assert run("echoscu", "-aec", "MDCONV_EDGE", "127.0.0.1", str(server.port)).returncode == 0


def p_data(command: bool, last: bool, data: bytes, context: int = 1) -> bytes:
    """One P-DATA-TF PDU with one fragment (PS3.8 9.3.5, annex E.2)."""
    value = struct.pack(">IBB", len(data) + 2, context, command | last << 1) + data
    return struct.pack(">BBI", 4, 0, len(value)) + value


def held(server: DicomServer) -> int:
    """Bytes of unfinished data sets in the server's memory."""
    assert server._server is not None
    return sum(server._server.limits._receiving.values())


class _Half:
    """A sender that has sent the first `size` bytes of an image, and no more."""

    def __init__(self, server: DicomServer, recorded: list[bytes], size: int) -> None:
        request, *rest = recorded
        self.peer = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self.peer.sendall(request)
        assert self.peer.recv(65536)[0] == 2  # A-ASSOCIATE-AC
        (store,) = (pdu for pdu in rest if pdu[0] == 4 and b"1.2.840.10008.5.1.4.1.1.1" in pdu and pdu[11] & 1)
        self.peer.sendall(store)
        for _ in range(size // 50_000):
            self.peer.sendall(p_data(False, False, bytes(50_000), store[10]))

    def ended(self) -> bytes:
        """What the server still says until it closes the connection."""
        heard = b""
        try:
            while data := self.peer.recv(1024):
                heard += data
        except ConnectionResetError:
            pass
        self.peer.close()
        return heard


def test_memory_of_all_associations_together_is_bounded(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder, _ = start()
    recorded = record(recorder.port, tmp_path)
    server, inbox = start(Inbox(max_bytes=1_500_000), max_megabytes_together=1)
    first = _Half(server, recorded, 1_000_000)
    wait_for(lambda: held(server) >= 900_000, "the first one's bytes")
    second = _Half(server, recorded, 700_000)
    second.ended()
    assert "more than 1,500,000 bytes in data sets of all associations together" in caplog.text
    first.peer.close()
    wait_for(lambda: held(server) == 0, "the memory")
    assert inbox.contents == []


def test_a_pdu_that_stops_half_way_ends_its_association(start: Start, tmp_path: Path) -> None:
    recorder, _ = start()
    recorded = record(recorder.port, tmp_path)
    server, _ = start(network_timeout=0.5)
    half = _Half(server, recorded, 100_000)
    half.peer.sendall(p_data(False, False, bytes(1000))[:500])
    half.ended()
    wait_for(lambda: held(server) == 0, "the memory")


@needs("echoscu")
def test_idle_and_excess_connections_are_closed(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    server, _ = start(max_associations=2, acse_timeout=1, network_timeout=1)
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(8)]
    for peer in idle:
        peer.settimeout(20)
        try:
            while peer.recv(1024):
                pass
        except ConnectionResetError:
            pass
        peer.close()
    assert caplog.text.count("connection from 127.0.0.1 refused: too many are open") == 1  # one a second
    echo = ("echoscu", "-aec", "MDCONV_EDGE", "127.0.0.1", str(server.port))
    wait_for(lambda: run(*echo).returncode == 0, "room for an association")


def test_what_cannot_start_says_why(start: Start, tmp_path: Path) -> None:
    server, _ = start()
    taken = DicomServer(Inbox(), DicomConfig(port=server.port))  # type: ignore[arg-type]
    with pytest.raises(MachineError, match=f"cannot listen on 127.0.0.1:{server.port}: Address already in use"):
        taken.start()
    ours, other = certificate(tmp_path, "ours"), certificate(tmp_path, "other")
    mixed = DicomConfig(port=0, tls_certificate=ours[0], tls_key=other[1])
    with pytest.raises(UsageError, match="TLS files do not fit"):
        DicomServer(Inbox(), mixed).start()  # type: ignore[arg-type]
    missing = DicomConfig(port=0, tls_certificate=ours[0], tls_key=tmp_path / "none")
    with pytest.raises(UsageError, match="check the path"):
        DicomServer(Inbox(), missing).start()  # type: ignore[arg-type]


def test_libraries_log_nothing(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a patient nor a UID nor a title of the peer's comes into the log, whatever its level."""
    caplog.set_level(logging.DEBUG)
    server, _ = start()
    dataset = file_of(write_radiograph(tmp_path / "a.dcm"))
    assert send(server, dataset).Status == 0
    for secret in ("Doe", "4711", str(dataset.SOPInstanceUID), "TESTER"):
        assert secret not in caplog.text
    assert RLELossless not in caplog.text
