"""What ``edge-infer serve`` refuses, with tokens, TLS, AE titles and addresses set: by status, and without a trace.

One daemon for all. After each refusal the log has a line with nothing of what came, no file is outside the state folder
and no run in the ledger.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pynetdicom import AE, evt
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from edge.sources.http.tokens import new_token
from tests.system.daemon import Daemon, free_port, serving, wait_for
from tests.system.dicom_peers import certificate, data_set_of, write_radiograph
from tests.system.test_dicom_source import RawSender

EVIL = "../../etc/passwd"
ELSEWHERE = ("127.0.0.2", 0)
STOW = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=parted'}
Answer = tuple[int, bytes]


class Site:
    """The daemon, and those who try it."""

    def __init__(self, daemon: Daemon, root: Path, ports: tuple[int, int], token: str, trust: Path) -> None:
        self.daemon = daemon
        self.root = root
        self.http_port, self.dicom_port = ports
        self.token = token
        # pynetdicom leaves a TLS socket open where the peer went first.
        self.sockets: list[socket.socket] = []
        self.keeping = [(evt.EVT_CONN_OPEN, lambda event: self.sockets.append(event.assoc.dul.socket.socket))]
        self.trust = ssl.create_default_context(cafile=trust)

    def ask(self, method: str, path: str, body: bytes = b"", source: Any = None, **headers: str) -> Answer:
        """The answer to a request whose path is sent as it is, with the good token unless `headers` say otherwise."""
        client = http.client.HTTPSConnection(
            "127.0.0.1", self.http_port, timeout=20, context=self.trust, source_address=source
        )
        sent = {"Authorization": f"Bearer {self.token}", **{name.replace("_", "-"): headers[name] for name in headers}}
        with closing(client):
            client.request(method, path, body, {name: value for name, value in sent.items() if value})
            answer = client.getresponse()
            return answer.status, answer.read()

    def stow(self, content: bytes, path: str = "/studies", name: str = "a.dcm") -> Answer:
        part = (
            f'--parted\r\nContent-Type: application/dicom\r\nContent-Disposition: attachment; filename="{name}"\r\n\r\n'
        )
        return self.ask("POST", path, part.encode() + content + b"\r\n--parted--", **STOW)

    def associate(self, called: str = "MDCONV_EDGE", calling: str = "DX_1") -> str:
        """What an association comes to: ``established``, ``rejected <diagnostic>`` or ``aborted``.

        By the PDU that came: pynetdicom 3.0 takes a rejection for a failed connection where we close before it looks.
        """
        entity = AE(calling)
        entity.add_requested_context(Verification)
        received: list[Any] = []
        handlers = [*self.keeping, (evt.EVT_PDU_RECV, lambda event: received.append(event.pdu))]
        how: dict[str, Any] = {"tls_args": (self.trust, "localhost"), "evt_handlers": handlers}
        association = entity.associate("127.0.0.1", self.dicom_port, ae_title=called, **how)
        if association.is_established:
            association.release()
            return "established"
        rejections = [pdu.reason_diagnostic for pdu in received if isinstance(pdu, A_ASSOCIATE_RJ)]
        return f"rejected {rejections[0]}" if rejections else "aborted"

    def runs(self) -> int:
        with closing(sqlite3.connect(self.daemon.state / "ledger.sqlite")) as ledger:
            return int(ledger.execute("SELECT count(*) FROM runs").fetchone()[0])

    def outside(self) -> dict[str, int]:
        """Every file outside the state folder, but for the log, with the time of its last change."""
        found = (path for path in self.root.rglob("*") if self.daemon.state not in (path, *path.parents))
        return {str(path): path.stat().st_mtime_ns for path in found if path.is_file() and path.name != "log"}

    def refuses(self, attempt: Callable[[], object], expected: object, line: str) -> None:
        """`attempt` comes to `expected`, and the log gets a `line` (a pattern); tried again where one was just told."""
        before, runs, start = self.outside(), self.runs(), len(self.daemon.log)

        def told() -> bool:
            assert attempt() == expected
            time.sleep(0.1)
            return re.search(line, self.daemon.log[start:]) is not None

        wait_for(told, 20)
        assert self.outside() == before
        assert self.runs() == runs
        assert not list(self.root.rglob("*passwd*"))
        log = self.daemon.log
        assert [secret for secret in (self.token, "passwd", "etc/", "1.2.826", "INTRUDER") if secret in log] == []
        assert "Traceback" not in log


@pytest.fixture(scope="module")
def site(tiny_bundle_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The state lies deep enough for ``../..`` to end in what is looked at."""
    root = tmp_path_factory.mktemp("site")
    place = root / "a" / "b" / "c"
    place.mkdir(parents=True)
    trust, key = certificate(root, "daemon")
    token, line = new_token("pacs")
    (root / "tokens").write_text(f"{line}\n")
    ports = free_port(), free_port()
    settings = f"""
bundle = "{tiny_bundle_directory}"
backend = "onnxruntime"
[http]
port = {ports[0]}
tokens = "{root / "tokens"}"
certificate = "{trust}"
key = "{key}"
allow = ["127.0.0.1"]
hosts = ["edge.example"]
max_request_mb = 1
[dicom]
port = {ports[1]}
calling_aets = ["DX_1"]
addresses = ["127.0.0.1"]
tls_certificate = "{trust}"
tls_key = "{key}"
"""
    with serving(place, settings) as daemon:
        made = Site(daemon, root, ports, token, trust)
        yield made
        for connection in made.sockets:
            connection.close()


