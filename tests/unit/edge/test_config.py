from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from edge.config import Config, load_config
from edge.errors import UsageError


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_INFER_PUBLIC_KEY", raising=False)


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "settings.toml").write_text(text)
    return tmp_path / "settings.toml"


def test_a_flag_goes_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'bundle = "/file"\nstate = "/file"\nbackend = "tensorrt"\n[queue]\nmax_images = 1\nmax_mb = 2\n'
    file = written(tmp_path, text)
    monkeypatch.setenv("EDGE_INFER_STATE", "/environment")
    monkeypatch.setenv("EDGE_INFER_QUEUE__MAX_MB", "3")
    monkeypatch.setenv("EDGE_INFER_BACKEND", "auto")
    config = load_config(file, {"backend": "onnxruntime", "queue": {"min_free_mb": 4}})
    assert config.bundle == Path("/file")
    assert config.state == Path("/environment")
    assert config.backend == "onnxruntime"
    assert (config.queue.max_images, config.queue.max_mb, config.queue.min_free_mb) == (1, 3, 4)


def test_folders_are_a_list_in_the_file_and_separated_by_colons_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, 'bundle = "b"\nwatch = ["/a", "~/b"]\n[http]\ntokens = "~/tokens"\n')
    monkeypatch.setenv("HOME", "/home/x")
    config = load_config(file, {})
    assert config.watch == (Path("/a"), Path("/home/x/b"))
    assert config.http is not None
    assert config.http.tokens == Path("/home/x/tokens")
    monkeypatch.setenv("EDGE_INFER_WATCH", "/c:/d")
    assert load_config(file, {}).watch == (Path("/c"), Path("/d"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "bundle is missing: give --bundle, EDGE_INFER_BUNDLE or `bundle` in the file"),
        ('bundle = "b"\nbundel = "c"', "bundel is no setting: check its spelling"),
        ('bundle = "b"\n[queue]\nmax_imges = 3', "queue.max_imges is no setting"),
        (
            'bundle = "b"\n[queue]\nmax_images = 0',
            "queue.max_images: .* greater than or equal to 1, got 0",
        ),
        ('bundle = "b"\n[queue]\nmax_images = "many"', "queue.max_images: .*got 'many'"),
        ('bundle = "b"\n[jsonl]', "jsonl.path is missing: give EDGE_INFER_JSONL__PATH or `jsonl.path` in the file"),
        (
            'bundle = "b"\nbackend = "gpu"',
            "backend: input should be 'auto', 'tensorrt', 'openvino' or 'onnxruntime', got 'gpu'",
        ),
        ("bundle = = 3", r"settings.toml: .*line 1.*: correct it"),
        (b"\xff".decode("latin-1"), "correct it"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        load_config(written(tmp_path, text), {})
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(UsageError, match="--config: "):
            load_config(path, {})


def settings_of(model: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each key below `model` with its default, as the docs write them."""
    for name, field in model.model_fields.items():
        kinds = getattr(field.annotation, "__args__", (field.annotation,))
        sections = [kind for kind in kinds if hasattr(kind, "model_fields")]
        if sections:
            yield from settings_of(sections[0], f"{prefix}{name}.")
        else:
            default = field.get_default()
            yield prefix + name, "" if default in (None, PydanticUndefined, ()) else str(default).lower()


def test_every_setting_is_in_the_docs_with_its_default() -> None:
    documented = (Path(__file__).parents[3] / "docs" / "settings.md").read_text().lower()
    for key, default in settings_of(Config):
        if key == "drain":
            continue  # a flag only: a service never drains
        assert f"| `{key}` | {default} |".replace("|  |", "| |") in documented, (key, default)
