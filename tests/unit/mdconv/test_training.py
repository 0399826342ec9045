"""Training on any data set: what it computes, what it leaves, what it refuses."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.errors import InputRefusedError, MachineError, UsageError
from edge.statistics import roc_auc
from mdconv import trainer
from mdconv.card import as_markdown
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.distributed import World
from mdconv.metrics import youden_threshold
from mdconv.networks import build, normalise
from mdconv.recipe import learning_rate
from mdconv.training import BEST, Recipe, Trained, fit
from mdconv.training_data import training_batches
from tests.unit.mdconv.squares import LABELS, squares

NETWORK = "shufflenet_v2"
CONFIG = {"labels": 3, "md_stages": ("layer2",), "kernel_sizes": (3, 5), "ratios": (1, 1), "width": 0.5}
TINY = Recipe(size=32, epochs=2, batch=8, precision="float32")
TRAIN, VALIDATION = squares(40, seed=1), squares(48, seed=2)


def train(directory: Path, recipe: Recipe = TINY, **changes: Any) -> Trained:
    given = {"network": NETWORK, "config": CONFIG, "train": TRAIN, "validation": VALIDATION, **changes}
    return fit(recipe=recipe, directory=directory, **given)


def outputs_of(path: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return load_checkpoint(path).model(normalise(torch.from_numpy(images))).numpy()  # type: ignore[no-any-return]


def test_it_learns_and_its_checkpoint_says_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(TINY, epochs=7, batch=16, learning_rate=8e-3, warm_up_steps=5, augment=False)
    cases = squares(160, seed=1)
    trained = train(tmp_path, recipe, train=cases, command="the command")
    assert trained.history[-1]["loss"] < 0.5 * trained.history[0]["loss"]
    best = trained.history[trained.best_epoch - 1]["mean_auc"]
    assert best > 0.9 and best == max(epoch["mean_auc"] for epoch in trained.history)
    assert [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()] == trained.history

    checkpoint = load_checkpoint(trained.checkpoint)
    assert (checkpoint.network, checkpoint.labels, checkpoint.input_size) == (NETWORK, LABELS, 32)
    assert checkpoint.notice == cases.notice and not checkpoint.exclusive
    images = np.stack([VALIDATION.read(index, 32) for index in range(len(VALIDATION))])[:, None]
    probabilities = 1 / (1 + np.exp(-outputs_of(trained.checkpoint, images)))
    for number, label in enumerate(LABELS):
        truth, scores = VALIDATION.truth[:, number], probabilities[:, number]
        assert checkpoint.card["validation_auc"][label] == pytest.approx(roc_auc(truth, scores), abs=1e-4)
        assert checkpoint.thresholds[label] == pytest.approx(youden_threshold(truth, scores), abs=1e-4)
    assert checkpoint.card["data"] == {"train": ["squares 1", 160], "validation": ["squares 2", 48]}
    text = as_markdown(checkpoint)
    assert "`the command`" in text and "160 images to train on (squares 1)" in text and "layer2" in text
    assert "training: epoch 1/7" in capsys.readouterr().err


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training in double precision: Adam divides a gradient by its own size, and so magnifies float32's rounding."""
    monkeypatch.setattr(trainer, "normalise", lambda images, channels: normalise(images, channels).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
def test_a_step_is_adam_with_weight_decay_in_the_gradient(tmp_path: Path) -> None:
    """Three steps, written out: cross-entropy per label, decay added to the gradient, moments, bias correction."""
    recipe = replace(TINY, batch=12, epochs=1, weight_decay=0.1, learning_rate=1e-3, warm_up_steps=2)
    trained = train(tmp_path, recipe)
    torch.manual_seed(recipe.seed)
    model = build(NETWORK, **CONFIG)
    least = [torch.full_like(p, torch.inf) for p in model.parameters()]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]
    rates, losses = [5e-4, 1e-3 * 0.5 * (1 + math.cos(math.pi / 3)), 1e-3 * 0.5 * (1 + math.cos(2 * math.pi / 3))], []
    world = World(0, 1, torch.device("cpu"))
    batches = training_batches(TRAIN, size=32, batch=12, augmented=True, seed=0, epoch=0, world=world)
    for step, (images, truth) in enumerate(batches):
        chance = torch.sigmoid(model(normalise(images).double()))
        loss = -(truth * chance.log() + (1 - truth) * (1 - chance).log()).mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for weight, gradient, (first, second), smallest in zip(model.parameters(), gradients, moments, least):
                smallest.copy_(torch.minimum(smallest, gradient.abs()))
                gradient = gradient + 0.1 * weight
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                corrected, spread = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
                weight -= rates[step] * corrected / (spread.sqrt() + 1e-8)
    assert len(losses) == 3 and trained.history[0]["loss"] == pytest.approx(np.mean(losses), abs=1e-7)
    found = dict(load_checkpoint(trained.checkpoint).model.named_parameters())
    compared = 0
    for (name, expected), smallest in zip(model.named_parameters(), least):
        clear = smallest > 1e-5  # a bias before batch norm has no gradient but rounding, which Adam magnifies
        compared += int(clear.sum())
        assert torch.allclose(found[name][clear], expected[clear], rtol=0, atol=1e-8), name  # steps are 1e-3
    assert compared > 100_000


