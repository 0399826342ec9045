from __future__ import annotations

import gc
import hashlib
import weakref
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.choice import choose_by_finding, choose_by_name
from calibration.dataset import CalibrationSet, from_files, from_folder, from_table, pixel_digest
from edge.errors import UsageError
from edge.preprocess import Preprocess, load_image
from tests.unit.edge.dicom_writer import radiograph, to_bytes

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


def test_a_picture_is_known_by_its_pixels(tmp_path: Path) -> None:
    """The same in PNG and DICOM is one; the file's bytes, its name and its size do not count."""
    paths = [write_image(tmp_path / f"{i}.png", i) for i in range(3)]
    images = from_files(paths, PREPROCESS)
    expected = {hashlib.sha256(image.tobytes()).hexdigest(): path for path, image in zip(paths, images)}
    assert images.pixels == expected and len(expected) == 3
    pixels = cv2.imread(str(paths[0]), cv2.IMREAD_GRAYSCALE)
    (tmp_path / "a.dcm").write_bytes(to_bytes(radiograph(pixels)))
    (digest,) = from_files([tmp_path / "a.dcm"], PREPROCESS).pixels
    assert images.pixels[digest] == paths[0]
    assert digest == pixel_digest(load_image(paths[0], PREPROCESS)) != pixel_digest(load_image(paths[1], PREPROCESS))


def test_other_files_are_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 0)
    (tmp_path / "table.csv").write_text("Image Index,Finding Labels\n")
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


def write_table(path: Path, findings: Mapping[str, str]) -> Path:
    rows = "".join(f"{name},{shown},1\n" for name, shown in findings.items())
    path.write_text(f"Image Index,Finding Labels,Patient ID\n{rows}")
    return path


def write_labelled(directory: Path, findings: Mapping[str, str], table: str = "labels.csv") -> Path:
    for number, name in enumerate(findings):
        write_image(directory / name, number)
    return write_table(directory / table, findings)


def counts(images: CalibrationSet) -> dict[str, int]:
    assert images.choice is not None and images.choice.findings is not None
    return dict(images.choice.findings)


def test_labels_beside_the_images_stratify_them(tmp_path: Path) -> None:
    """30 images, of which a draw by name takes about 3 with a finding; by finding it is half of them."""
    findings = {f"{i:02}.png": "Mass" if i < 4 else "Mass|Nodule" if i == 4 else "No Finding" for i in range(30)}
    write_labelled(tmp_path, findings)
    images = from_folder(tmp_path, 10, PREPROCESS)
    assert counts(images) == {"Mass": 5, "No Finding": 5, "Nodule": 1}
    shown = [findings[path.name] for path in images.paths]
    assert sorted(shown) == ["Mass"] * 4 + ["Mass|Nodule"] + ["No Finding"] * 5
    assert images.choice is not None
    assert images.choice.to_json() == {
        "rule": "stratified by finding",
        "seed": 0,
        "offered": 30,
        "findings": {"Mass": 5, "No Finding": 5, "Nodule": 1},
    }
    other = from_folder(tmp_path, 10, PREPROCESS, seed=1)
    assert counts(other) == counts(images) and other.digest != images.digest


def test_the_choice_depends_on_names_and_seed_alone(tmp_path: Path) -> None:
    findings = {f"{i:02}.png": ("Mass", "Nodule|Mass", "No Finding", "Hernia")[i % 4] for i in range(24)}
    one = write_labelled(tmp_path / "one", findings)
    two = write_labelled(tmp_path / "two", findings)
    write_table(two, dict(reversed(findings.items())))
    write_image(tmp_path / "two" / "not-listed.png", 99)
    chosen = [[path.name for path in from_table(table, 9, PREPROCESS).paths] for table in (one, two)]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("count", [1, 2, 7, 16, 29, 64, 1000])
def test_images_of_one_finding_each_are_shared_out_evenly(count: int) -> None:
    """Against pouring water into vessels: all fill alike, and what a full one cannot take goes to the others."""
    rng = np.random.default_rng(count)
    sizes = {"Mass": 3, "Nodule": 40, "No Finding": 300, "Hernia": 1, "Edema": 17}
    names = rng.permutation(sum(sizes.values())).tolist()
    labels = [label for label, size in sizes.items() for _ in range(size)]
    found = choose_by_finding({f"{n}.png": [label] for n, label in zip(names, labels)}, count, seed=5)
    poured = dict.fromkeys(sizes, 0)
    for _ in range(min(count, len(names))):
        level = min((poured[label], sizes[label], label) for label in sizes if poured[label] < sizes[label])
        poured[level[2]] += 1
    assert found.findings == poured
    assert len(set(found.names)) == len(found.names) == min(count, len(names))


