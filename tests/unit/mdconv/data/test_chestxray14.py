"""ChestX-ray14 from a folder: its parts, its images and boxes, and every refusal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.errors import InputRefusedError, UsageError
from edge.labels import CHESTXRAY14
from edge.preprocess import Preprocess, load_image
from mdconv.data import chestxray14
from mdconv.data.cases import Box
from mdconv.data.nih_tables import Table
from mdconv.data.split import validation_patients

Change = Callable[[Path], object]


def edit(name: str, old: str, new: str) -> Change:
    """Replaces the first `old` in a file of the folder."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def test_the_parts_of_a_folder(nih_folder: Path) -> None:
    parts = {split: chestxray14.load(nih_folder, split) for split in ("train", "validation", "test")}
    test = parts["test"]
    assert (test.name, test.labels, test.exclusive) == ("chestxray14 test", CHESTXRAY14, False)
    assert "Wang et al., CVPR 2017" in test.notice
    assert test.ids == ("00000006_000.png", "00000007_000.png")
    assert test.patients == ("6", "7")
    assert [np.flatnonzero(row).tolist() for row in test.truth] == [[3, 6], [12]]
    train, validation = parts["train"], parts["validation"]
    assert not set(train.patients) & set(validation.patients)
    assert len(set(validation.patients)) == 1  # an eighth of five, rounded
    names = sorted(train.ids + validation.ids)
    assert names == [f"0000000{patient}_00{number}.png" for patient, number in zip("112345", "010000")]
    assert all(name.startswith(f"0000000{patient}_") for name, patient in zip(train.ids, train.patients))


def test_images_are_what_the_device_would_see(nih_folder: Path, pictures: list[NDArray[np.uint8]]) -> None:
    read = 0
    for split in ("train", "validation", "test"):
        cases = chestxray14.load(nih_folder, split)
        for index, name in enumerate(cases.ids):
            original = pictures[sorted(path.name for path in nih_folder.rglob("*.png")).index(name)]
            np.testing.assert_array_equal(cases.read(index, 64), original)  # one of them is stored as RGBA
            path = next(nih_folder.rglob(name))
            np.testing.assert_array_equal(cases.read(index, 48), load_image(path, Preprocess(48)))
            read += 1
    assert read == 8


def test_boxes_are_in_pixels_of_the_size_asked_for(nih_folder: Path) -> None:
    cases = chestxray14.load(nih_folder, "test")
    assert cases.boxes(0, 512) == [Box("Infiltration", 128, 64.25, 256, 32.125), Box("Pneumonia", 0, 0, 512, 512)]
    assert cases.boxes(1, 512) == []
    chosen = cases.select([1, 0])
    assert chosen.boxes(1, 1024) == cases.boxes(0, 1024)
    assert (chosen.ids, chosen.patients) == (cases.ids[::-1], cases.patients[::-1])
    np.testing.assert_array_equal(chosen.truth, cases.truth[::-1])
    np.testing.assert_array_equal(chosen.read(1, 32), cases.read(0, 32))
    (nih_folder / "BBox_List_2017.csv").unlink()
    assert chestxray14.load(nih_folder, "test").boxes(0, 512) == []


