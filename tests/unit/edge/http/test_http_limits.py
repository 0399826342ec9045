"""What it takes, and what it makes of clients that send too much, too fast, too slowly, or nonsense."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from edge.sources.http.connection import SPARE_SOCKETS
from edge.sources.http.guard import ADDRESSES, RateLimit, rate_key
from edge.sources.http.server import HttpServer
from tests.unit.edge.http.conftest import Serve
from tests.unit.edge.http.service import FakeService

HEAD = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\n"


@contextmanager
def connected(server: HttpServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        yield connection


def answer(connection: socket.socket) -> tuple[int, dict[str, str], dict[str, str]]:
    """Status, headers and JSON of the answer, read to the end of the connection."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body)


def read_live(connection: socket.socket) -> None:
    """Read the answer to a request for ``/v2/health/live``, and leave the connection open."""
    data = b""
    while not data.endswith(b'{"live":true}'):
        data += connection.recv(65536)


def test_a_body_is_measured_by_its_length_and_by_its_bytes(serve: Serve, service: FakeService) -> None:
    client = serve()
    exact = b"x" * service.max_bytes
    assert client.post("/v1/images", content=exact).status_code == 202
    assert client.post("/v1/images", content=iter([exact])).status_code == 202
    for body in (exact + b"x", iter([exact, b"x"]), iter([exact] * 20)):
        refused = client.post("/v1/images", content=body)
        assert refused.status_code == 413
        assert str(service.max_bytes) in refused.json()["error"]
    assert len(service.received) == 2


def test_a_client_that_announces_too_much_is_told_before_it_sends_anything(
    start: Callable[..., HttpServer], service: FakeService
) -> None:
    with connected(start()) as connection:
        connection.sendall(HEAD + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n")
        assert answer(connection)[0] == 413


def test_a_client_that_sends_on_after_a_refusal_still_gets_it(start: Callable[..., HttpServer]) -> None:
    """Without care the connection would be reset under it, and the answer lost."""
    with connected(start()) as connection:
        connection.sendall(HEAD + b"Content-Length: 5000000\r\n\r\n")
        for _ in range(50):
            connection.sendall(b"x" * 100_000)
        status, headers, _ = answer(connection)
        assert (status, headers["connection"]) == (413, "close")


def test_a_slow_body_is_given_up(start: Callable[..., HttpServer], service: FakeService) -> None:
    with connected(start(body_seconds=0.5)) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n")
        for _ in range(4):
            connection.sendall(b"x")
            time.sleep(0.1)
        assert answer(connection)[0] == 408
    assert not service.received


def test_a_slow_head_is_given_up(start: Callable[..., HttpServer]) -> None:
    server = start(head_seconds=0.5)
    for sent in (b"", HEAD):
        with connected(server) as connection:
            connection.sendall(sent)
            status, _, body = answer(connection)
            assert (status, set(body)) == (408, {"error"})


def test_a_slow_second_head_is_given_up_too(start: Callable[..., HttpServer]) -> None:
    with connected(start(head_seconds=0.5)) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_live(connection)
        connection.sendall(b"GET /v2/he")
        assert answer(connection)[0] == 408


def test_an_idle_connection_is_closed(start: Callable[..., HttpServer]) -> None:
    with connected(start(idle_seconds=1)) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_live(connection)
        assert connection.recv(65536) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Cookie: " + b"x" * 2_000_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_with_400(
    start: Callable[..., HttpServer], caplog: pytest.LogCaptureFixture, request_bytes: bytes
) -> None:
    server = start()
    with connected(server) as connection:
        connection.sendall(request_bytes)
        status, _, body = answer(connection)
        assert status in (400, 501)
        assert set(body) == {"error"}
    assert httpx.get(f"http://127.0.0.1:{server.port}/v2/health/live").status_code == 200
    assert not caplog.records


def test_a_client_that_ends_its_side_gets_its_answer(start: Callable[..., HttpServer]) -> None:
    server = start()
    whole = HEAD + b"Content-Length: 5\r\n\r\nhello"
    for sent, expected in ((whole, 202), (whole[:-1], 400), (HEAD, 400)):
        with connected(server) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert answer(connection)[0] == expected
    with connected(server) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_one_address_may_send_so_many_requests(serve: Serve) -> None:
    client = serve(requests_per_second=0.01, burst=3)
    statuses = [client.get("/v2/health/live") for _ in range(5)]
    assert [one.status_code for one in statuses] == [200, 200, 200, 429, 429]
    assert 1 <= int(statuses[-1].headers["Retry-After"]) <= 100