def test_the_learning_rate_warms_up_and_falls_along_a_cosine_to_zero() -> None:
    recipe = Recipe(learning_rate=0.2, warm_up_steps=10)
    rates = [learning_rate(recipe, step, 1000) for step in range(1000)]
    assert rates[:3] == pytest.approx([0.02, 0.04, 0.06], rel=1e-3)
    assert rates[500] == pytest.approx(0.1) and rates[250] == pytest.approx(0.1 * (1 + math.sqrt(0.5)))
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[10:])) and rates[-1] < 1e-6
    assert learning_rate(Recipe(learning_rate=0.2), 0, 1000) == 0.2


def test_labels_that_exclude_each_other(tmp_path: Path) -> None:
    """Cross-entropy, softmax's first probability for the area, thresholds of one half."""
    cases, others = squares(48, seed=1, exclusive=True), squares(24, seed=2, exclusive=True)
    recipe = replace(TINY, epochs=8, batch=12, learning_rate=5e-3, augment=False)
    given = {"config": {**CONFIG, "labels": 2}, "train": cases, "validation": others}
    trained = train(tmp_path / "long", recipe, **given)
    checkpoint = load_checkpoint(trained.checkpoint)
    assert checkpoint.exclusive and checkpoint.thresholds == {"Upper": 0.5, "Lower": 0.5}
    images = np.stack([others.read(index, 32) for index in range(24)])[:, None]
    scores = outputs_of(trained.checkpoint, images)
    area = roc_auc(others.truth[:, 0], scores[:, 0] - scores[:, 1])
    assert area > 0.7 and trained.history[trained.best_epoch - 1]["mean_auc"] == pytest.approx(area, abs=0.01)
    trained = train(tmp_path / "short", replace(recipe, epochs=1, batch=48), **given)
    torch.manual_seed(0)
    model = build(NETWORK, **{**CONFIG, "labels": 2})
    batches = training_batches(
        cases, size=32, batch=48, augmented=False, seed=0, epoch=0, world=World(0, 1, torch.device("cpu"))
    )
    for images_seen, truth in batches:
        expected = -(torch.log_softmax(model(normalise(images_seen)), dim=1) * truth).sum(dim=1).mean()
    assert trained.history[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_a_resumed_training_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    """Stopped after each step, in each epoch, and taken up again: the same weights, bit for bit."""
    whole = train(tmp_path / "whole")

    def resume() -> Trained:
        steps = itertools.count(1)
        return train(tmp_path / "parts", stop=lambda: next(steps) == 3)

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            resume()
    parts = resume()
    timeless = [[{**epoch, "seconds": 0, "images_per_second": 0} for epoch in one.history] for one in (whole, parts)]
    assert timeless[0] == timeless[1]
    one, other = (load_checkpoint(trained.checkpoint).model.state_dict() for trained in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    before = (tmp_path / "parts" / BEST).stat().st_mtime_ns
    assert resume() == parts and (tmp_path / "parts" / BEST).stat().st_mtime_ns == before  # done: returns at once


def test_a_folder_is_of_one_training(tmp_path: Path) -> None:
    train(tmp_path, replace(TINY, epochs=1))
    for changes in ({"recipe": replace(TINY, seed=1)}, {"train": TRAIN.select(range(32))}, {"validation": TRAIN}):
        with pytest.raises(UsageError, match="of another training"):
            train(tmp_path, **{"recipe": replace(TINY, epochs=1), **changes})  # type: ignore[arg-type]
    (tmp_path / BEST).unlink()
    with pytest.raises(UsageError, match="put it back"):
        train(tmp_path, replace(TINY, epochs=1))
    (tmp_path / "state.pt").write_bytes(b"")
    with pytest.raises(UsageError, match=r"state\.pt cannot be read"):
        train(tmp_path, replace(TINY, epochs=1))


def test_it_stops_when_the_score_gets_no_better(tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=20, batch=20, learning_rate=1e-12, patience=2)
    trained = train(tmp_path, recipe)
    assert len(trained.history) == trained.best_epoch + 2 < 20
    scores = [epoch["mean_auc"] for epoch in trained.history]
    assert max(scores) == scores[trained.best_epoch - 1] and scores.index(max(scores)) == trained.best_epoch - 1


def test_initial_weights(tmp_path: Path) -> None:
    first = train(tmp_path / "first", replace(TINY, epochs=1)).checkpoint
    still = replace(TINY, epochs=1, batch=40, learning_rate=1e-12)
    after = train(tmp_path / "still", still, initial=first).checkpoint
    one, other = (dict(load_checkpoint(path).model.named_parameters()) for path in (first, after))
    assert all(torch.allclose(one[name], other[name], atol=1e-9) for name in one)
    with pytest.raises(UsageError, match="of another training"):
        train(tmp_path / "still", still)
    exclusive = {"train": squares(40, 1, exclusive=True), "validation": squares(40, 2, exclusive=True)}
    with pytest.raises(UsageError, match="name a checkpoint of the same network and labels"):
        train(tmp_path / "a", initial=first, config={**CONFIG, "labels": 2}, **exclusive)
    with pytest.raises(UsageError, match="has other layers"):
        train(tmp_path / "b", initial=first, config={**CONFIG, "md_stages": ("layer0",)})


def test_half_precision_rounds_activations_and_no_more(tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=1)
    exact, half = (
        train(tmp_path / precision, replace(recipe, precision=precision)) for precision in ("float32", "bfloat16")
    )
    assert half.history[0]["loss"] != exact.history[0]["loss"]
    assert half.history[0]["loss"] == pytest.approx(exact.history[0]["loss"], abs=0.05)
    weights = load_checkpoint(half.checkpoint).model.state_dict()
    assert {weight.dtype for weight in weights.values()} == {torch.float32, torch.int64}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / BEST).mkdir()
    (tmp_path / BEST / "in the way").touch()
    with pytest.raises(MachineError, match=r"^cannot write to the output folder: [^\n]*best\.safetensors[^\n]*$"):
        train(tmp_path, replace(TINY, epochs=1))


def test_what_tensorboard_shows(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained = train(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    series = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    losses = [value for _, value in series["train/loss"]]
    assert [step for step, _ in series["train/loss"]] == list(range(1, 11))
    assert np.mean(losses[:5]) == pytest.approx(trained.history[0]["loss"], abs=1e-6)
    rates = [value for _, value in series["train/learning_rate"]]
    assert rates == pytest.approx([learning_rate(TINY, step, 10) for step in range(10)])
    assert [value for _, value in series["validation/mean_auc"]] == pytest.approx(
        [epoch["mean_auc"] for epoch in trained.history]
    )
    areas = [series[f"validation/auc/{label}"][-1][1] for label in LABELS]
    assert np.mean(areas) == pytest.approx(trained.history[-1]["mean_auc"])


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UsageError, match=match) as caught:
            train(tmp_path / "refused", **changes)
        assert "\n" not in str(caught.value)

    refused("expected a whole batch", recipe=replace(TINY, batch=41))
    refused("expected at least 32 pixels", recipe=replace(TINY, size=16))
    refused("expected at least 32 pixels", recipe=replace(TINY, learning_rate=-1.0))
    refused("none of auto, float32", recipe=replace(TINY, precision="int8"))
    refused("float16 needs a GPU", recipe=replace(TINY, precision="float16"))
    refused("present in some and absent in others", validation=VALIDATION.select([0]))
    refused("other labels", validation=squares(40, 2, exclusive=True))
    refused("14 outputs, squares 1 has 3 labels", config={**CONFIG, "labels": 14})
    refused("no stage", config={**CONFIG, "md_stages": ("layer9",)})
    refused("no checkpoint", initial=tmp_path / "nothing")
    assert not (tmp_path / "refused").exists()
    with pytest.raises(InputRefusedError, match=r"square-1-7\.png"):
        train(tmp_path / "corrupt", train=replace(TRAIN, corrupt="square-1-7.png"))


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(NETWORK, **CONFIG)
    torch.nn.init.constant_(model.get_parameter("classifier.weight"), torch.inf)
    path = tmp_path / "broken.safetensors"
    save_checkpoint(Checkpoint(model, NETWORK, CONFIG, LABELS, 32, dict.fromkeys(LABELS, 0.5), "broken"), path)
    with pytest.raises(UsageError, match=r"loss is not finite any more \(epoch 1, step 1\).*lower learning rate"):
        train(tmp_path / "out", initial=path)
    assert not (tmp_path / "out" / "state.pt").exists()
