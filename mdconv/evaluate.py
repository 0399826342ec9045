"""How well networks separate each finding: `python -m mdconv.evaluate`.

    python -m mdconv.evaluate --phantoms 1000                      the demo checkpoint on held-out phantoms
    python -m mdconv.evaluate --model A --model B --chestxray14 DIR         two networks on the same images
    python -m mdconv.evaluate --model BUNDLE --images DIR [--labels FILE]   a folder in the layout of ChestX-ray14

A model is a checkpoint, an ONNX file or a bundle; the same code measures each. Areas under the ROC curve (Table 6 of
the paper) have 95 % intervals from a bootstrap over patients; with several models the first is what the others are
compared with. Sensitivity, specificity and accuracy (Table 8) are those at the model's thresholds.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.errors import EdgeError, UsageError, describe_os_error
from edge.progress import ProgressLine
from mdconv.data.cases import Cases
from mdconv.data.phantom import TEST_SEEDS
from mdconv.evaluation import Judged, describe, difference, judge
from mdconv.predictors import open_predictor
from mdconv.weights import DEMO_CHECKPOINT


def open_cases(options: argparse.Namespace) -> Cases:
    """The images that the options name. Raises `UsageError` for options that do not go together, and as they do."""
    if options.labels and options.images is None:
        raise UsageError("--labels is the table of --images: give --images DIR")
    if options.task and options.chestxray2017 is None:
        raise UsageError("--task is ChestX-ray2017's: give --chestxray2017 DIR")
    if options.skip_missing and options.chestxray14 is None:
        raise UsageError("--skip-missing is about the images of --chestxray14: give --chestxray14 DIR")
    if options.split and not (options.chestxray14 or options.chestxray2017):
        raise UsageError("--split is that of --chestxray14 or --chestxray2017: give one of them")
    if options.phantoms is not None:
        from mdconv.data.phantom.on_demand import phantoms_on_demand

        if not 1 <= options.phantoms <= len(TEST_SEEDS):
            raise UsageError(f"--phantoms {options.phantoms}: expected 1 to {len(TEST_SEEDS)}")
        return phantoms_on_demand(TEST_SEEDS[: options.phantoms])
    if options.images is not None:
        from mdconv.data.labelled_folder import labelled_folder

        return labelled_folder(options.images, options.labels or options.images / "labels.csv")
    if options.chestxray14 is not None:
        from mdconv.data import chestxray14

        return chestxray14.load(options.chestxray14, options.split or "test", skip_missing=options.skip_missing)
    from mdconv.data import chestxray2017

    return chestxray2017.load(options.chestxray2017, options.split or "test", options.task or "pneumonia")


def as_json(models: Sequence[Judged], cases: Cases) -> dict[str, Any]:
    """All figures of all models, and the differences to the first."""
    notices = dict.fromkeys(notice for notice in (cases.notice, *(model.notice for model in models)) if notice)
    return {
        "data": cases.name,
        "images": len(cases),
        "patients": len(set(cases.patients)),
        "positive": {label: int(cases.truth[:, i].sum()) for i, label in enumerate(cases.labels)},
        "notice": "; ".join(notices),
        "models": [describe(model, cases) for model in models],
        "differences": [difference(model, models[0]) for model in models[1:]],
    }


def as_text(result: dict[str, Any]) -> str:
    """The figures as a table: one row a finding, one column a model."""
    models = result["models"]
    lines = [f"{result['images']} images of {result['patients']} patients, {result['data']}", result["notice"]]
    for number, model in enumerate(models, 1):
        lines.append(
            f"model {number}: {model['file']} ({model['kind']}, sha256 {model['sha256'][:12]}, {model['precision']}, "
            f"{model['input_size']} px)"
        )
    lines.append(
        f"{'AUC (95 % interval)':20} {'positive':>8}" + "".join(f"  {f'model {n + 1}':24}" for n in range(len(models)))
    )
    for label in models[0]["auc"]:
        cells = [_with_interval(model["auc"][label], model["auc_interval"][label]) for model in models]
        lines.append(f"{label:20} {result['positive'][label]:8d}" + "".join(f"  {cell:24}" for cell in cells))
    cells = [_with_interval(model["mean_auc"], model["mean_auc_interval"]) for model in models]
    lines.append(f"{'mean':29}" + "".join(f"  {cell:24}" for cell in cells))
    for number, found in enumerate(result["differences"], 2):
        low, high = found["interval"]
        value = found["mean_auc_difference"]
        lines.append(f"mean AUC of model {number} less that of model 1: {value:+.4f} ({low:+.4f} to {high:+.4f})")
    for number, model in enumerate(models, 1):
        lines += _operating_lines(number, model)
    return "\n".join(line.rstrip() for line in lines if line)


def _operating_lines(number: int, model: dict[str, Any]) -> list[str]:
    lines = [f"model {number}, a label from its threshold on: sensitivity, specificity, accuracy"]
    lines += [
        f"{label:20} {point['threshold']:8.3f}  {_rates(point)}" for label, point in model["operating_points"].items()
    ]
    if "likeliest" in model:
        lines.append(f"model {number}, the likeliest label: sensitivity, specificity, accuracy")
        lines += [f"{label:29}  {_rates(point)}" for label, point in model["likeliest"].items()]
    return lines


def _rates(point: dict[str, float | None]) -> str:
    shares = [point[key] for key in ("sensitivity", "specificity", "accuracy")]
    return "  ".join("-    " if share is None else f"{share:.3f}" for share in shares)


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.4f} ({interval[0]:.4f} to {interval[1]:.4f})"


def write_output(directory: Path, models: Sequence[Judged], cases: Cases, result: dict[str, Any]) -> None:
    """``evaluation.json`` and, for each model, its probabilities by image (CSV) and ROC curves (PNG, SVG)."""
    from mdconv.roc_plot import write_roc_plot

    (directory / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    for number, model in enumerate(models, 1):
        stem = f"model-{number}" if len(models) > 1 else "model"
        with (directory / f"{stem}-predictions.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["image", *(f"true {label}" for label in cases.labels), *cases.labels])
            for name, truth, row in zip(cases.ids, cases.truth.astype(int), model.probabilities):
                table.writerow([name, *truth, *(f"{value:.8f}" for value in row)])
        title = f"{model.identity['file']} on {cases.name}"
        write_roc_plot(directory / f"{stem}-roc", cases.labels, cases.truth, model.logits, title, result["notice"])


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    options.model = options.model or [DEMO_CHECKPOINT]
    try:
        cases = open_cases(options)
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)  # before hours of work
        models = []
        for path in options.model:
            with open_predictor(path) as predictor, ProgressLine(f"evaluating {path.name}") as progress:
                models.append(judge(predictor, cases, progress))
        result = as_json(models, cases)
        if options.output is not None:
            write_output(options.output, models, cases, result)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"error: cannot write the results: {describe_os_error(error)}", file=sys.stderr)
        return 3
    print(json.dumps(result) if options.json else as_text(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mdconv.evaluate",
        description="Areas under the ROC curve, with intervals, of one model or several.",
    )
    parser.add_argument(
        "--model",
        "--checkpoint",
        type=Path,
        action="append",
        metavar="PATH",
        help="checkpoint, ONNX file or bundle; several are compared with the first (default: the demo checkpoint)",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--phantoms", type=int, metavar="N", help="judge on the first N held-out phantoms")
    source.add_argument("--images", type=Path, metavar="DIR", help="judge on a folder of images")
    source.add_argument("--chestxray14", type=Path, metavar="DIR", help="judge on ChestX-ray14")
    source.add_argument("--chestxray2017", type=Path, metavar="DIR", help="judge on ChestX-ray2017 (Kermany et al.)")
    parser.add_argument("--labels", type=Path, help="CSV of --images (default: labels.csv in it)")
    parser.add_argument("--split", choices=("train", "validation", "test"), help="of a public data set (default: test)")
    parser.add_argument("--skip-missing", action="store_true", help="leave out images that --chestxray14 lacks")
    parser.add_argument("--task", choices=("pneumonia", "kind"), help="of --chestxray2017 (default: pneumonia)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write figures, probabilities and ROC plots there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
