"""Receives radiographs as a DICOM Storage SCP (PS3.4 annex B), and answers C-ECHO.

A C-STORE is answered with success once the image is on the disk for good, else with a status that tells the sender
whether to try again; a data set is kept in the very bytes in which it came.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
import threading
from typing import cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from edge.codecs import PLUGINS, missing_packages
from edge.dicom import CAPTURE_CLASSES, RADIOGRAPH_CLASSES
from edge.dicom.network import is_uid, silence_libraries
from edge.dicom.pixels import TRANSFER_SYNTAXES
from edge.dicom.reader import read_file
from edge.errors import EdgeError, InputRefusedError, MachineError, UsageError, describe_os_error
from edge.refusals import Refusals
from edge.service import BusyError, Service, StorageFullError
from edge.sources.dicom_config import DicomConfig
from edge.sources.dicom_transport import BoundedServer, Limits
from edge.sources.priority import step_back

log = logging.getLogger(__name__)

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
INVALID_INSTANCE = 0x0117
OUT_OF_RESOURCES = 0xA700
"""The only failure that asks the sender to come again."""
WRONG_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000

_REJECTIONS: dict[tuple[int | None, int | None], str] = {
    (1, 3): "its own AE title is not in `calling_aets`",
    (1, 7): "the AE title that it calls is not `aet`",
    (3, 2): "too many associations are open",
}
"""Why an association was rejected, by the answer's source and diagnostic (PS3.8 table 9-21)."""

_SOP_INSTANCE = 0x0008_0018
_HIGH_PRIORITY = 1
_MEGABYTE = 1_000_000


