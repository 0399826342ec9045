"""Throws mutated DICOM associations at a daemon: ``python -m tests.system.fuzz_dicom --bundle DIR --count 1000``.

A good session of a sender is recorded on its way, then replayed with damage, seeded. The daemon must live, print no
traceback, give back every thread and descriptor, and answer an echo afterwards.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from tests.system.dicom_peers import wait_for, write_radiograph
from tests.system.test_serve_dicom import Daemon, serving

SETTINGS = "[dicom]\nport = 0\nmax_associations = 50\nacse_timeout = 1\nnetwork_timeout = 1\ndimse_timeout = 1\n"
EVIL_TEXTS = (b"../../etc/passwd", b"1." * 31, b"\0" * 16, b"\xff" * 16, b"%s%n%x", b"1.2.840.10008.3.1.1.1")
SETTLE_SECONDS = 30

Pdus = list[bytes]


def record(port: int, directory: Path) -> Pdus:
    """What a sender says in an association with an echo and an image, PDU by PDU."""
    dataset = pydicom.dcmread(write_radiograph(directory / "recorded.dcm", 77))
    said = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def relay() -> None:
            near, _ = proxy.accept()
            far = socket.create_connection(("127.0.0.1", port))
            with near, far:
                back = threading.Thread(target=_pump, args=(far, near, bytearray()))
                back.start()
                _pump(near, far, said)
                back.join()

        relaying = threading.Thread(target=relay)
        relaying.start()
        entity = AE("FUZZ")
        entity.add_requested_context(Verification)
        entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
        association = entity.associate("127.0.0.1", proxy.getsockname()[1], ae_title="MDCONV_EDGE")
        assert association.is_established
        assert association.send_c_echo().Status == 0
        assert association.send_c_store(dataset).Status == 0
        association.release()
        relaying.join()
    return split(bytes(said))


def _pump(source: socket.socket, target: socket.socket, heard: bytearray) -> None:
    try:
        while data := source.recv(65536):
            heard += data
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def split(stream: bytes) -> Pdus:
    """The PDUs of a stream (PS3.8 section 9.3.1)."""
    found, at = [], 0
    while at < len(stream):
        length = 6 + int.from_bytes(stream[at + 2 : at + 6], "big")
        found.append(stream[at : at + length])
        at += length
    return found


def flip_bytes(rng: random.Random, pdus: Pdus) -> Pdus:
    return _change_one(rng, pdus, lambda data: _poke(rng, data, rng.choice((1, 1, 2, 4, 16))))


def break_a_length(rng: random.Random, pdus: Pdus) -> Pdus:
    length = rng.choice((0, 1, 3, 5, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(1 << 32)))
    return _change_one(rng, pdus, lambda data: data[:2] + struct.pack(">I", length) + data[6:])


def break_an_item(rng: random.Random, pdus: Pdus) -> Pdus:
    """Overwrite a length, context or control byte near the start of a PDU, where its first items are."""

    def change(data: bytes) -> bytes:
        at = rng.randrange(6, max(7, min(len(data), 90)))
        return data[:at] + rng.choice((b"\0", b"\xff", b"\x80", b"\x01\x02", b"\xff\xff\xff\xff")) + data[at + 1 :]

    return _change_one(rng, pdus, change)


def change_a_text(rng: random.Random, pdus: Pdus) -> Pdus:
    """Put something else where a UID or a title stands; lengths stay."""
    evil = rng.choice(EVIL_TEXTS)

    def change(data: bytes) -> bytes:
        at = data.find(b"1.2.", rng.randrange(max(1, len(data) // 2)))
        at = 10 if at < 0 else at
        return data[:at] + evil[: len(data) - at] + data[at + len(evil) :]

    return _change_one(rng, pdus, change)


def change_the_kind(rng: random.Random, pdus: Pdus) -> Pdus:
    return _change_one(
        rng, pdus, lambda data: bytes([rng.randrange(256) if rng.random() < 0.3 else rng.randrange(9)]) + data[1:]
    )


def cut_short(rng: random.Random, pdus: Pdus) -> Pdus:
    kept = rng.randrange(len(pdus))
    return [*pdus[:kept], pdus[kept][: rng.randrange(len(pdus[kept]))]]


def shuffle(rng: random.Random, pdus: Pdus) -> Pdus:
    mixed = pdus[:]
    for _ in range(rng.choice((1, 2))):
        what = rng.randrange(3)
        at = rng.randrange(len(mixed))
        if what == 0:
            mixed.insert(rng.randrange(len(mixed) + 1), mixed[at])
        elif what == 1 and len(mixed) > 1:
            del mixed[at]
        else:
            other = rng.randrange(len(mixed))
            mixed[at], mixed[other] = mixed[other], mixed[at]
    return mixed


def add_noise(rng: random.Random, pdus: Pdus) -> Pdus:
    noise = rng.choice((rng.randbytes(rng.randrange(1, 300)), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(60)))
    at = rng.randrange(len(pdus) + 1)
    return [*pdus[:at], noise, *pdus[at:]]


MUTATIONS: tuple[Callable[[random.Random, Pdus], Pdus], ...] = (
    *(flip_bytes, break_a_length, break_an_item, change_a_text, change_the_kind, cut_short, shuffle, add_noise),
)


def _change_one(rng: random.Random, pdus: Pdus, change: Callable[[bytes], bytes]) -> Pdus:
    at = rng.randrange(len(pdus))
    return [*pdus[:at], change(pdus[at]), *pdus[at + 1 :]]


def _poke(rng: random.Random, data: bytes, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def send(port: int, rng: random.Random, pdus: Pdus) -> None:
    """Send, listen for a moment, and leave: politely, or by resetting the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        try:
            for pdu in pdus:
                peer.sendall(pdu)
            peer.settimeout(0.02)
            while peer.recv(65536):
                pass
        except OSError:
            pass
        if rng.random() < 0.5:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def echo(port: int) -> bool:
    entity = AE("FUZZ")
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", port, ae_title="MDCONV_EDGE")
    if not association.is_established:
        return False
    answer = association.send_c_echo()
    association.release()
    return "Status" in answer and answer.Status == 0


