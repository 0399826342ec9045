"""Results at a real MQTT broker (mosquitto), as mosquitto_sub receives them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.bundle import Bundle
from edge.errors import UsageError
from edge.sinks import SinkError
from edge.sinks.mqtt import MqttSink
from edge.sinks.mqtt_config import MqttConfig
from tests.system.dicom_peers import certificate, free_port, needs, on_a_free_port, run
from tests.system.dicom_results import delivery_of

pytestmark = [
    needs("mosquitto", "mosquitto_sub", "mosquitto_passwd", "stdbuf"),
    # paho leaves it to Python to close the socket of a handshake that failed; Python warns, and closes it at once.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextmanager
def broker(directory: Path, *lines: str, port: int | None = None) -> Iterator[int]:
    config, log = directory / "mosquitto.conf", directory / "mosquitto.log"

    def start() -> tuple[subprocess.Popen[Any], int]:
        chosen = port or free_port()
        config.write_text("\n".join((f"listener {chosen} 127.0.0.1", "user root", *lines, "")))
        with log.open("w") as output:
            return subprocess.Popen(["mosquitto", "-c", config], stdout=output, stderr=output), chosen

    with on_a_free_port(start, lambda _: "running" in log.read_text()) as chosen:
        yield chosen


class Subscriber:
    """mosquitto_sub on all topics; `messages` once `count` of them have come."""

    def __init__(self, port: int, *options: str | Path) -> None:
        command = [
            "stdbuf",
            "-oL",
            "mosquitto_sub",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-t",
            "#",
            "-q",
            "1",
            "-v",
            "-d",
            *options,
        ]
        self._process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines = self._process.stdout
        assert self._lines is not None
        while "SUBACK" not in (line := self._lines.readline()):
            assert line, "mosquitto_sub ended"

    def messages(self, count: int) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        assert self._lines is not None
        while len(found) < count:
            line = self._lines.readline()
            assert line, "mosquitto_sub ended"
            topic, _, payload = line.rstrip("\n").partition(" ")
            if topic.startswith(("mdconv-edge/", "ward/")):
                found.append((topic, payload))
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def subscribed(port: int, *options: str | Path) -> Iterator[Subscriber]:
    subscriber = Subscriber(port, *options)
    try:
        yield subscriber
    finally:
        subscriber.close()


def test_results_and_status(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with broker(tmp_path, "allow_anonymous true") as port:
        with subscribed(port) as subscriber:
            sink = MqttSink(MqttConfig(host="127.0.0.1", port=port))
            first, second = delivery_of(tiny_bundle, b"a"), delivery_of(tiny_bundle, b"b", seed=9, reason="too small")
            sink.deliver(first)
            sink.deliver(first)
            sink.deliver(second)
            sink.close()
            said = subscriber.messages(5)
        assert said[0] == ("mdconv-edge/status", "online")
        assert said[-1] == ("mdconv-edge/status", "offline")
        results = [json.loads(payload) for topic, payload in said if topic == "mdconv-edge/results"]
        assert results == [first.result, first.result, second.result]
        with subscribed(port) as late:  # the status is retained, results are not
            assert late.messages(1) == [("mdconv-edge/status", "offline")]


def test_a_topic_for_each_result(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with broker(tmp_path, "allow_anonymous true") as port, subscribed(port) as subscriber:
        sink = MqttSink(MqttConfig(host="127.0.0.1", port=port, prefix="ward/7", topic_per_result=True))
        delivery = delivery_of(tiny_bundle, b"a")
        sink.deliver(delivery)
        sink.close()
        assert subscriber.messages(2)[1][0] == f"ward/7/results/{delivery.result['id']}"


def test_a_killed_machine_is_offline(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The connection is cut without a word, as a power cut does: the broker tells with the last will."""
    with broker(tmp_path, "allow_anonymous true") as port, subscribed(port) as subscriber:
        sink = MqttSink(MqttConfig(host="127.0.0.1", port=port))
        sink.deliver(delivery_of(tiny_bundle, b"a"))
        assert sink._client is not None
        sink._client._sock.close()  # type: ignore[union-attr]
        assert subscriber.messages(3)[2] == ("mdconv-edge/status", "offline")
        sink._disconnect()


def test_a_broker_that_comes_back(tiny_bundle: Bundle, tmp_path: Path) -> None:
    delivery = delivery_of(tiny_bundle, b"a")
    with broker(tmp_path, "allow_anonymous true") as port:
        sink = MqttSink(MqttConfig(host="127.0.0.1", port=port, timeout=5))
        sink.deliver(delivery)
    with pytest.raises(SinkError):
        sink.deliver(delivery)
    with broker(tmp_path, "allow_anonymous true", port=port), subscribed(port) as subscriber:
        sink.deliver(delivery)
        assert [topic for topic, _ in subscriber.messages(2)] == ["mdconv-edge/status", "mdconv-edge/results"]
        sink.close()


def test_passwords_and_tls(tiny_bundle: Bundle, tmp_path: Path) -> None:
    users, password = tmp_path / "users", tmp_path / "password"
    assert run("mosquitto_passwd", "-b", "-c", users, "edge", "s3cret").returncode == 0
    password.write_text("s3cret\n")
    ours, stranger = certificate(tmp_path, "broker"), certificate(tmp_path, "stranger")
    lines = ("allow_anonymous false", f"password_file {users}", f"certfile {ours[0]}", f"keyfile {ours[1]}")
    common: dict[str, Any] = {"host": "localhost", "tls": True, "ca": ours[0], "user": "edge", "timeout": 10}
    delivery = delivery_of(tiny_bundle, b"a")
    with broker(tmp_path, *lines) as port:
        options = ("-u", "edge", "-P", "s3cret", "--cafile", ours[0])
        with subscribed(port, *options, "-h", "localhost") as subscriber:
            sink = MqttSink(MqttConfig(**common, port=port, password_file=password))
            sink.deliver(delivery)
            assert json.loads(subscriber.messages(2)[1][1]) == delivery.result
            sink.close()
        password.write_text("wrong\n")
        with pytest.raises(SinkError, match=r"did not let us in .*check `user`"):
            MqttSink(MqttConfig(**common, port=port, password_file=password)).deliver(delivery)
        with pytest.raises(SinkError, match=r"cannot be reached .SSLCertVerificationError"):
            untrusted = {**common, "ca": stranger[0]}
            MqttSink(MqttConfig(**untrusted, port=port, password_file=password)).deliver(delivery)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"prefix": "a/#"}, "prefix"),
        ({"prefix": "/a"}, "prefix"),
        ({"user": "u"}, "password_file"),
        ({"ca": "c"}, "tls = true"),
        ({"password": "p"}, "password"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MqttConfig(host="a", **wrong)


def test_a_password_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="check the path"):
        MqttSink(MqttConfig(host="a", user="u", password_file=tmp_path / "none"))
