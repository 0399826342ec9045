from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.bundle import GOLDEN, MANIFEST, PORTABLE_MODEL, load_bundle, read_manifest, sha256_of
from edge.errors import BundleError
from edge.labels import CHESTXRAY14


def copy_of(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "copy"))


def change_manifest(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_whole_bundle_tells_what_it_is(tiny_bundle_directory: Path) -> None:
    bundle = load_bundle(tiny_bundle_directory)
    assert bundle.labels == CHESTXRAY14
    assert (bundle.input_size, bundle.batch, bundle.precision) == (64, 4, "fp32")
    assert bundle.model_path == bundle.directory / PORTABLE_MODEL
    assert bundle.sha256 == sha256_of(bundle.directory / MANIFEST)
    assert bundle.path(GOLDEN) == bundle.directory / GOLDEN
    assert bundle.path("model.engine") is None


@pytest.mark.parametrize("name", [PORTABLE_MODEL, GOLDEN])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_bit_in_any_file_is_found(
    tiny_bundle_directory: Path, tmp_path: Path, name: str, where: str
) -> None:
    directory = copy_of(tiny_bundle_directory, tmp_path)
    content = bytearray((directory / name).read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[where]] ^= 1
    (directory / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was altered.*copy the bundle again"):
        load_bundle(directory)


def test_a_flipped_byte_in_the_manifest_never_loads_as_the_same_bundle(
    tiny_bundle_directory: Path, tmp_path: Path
) -> None:
    """The manifest has no hash of its own: what it is, is its identity. Every change must show there or be refused."""
    directory = copy_of(tiny_bundle_directory, tmp_path)
    original = (directory / MANIFEST).read_bytes()
    identity = load_bundle(directory).sha256
    for position in range(0, len(original), 7):
        content = bytearray(original)
        content[position] ^= 1
        (directory / MANIFEST).write_bytes(content)
        try:
            assert load_bundle(directory).sha256 != identity
        except BundleError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("grow", [-1, 1])
def test_a_file_of_another_size_is_found_before_it_is_hashed(
    tiny_bundle_directory: Path, tmp_path: Path, grow: int
) -> None:
    directory = copy_of(tiny_bundle_directory, tmp_path)
    content = (directory / GOLDEN).read_bytes()
    (directory / GOLDEN).write_bytes(content[:-1] if grow < 0 else content + b"\0")
    with pytest.raises(
        BundleError, match=f"{GOLDEN} has {len(content) + grow} bytes, the manifest says {len(content)}"
    ):
        load_bundle(directory)


def test_a_missing_file_is_found(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    directory = copy_of(tiny_bundle_directory, tmp_path)
    (directory / PORTABLE_MODEL).unlink()
    with pytest.raises(BundleError, match=f"{PORTABLE_MODEL} is missing"):
        load_bundle(directory)


def test_no_directory_and_no_manifest_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at .*nowhere: make one with"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.pop("gate"), "'gate' is None, expected dict"),
        (lambda m: m.update(format=2), "format 2, this version reads 1"),
        (lambda m: m.update(format=True), "'format' is True"),
        (lambda m: m.update(precision="int4"), "precision 'int4' is none of"),
        (lambda m: m.update(mixed_precision={"left": []}), "mixed_precision has not all of images, layers, left, of"),
        (lambda m: m["model"].pop("thresholds"), "model has no 'thresholds'"),
        (lambda m: m["model"]["thresholds"].pop("Mass"), "name different findings"),
        (lambda m: m["model"].update(labels=3), "model's 'labels' is 3, expected list"),
        (lambda m: m["model"].update(thresholds=["Mass"]), "model's 'thresholds' is .*, expected dict"),
        (lambda m: m["model"]["labels"].append(3), "name different findings"),
        (lambda m: m["model"]["thresholds"].update(Mass="0.5"), "the threshold of 'Mass' is '0.5', expected a number"),
        (lambda m: m["files"].pop(GOLDEN), f"lists no {GOLDEN}"),
        (lambda m: m.update(precision="int8"), "lists no model.int8.onnx"),
        (lambda m: m["files"].update({"../outside": {"sha256": "", "size": 0}}), "not a plain file name"),
        (lambda m: m["files"].update({"/etc/hostname": {"sha256": "", "size": 0}}), "not a plain file name"),
        (lambda m: m["files"].update({GOLDEN: {"size": 3}}), "has no sha256 and size"),
        (lambda m: m["files"][GOLDEN].update(sha256=0), "has no sha256 and size"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(
    tiny_bundle_directory: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    directory = copy_of(tiny_bundle_directory, tmp_path)
    change_manifest(directory, change)
    with pytest.raises(BundleError, match=said):
        load_bundle(directory)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(tiny_bundle_directory: Path, tmp_path: Path, content: bytes) -> None:
    directory = copy_of(tiny_bundle_directory, tmp_path)
    (directory / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match="copy the bundle again"):
        load_bundle(directory)
