"""A result as a DICOM Structured Report: a measurement report (TID 1500) in a Comprehensive SR."""

from __future__ import annotations

import socket
from typing import Any

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.uid import UID

from edge import __version__
from edge.bundle import Bundle
from edge.gate import FAIL
from edge.sinks.dicom_study import MANUFACTURER, RESEARCH_ONLY, Study, derived_uid, finish, made_at

SERIES_NUMBER = 901
_OWN = "99MDCONV"
"""Our own coding scheme, for what has no code that we are sure of."""

_SCT, _DCM = "SCT", "DCM"
FINDING_CODES: dict[str, tuple[str, str, str]] = {
    "Atelectasis": ("46621007", _SCT, "Atelectasis"),
    "Cardiomegaly": ("8186001", _SCT, "Cardiomegaly"),
    "Effusion": ("60046008", _SCT, "Pleural effusion"),
    "Infiltration": ("112121", _DCM, "Infiltrate"),
    "Mass": ("4147007", _SCT, "Mass"),
    "Nodule": ("27925004", _SCT, "Nodule"),
    "Pneumonia": ("233604007", _SCT, "Pneumonia"),
    "Pneumothorax": ("36118008", _SCT, "Pneumothorax"),
    "Consolidation": ("95436008", _SCT, "Lung consolidation"),
    "Edema": ("19242006", _SCT, "Pulmonary edema"),
    "Emphysema": ("87433001", _SCT, "Pulmonary emphysema"),
    "Fibrosis": ("51615001", _SCT, "Fibrosis of lung"),
}
"""Code, scheme and meaning of the findings of ChestX-ray14 (SNOMED CT; DICOM PS3.16 annex D)."""

_PROBABILITY = CodedConcept("122157", _DCM, "Probability")
_THRESHOLD = CodedConcept("THRESHOLD", _OWN, "Decision threshold")
_POSITIVE = CodedConcept("POSITIVE", _OWN, "Probability reaches decision threshold")
_YES, _NO = CodedConcept("373066001", _SCT, "Yes"), CodedConcept("373067005", _SCT, "No")
_NO_UNITS = CodedConcept("1", "UCUM", "no units")
_DEVICE = CodedConcept("121007", _DCM, "Device")
_COMMENT = CodedConcept("121106", _DCM, "Comment")
_CHEST_XRAY = CodedConcept("399208008", _SCT, "Plain chest X-ray")


def findings_report(result: dict[str, Any], bundle: Bundle, study: Study) -> Dataset:
    """The Structured Report of a done `result`: each finding with its probability, threshold, and yes or no.

    `bundle` is the one now served: where another made the result, its thresholds and its name are not known any more
    and are left out.
    """
    id = str(result["id"])
    same = result["bundle"] == bundle.sha256
    algorithm = AlgorithmIdentification(
        name=f"{MANUFACTURER}/{bundle.name}" if same else MANUFACTURER,
        version=__version__,
        parameters=_parameters(result, bundle, same),
    )
    groups = [
        _group(id, label, facts, bundle.thresholds[label] if same else None, algorithm, study)
        for label, facts in result["findings"].items()
    ]
    report = MeasurementReport(ObservationContext(observer_device_context=_observer()), _CHEST_XRAY, groups)
    for text in notices(result, bundle):
        comment = TextContentItem(_COMMENT, text, RelationshipTypeValues.CONTAINS)
        report[0].ContentSequence.append(comment)
    document = ComprehensiveSR(
        evidence=[study.evidence()],
        content=report[0],
        series_instance_uid=derived_uid(id, "report", "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=derived_uid(id, "report"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        series_description=f"{MANUFACTURER} findings ({RESEARCH_ONLY})",
        manufacturer_model_name=bundle.name[:64] if same else MANUFACTURER,
        device_serial_number=_device_uid(),
        coding_schemes=[CodingSchemeIdentificationItem(_OWN, name=MANUFACTURER, responsible_organization=MANUFACTURER)],
    )
    return finish(document, study, made_at(result))


def notices(result: dict[str, Any], bundle: Bundle) -> list[str]:
    """What every reader of the result must be told."""
    found = [f"For {RESEARCH_ONLY}: not for diagnosis."]
    if result["bundle"] != bundle.sha256:
        failed = " that FAILED ITS ACCURACY GATE and" if result["gate"] == FAIL else " that"
        found.append(f"Made by a bundle{failed} is no longer served.")
    elif bundle.notice:
        found.append(bundle.notice)
    if (result["guard"] or {}).get("off"):
        found.append("The guard was off: images that the network was not made for were answered too.")
    return found


def _parameters(result: dict[str, Any], bundle: Bundle, same: bool) -> list[str]:
    """Algorithm parameters (TID 4019), each at most as long as a text item may be."""
    parameters = [
        f"bundle_sha256={result['bundle']}",
        f"gate={result['gate']}",
        f"backend={result['backend']}",
        f"result_id={result['id']}",
    ]
    if same:
        parameters.append(f"precision={bundle.precision}")
    return [*parameters, *(f"notice={text}" for text in notices(result, bundle))]


def _group(
    id: str,
    label: str,
    facts: dict[str, Any],
    threshold: float | None,
    algorithm: AlgorithmIdentification,
    study: Study,
) -> MeasurementsAndQualitativeEvaluations:
    """One finding's group (TID 1501)."""
    measurements = [Measurement(_PROBABILITY, facts["probability"], _NO_UNITS)]
    if threshold is not None:
        measurements.append(Measurement(_THRESHOLD, threshold, _NO_UNITS))
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(identifier=label, uid=UID(derived_uid(id, "finding", label))),
        finding_type=finding_code(label),
        algorithm_id=algorithm,
        measurements=measurements,
        qualitative_evaluations=[QualitativeEvaluation(_POSITIVE, _YES if facts["positive"] else _NO)],
        source_images=[SourceImageForMeasurementGroup(study.sop_class, study.instance)],
    )


def finding_code(label: str) -> CodedConcept:
    """The code of a finding; in our own scheme where the label is none that we know a code of."""
    if known := FINDING_CODES.get(label):
        return CodedConcept(*known)
    return CodedConcept(label.replace("\\", "/")[:64], _OWN, label.replace("_", " ").replace("\\", "/")[:64])


def _observer() -> ObserverContext:
    attributes = DeviceObserverIdentifyingAttributes(
        uid=_device_uid(), name=MANUFACTURER, manufacturer_name=MANUFACTURER, model_name="edge-infer serve"
    )
    return ObserverContext(_DEVICE, attributes)


def _device_uid() -> str:
    """Tells one machine's reports from another's."""
    return derived_uid("device", socket.gethostname())
