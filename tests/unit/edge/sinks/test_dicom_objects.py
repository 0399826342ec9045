"""The Structured Report and the Secondary Capture, judged by dciodvfy and read back by highdicom and pydicom."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom.sr
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from edge.bundle import Bundle, load_bundle
from edge.sinks import SinkRefusedError
from edge.sinks.dicom_capture import map_over_image
from edge.sinks.dicom_sr import FINDING_CODES, findings_report
from edge.sinks.dicom_study import derived_uid, read_study
from tests.system.dicom_peers import needs, run, write_radiograph
from tests.system.dicom_results import delivery_of
from tests.unit.edge.dicom_writer import REAL, radiograph, to_bytes

UIDS = {"StudyInstanceUID": "1.2.3.10", "SeriesInstanceUID": "1.2.3.20"}


def both(bundle: Bundle, content: bytes) -> tuple[Dataset, Dataset]:
    """Report and capture of one image, each written and read again."""
    delivery = delivery_of(bundle, content)
    study = read_study(content)
    assert delivery.picture is not None
    report = findings_report(delivery.result, bundle, study)
    capture = map_over_image(delivery.result, bundle, study, content, delivery.picture)
    assert capture is not None
    return through_file(report), through_file(capture)


def through_file(dataset: Dataset) -> Dataset:
    return pydicom.dcmread(io.BytesIO(encoded(dataset)))


def encoded(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def real_chest() -> bytes:
    return (REAL / "RG1_UNCR.dcm").read_bytes()


def complete(tmp_path: Path) -> bytes:
    return write_radiograph(tmp_path / "complete.dcm").read_bytes()


def minimal() -> bytes:
    """No patient and no study but the UIDs, as anonymization leaves it."""
    pixels = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)
    return to_bytes(radiograph(pixels, bits=12, PatientName=None, PatientID=None, **UIDS))


def quirky() -> bytes:
    """Values that occur, and that the standard does not allow."""
    pixels = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)
    dataset = radiograph(pixels, bits=12, **UIDS)
    with pydicom.config.disable_value_validation():
        dataset.PatientBirthDate, dataset.PatientSex = "1970-13-77", "UNKNOWN"
        dataset.StudyDate, dataset.StudyTime = "yesterday", "25:99"
        dataset.AccessionNumber = "0123456789 0123456789"
        dataset.PatientOrientation = ["SIDEWAYS+", "?"]
        dataset.StudyDescription = "x" * 80
        return to_bytes(dataset)


def japanese() -> bytes:
    pixels = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)
    dataset = radiograph(pixels, bits=12, PatientName=None, **UIDS)
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    return to_bytes(dataset)


MAKERS: dict[str, Callable[[Path], bytes]] = {
    "real": lambda _: real_chest(),
    "complete": complete,
    "minimal": lambda _: minimal(),
    "quirky": lambda _: quirky(),
    "japanese": lambda _: japanese(),
}


@needs("dciodvfy")
@pytest.mark.parametrize("kind", MAKERS)
def test_dciodvfy_finds_no_error(tiny_bundle: Bundle, tmp_path: Path, kind: str) -> None:
    for number, dataset in enumerate(both(tiny_bundle, MAKERS[kind](tmp_path))):
        path = tmp_path / f"{number}.dcm"
        dataset.save_as(path)
        for style in ((), ("-new",)):
            said = run("dciodvfy", *style, path)
            assert "Error" not in said.stderr, said.stderr
            assert ("ComprehensiveSR", "SCImage")[number] in said.stderr


@pytest.mark.parametrize("kind", MAKERS)
def test_both_are_filed_in_the_study_of_the_image(tiny_bundle: Bundle, tmp_path: Path, kind: str) -> None:
    content = MAKERS[kind](tmp_path)
    image = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    series = set()
    for made in both(tiny_bundle, content):
        assert made.StudyInstanceUID == image.StudyInstanceUID
        assert str(made.PatientName) == str(image.get("PatientName", ""))
        assert made.PatientID == image.get("PatientID", "")
        assert made.SpecificCharacterSet == "ISO_IR 192"
        series.add(made.SeriesInstanceUID)
    assert len(series | {image.SeriesInstanceUID}) == 3


def test_the_report_says_what_the_result_says(tiny_bundle: Bundle, tmp_path: Path) -> None:
    content = complete(tmp_path)
    result = delivery_of(tiny_bundle, content).result
    report, _ = both(tiny_bundle, content)
    read = highdicom.sr.ComprehensiveSR.from_dataset(report)
    groups = read.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == list(tiny_bundle.labels)
    image = pydicom.dcmread(io.BytesIO(content))
    for group, (label, facts) in zip(groups, result["findings"].items()):
        probability, threshold = (measurement.value for measurement in group.get_measurements())
        assert probability == pytest.approx(facts["probability"], abs=1e-8)
        assert threshold == tiny_bundle.thresholds[label]
        assert {measurement.unit.value for measurement in group.get_measurements()} == {"1"}
        (evaluation,) = group.get_qualitative_evaluations()
        assert evaluation[0].value.meaning == ("Yes" if facts["positive"] else "No")
        (source,) = group.source_images
        assert source.referenced_sop_instance_uid == image.SOPInstanceUID
        if label in FINDING_CODES:
            assert (group.finding_type.value, group.finding_type.scheme_designator) == FINDING_CODES[label][:2]
    text = encoded(report).decode("latin-1")
    for expected in (f"mdconv-edge/{tiny_bundle.name}", f"bundle_sha256={tiny_bundle.sha256}", "gate=not assessed"):
        assert expected in text
    assert "research use only" in text
    assert tiny_bundle.notice in text
    (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
    assert evidence.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID


def test_the_capture_shows_the_map_where_it_is(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Warm colours in the top left corner only; the image keeps its shape; the caption is below."""
    content = complete(tmp_path)
    _, capture = both(tiny_bundle, content)
    pixels = capture.pixel_array.astype(int)
    warmth = pixels[:96, :80, 0] - pixels[:96, :80, 2]
    assert warmth[:20, :16].mean() > 40
    assert np.abs(warmth[48:, :]).max() == 0
    assert pixels.shape[0] > 96 + 40
    assert pixels[96:].max() > 200
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.826.0.1.3680043.8.498.1"
    assert list(capture.PatientOrientation) == ["L", "F"]