def evil_radiograph(path: Path, **uids: str) -> bytes:
    """A radiograph whose UIDs, 16 characters long, are replaced in the file: pydicom writes no such UIDs."""
    content = write_radiograph(path, **dict.fromkeys(uids, "1.2.826.0.1.9999")).read_bytes()
    for uid in uids.values():
        assert content.count(b"1.2.826.0.1.9999") >= 1
        content = content.replace(b"1.2.826.0.1.9999", uid.encode())
    return content


def test_the_good_ones_come_in(site: Site) -> None:
    """Else every refusal below could have another reason."""
    assert site.ask("GET", "/v1/status")[0] == 200
    assert site.associate() == "established"


@pytest.mark.parametrize(
    ("expected", "method", "path", "headers", "line"),
    [
        (401, "GET", "/v1/status", {"Authorization": ""}, "method GET, route /v1/status"),
        (401, "GET", "/v1/status", {"Authorization": "Bearer INTRUDER"}, "method GET, route /v1/status"),
        (401, "GET", "/v1/results", {"Authorization": f"Bearer {EVIL}"}, "method GET, route /v1/results"),
        (421, "GET", "/v1/status", {"Host": EVIL}, "method GET, route none"),
        (421, "GET", "/v1/status", {"Host": "INTRUDER.example"}, "method GET, route none"),
        (403, "POST", "/v1/images", {"Origin": f"https://INTRUDER/{EVIL}"}, "method POST, route none"),
        (404, "GET", f"/{EVIL}", {}, "method GET, route none"),
        (404, "GET", "/page/" + EVIL.replace("/", "%2f"), {}, "method GET, route none"),
        (404, "GET", f"/v1/images/{EVIL}", {}, "method GET, route none"),
        (404, "POST", f"/studies/{EVIL}", STOW, "method POST, route none"),
        (400, "POST", "/studies/..%5c..%5cetc%5cpasswd", STOW, "method POST, route /studies/{study}"),
        (405, "INTRUDER", "/v1/images", {}, "method other, route /v1/images"),
        (405, "DELETE", "/v1/images", {}, "method DELETE, route /v1/images"),
    ],
)
def test_http_requests(site: Site, expected: int, method: str, path: str, headers: dict[str, str], line: str) -> None:
    told = re.escape(f"http: refused with {expected}: {line}, from 127.0.0.1")
    site.refuses(lambda: site.ask(method, path, **headers)[0], expected, told)


def test_an_evil_value_of_a_known_header(site: Site) -> None:
    before = site.runs(), site.outside()
    assert site.ask("POST", "/v1/images", b"x", X_Priority=EVIL)[0] == 422
    assert (site.runs(), site.outside()) == before
    assert "passwd" not in site.daemon.log


def test_http_from_an_address_that_may_not_connect(site: Site) -> None:
    told = re.escape("http: refused with 403: method GET, route none, from 127.0.0.2")
    site.refuses(lambda: site.ask("GET", "/v1/status", source=ELSEWHERE)[0], 403, told)


def test_a_body_that_is_too_large(site: Site) -> None:
    told = re.escape("http: refused with 413: method POST, route /studies, from 127.0.0.1")
    site.refuses(lambda: site.stow(bytes(1_100_000))[0], 413, told)


@pytest.mark.parametrize("which", ["SOPInstanceUID", "StudyInstanceUID"])
def test_a_stow_instance_with_an_evil_uid(site: Site, tmp_path: Path, which: str) -> None:
    content = evil_radiograph(tmp_path / "a.dcm", **{which: EVIL})
    told = re.escape("http: refused with 409: method POST, route /studies, from 127.0.0.1")
    site.refuses(lambda: site.stow(content)[0], 409, told)


