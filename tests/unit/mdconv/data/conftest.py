"""Small data sets in the layout of the real ones, made of phantoms; and NIH's real tables where they are at hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mdconv.data.nih_tables import Table, read_table
from mdconv.data.phantom import render

SHARED_NIH = Path(__file__).resolve().parents[5] / "shared" / "data" / "nih"

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
NIH_ROWS = [  # where the image lies, findings, patient
    ("images_001/images/00000001_000.png", "Cardiomegaly", 1),
    ("images_001/images/00000001_001.png", "Cardiomegaly|Emphysema", 1),
    ("images_001/images/00000002_000.png", "No Finding", 2),
    ("images_002/00000003_000.png", "Hernia", 3),
    ("images_012/images/00000004_000.png", "Mass|Nodule", 4),
    ("images/00000005_000.png", "No Finding", 5),
    ("images/00000006_000.png", "Infiltration|Pneumonia", 6),
    ("images/00000007_000.png", "Pleural_Thickening", 7),
]
KERMANY_FILES = [
    *(f"train/NORMAL/IM-{number:04d}-0001.jpeg" for number in (115, 117, 119, 122)),
    "train/NORMAL/IM-0119-0001-0002.jpeg",
    "train/NORMAL/NORMAL2-IM-0383-0001.jpeg",
    *(f"train/PNEUMONIA/person{number}_bacteria_{number + 1}.jpeg" for number in range(1, 9)),
    *(f"train/PNEUMONIA/person{number}_virus_{number + 2}.jpeg" for number in range(5, 12)),
    "train/PNEUMONIA/person5_bacteria_99.jpeg",
    "val/NORMAL/NORMAL2-IM-1427-0001.jpeg",
    "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
    "test/NORMAL/IM-0001-0001.jpeg",
    "test/PNEUMONIA/person1_virus_6.jpeg",
    "test/PNEUMONIA/person100_bacteria_475.jpeg",
]


@pytest.fixture(scope="session")
def shared_nih() -> Path:
    """The folder of NIH's real tables."""
    if not SHARED_NIH.is_dir():
        pytest.skip(f"NIH's tables are not at {SHARED_NIH}")
    return SHARED_NIH


@pytest.fixture(scope="session")
def nih_table(shared_nih: Path) -> Table:
    """NIH's real table, parsed once."""
    return read_table(shared_nih / "Data_Entry_2017_v2020.csv.gz")


@pytest.fixture(scope="session")
def pictures() -> list[NDArray[np.uint8]]:
    """Eight small radiographs."""
    return [render(seed, 64).image for seed in range(8)]


@pytest.fixture(scope="session")
def nih_original(tmp_path_factory: pytest.TempPathFactory, pictures: list[NDArray[np.uint8]]) -> Path:
    folder = tmp_path_factory.mktemp("nih")
    lines = [NIH_HEADER]
    for (place, labels, patient), picture in zip(NIH_ROWS, pictures):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        image = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGRA) if patient == 2 else picture  # NIH's release has such, too
        cv2.imwrite(str(folder / place), image)
        name = Path(place).name
        lines.append(f"{name},{labels},{int(name[9:12])},{patient},{50 + patient},F,PA,2500,2048,0.168,0.168")
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")
    names = [Path(place).name for place, _, _ in NIH_ROWS]
    (folder / "train_val_list.txt").write_text("\n".join(names[:6]) + "\n")
    (folder / "test_list.txt").write_text("\n".join(names[6:]))  # the real lists end without a line break
    (folder / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        f"{names[6]},Infiltrate,256,128.5,512,64.25\n"
        f"{names[6]},Pneumonia,0,0,1024,1024\n"
    )
    return folder


@pytest.fixture
def nih_folder(nih_original: Path, tmp_path: Path) -> Path:
    """ChestX-ray14 with eight images, as NIH distributes it, for this test to change."""
    return Path(shutil.copytree(nih_original, tmp_path / "nih"))


@pytest.fixture
def kermany_folder(tmp_path: Path, pictures: list[NDArray[np.uint8]]) -> Path:
    """ChestX-ray2017 with a few oblong images, for this test to change."""
    root = tmp_path / "unpacked" / "chest_xray"
    for number, name in enumerate(KERMANY_FILES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), pictures[number % 8][: 40 + number % 8])
    (root / "train" / ".DS_Store").touch()
    (root / "train" / "NORMAL" / "._IM-0115-0001.jpeg").touch()
    return root.parent
