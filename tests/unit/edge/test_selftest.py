from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from build_engine.bundle_writer import write_manifest
from edge.backends import Outputs, open_backend
from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bundle import GOLDEN, MANIFEST, Bundle, load_bundle, read_manifest
from edge.errors import BundleError
from edge.selftest import describe, golden_inputs, open_tested, self_test


class Shifted(OnnxRuntimeBackend):
    """A backend whose first logit of each image is off by a little, or by NaN."""

    def __init__(self, bundle: Bundle, shift: float) -> None:
        super().__init__(bundle)
        self.shift = shift
        self.closed = False

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        outputs = super().infer(images)
        outputs.logits[:, 0] += np.float32(self.shift)
        return outputs

    def close(self) -> None:
        self.closed = True
        super().close()


def with_golden(directory: Path, **arrays: NDArray[np.generic]) -> Bundle:
    """The bundle with other golden arrays, hashed as they should be."""
    manifest, _ = read_manifest(directory)
    with np.load(directory / GOLDEN) as archive:
        kept = dict(archive)
    np.savez(directory / GOLDEN, **{**kept, **arrays})
    (directory / MANIFEST).unlink()
    write_manifest(
        directory, {key: value for key, value in manifest.items() if key not in ("format", "created", "files")}
    )
    return load_bundle(directory)


def test_the_bundle_gives_its_reference_results(tiny_bundle: Bundle) -> None:
    with open_backend(tiny_bundle, "onnxruntime") as backend:
        figures = self_test(tiny_bundle, backend)
    assert figures["images"] == 5
    assert figures["difference"]["max"] <= 1e-6
    assert "5 golden inputs" in describe(figures)


@pytest.mark.parametrize("shift", [0.05, -0.05, np.nan])
def test_a_backend_that_computes_otherwise_fails_and_is_closed(tiny_bundle: Bundle, shift: float) -> None:
    backend = Shifted(tiny_bundle, shift)
    with pytest.raises(BundleError, match="the self-test failed: backend onnxruntime"):
        open_tested(tiny_bundle, lambda: backend)
    assert backend.closed


def test_a_difference_within_the_tolerance_passes(make_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(make_bundle(golden={"max_probability_difference": 0.02, "mean_probability_difference": 0.01}))
    figures = self_test(bundle, Shifted(bundle, 0.05))  # the sigmoid's slope is 1/4 at most
    assert 0 < figures["difference"]["mean"] < figures["difference"]["max"] <= 0.0125


def test_a_mean_beyond_its_tolerance_fails(make_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(make_bundle(golden={"max_probability_difference": 0.02, "mean_probability_difference": 1e-4}))
    with pytest.raises(BundleError, match=r"\(mean\), allowed are 0.0001"):
        self_test(bundle, Shifted(bundle, 0.05))


@pytest.mark.parametrize(
    "golden",
    [
        {},
        {"max_probability_difference": 0.1},
        {"max_probability_difference": None, "mean_probability_difference": 0.1},
        {"max_probability_difference": "little", "mean_probability_difference": 0.1},
    ],
)
def test_a_bundle_without_a_tolerance_is_refused(make_bundle: Callable[..., Path], golden: dict[str, object]) -> None:
    bundle = load_bundle(make_bundle(golden=golden))
    with open_backend(bundle, "onnxruntime") as backend, pytest.raises(BundleError, match="no tolerance"):
        self_test(bundle, backend)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"images": np.zeros((5, 1, 32, 32), np.uint8)},
            r"images are uint8 \(5, 1, 32, 32\), expected uint8 \(5, 1, 64",
        ),
        ({"images": np.zeros((5, 1, 64, 64), np.float32)}, "images are float32"),
        ({"images": np.zeros((0, 1, 64, 64), np.uint8), "logits": np.zeros((0, 14), np.float32)}, "images are uint8"),
        ({"logits": np.zeros((5, 13), np.float32)}, r"logits are \(5, 13\), expected \(5, 14\)"),
        ({"logits": np.array([[object()]])}, "cannot be read"),
    ],
)
def test_golden_inputs_of_other_shapes_are_refused(
    make_bundle: Callable[..., Path], arrays: dict[str, NDArray[np.generic]], said: str
) -> None:
    bundle = with_golden(make_bundle(), **arrays)
    with pytest.raises(BundleError, match=said):
        golden_inputs(bundle)
