"""Where a network sees a finding, and how well its maps say where: `python -m mdconv.explain`.

    python -m mdconv.explain --phantoms 5 --output DIR                  a picture of each: map, boxes, caption
    python -m mdconv.explain FILE... --finding Effusion --output DIR
    python -m mdconv.explain --chestxray14 DIR --score                  the localisation score against the boxes

`--model` is a checkpoint, an ONNX file or a bundle. The maps are class activation maps, or with `--method grad-cam`
Grad-CAM of a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import EdgeError, InputRefusedError, MachineError, UsageError, describe_os_error
from edge.progress import ProgressLine
from mdconv.data.cases import Box, Cases
from mdconv.data.chestxray14 import load
from mdconv.data.labelled_files import LabelledFiles
from mdconv.data.phantom import TEST_SEEDS
from mdconv.data.phantom.sets import phantom_cases
from mdconv.evidence import METHODS, Explainer, open_explainer
from mdconv.explain_picture import draw
from mdconv.localisation import SHARE, Located, locate, own_box
from mdconv.localisation_table import as_text, summarise, write_table
from mdconv.weights import DEMO_CHECKPOINT


class Explaining:
    """Goes through a set's images with one explainer; counts those that cannot be read, and says why.

    `finding` is the one to explain, the likeliest (or, for the score, every one with a box) if None. Raises
    `UsageError` if the model does not report it.
    """

    def __init__(self, explainer: Explainer, cases: Cases, finding: str | None, share: float) -> None:
        if finding is not None and finding not in explainer.labels:
            raise UsageError(f"--finding {finding}: the model reports {', '.join(explainer.labels)}")
        self.refused = 0
        self.notice = "; ".join(dict.fromkeys(filter(None, (explainer.notice, cases.notice))))
        self._explainer, self._cases, self._finding, self._share = explainer, cases, finding, share

    def draw(self, directory: Path) -> Iterator[dict[str, Any]]:
        """Write a picture of each image into `directory`; yields what it shows. Raises `MachineError`."""
        size = self._explainer.input_size
        for index, pixels in self._read():
            evidence = self._explainer.explain(pixels, None if self._finding is None else [self._finding])
            ((finding, cam),) = evidence.maps.items()
            boxes = [box for box in self._cases.boxes(index, size) if box.finding == finding]
            own = own_box(cam, size, finding, self._share)
            caption = [
                f"{finding} {evidence.probabilities[finding]:.2f}",
                _legend(boxes, own, self._share),
                self.notice,
            ]
            path = directory / f"{index:05d}-{Path(self._cases.ids[index]).stem}.png"
            _write(path, draw(pixels, cam, boxes=boxes, own=own, caption=caption))
            yield {
                "id": self._cases.ids[index],
                "finding": finding,
                "probability": evidence.probabilities[finding],
                "picture": str(path),
                "own_box": own and own[1:],
                "true_boxes": [box[1:] for box in boxes],
                "notice": self.notice,
            }

    def locate(self, progress: ProgressLine) -> list[Located]:
        """Each finding with a box, or the one asked for, against its map. Raises `UsageError` if there is none."""
        size, found = self._explainer.input_size, list[Located]()
        wanted = set(self._explainer.labels) if self._finding is None else {self._finding}
        for index, pixels in self._read():
            progress("images", index, len(self._cases))
            boxes = [box for box in self._cases.boxes(index, size) if box.finding in wanted]
            names = sorted({box.finding for box in boxes})
            if not names:
                continue
            evidence = self._explainer.explain(pixels, names)
            for name in names:
                mine = [box for box in boxes if box.finding == name]
                one = locate(evidence.maps[name], mine, size, self._share)
                found.append(one._replace(image=self._cases.ids[index], probability=evidence.probabilities[name]))
        if not found:
            raise UsageError(
                f"no image of {self._cases.name} has a box of {', '.join(sorted(wanted))}: use more images"
            )
        return found

    def _read(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for index in range(len(self._cases)):
            try:
                pixels = self._cases.read(index, self._explainer.input_size)
            except InputRefusedError as error:
                self.refused += 1
                print(f"refused: {error}", file=sys.stderr)
                continue
            yield index, pixels


def _legend(boxes: Sequence[Box], own: Box | None, share: float) -> str:
    true = "green: true box" if boxes else "no true box of it"
    return f"{true}; " + (f"white: around {share:g} of the map's maximum" if own else "no evidence for it")


def _write(path: Path, picture: NDArray[np.uint8]) -> None:
    _, png = cv2.imencode(".png", picture)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png.tobytes())
    except OSError as error:
        raise MachineError(f"cannot write a picture: {describe_os_error(error)}") from None


def _cases(options: argparse.Namespace, size: int) -> Cases:
    """The images that were asked for; of ChestX-ray14 those with boxes."""
    if options.phantoms is not None:
        if not 1 <= options.phantoms <= len(TEST_SEEDS):
            raise UsageError(f"--phantoms {options.phantoms}: expected 1 to {len(TEST_SEEDS)}")
        return phantom_cases(TEST_SEEDS[: options.phantoms], size)
    if options.chestxray14 is not None:
        cases = load(options.chestxray14, "test", skip_missing=options.skip_missing)
        boxed = [index for index in range(len(cases)) if cases.boxes(index, size)]
        if not boxed:
            raise UsageError(f"{options.chestxray14} has no boxes of its test images: add BBox_List_2017.csv")
        return cases.select(boxed)
    return _files(options.files)


def _files(paths: Sequence[Path]) -> LabelledFiles:
    """These files, of which nothing is known: no labels, no boxes."""
    names = tuple(map(str, paths))
    return LabelledFiles(
        name=f"{len(names)} files",
        labels=(),
        exclusive=False,
        truth=np.zeros((len(names), 0), bool),
        ids=names,
        patients=names,
        notice="",
        files=names,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options, checked against each other. Raises `UsageError`."""
    parser = argparse.ArgumentParser(
        prog="python -m mdconv.explain", description="Where a network sees a finding; how well its maps say where."
    )
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="images: DICOM, PNG or JPEG")
    parser.add_argument("--phantoms", type=int, metavar="N", help="the first N held-out phantoms")
    parser.add_argument("--chestxray14", type=Path, metavar="DIR", help="its images that have boxes")
    parser.add_argument("--skip-missing", action="store_true", help="leave out images that --chestxray14 lacks")
    parser.add_argument(
        "--model", type=Path, default=DEMO_CHECKPOINT, help="checkpoint, ONNX file or bundle (default: the demo's)"
    )
    parser.add_argument("--method", choices=METHODS, default="cam", help="grad-cam needs a checkpoint (default: cam)")
    parser.add_argument("--layer", metavar="NAME", help="the layer of grad-cam (default: the last feature map)")
    parser.add_argument("--finding", metavar="NAME", help="default: the likeliest; for the score every one with a box")
    parser.add_argument(
        "--share",
        type=float,
        default=SHARE,
        metavar="T",
        help=f"the map's own box is around T times its maximum (default: {SHARE:g})",
    )
    parser.add_argument("--score", action="store_true", help="the localisation score in place of pictures")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the pictures or the score")
    parser.add_argument("--json", action="store_true", help="print one JSON object an image, or the score as one")
    options = parser.parse_args(arguments)
    given = [name for name in ("files", "phantoms", "chestxray14") if getattr(options, name) not in (None, [])]
    if len(given) != 1:
        raise UsageError(
            f"{' and '.join(given) or 'no images'} given: expected one of FILE..., --phantoms, --chestxray14"
        )
    if options.skip_missing and options.chestxray14 is None:
        raise UsageError("--skip-missing is about the images of --chestxray14: give --chestxray14 DIR")
    if options.score and options.files:
        raise UsageError("--score needs boxes, which files do not have: use --phantoms or --chestxray14")
    if not options.score and options.output is None:
        raise UsageError("no place for the pictures: add --output DIR, or --score")
    if not 0 < options.share <= 1:
        raise UsageError(f"--share {options.share:g}: expected more than 0 and at most 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    try:
        options = parse(arguments)
        with open_explainer(options.model, options.method, options.layer) as explainer:
            cases = _cases(options, explainer.input_size)
            explaining = Explaining(explainer, cases, options.finding, options.share)
            if options.score:
                _score(explaining, explainer, cases, options)
            else:
                for entry in explaining.draw(options.output):
                    text = f"{entry['id']}: {entry['finding']} {entry['probability']:.2f}  [{entry['picture']}]"
                    print(json.dumps(entry) if options.json else text, flush=True)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 1 if explaining.refused else 0


def _score(explaining: Explaining, explainer: Explainer, cases: Cases, options: argparse.Namespace) -> None:
    with ProgressLine("score") as progress:
        located = explaining.locate(progress)
    report = {
        "model": explainer.identity,
        "images": len(cases) - explaining.refused,
        "of": cases.name,
        "notice": explaining.notice,
        **summarise(located, explainer.input_size, options.share),
    }
    if options.output is not None:
        write_table(options.output, report, located)
    identity = explainer.identity
    said = (
        f"{report['images']} images of {cases.name}; {identity['file']}, {identity['precision']}, {identity['method']}"
    )
    print(json.dumps(report) if options.json else f"{said} ({explaining.notice})\n{as_text(report)}")


if __name__ == "__main__":
    sys.exit(main())