@pytest.mark.parametrize("seed", range(20))
def test_every_finding_has_its_share_or_all_there_are(seed: int) -> None:
    """Images with several findings: the promise is checked on random tables, and the tally counted anew."""
    rng = np.random.default_rng(seed)
    labels = [f"finding {i}" for i in range(int(rng.integers(1, 9)))]
    often = rng.uniform(0.01, 0.4, len(labels))
    table = {
        f"{i}.png": [label for label, hit in zip(labels, rng.random(len(labels)) < often) if hit]
        for i in range(int(rng.integers(5, 200)))
    }
    count = int(rng.integers(1, 120))
    found = choose_by_finding(table, count, seed)
    assert len(set(found.names)) == len(found.names) == min(count, len(table))
    offered: dict[str, int] = {}
    for shown in table.values():
        for label in shown or ["No Finding"]:
            offered[label] = offered.get(label, 0) + 1
    tally = dict.fromkeys(offered, 0)
    for name in found.names:
        for label in table[name] or ["No Finding"]:
            tally[label] += 1
    assert found.findings == tally
    for label, size in offered.items():
        assert tally[label] >= min(size, count // len(offered)), label


def test_without_labels_the_draw_is_by_name() -> None:
    found = choose_by_name([f"{i}.png" for i in range(50)], 8, seed=3)
    again = choose_by_name([f"{i}.png" for i in reversed(range(50))], 8, seed=3)
    assert found == again
    assert found.to_json() == {"rule": "drawn by name", "seed": 3, "offered": 50, "findings": None}
    order = sorted(range(50), key=lambda i: hashlib.sha256(f"3/{i}.png".encode()).hexdigest())
    assert found.names == tuple(f"{i}.png" for i in order[:8])


def test_a_table_finds_its_images_in_the_folders_below(tmp_path: Path) -> None:
    """As NIH's release is unpacked: images_001/images/*.png below Data_Entry_2017.csv."""
    write_image(tmp_path / "images_001" / "images" / "a.png", 0)
    write_image(tmp_path / "images_002" / "images" / "b.png", 1)
    write_image(tmp_path / "c.png", 2)
    write_image(tmp_path / "images_002" / "images" / "not-listed.png", 3)
    table = write_table(tmp_path / "Data_Entry_2017.csv", {"a.png": "Mass", "b.png": "No Finding", "c.png": "Hernia"})
    images = from_table(table, 10, PREPROCESS)
    assert names(images.paths, tmp_path) == ["c.png", "images_001/images/a.png", "images_002/images/b.png"]
    assert counts(images) == {"Hernia": 1, "Mass": 1, "No Finding": 1}


def test_rows_that_do_not_hold_are_named(tmp_path: Path) -> None:
    table = write_labelled(tmp_path, {"a.png": "Mass", "b.png": "No Finding"}, "t.csv")
    for row, said in (
        ("c.png,Mass,1", r"t\.csv, row 4: no file c\.png in .* \(1 of 3 images are missing\)"),
        ("a.png,Nodule,1", r"t\.csv, row 4: a\.png was listed before, in row 2"),
        ("c.png,,1", r"t\.csv, row 4: image 'c\.png' and findings ''"),
        (",Mass,1", r"t\.csv, row 4: image ''"),
    ):
        before = table.read_text()
        table.write_text(f"{before}{row}\n")
        with pytest.raises(UsageError, match=said):
            from_table(table, 10, PREPROCESS)
        table.write_text(before)
    write_image(tmp_path / "below" / "d.png", 4)
    write_image(tmp_path / "other" / "d.png", 5)
    write_table(table, {"d.png": "Mass"})
    with pytest.raises(UsageError, match=r"row 2: .*below/d\.png and .*other/d\.png are both d\.png"):
        from_table(table, 10, PREPROCESS)
    write_table(table, {})
    with pytest.raises(UsageError, match="lists no image"):
        from_table(table, 10, PREPROCESS)
    table.write_text("Image,Finding Labels\n")
    with pytest.raises(UsageError, match="has no column 'Image Index'"):
        from_table(table, 10, PREPROCESS)


def test_one_picture_in_two_files_is_refused(tmp_path: Path) -> None:
    """The same pixels as PNG of two compressions and as DICOM: the files differ, what they show does not."""
    picture = np.random.default_rng(8).integers(0, 256, (20, 24), dtype=np.uint8)
    write_image(tmp_path / "a.png", 0)
    cv2.imwrite(str(tmp_path / "b.png"), picture)
    cv2.imwrite(str(tmp_path / "c.png"), picture, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    (tmp_path / "d.dcm").write_bytes(to_bytes(radiograph(picture)))
    for kept, other in (("b.png", "c.png"), ("b.png", "d.dcm")):
        images = from_files([tmp_path / name for name in ("a.png", kept, other)], PREPROCESS)
        with pytest.raises(UsageError, match=f"{kept} and .*{other} are the same picture"):
            list(images)
    assert len(list(from_files([tmp_path / "a.png", tmp_path / "b.png"], PREPROCESS))) == 2


def test_only_one_image_is_in_memory(tmp_path: Path) -> None:
    for i in range(6):
        write_image(tmp_path / f"{i}.png", i)
    earlier: list[weakref.ref[object]] = []
    images = iter(from_folder(tmp_path, 10, PREPROCESS))
    for _ in range(6):
        image = next(images)
        earlier.append(weakref.ref(image if image.base is None else image.base))
        del image
        gc.collect()
        assert sum(reference() is not None for reference in earlier) <= 1
