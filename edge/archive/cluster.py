"""Scores blocks of files on the actors of a Ray cluster, through Ray Data. The one module that imports Ray."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from edge.archive.scorer import Scorer, Settings
from edge.archive.sources import ArchiveFile
from edge.errors import MachineError, UsageError

BLOCK = 64
"""Files a worker gets at once, at most; what is lost, and done again, when it dies."""

RETRIES = 2
"""How often a block is given to a worker again after one died over it."""

OBJECT_STORE_BYTES = 128 << 20
"""Of a cluster on this machine alone: blocks hold paths and results, no images."""


class Placement(NamedTuple):
    """How many workers, and what each one takes."""

    workers: int
    cpus: int
    gpus: int


def place(nodes: Sequence[Mapping[str, float]], backend: str, workers: int | None) -> Placement:
    """One worker a GPU where there are some, and `backend` may use them; else one a core. At most `workers`.

    `nodes` are the resources of each machine, by Ray's names. Raises `UsageError` for more workers than that.
    """
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if gpus and backend in ("auto", "tensorrt"):
        most, what = sum(int(node["GPU"]) for node in gpus), "GPUs"
        cpus = max(1, min(int(node.get("CPU", 1) // node["GPU"]) for node in gpus))
        one = Placement(1, cpus, 1)
    else:
        most, what = sum(int(node.get("CPU", 0)) for node in nodes), "cores"
        one = Placement(1, 1, 0)
    if most == 0 or (workers or 0) > most:
        raise UsageError(f"--workers {workers or 'of its own'}: the cluster has {most} {what}, expected one a worker")
    return one._replace(workers=workers or most)


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[list[dict[str, float]]]:
    """Join the Ray cluster at `address`, or start one on this machine; yields what each machine has.

    One that is started here listens on the loopback address, has no dashboard, and ends with this process, however that
    ends. Raises `MachineError` where Ray is missing or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would else report its use over the Internet
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None or address.startswith(("127.", "localhost")):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # by which Ray stays on the loopback address
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MachineError(f"Ray Data cannot be loaded ({error}): pip install 'mdconv-edge[cluster]'") from None
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    own: dict[str, Any] = {
        "address": "local",
        "num_cpus": len(os.sched_getaffinity(0)),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there what it has to say of workers that died
        try:
            ray.init(**(own if address is None else {"address": address}), log_to_driver=False, configure_logging=False)
        except Exception as error:  # its errors share no base class
            raise MachineError(f"Ray does not start: {_first_line(error)}: check --address and memory") from None
        try:
            nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
            yield [node["Resources"] for node in nodes if node["Alive"]]
        finally:
            ray.shutdown()


def score(
    files: Sequence[ArchiveFile], settings: Settings, placement: Placement
) -> Iterator[tuple[ArchiveFile, dict[str, Any] | None]]:
    """Each of `files` with its result, in any order; None for one over which workers died again and again.

    A block over which workers died `RETRIES` + 1 times is given up, and its files are then tried one by one: so one
    file that ends every process takes no other with it.

    Raises `MachineError` if a worker cannot run the bundle, or the cluster is lost. What came before that counts.
    """
    left = {file.key: file for file in files}
    settings = replace(settings, threads=placement.cpus)
    size = min(BLOCK, max(1, len(files) // (8 * placement.workers)))
    for block in (size, 1):
        for key, result in _run(list(left.values()), block, settings, placement):
            if "failure" in result:
                raise MachineError(result["failure"])
            if (file := left.pop(key, None)) is not None:
                yield file, result
        if not left:
            return
    for file in left.values():
        yield file, None


def _run(
    files: Sequence[ArchiveFile], block: int, settings: Settings, placement: Placement
) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a block that no worker survives is left out, and the rest goes on
    tables = [
        pa.table({"file": [file.key for file in some], "path": [os.fsencode(file.path) for file in some]})
        for some in _slices(files, block)
    ]
    compute = ray.data.ActorPoolStrategy(size=placement.workers, max_tasks_in_flight_per_actor=2 if block > 1 else 1)
    with warnings.catch_warnings():
        # Ray 2.60 deprecates the one way to limit retries, and has no other yet: hence the bound in pyproject.toml.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        answers = ray.data.from_arrow(tables).map_batches(
            _KeyedScorer,
            fn_constructor_args=(settings,),
            batch_size=block,
            batch_format="pyarrow",
            compute=compute,
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            max_task_retries=RETRIES,
        )
    try:
        batch: Any
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for key, answer in zip(batch["file"].to_pylist(), batch["answer"].to_pylist()):
                yield key, json.loads(answer)
    except ray.exceptions.RayError as error:
        raise MachineError(
            f"the Ray cluster failed: {_first_line(error)}: run the command again, it goes on where it stopped"
        ) from None


class _KeyedScorer(Scorer):
    """A `Scorer` of Arrow tables, that says whose each answer is."""

    def __call__(self, block: Any) -> dict[str, list[str]]:
        columns = {name: block[name].to_pylist() for name in ("file", "path")}
        return {"file": columns["file"], **super().__call__(columns)}


def _slices(files: Sequence[ArchiveFile], size: int) -> Iterable[Sequence[ArchiveFile]]:
    return (files[start : start + size] for start in range(0, len(files), size))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
