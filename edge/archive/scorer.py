"""What a worker does: one bundle, loaded once, over one block of files after another."""

from __future__ import annotations

import functools
import json
import os
import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.backends import open_backend
from edge.bundle import load_bundle
from edge.errors import BundleError, EdgeError, describe_os_error
from edge.pipeline import Item, Outcome, Pipeline
from edge.selftest import open_tested

LOOK_SECONDS = 0.5
"""How often a worker that waits for results looks whether its pipeline still runs."""


@dataclass(frozen=True)
class Settings:
    """What every worker is told. The bundle must lie at the same path on every machine."""

    bundle: Path
    bundle_sha256: str
    backend: str
    guard: bool
    threads: int
    """That compute one image together; as many others decode."""


class Scorer:
    """Runs a block of files through `edge.pipeline.Pipeline`, as `edge-infer classify` and the daemon do.

    The pipeline is opened, and passes its self-test, with the first block, and stays open as long as the process.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._pipeline: Pipeline | None = None

    def __call__(self, block: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
        """Score ``path``, a sequence of bytes; returns ``answer``, JSON, in the same order.

        Each is the result of one image; or all are ``{"failure": TEXT}``, if the bundle or the machine does not fit: an
        exception would look to Ray like a worker that died, and the block would be tried again.
        """
        paths = [Path(os.fsdecode(path)) for path in block["path"]]
        try:
            results = self._score(paths)
        except EdgeError as error:
            results = [{"failure": str(error)}] * len(paths)
        except OSError as error:
            results = [{"failure": describe_os_error(error)}] * len(paths)
        except Exception as error:  # a mistake of ours, which no other worker would make better
            results = [{"failure": f"a worker failed: {type(error).__name__}: {error}"}] * len(paths)
        return {"answer": [json.dumps(result) for result in results]}

    def _score(self, paths: Sequence[Path]) -> list[dict[str, Any]]:
        if self._pipeline is None:
            self._pipeline = self._open()
        for number, path in enumerate(paths):
            self._pipeline.submit(Item(str(number), path=path))
        results: dict[int, dict[str, Any]] = {}
        while len(results) < len(paths):
            try:
                result = self._outcomes.get(timeout=LOOK_SECONDS).result
            except queue.Empty:
                self._pipeline.check()
                continue
            results[int(result["id"])] = result
        return [results[number] for number in range(len(paths))]

    def _open(self) -> Pipeline:
        settings = self._settings
        bundle = load_bundle(settings.bundle)
        if bundle.sha256 != settings.bundle_sha256:
            raise BundleError(
                f"{settings.bundle} is another bundle ({bundle.sha256[:16]}...) on a worker's machine than on this one "
                f"({settings.bundle_sha256[:16]}...): copy the same bundle to every machine"
            )
        opener = functools.partial(open_backend, bundle, settings.backend, settings.threads)
        tested = functools.partial(open_tested, bundle, opener)
        return Pipeline(bundle, tested, self._outcomes.put, decoders=settings.threads, guard=settings.guard)
