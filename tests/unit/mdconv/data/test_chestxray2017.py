"""ChestX-ray2017 from a folder: labels and patients from names, both tasks, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.errors import InputRefusedError, UsageError
from mdconv.data import chestxray2017
from mdconv.data.cases import Cases


def labels_of(cases: Cases) -> dict[str, str]:
    """Label by file name; each image has exactly one."""
    assert (cases.truth.sum(axis=1) == 1).all()
    return {Path(name).name: cases.labels[row.argmax()] for name, row in zip(cases.ids, cases.truth)}


def test_labels_come_from_the_names(kermany_folder: Path) -> None:
    test = chestxray2017.load(kermany_folder, "test", "pneumonia")
    assert (test.name, test.labels, test.exclusive) == ("chestxray2017 pneumonia test", ("Normal", "Pneumonia"), True)
    assert "Kermany et al., Cell 2018" in test.notice
    assert labels_of(test) == {
        "IM-0001-0001.jpeg": "Normal",
        "person100_bacteria_475.jpeg": "Pneumonia",
        "person1_virus_6.jpeg": "Pneumonia",
    }
    kind = chestxray2017.load(kermany_folder / "chest_xray", "test", "kind")
    assert kind.labels == ("Bacterial", "Viral")
    assert labels_of(kind) == {"person100_bacteria_475.jpeg": "Bacterial", "person1_virus_6.jpeg": "Viral"}


def test_the_training_part_takes_val_in_and_is_split_by_patient(kermany_folder: Path) -> None:
    train = chestxray2017.load(kermany_folder, "train", "pneumonia")
    validation = chestxray2017.load(kermany_folder, "validation", "pneumonia")
    root = kermany_folder / "chest_xray"
    on_disk = {
        path.relative_to(root).as_posix() for part in ("train", "val") for path in (root / part).rglob("[!.]*.jpeg")
    }
    assert (set(train.ids) | set(validation.ids), set(train.ids) & set(validation.ids)) == (on_disk, set())
    assert not set(train.patients) & set(validation.patients)
    # 11 persons with pneumonia and 5 without in train, one each in val: a tenth of 18, rounded.
    assert len(set(train.patients)), len(set(validation.patients)) == (16, 2)
    patients = dict(zip(train.ids + validation.ids, train.patients + validation.patients))
    same = {
        patients[f"train/PNEUMONIA/{name}.jpeg"]
        for name in ("person5_bacteria_6", "person5_bacteria_99", "person5_virus_7")
    }
    assert same == {"train/person5"}
    assert patients["train/NORMAL/IM-0119-0001.jpeg"] == patients["train/NORMAL/IM-0119-0001-0002.jpeg"]
    assert patients["val/PNEUMONIA/person1946_bacteria_4874.jpeg"] == "train/person1946"
    assert chestxray2017.load(kermany_folder, "test", "kind").patients == ("test/person100", "test/person1")


def test_both_tasks_keep_the_same_patients_back(kermany_folder: Path) -> None:
    for split in ("train", "validation"):
        every = chestxray2017.load(kermany_folder, split, "pneumonia")
        diseased = [name for name, row in zip(every.ids, every.truth) if row[1]]
        try:
            kind = chestxray2017.load(kermany_folder, split, "kind")
        except UsageError:
            assert diseased == []
        else:
            assert list(kind.ids) == diseased


def test_images_are_stretched_to_a_square_as_on_the_device(kermany_folder: Path) -> None:
    cases = chestxray2017.load(kermany_folder, "test", "pneumonia")
    for index, name in enumerate(cases.ids):
        pixels = cv2.imread(str(kermany_folder / "chest_xray" / name), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None and pixels.shape[0] < pixels.shape[1] == 64
        stretched = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA)
        difference = np.abs(cases.read(index, 32).astype(int) - stretched.astype(int))
        assert difference.max() <= 1  # two JPEG decoders
    chosen = cases.select([2])
    np.testing.assert_array_equal(chosen.read(0, 32), cases.read(2, 32))
    assert chosen.boxes(0, 32) == []


def test_the_other_release_s_names(tmp_path: Path) -> None:
    names = {
        "train": ("NORMAL-28501-0001", "BACTERIA-7422-0001", "BACTERIA-7422-0002", "VIRUS-9-0001"),
        "test": ("NORMAL-1003233-0001", "BACTERIA-1008087-0001", "VIRUS-1049691-0001"),
    }
    for part, stems in names.items():
        for stem in stems:
            folder = tmp_path / part / ("NORMAL" if stem.startswith("N") else "PNEUMONIA")
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{stem}.jpeg"), np.full((40, 48), 90, np.uint8))
    kind = chestxray2017.load(tmp_path, "test", "kind")
    assert labels_of(kind) == {"BACTERIA-1008087-0001.jpeg": "Bacterial", "VIRUS-1049691-0001.jpeg": "Viral"}
    both = [chestxray2017.load(tmp_path, split, "pneumonia") for split in ("train", "validation")]
    patients = dict(zip(both[0].ids + both[1].ids, both[0].patients + both[1].patients))
    assert len(patients) == 4
    assert patients["train/PNEUMONIA/BACTERIA-7422-0001.jpeg"] == patients["train/PNEUMONIA/BACTERIA-7422-0002.jpeg"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: (root / "train/PNEUMONIA/scan7.jpeg").touch(), r"scan7\.jpeg: the name says neither"),
        (lambda root: (root / "train/PNEUMONIA/person1_bacteria_2.png").touch(), r"person1_bacteria_2\.png: the name"),
        (lambda root: (root / "train/PNEUMONIA/person1_fungus_2.jpeg").touch(), r"person1_fungus_2\.jpeg: the name"),
        (
            lambda root: (root / "val/NORMAL/person3_virus_9.jpeg").touch(),
            r"person3_virus_9\.jpeg: the name says viral",
        ),
        (
            lambda root: (root / "train/PNEUMONIA/IM-0001-0001.jpeg").touch(),
            "the name says normal, the folder pneumonia",
        ),
        (lambda root: (root / "test").rename(root / "tests"), "has no folders train and test"),
        (lambda root: (root / "train/NORMAL").rename(root / "train/normal"), "No such file"),
    ],
)
def test_what_is_not_the_release_is_refused(
    kermany_folder: Path, change: Callable[[Path], object], expected: str
) -> None:
    change(kermany_folder / "chest_xray")
    with pytest.raises(UsageError, match=expected):
        chestxray2017.load(kermany_folder, "train", "pneumonia")


def test_an_empty_part_and_unknown_words_are_refused(kermany_folder: Path) -> None:
    for path in (kermany_folder / "chest_xray" / "test" / "PNEUMONIA").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="no image for test of kind"):
        chestxray2017.load(kermany_folder, "test", "kind")
    with pytest.raises(UsageError, match="no task 'virus': expected one of pneumonia, kind"):
        chestxray2017.load(kermany_folder, "test", "virus")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no split 'val'"):
        chestxray2017.load(kermany_folder, "val", "kind")  # type: ignore[arg-type]


def test_a_corrupt_image_is_named(kermany_folder: Path) -> None:
    path = kermany_folder / "chest_xray" / "test" / "NORMAL" / "IM-0001-0001.jpeg"
    path.write_bytes(path.read_bytes()[:200])
    cases = chestxray2017.load(kermany_folder, "test", "pneumonia")
    with pytest.raises(InputRefusedError, match=r"IM-0001-0001\.jpeg: "):
        cases.read(cases.ids.index("test/NORMAL/IM-0001-0001.jpeg"), 32)
