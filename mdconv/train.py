"""Train a network: `python -m mdconv.train`.

    python -m mdconv.train --output F.safetensors              the demo network, by the demo's recipe, on phantoms
    python -m mdconv.train --chestxray14 DIR --output DIR      ChestX-ray14, by the paper's recipe
    python -m mdconv.train --chestxray2017 DIR --task kind --output DIR
    python -m mdconv.train --phantoms 2000 --output DIR
    torchrun --nproc-per-node 4 -m mdconv.train ...            one process a GPU

The same command goes on where it was interrupted. docs/train.md says more.
"""

from __future__ import annotations

import argparse
import inspect
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from edge.errors import EdgeError, MachineError, UsageError, describe_os_error
from mdconv import demo_recipe
from mdconv.card import as_markdown
from mdconv.checkpoint import load_checkpoint
from mdconv.data.augment import source_size
from mdconv.data.cases import Cases
from mdconv.data.phantom import TRAIN_SEEDS, VALIDATION_SEEDS
from mdconv.data.phantom.sets import phantom_cases
from mdconv.distributed import World, join_world
from mdconv.networks import NETWORKS, resolve_stages, stages
from mdconv.qat import read_scales
from mdconv.recipe import PRECISIONS, Recipe
from mdconv.training import Trained, fit

VALIDATION_PHANTOMS = 600
READERS = 4
"""Processes that read images, where they are files."""

_LAYERS = ("md_stages", "kernel_sizes", "ratios")
_RECIPE = ("size", "epochs", "batch", "learning_rate", "weight_decay", "patience", "precision")
_FINE_TUNING = {"epochs": 10, "learning_rate": 1e-5}
"""In place of the paper's, for `--qat`."""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = _parser()
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(words)
    command = f"python -m mdconv.train {shlex.join(words)}"
    demo = not (options.chestxray14 or options.chestxray2017 or options.phantoms is not None)
    try:
        if options.skip_missing and not options.chestxray14:
            raise UsageError("--skip-missing is about the images of --chestxray14: give --chestxray14 DIR")
        if not demo:
            with join_world() as world:
                _train(options, command, world)
        else:
            _train_demo(options)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        how = "nothing was written" if demo and options.cache is None else "the same command goes on"
        print(f"interrupted; {how}: {command}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mdconv.train",
        description="Train a network on a data set by the paper's recipe or, without a data set, the demo network.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write; for the demo a .safetensors file")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: 0)")
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group()
    source.add_argument("--chestxray14", type=Path, metavar="DIR", help="ChestX-ray14: 14 findings")
    source.add_argument("--chestxray2017", type=Path, metavar="DIR", help="ChestX-ray2017: one of two labels")
    source.add_argument("--phantoms", type=int, metavar="N", help="so many synthetic phantoms: 14 findings")
    data.add_argument("--task", choices=("pneumonia", "kind"), help="of ChestX-ray2017 (default: pneumonia)")
    data.add_argument("--skip-missing", action="store_true", help="leave out images that --chestxray14 lacks")
    data.add_argument("--cache", type=Path, metavar="DIR", help="folder to keep rendered phantoms in")
    data.add_argument("--workers", type=int, help=f"processes that read images (default: up to {READERS}; phantoms: 0)")
    network = parser.add_argument_group("network")
    network.add_argument("--network", choices=tuple(NETWORKS), help="default: mobilenet_v2")
    network.add_argument("--md-stages", metavar="S", help='stages with MD-Conv: "all", "none" or "layer3,layer5"')
    network.add_argument("--kernel-sizes", type=_numbers, metavar="K,K", help="of MD-Conv (default: 3,5)")
    network.add_argument("--ratios", type=_numbers, metavar="R,R", help="of its channels (default: 1,1)")
    network.add_argument("--initial", type=Path, metavar="F", help="checkpoint to start from, which says the network")
    network.add_argument("--qat", type=Path, metavar="BUNDLE", help="fine-tune --initial for this int8 bundle of it")
    recipe, paper = parser.add_argument_group("recipe (defaults: the paper's)"), Recipe()
    recipe.add_argument("--size", type=int, help=f"pixels (default: {paper.size}, or that of --initial)")
    recipe.add_argument("--epochs", type=int, help=f"default: {paper.epochs}; {_FINE_TUNING['epochs']} with --qat")
    recipe.add_argument("--batch", type=int, help=f"images a step, over all processes (default: {paper.batch})")
    recipe.add_argument(
        "--learning-rate",
        type=float,
        help=f"at its peak (default: {paper.learning_rate:g}; {_FINE_TUNING['learning_rate']:g} with --qat)",
    )
    recipe.add_argument("--weight-decay", type=float, help=f"default: {paper.weight_decay:g}")
    recipe.add_argument(
        "--patience", type=int, help=f"epochs without a better mean AUC, 0: no limit (default: {paper.patience})"
    )
    recipe.add_argument("--precision", choices=PRECISIONS, help="of activations (default: what the machine is fast in)")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _train_demo(options: argparse.Namespace) -> None:
    others = ("task", "workers", "network", "kernel_sizes", "ratios", "initial", "qat", *_RECIPE)
    if given := [name for name in others if getattr(options, name) is not None]:
        raise UsageError(
            f"--{given[0].replace('_', '-')} needs a data set (--chestxray14, --chestxray2017 or --phantoms): the demo "
            "network's recipe is fixed, but for --seed and --md-stages"
        )
    if not options.output.parent.is_dir():
        raise UsageError(f"no folder {options.output.parent} for --output: make it first")
    recipe = demo_recipe.Recipe(seed=options.seed)
    command = f"python -m mdconv.train --output {options.output.name} --seed {options.seed}"
    if options.md_stages:
        recipe = replace(recipe, md_stages=_stages(demo_recipe.NETWORK, options.md_stages))
        command += f" --md-stages {options.md_stages}"
    with TemporaryDirectory() as scratch:
        demo_recipe.run(recipe, options.output, options.cache or Path(scratch), command)


