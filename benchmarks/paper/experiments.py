"""What each table and figure compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mdconv.networks import stages

DEPTHWISE = ("mobilenet", "mobilenet_v2", "mobilenet_v3", "shufflenet", "shufflenet_v2")
BASELINES = ("resnet50", "densenet121")


@dataclass(frozen=True)
class Arm:
    """One of the networks that an experiment compares."""

    label: str
    network: str
    md_stages: tuple[str, ...] | Literal["all"] = ()
    kernel_sizes: tuple[int, ...] = (3, 5)
    ratios: tuple[int, ...] = (1, 1)

    @property
    def config(self) -> dict[str, Any]:
        """Options of `mdconv.networks.build`, but for the number of labels."""
        if self.network in BASELINES:
            return {}
        return {
            "md_stages": list(stages(self.network) if self.md_stages == "all" else self.md_stages),
            "kernel_sizes": list(self.kernel_sizes),
            "ratios": list(self.ratios),
        }

    @property
    def slug(self) -> str:
        """The arm's part of a file name: the same for the same network, whatever the table calls it."""
        if not self.md_stages:
            return self.network
        where = "all" if self.md_stages == "all" else "+".join(self.md_stages)
        kernels = "-".join(f"{size}x{ratio}" for size, ratio in zip(self.kernel_sizes, self.ratios))
        return f"{self.network}.{where}.{kernels}"


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper."""

    name: str
    title: str
    arms: tuple[Arm, ...]
    reference: str
    """Label of the arm that the others are compared with."""
    sizes: tuple[int, ...]
    """Input sizes in the paper's setting, pixels."""
    data: str = "chestxray14"
    """"chestxray14", or a task of ChestX-ray2017: "pneumonia" or "kind"."""
    seeds: int = 1
    """Runs an arm in the reduced form; `--seeds` asks for others."""
    by_finding: bool = False
    """Whether the table shows each finding, not their mean alone."""


def _everywhere(network: str, *kernel_sizes: int, ratios: Sequence[int] | None = None) -> dict[str, Any]:
    return {
        "network": network,
        "md_stages": "all",
        "kernel_sizes": kernel_sizes,
        "ratios": tuple(ratios or [1] * len(kernel_sizes)),
    }


def _kernels() -> tuple[Arm, ...]:
    """MobileNet-v2 with one kernel size, or MD-Conv, in all its depthwise layers."""
    plain = [Arm("3x3", "mobilenet_v2")]
    plain += [Arm(f"{size}x{size}", **_everywhere("mobilenet_v2", size)) for size in (5, 7)]
    return (*plain, Arm("MD-Conv 3x3, 5x5", **_everywhere("mobilenet_v2", 3, 5)))


def _ratios() -> tuple[Arm, ...]:
    arms = [Arm("1:0", "mobilenet_v2")]
    for ratios in ((3, 1), (1, 1), (1, 3)):
        arms.append(Arm(f"{ratios[0]}:{ratios[1]}", **_everywhere("mobilenet_v2", 3, 5, ratios=ratios)))
    return (*arms, Arm("0:1", **_everywhere("mobilenet_v2", 5)))


def _with_and_without(networks: Sequence[str]) -> tuple[Arm, ...]:
    arms = []
    for network in networks:
        arms += [Arm(network, network), Arm(f"{network} + MD-Conv", **_everywhere(network, 3, 5))]
    return tuple(arms)


def _placements() -> tuple[Arm, ...]:
    arms = [Arm("none", "mobilenet_v2")]
    arms += [Arm(stage, "mobilenet_v2", (stage,)) for stage in stages("mobilenet_v2")]
    return (*arms, Arm("all", **_everywhere("mobilenet_v2", 3, 5)))


_OURS = Arm("MobileNet-v2 + MD-Conv", "mobilenet_v2", ("layer5",))
_NETWORKS = _with_and_without(DEPTHWISE)

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment("figure-4", "ratio of 3x3 to 5x5 channels in MD-Conv", _ratios(), "1:0", (448,)),
        Experiment("figure-5", "kernel sizes, by input size", _kernels(), "3x3", (224, 448), seeds=3),
        Experiment("table-2", "kernel sizes in MobileNet-v2", _kernels(), "3x3", (224,), seeds=3),
        Experiment("table-3", "five networks", _NETWORKS, "mobilenet_v2", (448,)),
        Experiment("table-4", "where MD-Conv stands in MobileNet-v2", _placements(), "none", (448,)),
        Experiment("table-5", "with and without MD-Conv", _with_and_without(DEPTHWISE[1:3]), "mobilenet_v2", (448,)),
        Experiment("table-6", "AUC by finding", (_OURS,), _OURS.label, (448,), by_finding=True),
        Experiment(
            "table-7",
            "against large networks",
            (_OURS, Arm("ResNet-50", "resnet50"), Arm("DenseNet-121", "densenet121")),
            _OURS.label,
            (448,),
        ),
        Experiment("table-8-pneumonia", "normal or pneumonia", (_OURS,), _OURS.label, (448,), data="pneumonia"),
        Experiment("table-8-kind", "bacterial or viral pneumonia", (_OURS,), _OURS.label, (448,), data="kind"),
    )
}