def test_a_large_image_keeps_its_proportions(tiny_bundle: Bundle) -> None:
    _, capture = both(tiny_bundle, real_chest())
    assert capture.Columns == round(1841 * 1024 / 1955)


def test_a_second_making_is_the_same_instance(tiny_bundle: Bundle, tmp_path: Path) -> None:
    content = complete(tmp_path)
    delivery = delivery_of(tiny_bundle, content)
    first, second = (findings_report(delivery.result, tiny_bundle, read_study(content)) for _ in range(2))
    assert encoded(first) == encoded(second)
    assert first.SOPInstanceUID == derived_uid(delivery.result["id"], "report")
    other = {**delivery.result, "id": "f" * 32}
    assert findings_report(other, tiny_bundle, read_study(content)).SOPInstanceUID != first.SOPInstanceUID


def test_another_bundles_result_is_not_read_by_this_ones_thresholds(
    tiny_bundle: Bundle, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    content = complete(tmp_path)
    result = {**delivery_of(tiny_bundle, content).result, "bundle": "0" * 64, "gate": "fail"}
    served = load_bundle(make_bundle("served"))
    report = through_file(findings_report(result, served, read_study(content)))
    read = highdicom.sr.ComprehensiveSR.from_dataset(report)
    assert len(read.content.get_image_measurement_groups()[0].get_measurements()) == 1
    text = encoded(report).decode("latin-1")
    assert "a bundle that FAILED ITS ACCURACY GATE and is no longer served" in text
    assert "mdconv-edge/" not in text


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_an_image_in_no_study_is_refused(missing: str) -> None:
    pixels = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)
    elements: dict[str, Any] = {**UIDS, missing: None}
    if missing != "SOPInstanceUID":
        del elements[missing]
    with pytest.raises(SinkRefusedError, match=f"no valid {missing}"):
        read_study(to_bytes(radiograph(pixels, bits=12, **elements)))


def test_a_malformed_patient_id_is_not_guessed() -> None:
    pixels = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)
    with pydicom.config.disable_value_validation():
        content = to_bytes(radiograph(pixels, bits=12, PatientID="7" * 80, **UIDS))
    with pytest.raises(SinkRefusedError, match="PatientID is malformed"):
        read_study(content)


def test_without_a_map_there_is_no_capture(tiny_bundle: Bundle, tmp_path: Path) -> None:
    content = complete(tmp_path)
    delivery = delivery_of(tiny_bundle, content)
    assert delivery.picture is not None
    blind = dataclasses.replace(delivery.picture, cam=None)
    assert map_over_image(delivery.result, tiny_bundle, read_study(content), content, blind) is None


def test_a_guard_that_was_off_is_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    content = complete(tmp_path)
    result = {**delivery_of(tiny_bundle, content).result, "guard": {"off": True}}
    assert b"The guard was off" in encoded(findings_report(result, tiny_bundle, read_study(content)))