def _stages(network: str, text: str) -> tuple[str, ...]:
    try:
        return resolve_stages(network, text)
    except ValueError as error:
        raise UsageError(f"--md-stages: {error}") from None


def _train(options: argparse.Namespace, command: str, world: World) -> None:
    """Train on a data set; write a card beside the checkpoint, and say how it went."""
    if options.qat and not options.initial:
        raise UsageError("--qat fine-tunes a checkpoint: name it with --initial")
    if options.task and not options.chestxray2017:
        raise UsageError("--task is ChestX-ray2017's: give --chestxray2017 DIR")
    network, config, size = _network(options)
    chosen = {name: getattr(options, name) for name in _RECIPE if getattr(options, name) is not None}
    recipe = Recipe(**{"size": size, "seed": options.seed, **(_FINE_TUNING if options.qat else {}), **chosen})
    train, validation = world.in_turn(lambda: _sets(options, recipe.size))
    readers = 0 if options.phantoms else min(READERS, os.cpu_count() or 1)
    workers = readers if options.workers is None else options.workers
    scales = read_scales(options.qat, options.initial) if options.qat else None
    with _asked_to_stop() as stop:
        trained = fit(
            network,
            {"labels": len(train.labels), **config},
            train,
            validation,
            recipe,
            options.output,
            initial=options.initial,
            scales=scales,
            workers=workers,
            world=world,
            command=command,
            stop=stop,
        )
    if world.leads:
        _report(trained, train)


def _network(options: argparse.Namespace) -> tuple[str, dict[str, Any], int]:
    """Name and options of the network, and the size of its input."""
    given = [name for name in ("network", *_LAYERS) if getattr(options, name) is not None]
    if options.initial:
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')}: with --initial the checkpoint says what the network is")
        checkpoint = load_checkpoint(options.initial)
        return checkpoint.network, checkpoint.config, checkpoint.input_size
    name = options.network or "mobilenet_v2"
    if not stages(name):
        if given != ["network"]:
            raise UsageError(f"{name} has no depthwise layers: leave out --md-stages, --kernel-sizes and --ratios")
        return name, {}, Recipe().size
    default = inspect.signature(NETWORKS[name]).parameters["md_stages"].default
    md_stages = _stages(name, options.md_stages) if options.md_stages else default
    layers = {"kernel_sizes": options.kernel_sizes or (3, 5), "ratios": options.ratios or (1, 1)}
    return name, {"md_stages": tuple(md_stages), **layers}, Recipe().size


def _sets(options: argparse.Namespace, size: int) -> tuple[Cases, Cases]:
    """The images to train on and those to validate on."""
    if options.chestxray14:
        from mdconv.data import chestxray14

        train, validation = (
            chestxray14.load(options.chestxray14, split, skip_missing=options.skip_missing)
            for split in ("train", "validation")
        )
        return train, validation
    if options.chestxray2017:
        from mdconv.data import chestxray2017

        folder: Path = options.chestxray2017
        task: Literal["pneumonia", "kind"] = options.task or "pneumonia"
        return chestxray2017.load(folder, "train", task), chestxray2017.load(folder, "validation", task)
    if not 1 <= options.phantoms <= len(TRAIN_SEEDS):
        raise UsageError(f"--phantoms {options.phantoms}: expected 1 to {len(TRAIN_SEEDS)}")
    seeds = (TRAIN_SEEDS[: options.phantoms], VALIDATION_SEEDS[:VALIDATION_PHANTOMS])
    learn, judge = (phantom_cases(some, source_size(size), options.cache) for some in seeds)
    return learn, judge


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT (Ctrl-C) or SIGTERM came. The first is only noted, a second one does what it always does."""
    asked = threading.Event()

    def note(number: int, _: object) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(trained: Trained, train: Cases) -> None:
    best = trained.history[trained.best_epoch - 1]
    try:
        text = as_markdown(load_checkpoint(trained.checkpoint))
        trained.checkpoint.with_name("CARD.md").write_text(text, "utf-8")
    except OSError as error:
        raise MachineError(f"cannot write the card: {describe_os_error(error)}") from error
    print(
        f"epoch {trained.best_epoch} of {len(trained.history)} was best: validation mean AUC {best['mean_auc']:.4f}; "
        f"{trained.seconds / 60:.0f} minutes"
    )
    print(f"{trained.checkpoint}: {train.notice}")


if __name__ == "__main__":
    sys.exit(main())