def test_the_rate_is_kept_in_the_long_run_and_addresses_are_forgotten() -> None:
    limit = RateLimit(rate=10, burst=5)
    allowed = sum(limit.wait("a", now=i / 100) == 0 for i in range(1001))  # 100 a second for 10 s
    assert 104 <= allowed <= 106
    assert limit.wait("a", now=10.0) == pytest.approx(0.1, abs=0.1)
    assert limit.wait("b", now=10.0) == 0
    for i in range(2 * ADDRESSES):
        limit.wait(f"c{i}", now=11.0)
    assert len(limit._buckets) == ADDRESSES


def test_ipv6_clients_are_counted_by_their_network() -> None:
    from ipaddress import ip_address

    one, neighbour, other = (rate_key(ip_address(text)) for text in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"))
    assert one == neighbour != other


def test_too_many_connections_are_told_so(start: Callable[..., HttpServer]) -> None:
    server = start(connections=3)
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    try:
        with connected(server) as connection:
            status, headers, body = answer(connection)
            assert (status, "3 connections" in body["error"]) == (503, True)
            assert headers["retry-after"]
    finally:
        for one in held:
            one.close()
    for _ in range(100):
        if httpx.get(f"http://127.0.0.1:{server.port}/v2/health/live").status_code == 200:
            return
        time.sleep(0.05)
    pytest.fail("it does not come back")


def test_connections_beyond_all_bounds_are_closed_unseen(start: Callable[..., HttpServer]) -> None:
    """Those in a TLS handshake count too, which the HTTP server does not see."""
    server = start(connections=1)
    limit = 1 + SPARE_SOCKETS
    server._listener._accepted.update(held := [socket.socket() for _ in range(limit)])  # type: ignore[union-attr]
    try:
        with connected(server) as connection:
            assert connection.recv(1) == b""
    finally:
        for one in held:
            one.close()
    assert httpx.get(f"http://127.0.0.1:{server.port}/v2/health/live").status_code == 200


def test_bodies_wait_for_memory_and_are_turned_away_if_there_is_none(serve: Serve, service: FakeService) -> None:
    """Memory for one body: the daemon holds the first, a second waits in vain, and all is well afterwards."""
    service.max_bytes = 10_000_000
    client = serve(max_memory_mb=1, body_seconds=0.5)
    service.gate = threading.Event()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/v1/images", content=b"a" * 900_000)
        while not client.get("/metrics").text:
            pass
        time.sleep(0.3)
        second = client.post("/v1/images", content=b"b" * 900_000)
        chunked = client.post("/v1/images", content=iter([b"b" * 900_000]))
        service.gate.set()
        assert first.result().status_code == 202
    for refused in (second, chunked):
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
    assert client.post("/v1/images", content=b"c" * 1_000_000).status_code == 202
    assert client.post("/v1/images", content=b"c" * 1_000_001).status_code == 413  # never to be had


def test_calls_that_wait_do_not_hold_up_the_others(serve: Serve, service: FakeService) -> None:
    client = serve()
    service.gate = threading.Event()
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(client.post, "/v1/images", content=bytes([i])) for i in range(20)]
        assert client.get("/v2/health/live").status_code == 200
        service.gate.set()
        assert [one.result().status_code for one in waiting] == [202] * 20


def test_a_client_that_goes_away_leaves_nothing_behind(
    start: Callable[..., HttpServer], service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    server = start()
    for sent in (HEAD, HEAD + b"Content-Length: 100\r\n\r\nx", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"):
        for _ in range(5):
            with connected(server) as connection:
                connection.sendall(sent)
    assert httpx.post(f"http://127.0.0.1:{server.port}/v1/images", content=b"x").status_code == 202
    assert len(service.received) == 1
    assert not caplog.records


def test_a_stop_lets_a_request_finish_and_ends_the_rest(start: Callable[..., HttpServer], service: FakeService) -> None:
    server = start()
    service.gate = threading.Event()
    with connected(server) as stalled, ThreadPoolExecutor() as pool:
        stalled.sendall(HEAD + b"Content-Length: 100\r\n\r\nx")
        posted = pool.submit(httpx.post, f"http://127.0.0.1:{server.port}/v1/images", content=b"x")
        while server._context.service_threads._pool._threads == set():
            time.sleep(0.01)
        stopping = pool.submit(server.stop, 2)
        time.sleep(0.3)
        service.gate.set()
        assert posted.result().status_code == 202
        stopping.result()
    assert not server._thread.is_alive()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port))
    server.stop(1)  # may be called twice


def test_a_client_that_takes_no_bytes_is_dropped(start: Callable[..., HttpServer], service: FakeService) -> None:
    service.finished = [(i, {"id": "x" * 30_000}) for i in range(1000)]
    server = start(body_seconds=0.5)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(b"GET /v1/results?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connections = server._server.server_state.connections
        for condition in (lambda: len(connections) == 1, lambda: not connections):
            end = time.monotonic() + 20
            while not condition():
                assert time.monotonic() < end
                time.sleep(0.02)