def usage(pid: int) -> tuple[int, int]:
    """Threads and descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/task").iterdir())), len(list(Path(f"/proc/{pid}/fd").iterdir()))


def fuzz(daemon: Daemon, directory: Path, count: int, seed: int) -> None:
    """Raises `AssertionError` if the daemon did not stand it."""
    port, pid = int(daemon.port), daemon.process.pid
    pdus = record(port, directory)
    wait_for(lambda: "done " in daemon.log or "refused " in daemon.log, "the recorded image")
    time.sleep(0.5)
    threads, files = usage(pid)
    rng = random.Random(seed)
    for number in range(count):
        damaged = pdus
        for mutate in rng.choices(MUTATIONS, k=rng.choice((1, 1, 2, 3))):
            damaged = [pdu for pdu in mutate(rng, damaged) if pdu] or pdus
        send(port, rng, damaged)
        assert daemon.process.poll() is None, f"it died after {number} associations, seed {seed}: {daemon.log[-2000:]}"
    wait_for(lambda: echo(port), "an echo")

    def settled() -> bool:
        now = usage(pid)
        return now[0] <= threads and now[1] <= files

    try:
        wait_for(settled, "threads and descriptors to be given back", SETTLE_SECONDS)
    except AssertionError:
        raise AssertionError(f"threads, descriptors {threads, files} before, {usage(pid)} after {count}") from None
    assert "Doe" not in daemon.log
    assert "Traceback" not in daemon.log, daemon.log[daemon.log.index("Traceback") :][:3000]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        with serving(options.bundle.resolve(), place, SETTINGS) as daemon:
            fuzz(daemon, place, options.count, options.seed)
            print(
                f"{options.count} damaged associations, seed {options.seed}: {usage(daemon.process.pid)} threads, files"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
