from __future__ import annotations

from calibration.quantize import quantize
from calibration.repair_summary import summarise
from tests.unit.calibration.test_quantize import Images, tiny_model


def test_a_manifest_says_which_layers_and_how_much() -> None:
    _, record = quantize(tiny_model(), Images(), equalization=True, bias_correction=True)
    found = summarise(record)
    equalization, corrected = found["equalization"], found["bias_correction"]
    scaled = {facts["writer"]: facts["scaled"] for facts in record["equalization"]["tensors"].values()}
    assert {name: facts["scaled"] for name, facts in equalization["layers"].items()} == scaled
    assert list(scaled) == ["expand", "md", "last"]
    assert equalization["summary"] == (
        f"{sum(scaled.values())} of 40 channels scaled in 3 tensors around depthwise layers, 1 left as it is"
    )
    assert list(equalization["left"]) == ["add"] and equalization["difference"] == 0
    largest = {name: facts["largest"] for name, facts in record["bias_correction"].items()}
    assert corrected["layers"] == largest
    assert corrected["summary"] == f"biases of 5 layers corrected, by {max(largest.values()):.3g} at most"


def test_what_was_switched_off_is_none() -> None:
    _, record = quantize(tiny_model(), Images())
    assert summarise(record) == {"equalization": None, "bias_correction": None}
    assert summarise({}) == {"equalization": None, "bias_correction": None}  # of an older calibration.json
