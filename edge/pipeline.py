"""Streams images through a bundle: decoding, inference and results overlap, with bounded queues between them.

    submit -> [intake] -> decode workers -> [ready] -> inference thread -> [finished] -> result thread -> deliver

A full queue holds up whoever fills it, so memory is bounded by the queues' sizes whatever is submitted. An image that
cannot be used ends as a refused result and stops nobody. A failure of the backend stops everything: what it was working
on gets no result at all, rather than a doubtful one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backends import Backend
from edge.bundle import Bundle
from edge.channel import AbortedError, Channel
from edge.errors import InputRefusedError, MachineError
from edge.guard import Guard, refusal
from edge.preprocess import Preprocess
from edge.results import Timings, findings, image_result

log = logging.getLogger(__name__)

ABORT_SECONDS = 5.0
"""How long an abort waits for each thread: one may be building an engine."""


@dataclass
class Item:
    """One image to run, given as exactly one of a `path`, its file's `content`, or ready `pixels` (S, S) uint8."""

    id: str
    source: str | None = None
    """The name to give back in the result; None where names must not travel (they may hold a patient's name)."""
    path: Path | None = None
    content: bytes | None = None
    pixels: NDArray[np.uint8] | None = None
    sha256: str | None = None
    """The content's SHA-256 if it is known already; a file that no longer matches it is refused."""
    stat: bool = False
    """Whether it overtakes the others that wait."""
    received: float = field(default_factory=time.monotonic)


@dataclass
class Outcome:
    """What became of one image."""

    result: dict[str, Any]
    """See `edge.results.image_result`."""
    cam: NDArray[np.float32] | None
    """(L, h, w) float32 class activation maps; None if refused or if the network has none."""
    pixels: NDArray[np.uint8] | None
    """(S, S) uint8, what the network saw; None if refused."""
    logits: NDArray[np.float32] | None
    """(L,) float32, what it said, also of an image that the guard refused then; None if it was not run."""


@dataclass
class _Job:
    item: Item
    timings: Timings
    sha256: str | None
    pixels: NDArray[np.uint8] | None = None
    reason: str | None = None
    logits: NDArray[np.float32] | None = None
    cam: NDArray[np.float32] | None = None


