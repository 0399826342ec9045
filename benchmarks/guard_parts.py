"""Which numbers should a guard's distance look at: the network's maps, its logits, the image, or maps and image?

    python -m benchmarks.guard_parts out/mobilenet_v2-int8-onnxruntime

Fits a distance to each on 128 phantoms of the calibration's seeds, chooses its threshold as a build does, and prints
for fresh phantoms and each kind of foreign image the share that is refused and the area under the ROC curve.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.foreign_images import Gray, no_radiographs, other_modalities, real_radiographs, strange_phantoms
from benchmarks.guard import FIRST_SEED, STRANGE
from build_engine.guard_fit import Features, choose_threshold, fit, left_out_distances
from edge.backends import Backend
from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bundle import load_bundle
from edge.guard_features import feature_groups
from edge.preprocess import Preprocess, resize
from edge.statistics import roc_auc
from mdconv.data.phantom import CALIBRATION_SEEDS, render

FITTED_ON, FRESH = 128, 500
PARTS: Mapping[str, Sequence[str]] = {
    "logits": ("logits",),
    "maps": ("spread", "highest", "lowest", "where"),
    "image": ("contrast", "picture"),
    "logits and image": ("logits", "contrast", "picture"),
    "maps and image": ("spread", "highest", "lowest", "where", "contrast", "picture"),
}

Groups = Mapping[str, NDArray[np.float64]]
"""By name of the group: (N, P) of N images."""


def groups_of(images: Iterable[Gray], backend: Backend, preprocess: Preprocess) -> Groups:
    """Every group of numbers of each image, with and without maps."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for image in images:
        pixels = resize(image, preprocess)
        outputs = backend.infer(pixels[None, None])
        assert outputs.cam is not None
        both = {
            **feature_groups(pixels, outputs.logits[0], outputs.cam[0]),
            **feature_groups(pixels, outputs.logits[0], None),
        }
        for name, group in both.items():
            found.setdefault(name, []).append(group)
    return {name: np.stack(values) for name, values in found.items()}


def joined(groups: Groups, names: Sequence[str]) -> Features:
    return Features(np.concatenate([groups[name] for name in names], axis=1), tuple(groups[n].shape[1] for n in names))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    bundle = load_bundle(parser.parse_args(arguments).bundle)
    preprocess, size = Preprocess.from_manifest(bundle.manifest["preprocess"]), bundle.input_size
    with OnnxRuntimeBackend(bundle) as backend:

        def look(images: Iterable[Gray]) -> Groups:
            return groups_of(images, backend, preprocess)

        fitted_on = look(render(seed, size).image for seed in CALIBRATION_SEEDS[:FITTED_ON])
        fresh = [render(FIRST_SEED + number, size).image for number in range(FRESH)]
        own = look(fresh)
        kinds = [*strange_phantoms(fresh[:STRANGE]), *real_radiographs(), *other_modalities(), *no_radiographs(size)]
        foreign = {kind: look(images) for kind, images in kinds}
    print("| images | " + " | ".join(PARTS) + " |\n" + "|---" * (len(PARTS) + 1) + "|")
    columns = [judged(joined(fitted_on, names), own, foreign, names) for names in PARTS.values()]
    for kind in columns[0]:
        print(f"| {kind} | " + " | ".join(column[kind] for column in columns) + " |")
    return 0


def judged(fitted_on: Features, own: Groups, foreign: Mapping[str, Groups], names: Sequence[str]) -> dict[str, str]:
    """A column of the table: what one distance refuses, by kind."""
    distance, _ = fit(fitted_on)
    threshold = choose_threshold(left_out_distances(fitted_on))

    def distances(groups: Groups) -> NDArray[np.float64]:
        return np.array([distance(vector) for vector in joined(groups, names).values])

    near = distances(own)
    column = {"fresh phantoms": f"{(near > threshold).mean():.1%}"}
    for kind, groups in foreign.items():
        far = distances(groups)
        area = roc_auc(np.repeat([False, True], [len(near), len(far)]), np.concatenate([near, far]))
        column[kind] = f"{(far > threshold).mean():.0%} ({area:.3f})"
    return column


if __name__ == "__main__":
    sys.exit(main())