TABLE, TRAIN, TEST, BOXES = "Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt", "BBox_List_2017.csv"


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove(TABLE), r"has no Data_Entry_2017\*.csv"),
        (lambda folder: (folder / "Data_Entry_2017.csv").touch(), f"Data_Entry_2017.csv and {TABLE}: keep the one"),
        (remove(TEST), f"has no {TEST}"),
        (remove(TRAIN), f"has no {TRAIN}"),
        (edit(TABLE, "Hernia", "Hernie"), f"{TABLE}, row 5: unknown finding 'Hernie'"),
        (edit(TRAIN, "00000003", "00000009"), f"{TRAIN}, row 4: '00000009_000.png' is not in .*{TABLE}"),
        (edit(TEST, "00000007", "00000006"), f"{TEST}, row 2: 00000006_000.png is in row 1 too"),
        (edit(TEST, "00000006_000", "00000001_001"), f"patient 1 is in .*{TRAIN}, row 1 and in .*{TEST}, row 1"),
        (edit(TRAIN, "00000001_001", "00000007_000"), f"patient 7 is in .*{TRAIN}, row 2 and in .*{TEST}, row 2"),
        (remove("images/00000007_000.png"), rf"{TEST}, row 2: no 00000007_000.png .*\(1 of 2 images for test"),
        (
            lambda folder: (folder / "images_003").symlink_to(folder / "images"),
            r"images/(0000000\d_000.png) and .*images_003/\1 are both \1",
        ),
        (lambda folder: (folder / TEST).write_text(""), "has no image for test"),
        (edit(BOXES, "Infiltrate", "Infiltrat"), f"{BOXES}, row 2: unknown finding 'Infiltrat'"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(nih_folder: Path, change: Change, expected: str) -> None:
    change(nih_folder)
    with pytest.raises(UsageError, match=expected):
        chestxray14.load(nih_folder, "test")


def test_an_unknown_split_is_refused(nih_folder: Path) -> None:
    with pytest.raises(UsageError, match="no split 'val': expected one of train, validation, test"):
        chestxray14.load(nih_folder, "val")  # type: ignore[arg-type]


def test_missing_images_can_be_left_out_and_are_listed(nih_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {split: chestxray14.load(nih_folder, split) for split in ("train", "validation")}
    (nih_folder / "images_001" / "images" / "00000001_001.png").unlink()
    after = {split: chestxray14.load(nih_folder, split, skip_missing=True) for split in ("train", "validation")}
    holder = "train" if "1" in before["train"].patients else "validation"
    other = "validation" if holder == "train" else "train"
    assert after[holder].ids == tuple(name for name in before[holder].ids if name != "00000001_001.png")
    assert (after[holder].missing, after[other].missing) == (("00000001_001.png",), ())
    assert after[other].ids == before[other].ids  # who validates does not depend on which images are there
    assert after[holder].name == f"chestxray14 {holder}, 1 images missing"
    assert after[other].name == f"chestxray14 {other}"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"1 of {len(before[holder])} images for {holder} are missing" in record.getMessage()
    assert "00000001_001.png" in record.getMessage()
    for path in (nih_folder / "images").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match=r"no image for test \(2 are missing\)"):
        chestxray14.load(nih_folder, "test", skip_missing=True)


def test_a_corrupt_image_is_named(nih_folder: Path) -> None:
    path = nih_folder / "images" / "00000007_000.png"
    path.write_bytes(path.read_bytes()[:-20])
    cases = chestxray14.load(nih_folder, "test")
    cases.read(0, 32)
    with pytest.raises(InputRefusedError, match=r"00000007_000\.png: the PNG is damaged"):
        cases.read(1, 32)


def test_a_split_of_the_real_patients(nih_table: Table, shared_nih: Path, tmp_path: Path) -> None:
    """The parts of the real table, with lists made here: NIH's are not at hand."""
    names = np.array(nih_table.images)
    tested = nih_table.patients % 5 == 0
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[~tested]))
    (tmp_path / "test_list.txt").write_text("\n".join(names[tested]))
    (tmp_path / "Data_Entry_2017_v2020.csv.gz").symlink_to(shared_nih / "Data_Entry_2017_v2020.csv.gz")
    images = tmp_path / "images"
    images.mkdir()
    for name in names[~tested][:40]:
        (images / name).touch()
    parts = [chestxray14.load(tmp_path, split, skip_missing=True) for split in ("train", "validation")]
    assert {name for part in parts for name in part.ids} == set(names[~tested][:40])
    counts = [len(part) + len(part.missing) for part in parts]
    assert sum(counts) == (~tested).sum()
    assert counts[1] / sum(counts) == pytest.approx(1 / 8, abs=0.01)
    patients = dict(zip(nih_table.images, nih_table.patients.tolist()))
    kept_back = {patients[name] for name in (*parts[1].ids, *parts[1].missing)}
    trained = {patients[name] for name in (*parts[0].ids, *parts[0].missing)}
    assert not kept_back & trained
    assert len(kept_back) == round(len(kept_back | trained) / 8)


def test_who_validates_is_pinned_and_does_not_depend_on_the_order() -> None:
    patients = [str(number) for number in range(1, 41)]
    chosen = validation_patients(patients, 1 / 8)
    assert chosen == validation_patients(reversed(patients * 2), 1 / 8)
    assert sorted(chosen, key=int) == ["4", "6", "14", "34", "38"]
    assert len(validation_patients(["one", "two"], 1 / 8)) == 1
