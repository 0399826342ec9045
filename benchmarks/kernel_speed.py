"""How fast the fused kernels are on this machine's GPU, beside the unfused sequence and beside PyTorch with cuDNN.

    python benchmarks/kernel_speed.py [--batch N]    # needs an NVIDIA GPU, nvcc, and PyTorch with CUDA
    ncu --metrics smsp__inst_executed.sum python benchmarks/kernel_speed.py --once --batch 16

A batch of images through the network's depthwise layers at 448x448, the channels split 1:1 between 3x3 and 5x5. Every
launch has its own X and Y, together larger than the L2 cache, inside one CUDA graph; medians of 20 graphs, in
microseconds. A large GPU is done with one image's layer before it has started well: with 16 images each of the 132
multiprocessors of an H100 has as much to do as each of the 8 of an Orin Nano with one.

- copy: what a device-to-device copy of the layer's compulsory bytes takes here, at the bandwidth of a large copy
- default, best: the tactic that is taken where nothing is timed, and the fastest of all (which TensorRT takes)
- of copy: the copy's time over the best's: 1 is a kernel as fast as memory
- unfused: split, a convolution a kernel size, concat, bias and activation (benchmarks/kernels), linear layout
- padded, split: PyTorch with cuDNN, the convolution padded to 5x5 and ReLU6; and two convolutions, concatenation, ReLU6

`--once` launches each tactic of each layer once, and prints how it is cut, for a profiler to look at.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from ctypes import byref, c_float, c_int32
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.gpu.build import device_library  # noqa: E402
from tests.native import host_kernel  # noqa: E402
from tests.native.layer import DTYPES, Layer, Operands, random_operands  # noqa: E402
from tests.native.layouts import FORMATS, pack, padded_channels  # noqa: E402
from tests.native.network_layers import NETWORK_LAYERS, network_layer  # noqa: E402

WINDOWS = 20
CACHE_BYTES = 120e6  # more than twice the L2 cache of any GPU up to the H200
UNFUSED = 0


def sets_of(must: int) -> int:
    """How many X and Y it takes to pass the cache."""
    return max(2, int(np.ceil(CACHE_BYTES / must)))


def compulsory_bytes(layer: Layer, operands: Operands) -> int:
    """X read once, Y written once, as the layout stores them; weights, biases and scales."""
    stored = padded_channels(layer.channels, layer.layout) * np.dtype(DTYPES[layer.dtype]).itemsize
    planes = sum(n * h * w for n, _, h, w in (layer.x_shape, layer.y_shape))
    small = (operands.weight, operands.bias, operands.weight_scale)
    return int(stored * planes + sum(0 if array is None else array.nbytes for array in small))


def packed(layer: Layer, operands: Operands) -> list[NDArray[Any] | None]:
    """The operands as they lie in memory."""
    return [pack(operands.x, layer.layout, 0), operands.weight, operands.bias, operands.weight_scale]


def microseconds(library: Any, layer: Layer, arrays: Sequence[NDArray[Any] | None], tactic: int, sets: int) -> float:
    """Median time of a launch of `tactic` on `packed` arrays. Raises `RuntimeError` with CUDA's error."""
    tensors = host_kernel._Tensors(*(None if a is None else a.ctypes.data for a in arrays), None)
    times = (c_float * WINDOWS)()
    problem = host_kernel.problem_of(layer)
    error = library.mdconv_device_time(byref(problem), byref(tensors), c_int32(tactic), sets, WINDOWS, times)
    if error:
        raise RuntimeError(f"CUDA error {error} for {layer}, tactic {tactic}")
    return float(statistics.median(times))


