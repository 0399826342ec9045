"""ChestX-ray14's tables: the real ones against an independent count, both releases' forms, and what is refused."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edge.errors import UsageError
from edge.labels import CHESTXRAY14
from mdconv.data.nih_tables import Table, read_boxes, read_table

HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
ROW = "00000001_000.png,Mass,0,1,58,M,PA"
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"

# Images a finding, as public descriptions of the release quote them.
PUBLISHED = {
    "Atelectasis": 11559, "Cardiomegaly": 2776, "Effusion": 13317, "Infiltration": 19894, "Mass": 5782,
    "Nodule": 6331, "Pneumonia": 1431, "Pneumothorax": 5302, "Consolidation": 4667, "Edema": 2303,
    "Emphysema": 2516, "Fibrosis": 1686, "Pleural_Thickening": 3385, "Hernia": 227,
}  # fmt: skip


def test_the_real_table_has_the_counts_that_it_is_known_for(nih_table: Table, shared_nih: Path) -> None:
    with gzip.open(shared_nih / "Data_Entry_2017_v2020.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    counted = Counter(label for row in rows for label in row["Finding Labels"].split("|"))
    assert (len(nih_table), len(np.unique(nih_table.patients))) == (112_120, 30_805)
    found = dict(zip(CHESTXRAY14, nih_table.findings.sum(axis=0).tolist()))
    assert found == {name: counted[name] for name in CHESTXRAY14} == PUBLISHED
    assert (~nih_table.findings.any(axis=1)).sum() == counted["No Finding"] == 60_361


def test_the_real_table_row_by_row(nih_table: Table, shared_nih: Path) -> None:
    with gzip.open(shared_nih / "Data_Entry_2017_v2020.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Image Index"] for row in rows] == list(nih_table.images)
    assert [int(row["Patient ID"]) for row in rows] == nih_table.patients.tolist()
    assert [int(row["Follow-up #"]) for row in rows] == nih_table.follow_ups.tolist()
    assert [int(row["Patient Age"]) for row in rows] == nih_table.ages.tolist()
    assert Counter(nih_table.sexes.tolist()) == Counter(row["Patient Gender"] for row in rows)
    assert (
        Counter(nih_table.views.tolist()) == Counter(row["View Position"] for row in rows) == {"PA": 67310, "AP": 44810}
    )
    for index in range(0, len(rows), 997):
        present = [name for name, here in zip(CHESTXRAY14, nih_table.findings[index]) if here]
        assert sorted(present or ["No Finding"]) == sorted(rows[index]["Finding Labels"].split("|"))


def test_the_real_boxes(nih_table: Table, shared_nih: Path) -> None:
    boxes = read_boxes(shared_nih / "BBox_List_2017.csv.gz")
    every = [box for each in boxes.values() for box in each]
    assert (len(boxes), len(every)) == (880, 984)
    assert Counter(box.finding for box in every) == {
        "Atelectasis": 180, "Effusion": 153, "Cardiomegaly": 146, "Infiltration": 123, "Pneumonia": 120,
        "Pneumothorax": 98, "Mass": 85, "Nodule": 79,
    }  # fmt: skip
    with gzip.open(shared_nih / "BBox_List_2017.csv.gz", "rt") as file:
        assert sum(float(line.split(",")[4]) for line in file.readlines()[1:]) == pytest.approx(
            sum(box.width for box in every)
        )
    row_of = {name: row for row, name in enumerate(nih_table.images)}
    for image, each in boxes.items():  # each box's finding is among its image's
        assert all(nih_table.findings[row_of[image], CHESTXRAY14.index(box.finding)] for box in each)


def test_every_release_s_form_is_read(tmp_path: Path) -> None:
    first = tmp_path / "Data_Entry_2017.csv"
    first.write_bytes(
        b"\xef\xbb\xbf" + HEADER.encode() + b"\r\n"
        b"00000001_000.png,Cardiomegaly|Mass,000,00000001,058Y,M,PA\r\n"
        b"00000002_013.png,No Finding,013,00000002,030M,F,AP\r\n"
        b"00000003_000.png,Hernia,000,00000003,021D,F,AP\r\n\r\n"
    )
    later = tmp_path / "Data_Entry_2017_v2020.csv.gz"
    with gzip.open(later, "wt") as file:
        file.write(HEADER.replace("Gender", "Sex") + ",OriginalImage[Width,Height],\n")
        file.write("00000001_000.png,Mass|Cardiomegaly,0,1,58,M,PA,2500,2048,\n")
        file.write("00000002_013.png,No Finding,13,2,2,F,AP,2500,2048,\n")
        file.write("00000003_000.png,Hernia,0,3,0,F,AP,2500,2048,\n")
    tables = [read_table(first), read_table(later)]
    for table in tables:
        assert table.images == ("00000001_000.png", "00000002_013.png", "00000003_000.png")
        assert [np.flatnonzero(row).tolist() for row in table.findings] == [[1, 4], [], [13]]
        assert (table.patients.tolist(), table.follow_ups.tolist()) == ([1, 2, 3], [0, 13, 0])
        assert (table.ages.tolist(), table.sexes.tolist(), table.views.tolist()) == (
            [58, 2, 0], ["M", "F", "F"], ["PA", "AP", "AP"],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([HEADER.replace("Finding Labels", "Labels"), ROW], "row 1: .*expected one 'Finding Labels'"),
        ([HEADER + ",Patient Sex", ROW + ",M"], "row 1: .*expected one 'Patient Sex'"),
        ([HEADER, ROW, ROW.replace("1_000", "2_000").replace("Mass", "Mass|Flu")], "row 3: unknown finding 'Flu'"),
        ([HEADER, ROW.replace("Mass", "")], "row 2: unknown finding ''"),
        ([HEADER, ROW.replace("Mass", "No Finding|Mass")], "row 2: unknown finding 'No Finding' in 'No Finding|Mass'"),
        ([HEADER, ROW, ROW.replace("_000", "_001"), ROW], "row 4: 00000001_000.png is in row 2 too"),
        ([HEADER, ROW.removesuffix(",PA")], "row 2: 6 values, expected 7"),
        ([HEADER, ROW + ",PA"], "row 2: 8 values, expected 7"),
        ([HEADER, "", ROW], "row 2: the line is empty"),
        ([HEADER, ROW.replace(",1,58", ",one,58")], "row 2: Patient ID is 'one'"),
        ([HEADER, ROW.replace(",0,1", ",-1,1")], "row 2: Follow-up # is '-1'"),
        ([HEADER, ROW.replace("58", "58W")], "row 2: Patient Age is '58W'"),
        ([], "is empty"),
        ([HEADER, '00000001_000.png,"Mass'], "damaged or no CSV text"),
    ],
)
def test_a_table_that_is_not_nih_s_is_refused_by_file_and_row(tmp_path: Path, lines: list[str], expected: str) -> None:
    path = tmp_path / "Data_Entry_2017.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=expected) as refused:
        read_table(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a.png,Flu,1,2,3,4", "row 2: unknown finding 'Flu'"),
        ("a.png,Mass,1,2,3", "row 2: 5 values, expected 6"),
        ("a.png,Mass,1,2,x,4", "row 2: the box is"),
        ("a.png,Mass,1,2,nan,4", "row 2: the box is"),
        ("a.png,Mass,1,2,0,4", "row 2: the box is"),
        ("a.png,Mass,-1,2,3,4", "row 2: the box is"),
        ("a.png,Mass,1,900,3,200", "row 2: the box is"),
    ],
)
def test_a_box_that_is_none_is_refused_by_file_and_row(tmp_path: Path, row: str, expected: str) -> None:
    path = tmp_path / "BBox_List_2017.csv"
    path.write_text(f"{BOX_HEADER}\n{row}\n")
    with pytest.raises(UsageError, match=expected) as refused:
        read_boxes(path)
    assert str(path) in str(refused.value)


def test_other_columns_of_boxes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "BBox_List_2017.csv"
    path.write_text("Image Index,Finding Label,x1,y1,x2,y2\na.png,Mass,1,2,3,4\n")
    with pytest.raises(UsageError, match="row 1: the columns are"):
        read_boxes(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "plain.csv.gz").write_text(HEADER)
    cut = gzip.compress(HEADER.encode() * 99)
    (tmp_path / "cut.csv.gz").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, expected in {
        "plain.csv.gz": "is no gzip file",
        "cut.csv.gz": "damaged",
        "picture.csv": "no CSV text",
        "absent.csv": "No such file",
    }.items():
        with pytest.raises(UsageError, match=expected) as refused:
            read_table(tmp_path / name)
        assert name in str(refused.value)