def plain(port: int, hello: bytes) -> bytes:
    """All that is answered to `hello` without TLS."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            connection.sendall(hello)
            while piece := connection.recv(1024):
                said += piece
        except ConnectionResetError:
            pass
    return said


def test_plain_text_on_the_tls_port_of_http(site: Site) -> None:
    told = r"http: refused: TLS handshake failed \([A-Z_]+\), from 127\.0\.0\.1"
    hello = f"GET /{EVIL} HTTP/1.1\r\nHost: INTRUDER\r\n\r\n".encode()
    site.refuses(lambda: b"200 OK" in plain(site.http_port, hello), False, told)


def test_plain_text_on_the_tls_port_of_dicom(site: Site) -> None:
    """An A-ASSOCIATE-RQ as it would be good without TLS: no A-ASSOCIATE-AC (PDU type 2) comes back."""
    told = r"dicom: connection from 127\.0\.0\.1 refused: TLS failed \([A-Z_]+\)"
    titles = b"MDCONV_EDGE".ljust(16) + b"DX_1".ljust(16)
    request = b"\1\0" + (68).to_bytes(4, "big") + b"\0\1\0\0" + titles + bytes(32)
    site.refuses(lambda: plain(site.dicom_port, request)[:1] == b"\2", False, told)


@pytest.mark.parametrize(
    ("expected", "facts", "line"),
    [
        ("rejected 7", {"called": "INTRUDER"}, "rejected: the AE title that it calls is not `aet`"),
        ("rejected 7", {"called": EVIL}, "rejected: the AE title that it calls is not `aet`"),
        ("rejected 3", {"calling": "INTRUDER"}, "rejected: its own AE title is not in `calling_aets`"),
        ("rejected 3", {"calling": EVIL}, "rejected: its own AE title is not in `calling_aets`"),
    ],
)
def test_ae_titles(site: Site, expected: str, facts: dict[str, str], line: str) -> None:
    told = re.escape(f"dicom: association from 127.0.0.1 {line}")
    site.refuses(lambda: site.associate(**facts), expected, told)


def test_dicom_from_an_address_that_may_not_connect(site: Site) -> None:
    told = re.escape("dicom: connection from 127.0.0.2 refused: it is not in `addresses`")

    def connect() -> str:
        """Past pynetdicom, which leaves such a socket open."""
        with socket.create_connection(("127.0.0.1", site.dicom_port), 20, ELSEWHERE) as connection:
            try:
                site.trust.wrap_socket(connection, server_hostname="localhost").close()
            except OSError:
                return "closed"
        return "handshake"

    site.refuses(connect, "closed", told)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_an_evil_instance_uid_by_c_store(site: Site, tmp_path: Path) -> None:
    content = data_set_of(write_radiograph(tmp_path / "a.dcm"))
    told = re.escape("dicom: image from 127.0.0.1 refused with status 0117H: SOP Instance UID is not well-formed")

    def store() -> int | None:
        sender = RawSender(
            site.dicom_port, calling="DX_1", tls_args=(site.trust, "localhost"), evt_handlers=site.keeping
        )
        status = sender.store(content, EVIL)
        sender.association.release()
        return status

    site.refuses(store, 0x0117, told)


def test_a_flood_fills_no_disk(site: Site) -> None:
    """Of 150 requests without a token no more are told than seconds go by; the lines count the others."""
    start, began = len(site.daemon.log), time.monotonic()
    for _ in range(150):
        assert site.ask("GET", "/v1/status", Authorization="")[0] == 401
    lines = site.daemon.log[start:].count("refused with 401")
    assert lines <= time.monotonic() - began + 2
    counted = r"refused with 401: .* \(and [0-9]+ more like it since the last such line\)"
    site.refuses(lambda: site.ask("GET", "/v1/status", Authorization="")[0], 401, counted)


def test_the_name_of_a_good_part_has_no_effect(site: Site, tmp_path: Path) -> None:
    """Last: it is taken, by the name that the daemon makes."""
    before, runs = site.outside(), site.runs()
    path = write_radiograph(tmp_path / "a.dcm", 5)
    assert site.stow(path.read_bytes(), name=EVIL)[0] == 200
    site.daemon.wait_for_results(1)
    assert site.runs() == runs + 1
    assert site.outside() == before
    assert not list(site.root.rglob("*passwd*"))
    log = site.daemon.log
    assert [
        secret
        for secret in ("passwd", str(pydicom.dcmread(io.BytesIO(path.read_bytes())).SOPInstanceUID))
        if secret in log
    ] == []