class Pipeline:
    """Runs the items that are submitted; hands one `Outcome` for each to `deliver`, in whatever order they finish.

    As a context manager it drains on a normal exit and stops at once when left by an exception.
    """

    def __init__(
        self,
        bundle: Bundle,
        open_backend: Callable[[], Backend],
        deliver: Callable[[Outcome], None],
        *,
        decoders: int | None = None,
        patience: float = 0.0,
        guard: bool = True,
    ) -> None:
        """Start the threads. `open_backend` is called in the inference thread, which alone uses and closes the backend.

        `deliver` is called in one thread; an exception from it stops the pipeline like a failure of the backend.
        `decoders` is the number of decoding threads (default: the cores that this process may use). A batch that is not
        full waits up to `patience` seconds for more images, unless one of them is urgent. Without `guard`, images which
        the network was not made for (`edge.guard`) are answered too, and each result says so.
        """
        self._bundle = bundle
        self._guard = Guard.from_bundle(bundle, off=not guard)
        self._preprocess = Preprocess.from_manifest(bundle.manifest["preprocess"])
        self._open_backend = open_backend
        self._deliver = deliver
        self._patience = patience
        decoders = decoders or len(os.sched_getaffinity(0))
        self._intake: Channel[Item] = Channel(2 * decoders)
        self._ready: Channel[_Job] = Channel(2 * bundle.batch + decoders)
        self._finished: Channel[_Job] = Channel(2 * bundle.batch + decoders)
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._decoding = decoders
        self._opened = threading.Event()
        self._aborted = False
        self._inferring_since: float | None = None
        self.backend_name: str | None = None
        self.backend_facts: dict[str, Any] = {}
        stages = [("infer", self._infer), ("results", self._finish)]
        stages += [(f"decode-{i}", self._decode) for i in range(decoders)]
        self._threads = [threading.Thread(target=self._run, args=(work,), name=name) for name, work in stages]
        for thread in self._threads:
            thread.daemon = True  # a decoder that hangs must not keep the process alive
            thread.start()

    def wait_until_open(self, timeout: float | None = None) -> bool:
        """Wait until the backend is open, at most `timeout` seconds; whether it is. Raises what opening it raised."""
        opened = self._opened.wait(timeout)
        self.check()
        return opened

    def check(self) -> None:
        """Raises the error that stopped the pipeline, if one did."""
        if self._error is not None:
            raise self._error

    def inferring_seconds(self) -> float:
        """How long the backend has been working on the batch that it has; 0 if it has none."""
        since = self._inferring_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, item: Item, timeout: float | None = None) -> bool:
        """Hand over one image; waits while the pipeline is full, at most `timeout` seconds. Whether it was taken: never
        once the pipeline drains.

        Raises the error that stopped the pipeline, if one did.
        """
        try:
            return self._intake.put(item, urgent=item.stat, timeout=timeout)
        except AbortedError:
            self.check()
            raise

    def drain(self) -> None:
        """Wait until every submitted image has its result. Raises the error that stopped the pipeline, if one did."""
        self._intake.close()
        self._join()
        self.check()

    def abort(self) -> None:
        """Stop as soon as each thread is done with the image in its hands; images under way get no result."""
        self._aborted = True
        for channel in (self._intake, self._ready, self._finished):
            channel.abort()
        self._opened.set()
        for thread in self._threads:
            thread.join(ABORT_SECONDS)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.drain()
        elif self._error is not None:
            self._join()  # it is stopping already; what was computed before the failure is still delivered
        else:
            self.abort()

    def _join(self) -> None:
        for thread in self._threads:
            if not self._aborted:
                thread.join()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except AbortedError:
            pass
        except BaseException as error:  # handed to whoever calls submit or drain
            with self._lock:
                self._error = self._error or error
            self._intake.abort()
            self._ready.abort()
            if work == self._finish:
                self._finished.abort()
            else:
                self._finished.close()
            self._opened.set()

    def _decode(self) -> None:
        while items := self._intake.take():
            item = items[0]
            job = _Job(item, Timings(item.received), item.sha256, item.pixels)
            if job.pixels is None:
                try:
                    self._read(job)
                except InputRefusedError as error:
                    job.reason = str(error)
            (self._ready if job.reason is None else self._finished).put(job, urgent=item.stat)
        with self._lock:
            self._decoding -= 1
            last = self._decoding == 0
        if last:
            self._ready.close()

    def _read(self, job: _Job) -> None:
        from edge import preprocess  # its decoders load on their first use, while the backend is being opened

        with job.timings.stage("decode"):
            content = job.item.content
            if content is None:
                assert job.item.path is not None
                content = read_file(job.item.path, self._preprocess.max_file_bytes)
            found = hashlib.sha256(content).hexdigest()
            if job.sha256 not in (None, found):
                raise InputRefusedError(
                    "the file changed after it was received: its new content is an image of its own"
                )
            job.sha256 = found
            try:
                gray = preprocess.decode(content, self._preprocess)
            except InputRefusedError:
                raise
            except MemoryError:
                raise InputRefusedError("it needs more memory than is free: send a smaller image") from None
            except Exception as error:  # a decoder's own mistake over one image must not stop the others
                log.debug("decoding %s", job.item.id, exc_info=True)
                raise InputRefusedError(
                    f"the decoder failed ({type(error).__name__}): export the image anew"
                ) from error
            self._guard.check_image(gray)
        with job.timings.stage("preprocess"):
            job.pixels = preprocess.resize(gray, self._preprocess)

    def _infer(self) -> None:
        with self._open_backend() as backend:
            self.backend_name, self.backend_facts = backend.name, backend.facts
            self._opened.set()
            while jobs := self._ready.take(self._bundle.batch, self._patience):
                start = self._inferring_since = time.monotonic()
                outputs = backend.infer(_as_batch([job.pixels for job in jobs if job.pixels is not None]))
                milliseconds = (time.monotonic() - start) * 1e3
                self._inferring_since = None
                if not np.isfinite(outputs.logits).all():
                    raise MachineError(
                        f"backend {backend.name} returned values that are no numbers: run `edge-infer selftest`"
                    )
                for i, job in enumerate(jobs):
                    job.timings.stages["infer"] = milliseconds
                    job.timings.gpu_ms = outputs.gpu_ms
                    job.logits = outputs.logits[i]
                    job.cam = None if outputs.cam is None else outputs.cam[i]
                    self._finished.put(job, urgent=job.item.stat)
        self._finished.close()

    def _finish(self) -> None:
        while jobs := self._finished.take():
            job = jobs[0]
            found, verdict = None, self._guard.unscored()
            if job.logits is not None and job.pixels is not None:
                with job.timings.stage("postprocess"):
                    verdict = self._guard.check(job.pixels, job.logits, job.cam)
                    job.reason = refusal(verdict)
                    if job.reason is None:
                        found = findings(self._bundle.labels, self._bundle.thresholds, job.logits)
                    else:
                        job.pixels = job.cam = None
            result = image_result(
                id=job.item.id,
                source=job.item.source,
                sha256=job.sha256,
                timings=job.timings,
                bundle=self._bundle.sha256,
                gate=self._bundle.gate_verdict,
                backend=self.backend_name,
                findings=found,
                guard=verdict,
                reason=job.reason,
            )
            self._deliver(Outcome(result, job.cam, job.pixels, job.logits))


def _as_batch(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(N, 1, S, S) of N images (S, S); of a single one a view, so that a CPU backend reads what `resize` wrote."""
    return images[0][np.newaxis, np.newaxis] if len(images) == 1 else np.stack(images)[:, np.newaxis]


def read_file(path: Path, limit: int) -> bytes:
    """Content of a regular file of at most `limit` bytes. Raises `InputRefusedError`, whose text never has the name."""
    try:
        # Without waiting: opening a named pipe would wait for its writer, perhaps for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputRefusedError("it is not a regular file: name an image file")
            if status.st_size > limit:
                raise InputRefusedError(f"it has {status.st_size} bytes, an image may have {limit}: is it an image?")
            return file.read(status.st_size)
    except IsADirectoryError:
        raise InputRefusedError("it is a folder: name the files in it") from None
    except FileNotFoundError:
        raise InputRefusedError("no such file: check the path") from None
    except PermissionError:
        raise InputRefusedError("it may not be read: grant read permission") from None
    except OSError as error:
        raise InputRefusedError(
            f"it cannot be read ({error.strerror or type(error).__name__}): check the disk"
        ) from None
