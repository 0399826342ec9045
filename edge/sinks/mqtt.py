"""Publishes each result as a JSON message to an MQTT broker, and whether this machine is online.

A message is delivered once the broker has acknowledged it (QoS 1), so it may come twice; the result's ``id`` tells.
"""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Any

from edge.sinks import Delivery, SinkError
from edge.sinks.credentials import client_tls, read_secret
from edge.sinks.mqtt_config import MqttConfig

if TYPE_CHECKING:
    from paho.mqtt.client import Client
    from paho.mqtt.reasoncodes import ReasonCode

log = logging.getLogger(__name__)

_ONLINE, _OFFLINE = "online", "offline"
_AT_LEAST_ONCE = 1


class MqttSink:
    """See `edge.sinks.Sink`. Keeps one connection; what is not acknowledged is published anew by the next attempt."""

    name = "mqtt"

    def __init__(self, config: MqttConfig) -> None:
        """Raises `UsageError` if a file that `config` names cannot be used; does not connect."""
        self._config = config
        self._tls = client_tls(config.ca, config.certificate, config.key) if config.tls else None
        self._password = read_secret(config.password_file) if config.password_file else None
        self._client: Client | None = None
        self._answered = threading.Event()
        self._reason = ""

    def deliver(self, delivery: Delivery) -> None:
        """Publish the result; returns once the broker has acknowledged it. Raises `SinkError`."""
        client = self._connect()
        result = delivery.result
        topic = f"{self._config.prefix}/results" + (f"/{result['id']}" if self._config.topic_per_result else "")
        try:
            message = client.publish(topic, json.dumps(result), qos=_AT_LEAST_ONCE)
            message.wait_for_publish(self._config.timeout)
            acknowledged = message.is_published()
        except (ValueError, RuntimeError) as error:  # the queue is full; the connection broke meanwhile
            self._disconnect()
            raise SinkError(f"the MQTT broker {self._where} did not take a message ({type(error).__name__})") from None
        if not acknowledged:
            self._disconnect()
            raise SinkError(f"the MQTT broker {self._where} did not acknowledge a message in time")

    def close(self) -> None:
        """Say that this machine is offline, and disconnect."""
        client = self._client
        if client is not None and client.is_connected():
            message = client.publish(self._status_topic, _OFFLINE, qos=_AT_LEAST_ONCE, retain=True)
            try:
                message.wait_for_publish(self._config.timeout)
            except (ValueError, RuntimeError):
                log.warning("the MQTT broker %s did not take the last message", self._where)
        self._disconnect()

    @property
    def _where(self) -> str:
        return f"{self._config.host}:{self._port}"

    @property
    def _port(self) -> int:
        return self._config.port or (8883 if self._config.tls else 1883)

    @property
    def _status_topic(self) -> str:
        return f"{self._config.prefix}/status"

    def _connect(self) -> Client:
        if self._client is not None and self._client.is_connected():
            return self._client
        self._disconnect()  # a broken connection's unacknowledged messages must not be sent beside the next attempt's
        client = self._new_client()
        try:
            client.connect(self._config.host, self._port, keepalive=self._config.keepalive)
        except OSError as error:  # also what TLS finds wrong
            raise SinkError(
                f"the MQTT broker {self._where} cannot be reached ({type(error).__name__}): check `host`, `port`, `tls`"
            ) from None
        self._client = client
        client.loop_start()
        if not (self._answered.wait(self._config.timeout) and client.is_connected()):
            reason = self._reason
            self._disconnect()
            raise SinkError(f"the MQTT broker {self._where} did not let us in{reason}")
        return client

    def _new_client(self) -> Client:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        client = Client(CallbackAPIVersion.VERSION2, client_id=self._config.client_id)
        client.connect_timeout = self._config.timeout
        if self._config.user is not None and self._password is not None:
            client.username_pw_set(self._config.user, self._password.get_secret_value())
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.will_set(self._status_topic, _OFFLINE, qos=_AT_LEAST_ONCE, retain=True)
        client.on_connect = self._on_connect
        return client

    def _on_connect(self, client: Client, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._reason = f" ({reason}): check `user` and its password"
        else:
            client.publish(self._status_topic, _ONLINE, qos=_AT_LEAST_ONCE, retain=True)
        self._answered.set()

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        self._answered.clear()
        self._reason = ""
        if client is not None:
            client.disconnect()
            client.loop_stop()
