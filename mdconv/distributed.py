"""Several processes that train one network: who they are, and layers that see the whole batch.

Each process takes its share of a batch. Two kinds of layer depend on the other images: batch norm, whose statistics are
then summed over all processes, and dropout, whose mask is then a part of one mask for the whole batch. So N processes
compute what one would with the whole batch, up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edge.errors import MachineError

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""For one process that waits for another, which may be rendering phantoms."""


@dataclass(frozen=True)
class World:
    """This process's place among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The part of `count` items, which `size` divides, that is this process's."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of all processes' `values`, (n,) of one length and dtype everywhere."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def from_leader(self, data: bytes) -> bytes:
        """What the leading process gave as `data`, in all processes."""
        if self.size == 1:
            return data
        count = torch.tensor([len(data)], device=self.device)
        dist.broadcast(count, src=0)
        content = torch.frombuffer(bytearray(data or b"0"), dtype=torch.uint8).to(self.device)
        if not self.leads:
            content = torch.empty(int(count), dtype=torch.uint8, device=self.device)
        if int(count):
            dist.broadcast(content, src=0)
        return content.cpu().numpy().tobytes() if int(count) else b""

    def in_turn(self, work: Callable[[], T]) -> T:
        """`work`'s result, done by the leading process first: so it can leave files that the others find."""
        if self.size > 1 and not self.leads:
            dist.barrier()
        done = work()
        if self.size > 1 and self.leads:
            dist.barrier()
        return done

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """All `count` rows (count, L) in order, from each process's (n, L): process r holds r, r + size, ..."""
        if self.size == 1:
            return rows
        longest = -(-count // self.size)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]


def alone() -> World:
    """A world of one process, on the GPU where there is one."""
    return World(0, 1, _device(0))


def _device(number: int) -> torch.device:
    on_gpu = torch.cuda.is_available()
    return torch.device("cuda", number % torch.cuda.device_count()) if on_gpu else torch.device("cpu")


@contextmanager
def join_world() -> Iterator[World]:
    """The world that ``torchrun`` started this process in; without torchrun, a world of one.

    A GPU is used where there is one (the process's own, by ``LOCAL_RANK``). Raises `MachineError` if the processes do
    not find each other.
    """
    if "RANK" not in os.environ:
        yield alone()
        return
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if device.type == "cuda":
            dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise MachineError(f"the processes of torchrun do not find each other: {error}") from error
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def spread_out(network: nn.Module, world: World) -> nn.Module:
    """`network`, its batch norm and dropout layers replaced by such that see the whole batch; names are kept."""
    if world.size == 1:
        return network
    if world.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    for name, child in list(network.named_children()):
        if isinstance(child, nn.BatchNorm2d):  # on a GPU there is none left
            setattr(network, name, _synchronised(child))
        elif isinstance(child, nn.Dropout):
            setattr(network, name, SharedDropout(child.p, world))
        else:
            spread_out(child, world)
    return network


def _synchronised(norm: nn.BatchNorm2d) -> nn.Module:
    assert norm.momentum is not None
    layer = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    layer.load_state_dict(norm.state_dict())
    return layer.to(norm.weight)


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient of each one's part is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, on a CPU: `nn.SyncBatchNorm` does it on a GPU only."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape and dtype; N, H and W are the same in all processes."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        values = x.float() if x.itemsize < 4 else x  # sums need more digits than half precision has
        count = dist.get_world_size() * x.numel() // x.shape[1]
        mean = _sum(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _sum(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            momentum = self.momentum or 0.0
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
        return normalised


class SharedDropout(nn.Dropout):
    """Dropout whose mask is this process's part of the one that a single process would draw for the whole batch."""

    def __init__(self, p: float, world: World) -> None:
        super().__init__(p)
        self._world = world

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to the same shape; all processes must have drawn equally often from equal seeds."""
        if not self.training:
            return x
        whole = x.new_ones(len(x) * self._world.size, *x.shape[1:])
        return x * nn.functional.dropout(whole, self.p)[self._world.share(len(whole))]
