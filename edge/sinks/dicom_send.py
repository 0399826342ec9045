"""Sends DICOM objects to a PACS: by C-STORE over an association, or by STOW-RS over HTTP.

Whether a failure may pass is decided here: `SinkError` for what time or an administrator mends, `SinkRefusedError` for
what the other side will say again of the same object. Neither text holds a UID or anything that the other side wrote.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pydicom.dataset import Dataset

from edge.dicom.network import silence_libraries
from edge.sinks import SinkError, SinkRefusedError

if TYPE_CHECKING:
    import requests
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

_ALREADY_THERE = 0x0111
"""Duplicate SOP instance: an earlier attempt arrived, and its answer did not."""
_PASSING = {0x0110, 0x0122, 0x0124}
"""Processing failure; SOP class not supported, not authorized: an administrator can allow them."""


class Sender(Protocol):
    """Hands objects over; returns once the other side has stored all of them."""

    def send(self, datasets: Sequence[Dataset]) -> None: ...

    def verify(self) -> str: ...

    def close(self) -> None: ...


class AssociationSender:
    """C-STORE (PS3.4 annex B), one association for each call."""

    def __init__(
        self, host: str, port: int, *, called: str, calling: str, timeout: float, tls: ssl.SSLContext | None
    ) -> None:
        from pynetdicom import AE

        silence_libraries()
        self._where, self._called, self._tls = (host, port), called, tls
        self._entity = AE(calling)
        self._entity.connection_timeout = timeout
        self._entity.acse_timeout = timeout
        self._entity.dimse_timeout = timeout
        self._entity.network_timeout = timeout

    def send(self, datasets: Sequence[Dataset]) -> None:
        """Raises `SinkError` if the PACS cannot be reached or is busy, `SinkRefusedError` if it refuses an object."""
        from pynetdicom import build_context

        association = self._associate(
            [
                build_context(sop_class, syntax)
                for sop_class, syntax in sorted({(d.SOPClassUID, d.file_meta.TransferSyntaxUID) for d in datasets})
            ]
        )
        refused: SinkRefusedError | None = None
        try:
            for dataset in datasets:
                try:
                    self._store(association, dataset)
                except SinkRefusedError as error:  # the others are sent all the same
                    refused = refused or error
        finally:
            if association.is_established:
                association.release()
        if refused is not None:
            raise refused

    def verify(self) -> str:
        """C-ECHO (PS3.4 annex A). Raises `SinkError` if the PACS does not answer it with success."""
        from pynetdicom import build_context
        from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

        host, port = self._where
        association = self._associate([build_context(Verification)])
        try:
            status = association.send_c_echo().get("Status")
        except (ValueError, RuntimeError):  # it does not take C-ECHO, or ended the association
            status = None
        finally:
            association.release()
        if status != 0:
            raise SinkError(f"the PACS {host}:{port} let us in, and did not answer C-ECHO")
        return f"{self._called} at {host}:{port} let {self._entity.ae_title} in, and answered C-ECHO"

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def _associate(self, contexts: list[PresentationContext]) -> Association:
        from pynetdicom import evt
        from pynetdicom.pdu import A_ASSOCIATE_RJ

        host, port = self._where
        tls = (self._tls, host) if self._tls else None
        # pynetdicom 3.0 takes a rejection for a failed connection where the PACS closes before it looks.
        received: list[object] = []
        try:
            association = self._entity.associate(
                host,
                port,
                contexts=contexts,
                ae_title=self._called,
                tls_args=tls,
                evt_handlers=[(evt.EVT_PDU_RECV, lambda event: received.append(event.pdu))],
            )
        except OSError:  # the name has no address
            raise SinkError(f"the PACS {host} cannot be found: check `host`") from None
        if not association.is_established:
            raise SinkError(self._why_not(any(isinstance(pdu, A_ASSOCIATE_RJ) for pdu in received)))
        return association

    def _why_not(self, rejected: bool) -> str:
        host, port = self._where
        if rejected:
            return (
                f"the PACS {host}:{port} rejected the association: check `aet` ({self._called}), and that it knows "
                f"`calling_aet` ({self._entity.ae_title})"
            )
        return f"the PACS {host}:{port} cannot be reached: check `host`, `port`, `tls` and the network"

    def _store(self, association: Any, dataset: Dataset) -> None:
        host, port = self._where
        try:
            answer = association.send_c_store(dataset)
        except ValueError:  # no accepted context
            raise SinkError(
                f"the PACS {host}:{port} does not take {_kind(dataset)}: allow its SOP class there, or switch it off "
                "here"
            ) from None
        except RuntimeError:
            raise SinkError(f"the PACS {host}:{port} ended the association: it is tried again") from None
        if "Status" not in answer:
            raise SinkError(f"the PACS {host}:{port} did not answer in time, or ended the association")
        check_status(int(answer.Status), _kind(dataset), f"{host}:{port}")


class WebSender:
    """STOW-RS (PS3.18 section 10.5)."""

    def __init__(self, url: str, session: requests.Session, timeout: float) -> None:
        from dicomweb_client import DICOMwebClient

        silence_libraries()
        session.headers["Accept"] = "application/dicom+json"
        session.hooks["response"].append(_bare_content_type)
        self._session = session
        self._timeout = timeout
        # Sent in one piece: not every server takes a chunked request.
        self._client = DICOMwebClient(url, session=session, timeout=timeout, chunk_size=1 << 30)
        self._client.set_http_retry_params(retry=False)
        self._host = self._client.host

    def send(self, datasets: Sequence[Dataset]) -> None:
        """Raises `SinkError` if the server cannot be reached or is busy, `SinkRefusedError` if it refuses an object."""
        import requests

        try:
            answer = self._client.store_instances(datasets)
        except requests.HTTPError as error:
            self._check_http(error)
            return
        except requests.RequestException as error:
            raise SinkError(self._unreachable(error)) from None
        except Exception as error:  # an answer that is no DICOM: the library raises whatever it stumbles over
            raise SinkError(
                f"the DICOMweb server {self._host} gave no answer that can be read ({type(error).__name__})"
            ) from None
        failed = answer.get("FailedSOPSequence") or ()
        for item in failed:
            kind = _kind_of_class(str(item.get("ReferencedSOPClassUID", "")))
            check_status(int(item.get("FailureReason", 0x0110)), kind, self._host)
        named = {
            item.get("ReferencedSOPInstanceUID") for item in (*failed, *(answer.get("ReferencedSOPSequence") or ()))
        }
        if not named >= {dataset.SOPInstanceUID for dataset in datasets}:
            raise SinkError(f"the DICOMweb server {self._host} does not confirm what it was sent: check `url`")

    def close(self) -> None:
        self._session.close()

    def verify(self) -> str:
        """Raises `SinkError` if the server does not answer a GET of its root, or not to our credentials."""
        import requests

        try:
            status = self._session.get(self._client.base_url, timeout=self._timeout).status_code
        except requests.RequestException as error:
            raise SinkError(self._unreachable(error)) from None
        if status in (401, 403):
            raise SinkError(f"the DICOMweb server {self._host} answered with status {status}: check its credentials")
        return f"{self._host} answered with status {status}"  # its root need not be a page

    def _unreachable(self, error: Exception) -> str:
        kind = type(error).__name__
        return f"the DICOMweb server {self._host} cannot be reached ({kind}): check `url` and the network"

    def _check_http(self, error: requests.HTTPError) -> None:
        status = error.response.status_code if error.response is not None else 0
        text = f"the DICOMweb server {self._host} answered with status {status}"
        if status in (401, 403):
            raise SinkError(f"{text}: check its credentials") from None
        if status in (404, 405):
            raise SinkError(f"{text}: check `url`") from None
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise SinkRefusedError(f"{text}: it does not take the objects") from None
        raise SinkError(f"{text}: it is tried again") from None


def _bare_content_type(response: requests.Response, **_: Any) -> None:
    """dicomweb-client knows an answer's type only without parameters such as a charset."""
    response.headers["Content-Type"] = response.headers.get("Content-Type", "").partition(";")[0].strip()


def check_status(status: int, kind: str, where: str) -> None:
    """Return for a stored object (PS3.4 table B.2-1); else raise `SinkError` or `SinkRefusedError`."""
    if status == 0 or status == _ALREADY_THERE or 0xB000 <= status <= 0xBFFF:  # the last: stored, with a remark
        return
    text = f"the PACS {where} answered {kind} with status {status:04X}H"
    if status in _PASSING or 0xA700 <= status <= 0xA7FF:
        raise SinkError(f"{text}: it is tried again")
    raise SinkRefusedError(f"{text}: it does not take this object")


def _kind(dataset: Dataset) -> str:
    return _kind_of_class(str(dataset.SOPClassUID))


def _kind_of_class(sop_class: str) -> str:
    return "the image" if sop_class == "1.2.840.10008.5.1.4.1.1.7" else "the report"
