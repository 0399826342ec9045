"""The real daemon between real programs: an image by storescu, its results in Orthanc and at mosquitto."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from tests.system.dicom_peers import needs, run, wait_for, write_radiograph
from tests.system.test_dicom_sink import running_orthanc
from tests.system.test_mqtt_sink import broker, subscribed

pytestmark = needs("storescu", "echoscu")
EDGE_INFER = (sys.executable, "-m", "edge")


class Daemon:
    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def port(self) -> str:
        found = re.search(r"dicom: listening on 127\.0\.0\.1:(\d+) as MDCONV_EDGE", self.log)
        assert found, self.log
        return found[1]

    def store(self, path: Path) -> subprocess.CompletedProcess[str]:
        return run("storescu", "-v", "-aec", "MDCONV_EDGE", "127.0.0.1", self.port, path)


@contextmanager
def serving(bundle: Path, place: Path, settings: str) -> Iterator[Daemon]:
    config, log = place / "edge.toml", place / "log"
    config.write_text(f'bundle = "{bundle}"\nstate = "{place / "state"}"\nbackend = "onnxruntime"\n{settings}')
    with log.open("w") as output:
        process = subprocess.Popen([*EDGE_INFER, "serve", "--config", config], stderr=output, text=True)
        try:
            wait_for(lambda: "serving: " in log.read_text() or process.poll() is not None, "the daemon")
            assert process.poll() is None, log.read_text()
            yield Daemon(process, log)
        finally:
            process.kill()
            process.wait()


@needs("Orthanc", "mosquitto", "mosquitto_sub")
def test_from_the_modality_to_the_pacs(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    """Report, picture and message arrive; the daemon is killed in between, and nothing arrives twice."""
    (tmp_path / "orthanc").mkdir()
    with (
        broker(tmp_path, "allow_anonymous true") as mqtt_port,
        running_orthanc(tmp_path / "orthanc") as orthanc,
        subscribed(mqtt_port) as subscriber,
    ):
        settings = (
            "[dicom]\nport = 0\n[retention]\npictures = true\n"
            f'[pacs]\nhost = "127.0.0.1"\nport = {orthanc.dicom_port}\n'
            f'[mqtt]\nhost = "127.0.0.1"\nport = {mqtt_port}\n'
        )
        path = write_radiograph(tmp_path / "a.dcm")
        study = "1.2.826.0.1.3680043.8.498.1000.1"
        with serving(tiny_bundle_directory, tmp_path, settings) as daemon:
            assert run("echoscu", "-aec", "MDCONV_EDGE", "127.0.0.1", daemon.port).returncode == 0
            sent = daemon.store(path)
            assert "Received Store Response (Success)" in sent.stderr
            wait_for(lambda: len(orthanc.instances(study)) == 2, "report and picture in the PACS")
            result = json.loads(subscriber.messages(2)[1][1])
            assert result["status"] == "done"
        before = orthanc.instances(study)
        with serving(tiny_bundle_directory, tmp_path, settings) as daemon:
            assert daemon.store(path).returncode == 0  # known already
            other = write_radiograph(tmp_path / "b.dcm", 1, StudyInstanceUID=study)
            assert daemon.store(other).returncode == 0
            wait_for(lambda: len(orthanc.instances(study)) == 4, "the second image's results")
            assert before.keys() <= orthanc.instances(study).keys()
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(30) == 0
            for secret in ("Doe", "4711", "1.2.826"):
                assert secret not in daemon.log
        assert sorted(set(orthanc.instances(study).values())) == [
            "1.2.840.10008.5.1.4.1.1.7",
            "1.2.840.10008.5.1.4.1.1.88.33",
        ]


def test_a_full_queue_is_told_to_the_sender(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    """No room for one image: A700H, and the daemon goes on."""
    path = write_radiograph(tmp_path / "a.dcm", SOPInstanceUID=generate_uid())
    big = write_radiograph(tmp_path / "b.dcm", 1, Rows=1000, Columns=1000, PixelData=bytes(2_000_000))
    with serving(tiny_bundle_directory, tmp_path, "[dicom]\nport = 0\n[queue]\nmax_mb = 1\n") as daemon:
        refused = daemon.store(big)
        assert refused.returncode != 0
        assert "0xa700" in refused.stderr.lower() or "OutOfResources" in refused.stderr
        assert daemon.store(path).returncode == 0


@pytest.mark.parametrize(
    "section", ['[dicom]\naet = "A title that is too long"', '[pacs]\nhost = "a"\nurl = "http://b"']
)
def test_wrong_settings_end_with_status_2(tiny_bundle_directory: Path, tmp_path: Path, section: str) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(f'bundle = "{tiny_bundle_directory}"\nstate = "{tmp_path / "state"}"\n{section}\n')
    ended = run(*EDGE_INFER, "serve", "--config", config)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert section[1:5] in ended.stderr


def test_a_taken_port_ends_with_status_3(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    with serving(tiny_bundle_directory, tmp_path, "[dicom]\nport = 0\n") as daemon:
        config = tmp_path / "second.toml"
        config.write_text(
            f'bundle = "{tiny_bundle_directory}"\nstate = "{tmp_path / "second"}"\nbackend = "onnxruntime"\n'
            f"[dicom]\nport = {daemon.port}\n"
        )
        ended = run(*EDGE_INFER, "serve", "--config", config)
        assert ended.returncode == 3
        assert "cannot listen on 127.0.0.1" in ended.stderr
        assert "Traceback" not in ended.stderr
