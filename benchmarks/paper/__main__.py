"""The command: see the package's text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.paper.experiments import EXPERIMENTS, Experiment
from benchmarks.paper.runs import Run, Split, carry_out
from benchmarks.paper.settings import SPLITS, Paper, Reduced, Setting, Step
from benchmarks.paper.tables import as_markdown, by_finding, difference, judge
from edge.errors import EdgeError, UsageError, describe_os_error
from mdconv.cost import cost
from mdconv.networks import build


def main() -> int:
    """Run one experiment; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description="The paper's tables and figures.")
    parser.add_argument("experiment", choices=tuple(EXPERIMENTS))
    parser.add_argument("--output", type=Path, required=True, help="folder of runs and tables; used again, it goes on")
    parser.add_argument("--chestxray14", type=Path, metavar="DIR", help="the real images: the paper's recipe on them")
    parser.add_argument("--chestxray2017", type=Path, metavar="DIR", help="the same for table-8-*")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs a network (default: 1, or 3 for reduced table-2)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default: 0)")
    options = parser.parse_args()
    experiment = EXPERIMENTS[options.experiment]
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        setting = _setting(experiment, options)
        seeds = options.seeds or setting.seeds or experiment.seeds
        if not 1 <= seeds <= 10:
            raise UsageError(f"--seeds {seeds}: expected 1 to 10")
        text = run(experiment, setting, seeds, options.output, options.workers)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it was", file=sys.stderr)
        return 130
    print(text)
    return 0


def _setting(experiment: Experiment, options: argparse.Namespace) -> Setting:
    given = options.chestxray14 if experiment.data == "chestxray14" else options.chestxray2017
    if given is not None:
        return Paper(options.chestxray14, options.chestxray2017)
    if options.chestxray14 or options.chestxray2017:
        raise UsageError(f"{experiment.name} needs the other data set: --chestxray14 or --chestxray2017")
    return Reduced(options.output / "phantoms")


def run(experiment: Experiment, setting: Setting, seeds: int, output: Path, workers: int) -> str:
    """Carry out what is not done yet; returns the tables as Markdown, and writes them and their figures to `output`."""
    split = Split(*(setting.cases(experiment.data, part) for part in SPLITS))
    schedules = setting.schedules(experiment.sizes)
    results, costs = [], {}
    for schedule in schedules:
        sizes = [step.recipe.size for step in schedule]
        runs: dict[str, list[Run]] = {arm.label: [] for arm in experiment.arms}
        for seed in range(seeds):
            for arm in experiment.arms:
                name = f"{arm.slug}.{'-'.join(map(str, sizes))}px.seed{seed}"
                folder = output / "runs" / f"{setting.name}-{experiment.data}" / name
                folder.mkdir(parents=True, exist_ok=True)
                runs[arm.label].append(carry_out(arm, seed, schedule, split, folder, workers))
                print(f"{experiment.name}: {arm.label}, seed {seed} is done", file=sys.stderr, flush=True)
        for size in sizes:
            for arm in experiment.arms:
                found = [done.logits[size] for done in runs[arm.label]]
                results.append(judge(arm.label, size, split.test.truth, found))
                costs[arm.label, size] = cost(build(arm.network, **arm.config), size)
    seconds = sum(done.seconds for row in runs.values() for done in row)
    text = (
        f"{experiment.name}: {experiment.title}. Trained on {_images(schedules, len(split.train))}; tested on "
        f"{len(split.test)} ({split.test.name}; {split.test.notice}); {seconds / 60:.0f} minutes of training.\n\n"
        + as_markdown(results, experiment.reference, costs)
    )
    if experiment.by_finding:
        text += "\n\n" + by_finding(results, split.test.labels)
    figures = [
        {
            "arm": result.arm,
            "size": result.size,
            "auc_by_run": result.areas.tolist(),
            "difference": difference(result, reference)._asdict(),
        }
        for result in results
        for reference in results
        if (reference.arm, reference.size) == (experiment.reference, result.size)
    ]
    (output / f"{experiment.name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (output / f"{experiment.name}.md").write_text(text + "\n")
    return text


def _images(schedules: Iterable[Iterable[Step]], count: int) -> str:
    """How many of the `count` training images each step saw."""
    return " or ".join(
        ", then ".join(f"{step.images or count} images at {step.recipe.size} px" for step in row) for row in schedules
    )


if __name__ == "__main__":
    sys.exit(main())
