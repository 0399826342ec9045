"""A bundle's passport: what its manifest says, in words for the engineer who has to answer for it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from edge.bundle import Bundle
from edge.errors import BundleError
from edge.gate import CRITERIA
from edge.signature import Signature

WIDTH = 118
_INDENT = 16

PRECISIONS: Mapping[str, str] = {
    "fp32": "fp32: 32-bit floating point, the precision of the training",
    "fp16": "fp16: 16-bit floating point",
    "int8": "int8: 8-bit integers; every range was measured on the calibration images",
}
LOWERINGS: Mapping[str, str] = {
    "padded": "padded: an MD-Conv layer runs as one stock convolution",
    "split": "split: an MD-Conv layer runs as one stock convolution a kernel size",
    "plugin": "plugin: an MD-Conv layer runs as one fused kernel of the MD-Conv plugin",
}
NOT_RECORDED = "not recorded"


def passport(bundle: Bundle) -> dict[str, Any]:
    """The manifest's entries under their own names, the manifest's SHA-256, and the state of its signature."""
    facts = {key: value for key, value in bundle.manifest.items() if key != "format"}
    state, key = bundle.signature
    return {**facts, "sha256": bundle.sha256, "signature": {"state": state, "key": key}}


def render(facts: Mapping[str, Any]) -> str:
    """What `passport` returns, in words; a value cannot break out of its line. Raises what `sections` raises."""
    lines = []
    for heading, texts in sections(facts):
        for text in texts:
            start = f"{heading:<{_INDENT}}"
            lines += textwrap.wrap(
                text, WIDTH, initial_indent=start, subsequent_indent=" " * _INDENT, break_on_hyphens=False
            ) or [start.rstrip()]
            heading = ""
    return "\n".join(lines)


def sections(facts: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What `passport` returns, in words: headings, each with its lines; every character of them is printable.

    Raises `BundleError` for entries of another form than `make.py` writes.
    """
    found: list[tuple[str, list[str]]] = []
    try:
        for heading, text in _entries(facts):
            if heading:
                found.append((heading, []))
            found[-1][1].append("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"the manifest of {facts['name']} has an entry that this version cannot put into words ({error!r}): read "
            "it with --json"
        ) from None
    return found