def torch_microseconds(layer: Layer, sets: int) -> dict[str, float]:
    """The same layer by PyTorch: ``padded`` and ``split``; empty for int8, which it has none of on a GPU."""
    import torch
    from torch.nn.functional import conv2d

    if layer.dtype == "int8":
        return {}
    dtype = {"float16": torch.float16, "float32": torch.float32}[layer.dtype]
    memory = torch.channels_last if layer.layout == "hwc8" else torch.contiguous_format
    images = [torch.randn(layer.x_shape, device="cuda", dtype=dtype).to(memory_format=memory) for _ in range(sets)]
    weights = [
        torch.randn((c, 1, k, k), device="cuda", dtype=dtype).to(memory_format=memory)
        for c, k in zip(layer.channel_splits, layer.kernel_sizes)
    ]
    biases = [torch.randn(c, device="cuda", dtype=dtype) for c in layer.channel_splits]
    wide = torch.cat([torch.nn.functional.pad(w, [(layer.largest - w.shape[-1]) // 2] * 4) for w in weights])
    bias = torch.cat(biases)

    def padded(x: Any) -> Any:
        y = conv2d(x, wide, bias, layer.stride, layer.largest // 2, groups=layer.channels)
        return torch.clamp_(y, 0, 6)

    def split(x: Any) -> Any:
        parts = x.split(layer.channel_splits, 1)
        outputs = [
            conv2d(part, w, b, layer.stride, w.shape[-1] // 2, groups=part.shape[1])
            for part, w, b in zip(parts, weights, biases)
        ]
        return torch.clamp_(torch.cat(outputs, 1), 0, 6)

    torch.backends.cudnn.benchmark = True
    return {name: graph_microseconds(run, images) for name, run in (("padded", padded), ("split", split))}


def _events() -> tuple[Any, Any]:
    import torch

    event: Any = torch.cuda.Event
    return event(enable_timing=True), event(enable_timing=True)


def graph_microseconds(run: Callable[[Any], Any], images: list[Any]) -> float:
    import torch

    with torch.inference_mode():
        for _ in range(3):
            run(images[0])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [run(image) for image in images]
        graph.replay()
        times = []
        for _ in range(WINDOWS):
            start, stop = _events()
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            times.append(1000 * start.elapsed_time(stop) / len(images))
        del kept
    return float(statistics.median(times))


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a device-to-device copy of 1 GiB."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_(256)
    target = torch.empty_like(source)
    times = []
    for _ in range(WINDOWS):
        start, stop = _events()
        start.record()
        target.copy_(source)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1000)
    return float(2 * source.numel() / statistics.median(times))


def rows(library: Any, bandwidth: float, batch: int) -> Iterator[tuple[Any, ...]]:
    for dtype, layout in FORMATS:
        for shape in NETWORK_LAYERS:
            layer = replace(network_layer(dtype, layout, *shape), batch=batch)
            operands = random_operands(layer, np.random.default_rng(0))
            must = compulsory_bytes(layer, operands)
            sets = sets_of(must)
            tactics = range(1, host_kernel.tactic_count(dtype, layout) + 1)
            arrays = packed(layer, operands)
            times = {tactic: microseconds(library, layer, arrays, tactic, sets) for tactic in tactics}
            linear = replace(layer, layout="linear")
            unfused = microseconds(library, linear, packed(linear, operands), UNFUSED, sets)
            yield (
                *(dtype, layout, ", ".join(map(str, shape)), 1e6 * must / bandwidth),
                *(times[host_kernel.default_tactic(layer)], min(times.values())),
                *(min(times, key=times.__getitem__), unfused),
                torch_microseconds(layer, sets),
            )


def launch_once(batch: int) -> None:
    """Each tactic of each layer, in the order in which it is printed."""
    for dtype, layout in FORMATS:
        for shape in NETWORK_LAYERS:
            layer = replace(network_layer(dtype, layout, *shape), batch=batch)
            operands = random_operands(layer, np.random.default_rng(0))
            for tactic in range(1, host_kernel.tactic_count(dtype, layout) + 1):
                print(dtype, layout, *shape, "tactic", tactic, host_kernel.plan(layer, tactic), flush=True)
                host_kernel.run(layer, operands, tactic)


def main() -> None:
    parser = argparse.ArgumentParser(description="The fused kernels' speed on this GPU, beside what else there is.")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images a launch (default: 1)")
    parser.add_argument("--once", action="store_true", help="launch each tactic once, under a profiler")
    options = parser.parse_args()
    batch = options.batch
    os.environ[host_kernel.ON_GPU] = "1"
    if options.once:
        launch_once(batch)
        return
    import torch

    library = ctypes.CDLL(str(device_library()))
    bandwidth = copy_bandwidth()
    cudnn: Any = torch.backends.cudnn
    print(f"{torch.cuda.get_device_name()}; PyTorch {torch.__version__}, cuDNN {cudnn.version()}")
    print(f"a copy of 1 GiB: {bandwidth / 1e9:.0f} GB/s, read and written; batch {batch}\n")
    head = [*("type", "layout", "C, H = W, stride", "copy", "default", "best (tactic)", "of copy")]
    head += ["unfused", "padded", "split"]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    totals: dict[tuple[str, str], list[float]] = {}
    for dtype, layout, shape, copy, default, best, tactic, unfused, peers in rows(library, bandwidth, batch):
        padded, split = (peers.get(name) for name in ("padded", "split"))
        cells = [f"{copy:.1f}", f"{default:.1f}", f"{best:.1f} ({tactic})", f"{copy / best:.2f}"]
        cells += ["-" if time is None else f"{time:.1f} ({time / best:.1f}x)" for time in (unfused, padded, split)]
        print(f"| {' | '.join((dtype, layout, shape, *cells))} |", flush=True)
        added = totals.setdefault((dtype, layout), [0.0] * 6)
        for index, time in enumerate((copy, default, best, unfused, padded, split)):
            added[index] += time or 0.0
    print("\nall layers:")
    for (dtype, layout), (copy, default, best, unfused, padded, split) in totals.items():
        peers = (("copy", copy), ("default", default), ("unfused", unfused), ("padded", padded), ("split", split))
        ratios = ", ".join(f"{name} {time / best:.2f}x" for name, time in peers if time)
        print(f"{dtype} {layout}: best {best:.0f} µs; {ratios}")


if __name__ == "__main__":
    main()