class DicomServer:
    """The Storage and Verification SCP in front of `service`, in threads of its own from `start` to `stop`."""

    def __init__(self, service: Service, config: DicomConfig) -> None:
        self._service = service
        self._config = config
        self._refusals = Refusals(log)
        self._server: BoundedServer | None = None
        self._thread: threading.Thread | None = None
        self._limit = min(config.max_megabytes * _MEGABYTE, service.max_bytes)
        self._reading = threading.Lock()  # a deflated data set is inflated for it: one at a time

    @property
    def port(self) -> int:
        """The TCP port, once started."""
        if self._server is None:
            raise RuntimeError("the DICOM server is not started")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen. Raises `UsageError` for TLS files that cannot be used, `MachineError` for a port that is taken."""
        config = self._config
        silence_libraries()
        context = self._tls_context()
        entity = self._entity()
        limits = Limits(
            pdu=config.max_pdu,
            data_set=self._limit,
            all_data_sets=max(self._limit, config.max_megabytes_together * _MEGABYTE),
            seconds=config.network_timeout,
            connections=2 * config.max_associations,
            networks=tuple(ipaddress.ip_network(text) for text in config.addresses),
        )
        where = f"{config.bind}:{config.port}"
        try:
            self._server = server = BoundedServer(
                *(entity, (config.bind, config.port)),
                [(evt.EVT_C_STORE, self._store), (evt.EVT_REJECTED, self._rejected)],
                tls=context,
                limits=limits,
                refusals=self._refusals,
            )
        except OSError as error:
            raise MachineError(
                f"the DICOM server cannot listen on {where}: {error.strerror or error}: is another program using it? "
                "Choose another `port` or `bind`"
            ) from None
        self._thread = threading.Thread(target=_serve, args=(server,), name="dicom", daemon=True)
        self._thread.start()
        tls = " with TLS" if context else ""
        log.info("dicom: listening on %s:%d as %s%s", config.bind, self.port, config.aet, tls)

    def reload(self) -> None:
        """Read the TLS files anew, for connections to come. Raises `UsageError` and goes on with the old ones."""
        context = self._tls_context()
        if self._server is not None:
            self._server.ssl_context = context

    def stop(self, seconds: float = 5.0) -> None:
        """Take no more, and abort what is open: an image that was not answered yet will be sent again."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.end_associations(seconds)
        if self._thread is not None:
            self._thread.join(seconds)

    def _entity(self) -> AE:
        config = self._config
        entity = AE(config.aet)
        entity.require_called_aet = config.require_called_aet
        entity.require_calling_aet = list(config.calling_aets)
        entity.maximum_pdu_size = config.max_pdu
        entity.maximum_associations = config.max_associations
        entity.network_timeout = config.network_timeout
        entity.acse_timeout = config.acse_timeout
        entity.dimse_timeout = config.dimse_timeout
        entity.add_supported_context(Verification)
        syntaxes = _decodable()
        for sop_class in sorted(RADIOGRAPH_CLASSES | CAPTURE_CLASSES):
            entity.add_supported_context(sop_class, syntaxes)
        return entity

    def _tls_context(self) -> ssl.SSLContext | None:
        config = self._config
        if config.tls_certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(config.tls_certificate, config.tls_key)
            if config.tls_client_ca is not None:
                context.load_verify_locations(config.tls_client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except ssl.SSLError as error:
            raise UsageError(
                f"the DICOM server's TLS files do not fit ({error.reason or 'unreadable'}): expected PEM files, "
                "tls_key the private key of tls_certificate"
            ) from None
        except OSError as error:
            raise UsageError(f"the DICOM server's TLS files: {describe_os_error(error)}") from None
        return context

    def _rejected(self, event: evt.Event) -> None:
        answer = cast(A_ASSOCIATE, event.assoc.acceptor.primitive)
        reason = _REJECTIONS.get((answer.result_source, answer.diagnostic), "the protocol forbids it")
        address = event.assoc.requestor.address
        self._refusals.tell(reason, "dicom: association from %s rejected: %s", address, reason)

    def _store(self, event: evt.Event) -> Dataset:
        """Answer one C-STORE (PS3.4 B.2.3, PS3.7 9.1.1.1.9); whatever goes wrong, the sender gets a status."""
        try:
            self._take(event)
        except _RefusedError as error:
            status, comment = error.status, str(error)
        except BusyError:
            status, comment = OUT_OF_RESOURCES, "Busy: send again later"
        except StorageFullError:
            status, comment = OUT_OF_RESOURCES, "Disk full: send again later"
        except InputRefusedError:
            status, comment = CANNOT_UNDERSTAND, "No image that can be read"
        except EdgeError as error:
            log.error("dicom: an image was not taken: %s", error)
            status, comment = OUT_OF_RESOURCES, "Not stored: send again later"
        except Exception as error:  # a failure answered is one that the sender knows of
            log.error("dicom: an image was not taken (%s)", type(error).__name__, exc_info=log.isEnabledFor(10))
            status, comment = PROCESSING_FAILURE, "Not stored: internal failure"
        else:
            return _status(SUCCESS)
        address = event.assoc.requestor.address
        self._refusals.tell(comment, "dicom: image from %s refused with status %04XH: %s", address, status, comment)
        return _status(status, comment)

    def _take(self, event: evt.Event) -> None:
        request = cast(C_STORE, event.request)
        instance, sop_class = str(request.AffectedSOPInstanceUID), str(request.AffectedSOPClassUID)
        if not is_uid(instance):
            raise _RefusedError(INVALID_INSTANCE, "SOP Instance UID is not well-formed")
        if sop_class != event.context.abstract_syntax:
            raise _RefusedError(WRONG_CLASS, "SOP Class is not that of the context")
        content = event.encoded_dataset()
        with self._reading:
            header = read_file(content, {_SOP_INSTANCE}, self._limit)
            found = header.sop_class, header.data_set.text(_SOP_INSTANCE)
            del header  # and the pixels with it
        if found[0] != sop_class:
            raise _RefusedError(WRONG_CLASS, "Data set is of another SOP Class")
        if found[1] != instance:
            raise _RefusedError(CANNOT_UNDERSTAND, "Data set is of another SOP Instance")
        stat = request.Priority == _HIGH_PRIORITY
        self._service.receive(content, origin="dicom", instance=instance, stat=stat)


def _decodable() -> list[str]:
    """The transfer syntaxes to take. What cannot be decoded is not among them: many a sender then converts it."""
    missing = {syntax: packages for syntax in PLUGINS if (packages := missing_packages(syntax))}
    for syntax, packages in missing.items():
        log.warning(
            "dicom: no images in %s are taken, no decoder is installed: pip install %s", UID(syntax).name, packages
        )
    return [syntax for syntax in TRANSFER_SYNTAXES if syntax not in missing]


def _serve(server: BoundedServer) -> None:
    step_back()
    server.serve_forever(0.5)


class _RefusedError(Exception):
    """A request that contradicts itself: its text is the answer's Error Comment."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.status = status


def _status(code: int, comment: str = "") -> Dataset:
    answer = Dataset()
    answer.Status = code
    if comment:
        answer.ErrorComment = comment  # LO: 64 characters
    return answer
