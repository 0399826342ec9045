from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.dataset import from_files, from_folder
from edge.errors import UsageError
from edge.preprocess import Preprocess, load_image

PREPROCESS = Preprocess(16)


def write_image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (20, 24), dtype=np.uint8))
    return path


def names(paths: tuple[Path, ...], directory: Path) -> list[str]:
    return [path.relative_to(directory).as_posix() for path in paths]


def test_choice_does_not_depend_on_the_order_of_the_directory(tmp_path: Path) -> None:
    seeds = {f"{chr(97 + i % 3)}/{i:02}.png": i for i in range(20)}
    for name, order in (("one", list(seeds)), ("two", list(seeds)[::-1])):
        for image in order:
            write_image(tmp_path / name / image, seeds[image])
    one, two = (from_folder(tmp_path / name, 8, PREPROCESS) for name in ("one", "two"))
    assert len(one) == 8
    assert names(one.paths, tmp_path / "one") == names(two.paths, tmp_path / "two")
    assert one.digest == two.digest
    other = from_folder(tmp_path / "one", 8, PREPROCESS, seed=1)
    assert other.digest != one.digest
    assert names(other.paths, tmp_path / "one") == sorted(names(other.paths, tmp_path / "one"))


def test_images_come_preprocessed_one_by_one(tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / f"{i}.png", i)
    images = from_folder(tmp_path, 10, PREPROCESS)
    assert len(images) == 3
    for path, image in zip(images.paths, images):
        assert image.shape == (1, 1, 16, 16)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image[0, 0], load_image(path, PREPROCESS))
    assert len(list(images)) == 3  # it can be read again


def test_digest_is_of_contents(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", i) for i in range(3)]
    contents = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    expected = hashlib.sha256("".join(contents).encode()).hexdigest()
    assert from_files(paths[::-1], PREPROCESS).digest == expected
    paths[0].rename(tmp_path / "z.png")
    assert from_folder(tmp_path, 10, PREPROCESS).digest == expected


def test_other_files_are_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 0)
    (tmp_path / "labels.csv").write_text("Image Index,Finding Labels\n")
    (tmp_path / "folder.png").mkdir()
    write_image(tmp_path / ".cache" / "b.png", 1)
    assert names(from_folder(tmp_path, 10, PREPROCESS).paths, tmp_path) == ["a.png"]


def test_empty_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UsageError, match="holds no image"):
        from_folder(tmp_path, 10, PREPROCESS)
    with pytest.raises(UsageError, match="no calibration image"):
        from_files([], PREPROCESS)


def test_same_file_twice_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 0)
    write_image(tmp_path / "b.png", 0)
    with pytest.raises(UsageError, match=r"a\.png and .*b\.png are the same file"):
        from_folder(tmp_path, 10, PREPROCESS)


def test_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 0)
    (tmp_path / "b.png").write_text("this is no image")
    images = from_folder(tmp_path, 10, PREPROCESS)
    with pytest.raises(UsageError, match=r"calibration image .*b\.png: .*take it out"):
        list(images)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.png"):
        from_files([tmp_path / "absent.png"], PREPROCESS)