def _entries(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Heading and text of each entry; an entry of several lines has its heading on the first."""
    model = facts["model"]
    yield "Bundle", f"{facts['name']}, made {facts['created']}"
    yield "Notice", str(model.get("notice") or "none")
    yield "Network", _network(model)
    yield from _training(model)
    yield from _headed("Findings", _findings(model))
    yield "Precision", PRECISIONS[facts["precision"]]
    yield from _mixed_precision(facts.get("mixed_precision"))
    yield "Lowering", _lowering(facts["lowering"])
    yield from _headed("Calibration", _calibration(facts["calibration"]))
    yield from _headed("Gate", _gate(facts["gate"]))
    yield from _headed("Guard", _guard(facts.get("guard")))
    yield "Self-test", _golden(facts.get("golden") or {})
    yield "Platform", _platform(facts["backend"], facts["platform"])
    yield from _headed("Files", _files(facts["files"]))
    yield "Manifest", f"SHA-256 {facts['sha256']}: the bundle's identity in every result and report"
    yield "Signature", str(Signature(**facts["signature"]))


def _headed(heading: str, lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        yield heading, line
        heading = ""


def _network(model: Mapping[str, Any]) -> str:
    config = model.get("config") or {}
    text = str(model["network"])
    if stages := config.get("md_stages"):
        kernels = ", ".join(f"{size}x{size}" for size in config.get("kernel_sizes") or ())
        text += f" with MD-Conv in {', '.join(map(str, stages))}" + (f" (kernels {kernels})" if kernels else "")
    size = model["input_size"]
    maps = "class activation maps" if model.get("cam", True) else "no class activation maps"
    return f"{text}; one gray image of {size} x {size} pixels, {model['batch']} at once at most; {maps}"


def _training(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    card = model.get("card") or {}
    data = card.get("data") or NOT_RECORDED
    if isinstance(data, Mapping):
        data = "; ".join(_data_set(key, value) for key, value in data.items())
    yield "Trained on", str(data)
    for key, images in (("mean_auc", "images held out from training"), ("validation_mean_auc", "validation images")):
        if key in card:
            yield "", f"mean area under the ROC curve {card[key]:.4f} on {images} (float32)"
    yield "Weights", f"SHA-256 {model.get('weights_sha256') or NOT_RECORDED}"


def _data_set(key: str, value: Any) -> str:
    """An entry of a training card's ``data``, of which `mdconv.card` has two forms."""
    match value:
        case [int(first), int(count)]:
            return f"{key.removesuffix('_seeds')}: {count} images, seeds from {first}"
        case [str(name), int(count)]:
            return f"{key}: {count} images of {name}"
    return str(value) if key == "kind" else f"{key} {value}"


def _findings(model: Mapping[str, Any]) -> Iterator[str]:
    yield f"{len(model['labels'])}; each counts as positive from the probability beside it"
    for label in model["labels"]:
        yield f"{label} {model['thresholds'][label]:.4f}"


def _mixed_precision(plan: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if plan and plan["left"]:
        yield "", f"{len(plan['left'])} of {plan['of']} layers are float16: {', '.join(plan['left'])}"
        yield "", str(plan["reason"])


def _lowering(lowering: Mapping[str, Any]) -> str:
    kind = str(lowering.get("kind", NOT_RECORDED))
    text = LOWERINGS.get(kind, kind)
    return f"{text} ({lowering['reason']})" if lowering.get("reason") else text


def _calibration(calibration: Mapping[str, Any]) -> Iterator[str]:
    if not calibration.get("method"):
        yield "none: nothing is rounded to a measured range"
        return
    yield f"method {calibration['method']} on {calibration['count']} images: {calibration.get('images', NOT_RECORDED)}"
    selection = calibration.get("selection") or {}
    if selection:
        yield f"{selection['rule']} out of {selection['offered']} images, seed {selection['seed']}"
    if findings := selection.get("findings"):
        yield f"images that have each finding: {_facts(findings)}"
    yield f"digest of the images {calibration['digest']}"
    for repair in ("equalization", "bias_correction"):
        if repair in calibration:
            done = calibration[repair]
            yield f"{repair.replace('_', ' ')}: {done['summary'] if done else 'switched off'}"


def _gate(gate: Mapping[str, Any]) -> Iterator[str]:
    yield f"{gate['verdict']}: {gate.get('reason', NOT_RECORDED)}" if "verdict" in gate else NOT_RECORDED
    if limits := gate.get("limits"):
        yield f"allowed against float32: {_facts({CRITERIA.get(name, name): value for name, value in limits.items()})}"
    if failed := gate.get("failed"):
        yield f"beyond its limit: {', '.join(CRITERIA.get(name, name) for name in failed)}"
    figures = gate.get("figures") or {}
    if figures.get("mean_difference") is not None:
        yield (
            f"probabilities off float32: {figures['mean_difference']:.4f} on average, {figures['max_difference']:.4f} "
            f"at most, on {gate.get('images')} images ({gate.get('data', NOT_RECORDED)}), run by {gate.get('ran_on')}"
        )
    if figures.get("changed_decisions") is not None:
        yield f"{figures['changed_decisions']:.2%} of the decisions differ from float32's"
    for label, figure in (figures.get("findings") or {}).items():
        yield f"{label}: {_finding(figure)}; {figure['positives']} images have it"
    if gate.get("note"):
        yield str(gate["note"])


def _finding(figure: Mapping[str, Any]) -> str:
    """The gate's figures for one finding; the areas stand under ``auc``, in older bundles beside ``positives``."""
    areas = figure.get("auc", figure)
    if areas["reference"] is None:
        return "no area under its ROC curve"
    text = f"area under its ROC curve {areas['reference']:.4f} in float32, {areas['candidate']:.4f} in this bundle"
    if areas.get("interval"):
        low, high = areas["interval"]
        text += f" (a drop of {areas['drop']:.4f}, interval {low:.4f} to {high:.4f})"
    for rate in ("sensitivity", "specificity"):
        both = figure.get(rate) or {}
        if None not in (before := both.get("reference"), after := both.get("candidate")):
            text += f"; {rate} {before:.3f} and {after:.3f}"
    return text


def _guard(guard: Mapping[str, Any] | None) -> Iterator[str]:
    """What is refused by measurement; what is refused by its tags is the same for every bundle."""
    if guard is None:
        yield "no distance is measured: the bundle was built without"
        return
    if guard["threshold"] is None:
        yield f"refuses nothing by its distance: {guard['reason']}"
    else:
        yield f"refuses an image whose {guard['score']} is above {guard['threshold']:.2f}: {guard['reason']}"
    if fitted := guard.get("fitted_on"):
        yield f"fitted on {fitted['images']} images ({fitted['origin']}), digest {fitted['digest']}"
    if rate := guard.get("false_refusals"):
        yield (
            f"of {rate['of']} such images left out of the fit {rate['refused']} would be refused, so at most "
            f"{rate['at_most']:.1%} of all (95 % confidence)"
        )
    yield f"limits of a gray image: {_facts(guard['image'])}"


def _golden(golden: Mapping[str, Any]) -> str:
    limits = [f"{key.split('_')[0]} {value:.3g}" for key, value in golden.items() if isinstance(value, float)]
    return f"probabilities may lie off float32 by: {', '.join(limits)}" if limits else NOT_RECORDED


def _platform(backend: str, platform: Mapping[str, Any]) -> str:
    """The short facts: an engine's layers and the builder's warnings are for ``--json``."""
    shown = {key: value for key, value in platform.items() if isinstance(value, (str, int)) and value != ""}
    return f"built for {backend}" + (f": {_facts(shown)}" if shown else "")


def _files(files: Mapping[str, Any]) -> Iterator[str]:
    yield f"{len(files)}, each verified against the size (bytes) and the SHA-256 beside it"
    for name, facts in files.items():
        yield f"{name} {facts['size']} {facts['sha256']}"


def _facts(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{key} {value}" for key, value in values.items())
