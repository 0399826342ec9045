"""Delivers results to a PACS: a Structured Report and a picture of the class activation map, in the image's study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.dataset import Dataset

from edge.dicom import is_dicom
from edge.sinks import Delivery, SinkRefusedError
from edge.sinks.credentials import client_tls, read_secret
from edge.sinks.dicom_send import AssociationSender, Sender, WebSender
from edge.sinks.pacs_config import PacsConfig

if TYPE_CHECKING:
    import requests


class PacsSink:
    """See `edge.sinks.Sink`. Refused images, and those that are no DICOM, have nothing to be delivered."""

    name = "pacs"

    def __init__(self, config: PacsConfig) -> None:
        """Raises `UsageError` if a file that `config` names cannot be used; does not connect."""
        self._config = config
        self._sender = _sender(config)

    def deliver(self, delivery: Delivery) -> None:
        """Send what `delivery` asks for. Raises `SinkError` or `SinkRefusedError`."""
        result = delivery.result
        if result["status"] != "done":
            return
        if delivery.content is None:
            raise SinkRefusedError("the image is no longer kept, so there is no study to file its result in")
        if not is_dicom(delivery.content):
            return
        self._sender.send(self._objects(delivery, delivery.content))

    def verify(self) -> str:
        """Ask the PACS whether it knows us; returns what it did. Raises `SinkError`. Sends no object."""
        return self._sender.verify()

    def close(self) -> None:
        self._sender.close()

    def _objects(self, delivery: Delivery, content: bytes) -> list[Dataset]:
        from edge.sinks.dicom_capture import map_over_image  # highdicom takes a second to load
        from edge.sinks.dicom_sr import findings_report
        from edge.sinks.dicom_study import read_study

        study = read_study(content)
        objects: list[Dataset] = []
        if self._config.report:
            objects.append(findings_report(delivery.result, delivery.bundle, study))
        if self._config.capture and delivery.picture is not None:
            capture = map_over_image(delivery.result, delivery.bundle, study, content, delivery.picture)
            objects += [capture] if capture is not None else []
        return objects


def _sender(config: PacsConfig) -> Sender:
    if config.url is not None:
        return WebSender(config.url, _session(config), config.timeout)
    assert config.host is not None
    context = client_tls(config.ca, config.certificate, config.key) if config.tls else None
    return AssociationSender(
        *(config.host, config.port),
        called=config.aet,
        calling=config.calling_aet,
        timeout=config.timeout,
        tls=context,
    )


def _session(config: PacsConfig) -> requests.Session:
    import requests

    session = requests.Session()
    session.trust_env = False  # an environment's CA bundle or .netrc would be preferred to the settings
    session.max_redirects = 0  # a redirected POST would become a GET, whose success would be taken for the POST's
    if config.url is not None and config.url.startswith("https:"):
        client_tls(config.ca, config.certificate, config.key)  # says what is wrong with the files, before any is used
    session.verify = str(config.ca) if config.ca else True
    if config.certificate is not None:
        session.cert = (str(config.certificate), str(config.key))
    if config.token_file is not None:
        session.headers["Authorization"] = f"Bearer {read_secret(config.token_file).get_secret_value()}"
    elif config.user is not None and config.password_file is not None:
        session.auth = (config.user, read_secret(config.password_file).get_secret_value())
    return session
