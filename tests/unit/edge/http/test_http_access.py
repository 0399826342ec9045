"""Who is let in: tokens, TLS, addresses, host names, and web pages of others."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from edge.errors import MachineError, UsageError
from edge.sources.http.config import HttpConfig
from edge.sources.http.server import HttpServer
from edge.sources.http.tokens import Tokens, new_token
from tests.unit.edge.http.conftest import Serve
from tests.unit.edge.http.service import FakeService

IMAGE = "/v1/images/" + "0" * 32
BEHIND_THE_DOOR = (
    *("/v1/status", "/v1/passport", "/v1/results", "/v2", "/v2/models/tiny", "/metrics", "/v1/page/passport"),
    *(IMAGE, f"{IMAGE}/picture.png", f"{IMAGE}/overlay.png?finding=Mass"),
)


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[Path, str]:
    """A file with two tokens, and the second of them."""
    (_, one), (token, two) = new_token("pacs"), new_token("desk")
    path = tmp_path / "tokens"
    path.write_text(f"# who may send\n\n{one}\n{two}\n")
    return path, token


def test_every_route_but_these_is_behind_the_door(serve: Serve, tokens: tuple[Path, str]) -> None:
    """The description names the routes; what is not in it is tried one by one."""
    client = serve(tokens=tokens[0])
    open_routes = {
        path
        for path, operations in client.get("/openapi.json").json()["paths"].items()
        for operation in operations.values()
        if "security" not in operation
    }
    assert open_routes == {"/v2/health/live", "/v2/health/ready"}
    assert {client.get(path).status_code for path in ("/", "/page/app.js", "/page/style.css")} == {200}
    assert client.get("/page/..%2fstatus.py").status_code == 404
    assert client.get("/").headers["Cache-Control"] == "no-cache"
    assert "default-src 'none'" in client.get("/").headers["Content-Security-Policy"]
    assert client.get("/v1/page").status_code == 401


def test_nothing_but_health_is_open_without_a_token(serve: Serve, tokens: tuple[Path, str]) -> None:
    client = serve(tokens=tokens[0])
    for path in BEHIND_THE_DOOR:
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {tokens[1]}"}):
            answer = client.get(path, headers=headers)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert client.get(path, headers={"Authorization": f"Bearer {tokens[1]}"}).status_code in (200, 404)
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200


def test_a_body_without_a_token_is_not_read(serve: Serve, service: FakeService, tokens: tuple[Path, str]) -> None:
    client = serve(tokens=tokens[0])
    for path in ("/v1/images", "/studies", "/v2/models/tiny/infer"):
        assert client.post(path, content=b"x" * 500_000).status_code == 401
    assert not service.received


def test_the_log_names_the_client_and_never_its_token(
    serve: Serve, tokens: tuple[Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        headers = {"Authorization": f"Bearer {tokens[1]}"}
        for _ in range(2):
            assert serve(tokens=tokens[0]).post("/v1/images", content=b"x", headers=headers).status_code == 202
    lines = [record.getMessage() for record in caplog.records if "received" in record.getMessage()]
    assert [line.partition(") from ")[2] for line in lines] == ["desk", "desk: known already, not run twice"]
    assert tokens[1] not in caplog.text


def test_tokens_are_stored_hashed_and_unlike(tmp_path: Path) -> None:
    made = [new_token(f"n{i}") for i in range(20)]
    assert len({token for token, _ in made}) == 20
    assert all(len(token) >= 43 and token not in line for token, line in made)
    path = tmp_path / "tokens"
    path.write_text("\n".join(line for _, line in made))
    loaded = Tokens.load(path)
    assert [loaded.client(token) for token, _ in made] == [f"n{i}" for i in range(20)]
    assert not any(loaded.client(line.split(":")[1]) for _, line in made)
    assert loaded.client("") is loaded.client("\udcff") is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no token"),
        ("# none\n", "has no token"),
        ("pacs:abc\n", "line 1"),
        ("pacs " + "0" * 64, "line 1"),
        ("a:" + "0" * 64 + "\na:" + "1" * 64, "line 2"),
        ("é:" + "0" * 64, "no text"),
    ],
)
def test_a_bad_file_of_tokens_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        Tokens.load(tmp_path / "tokens")


def test_a_file_of_tokens_that_others_may_write_is_refused(tmp_path: Path, tokens: tuple[Path, str]) -> None:
    tokens[0].chmod(0o666)
    with pytest.raises(UsageError, match="chmod go-w"):
        Tokens.load(tokens[0])
    with pytest.raises(UsageError, match="No such file"):
        Tokens.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["", "a b", "a:b", "é", "-x", "x" * 65])
def test_a_token_has_a_plain_name(name: str) -> None:
    with pytest.raises(UsageError):
        new_token(name)


def test_a_token_is_taken_back_while_it_serves(start: Callable[..., HttpServer], tokens: tuple[Path, str]) -> None:
    server = start(tokens=tokens[0])
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        client.headers["Authorization"] = f"Bearer {tokens[1]}"
        assert client.get("/v2").status_code == 200
        tokens[0].write_text("nonsense")
        with pytest.raises(UsageError):
            server.reload()
        assert client.get("/v2").status_code == 200
        tokens[0].write_text(new_token("other")[1])
        server.reload()
        assert client.get("/v2").status_code == 401


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"address": "0.0.0.0"}, "set tokens"),
        ({"address": "::"}, "set tokens"),
        ({"certificate": "a.pem"}, "set key"),
        ({"key": "a.pem"}, "set certificate"),
        ({"address": "localhost"}, "address"),
        ({"allow": ["10.0.0.0/33"]}, "allow"),
        ({"hosts": ["a b"]}, "hosts"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        HttpConfig(**settings)


def test_an_open_server_says_so(
    start: Callable[..., HttpServer], tokens: tuple[Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        start(address="0.0.0.0", allow_anonymous=True)
        assert "anybody who reaches" in caplog.text
        start(address="0.0.0.0", tokens=tokens[0])
        assert "in the clear" in caplog.text


@pytest.mark.parametrize(
    ("host", "good"),
    [
        ("127.0.0.1:8080", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:80", True),
        ("192.168.1.20", True),
        ("xray.example", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:80", False),
        ("localhost.evil.example", False),
        ("", False),
        ("[", False),
    ],
)
def test_a_name_that_was_made_to_point_here_is_refused(serve: Serve, host: str, good: bool) -> None:
    assert serve(hosts=["xray.example"]).get("/v2", headers={"Host": host}).status_code == (200 if good else 421)


def test_with_tokens_any_name_is_good(serve: Serve, tokens: tuple[Path, str]) -> None:
    headers = {"Host": "any.example", "Authorization": f"Bearer {tokens[1]}"}
    assert serve(tokens=tokens[0]).get("/v2", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ({}, True),
        ({"Origin": "http://127.0.0.1:1"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://127.0.0.1:2"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://["}, False),
    ],
)
def test_no_foreign_page_may_send(serve: Serve, service: FakeService, headers: dict[str, str], good: bool) -> None:
    client = serve()
    answer = client.post("/v1/images", content=b"x", headers={"Host": "127.0.0.1:1", **headers})
    assert answer.status_code == (202 if good else 403)
    assert len(service.received) == good
    assert "access-control-allow-origin" not in answer.headers
    assert client.get("/v2", headers={"Host": "127.0.0.1:1", **headers}).status_code == 200


def test_only_allowed_addresses_come_in_and_nobody_may_choose_his_own(serve: Serve) -> None:
    assert serve(allow=["127.0.0.0/8", "10.0.0.0/8"]).get("/v2").status_code == 200
    client = serve(allow=["10.0.0.0/8", "fe80::/10"])
    for headers in ({}, {"X-Forwarded-For": "10.0.0.1"}, {"Forwarded": "for=10.0.0.1"}):
        assert client.get("/v2/health/live", headers=headers).status_code == 403


def test_an_ipv4_client_of_an_ipv6_socket_is_known_by_its_ipv4_address(start: Callable[..., HttpServer]) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    for network, status in (("127.0.0.0/8", 200), ("10.0.0.0/8", 403)):
        server = start(address="::", allow_anonymous=True, allow=[network])
        assert httpx.get(f"http://127.0.0.1:{server.port}/v2/health/live").status_code == status


def write_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = directory / "certificate.pem", directory / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def test_tls_and_a_new_certificate_without_a_restart(start: Callable[..., HttpServer], tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "first")
    server = start(certificate=certificate, key=key)
    address = ("127.0.0.1", server.port)

    def served() -> bytes | None:
        with socket.create_connection(address) as plain, ssl._create_unverified_context().wrap_socket(plain) as secure:
            assert secure.version() in ("TLSv1.2", "TLSv1.3")
            return secure.getpeercert(binary_form=True)

    trust = ssl.create_default_context(cafile=certificate)
    assert httpx.get(f"https://127.0.0.1:{server.port}/v2", verify=trust).status_code == 200
    before = served()
    write_certificate(tmp_path, "second")
    assert served() == before
    server.reload()
    assert served() not in (None, before)


def test_an_old_tls_and_no_tls_are_turned_away(start: Callable[..., HttpServer], tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "first")
    server = start(certificate=certificate, key=key)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", server.port)) as plain, pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(plain)
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{server.port}/v2")
    assert httpx.get(f"https://127.0.0.1:{server.port}/v2", verify=ssl.create_default_context(cafile=certificate))


@pytest.mark.parametrize("fault", ["missing", "no certificate", "other key"])
def test_a_bad_certificate_is_told_before_anything_is_served(service: FakeService, tmp_path: Path, fault: str) -> None:
    certificate, key = write_certificate(tmp_path, "first")
    if fault == "missing":
        key.unlink()
    elif fault == "no certificate":
        certificate.write_text("nonsense")
    else:
        (tmp_path / "other").mkdir()
        key = write_certificate(tmp_path / "other", "second")[1]
    with pytest.raises(UsageError, match="pem"):
        HttpServer(service, HttpConfig(port=0, certificate=certificate, key=key), CollectorRegistry())


def test_a_port_that_is_taken_is_told_at_once(start: Callable[..., HttpServer], service: FakeService) -> None:
    taken = start()
    second = HttpServer(service, HttpConfig(port=taken.port), CollectorRegistry())
    with pytest.raises(MachineError, match="another program listens there"):
        second.start()
    elsewhere = HttpServer(service, HttpConfig(address="192.0.2.1", allow_anonymous=True), CollectorRegistry())
    with pytest.raises(MachineError, match="no such address"):
        elsewhere.start()
