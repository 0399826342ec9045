"""Shows and records how a training goes: a progress line, ``history.jsonl``, TensorBoard's events."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from edge.progress import ProgressLine

HISTORY = "history.jsonl"


class TrainingLog:
    """As a context manager it closes what it writes to. A log that is not `enabled` does nothing."""

    def __init__(self, directory: Path, epochs: int, first_step: int, *, enabled: bool) -> None:
        """`first_step`: where this process takes over; what an interrupted one logged from there on is superseded."""
        self._directory, self._epochs, self._enabled = directory, epochs, enabled
        if enabled:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step or None)
            self._line = ProgressLine("training")

    def step(self, epoch: int, done: int, steps: int, loss: float, rate: float) -> None:
        """After a step, `done` of `steps` of the epoch: the mean loss since the last call, the learning rate."""
        if self._enabled:
            number = epoch * steps + done
            self._line(f"epoch {epoch + 1}/{self._epochs}, loss {loss:.4f}", number, self._epochs * steps)
            self._events.add_scalar("train/loss", loss, number)
            self._events.add_scalar("train/learning_rate", rate, number)

    def epoch(self, history: Sequence[Mapping[str, float]], areas: Mapping[str, float]) -> None:
        """After an epoch: the records of all epochs so far, and the last validation's AUC by label."""
        if not self._enabled:
            return
        record = history[-1]
        number = int(record["epoch"])
        self._events.add_scalar("validation/mean_auc", record["mean_auc"], number)
        self._events.add_scalar("train/images_per_second", record["images_per_second"], number)
        for label, area in areas.items():
            self._events.add_scalar(f"validation/auc/{label}", area, number)
        self._events.flush()
        lines = [json.dumps(dict(one)) + "\n" for one in history]
        partial = self._directory / f"{HISTORY}.partial"
        partial.write_text("".join(lines), "utf-8")
        partial.replace(self._directory / HISTORY)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._line.__exit__()
            self._events.close()
