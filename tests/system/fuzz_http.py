"""Throws mutated requests at a real daemon: it must answer or close each, and be as good as before afterwards.

python -m tests.system.fuzz_http --bundle DIR [--count 1000] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from edge.bundle import Bundle, load_bundle
from edge.sources.http.bodies import BYTES_PER_SECOND
from tests.system.daemon import HttpDaemon, serving_http

HANG_SECONDS = 10.0
CLIENTS = 8
LONGEST = 4_000_000
"""Bytes of a request, whatever mutations add up to."""
SETTINGS = {
    "head_seconds": 1.0,
    "body_seconds": 1.0,
    "idle_seconds": 1,
    "infer_seconds": 2.0,
    "requests_per_second": 100_000.0,
    "burst": 100_000,
}
"""Of the daemon: time limits that a test can wait for, and no limit on the rate."""

MULTIPART = 'multipart/related; type="application/dicom"; boundary=b'
PARTS = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + b"\0" * 128 + b"DICM" + b"x" * 50 + b"\r\n--b--"
PATHS = (
    "/../../etc/passwd",
    "/v1/images/..%2f..%2fledger.sqlite",
    "/v1/images/%00",
    "/v1//images",
    "//v1/images",
    "/page/..%2f..%2fconfig.toml",
    "/studies/1.2.3/../../x",
    "/v1/results?after=99999999999999999999",
    "/v2/models/%ff%fe/infer",
    "http://other.example/v1/images",
    "*",
    "/" + "a" * 70_000,
)
NUMBERS = (b"-1", b"0", b"1", b"4294967296", b"18446744073709551616", b"1e9", b"0x10", b"9" * 5000, b"+5", b" ", b"")
LINES = (
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, gzip",
    b"Content-Length: 5",
    b"Expect: 100-continue",
    b"Connection: Upgrade\r\nUpgrade: websocket",
    b"Host: evil.example",
    b"Inference-Header-Content-Length: 7",
    b"Content-Encoding: gzip",
    b"X-Big: " + b"y" * 200_000,
    b"Bad Header: x",
    b" folded",
    b"\0: \xff",
)


def requests(bundle: Bundle) -> list[bytes]:
    """Good requests to a daemon that serves `bundle`, to be spoilt."""
    size, path = bundle.input_size, f"/v2/models/{bundle.name}/infer"
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 1, size, size], "data": [1] * size**2}
    infer = json.dumps({"inputs": [image]}).encode()

    def post(path: str, body: bytes, *lines: str) -> bytes:
        head = "".join(f"{line}\r\n" for line in (f"POST {path} HTTP/1.1", "Host: localhost", *lines))
        return f"{head}\r\n".encode() + body

    def plain(path: str, body: bytes, *lines: str) -> bytes:
        return post(path, body, f"Content-Length: {len(body)}", *lines)

    chunks = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"
    return [
        *(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in ("/v1/results", "/metrics", "/v2")),
        plain("/v1/images", b"no image", "X-Priority: stat"),
        post("/v1/images", chunks, "Transfer-Encoding: chunked"),
        plain("/studies", PARTS, f"Content-Type: {MULTIPART}"),
        post("/studies/1.2.3", f"{len(PARTS):x}\r\n".encode() + PARTS + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        plain(path, infer),
        plain(path, infer + bytes(64), f"Inference-Header-Content-Length: {len(infer)}"),
    ]


def spoil(request: bytes, random: random.Random) -> bytes:
    """One mutation of `request`."""

    def flip() -> bytes:
        at = random.randrange(len(request))
        return request[:at] + bytes([random.randrange(256)]) + request[at + 1 :]

    def cut() -> bytes:
        return request[: random.randrange(len(request))]

    def repeat() -> bytes:
        start, end = sorted(random.randrange(len(request)) for _ in range(2))
        return request[:end] + request[start:end] * random.choice((1, 2, 50)) + request[end:]

    def number() -> bytes:
        words = request.split(b" ")
        places = [i for i, word in enumerate(words) if word[:1].isdigit()]
        if places:
            i = random.choice(places)
            words[i] = random.choice(NUMBERS) + words[i].lstrip(b"0123456789")
        return b" ".join(words)

    def line() -> bytes:
        return request.replace(b"\r\n", b"\r\n" + random.choice(LINES) + b"\r\n", 1)

    def path() -> bytes:
        first, _, rest = request.partition(b" ")
        return b" ".join((first, random.choice(PATHS).encode(), rest.partition(b" ")[2]))

    def method() -> bytes:
        return random.choice((b"BREW", b"TRACE", b"CONNECT", b"PUT", b"", b"\0")) + b" " + request.partition(b" ")[2]

    def ends() -> bytes:
        return request.replace(b"\r\n", random.choice((b"\n", b"\r", b"\r\n\r\n")), random.choice((1, 3)))

    def noise() -> bytes:
        return random.randbytes(random.choice((1, 100, 100_000)))

    def pipeline() -> bytes:
        return request * random.choice((2, 30))

    ways: tuple[Callable[[], bytes], ...] = (flip, cut, repeat, number, line, path, method, ends, noise, pipeline)
    return random.choice(ways)()[:LONGEST] or b"x"


def throw(port: int, request: bytes, random: random.Random) -> str:
    """Send one request, however far it gets; the status of the first answer, or ``closed``.

    Raises `TimeoutError` if neither comes, in `HANG_SECONDS` and the time that the daemon gives to so long a body.
    """
    patience = HANG_SECONDS + len(request) / BYTES_PER_SECOND
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        try:
            for i in range(0, len(request), step := random.choice((7, 1000, 1 << 20))):
                connection.sendall(request[i : i + step])
                if i > 20 * step:
                    connection.sendall(request[i + step :])
                    break
            if random.random() < 0.9:  # else the daemon must find by itself that nothing more will come
                connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
        except (ConnectionError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            return "closed"
    return answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "closed" if not answer else "no HTTP"


def fuzz(daemon: HttpDaemon, count: int, seed: int) -> Counter[str]:
    """Throw `count` mutated requests, in several threads; how many had which answer. Asserts that nothing broke."""
    check_well(daemon)
    before = daemon.descriptors()
    good = requests(load_bundle(daemon.bundle))

    def one(number: int) -> str:
        dice = random.Random(f"{seed} {number}")
        request = dice.choice(good)
        for _ in range(dice.choice((1, 1, 2, 4))):
            request = spoil(request, dice)
        try:
            return throw(daemon.port, request, dice)
        except TimeoutError:
            raise AssertionError(f"request {number} of seed {seed} got no answer in time") from None

    with ThreadPoolExecutor(CLIENTS) as pool:
        outcomes = Counter(pool.map(one, range(count)))
    check_well(daemon)
    assert not {outcome for outcome in outcomes if outcome.startswith("5") and outcome not in ("501", "503", "507")}
    assert "no HTTP" not in outcomes
    end = time.monotonic() + HANG_SECONDS
    while daemon.descriptors() > before and time.monotonic() < end:
        time.sleep(0.1)
    assert daemon.descriptors() <= before, "connections stay open"
    assert "Traceback" not in daemon.log
    return outcomes


def check_well(daemon: HttpDaemon) -> None:
    """A good request is served."""
    assert daemon.process.poll() is None, "the daemon is gone"
    with httpx.Client(base_url=daemon.url, timeout=HANG_SECONDS) as client:
        assert client.get("/v2/health/ready").status_code == 200
        assert client.post("/v1/images", content=b"no image, but safe on the disk").status_code == 202


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, serving_http(options.bundle, Path(place), **SETTINGS) as daemon:
        outcomes = fuzz(daemon, options.count, options.seed)
    print(f"fuzz_http: {options.count} requests of seed {options.seed}: {dict(sorted(outcomes.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
