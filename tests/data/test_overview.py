"""What plan and prepare_data say of a dataset: what was understood, and what looks odd."""

import runpy
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from helpers import ROOT, make_table
from instant_soup.config.sections import Data
from instant_soup.data.local import resolve_data
from instant_soup.data.overview import overview
from instant_soup.data.splits import cut_splits, read_splits
from instant_soup.files import read_yaml, write_yaml


def lines(folder: Path, train: Any, test: Any = None, family: str = "bert", **data: Any) -> str:
    """What is said of a folder of texts."""
    for name, table in (("train", train), ("test", test)):
        if table is not None:
            pd.DataFrame(table).to_csv(folder / f"{name}.csv", index=False)
    dataset = resolve_data(f"local:{folder}", family, Data(**data))
    return "\n".join(overview(dataset, cut_splits(dataset, labels_only=True)))


def test_what_was_understood(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    train = {"text": [f"t{i}" for i in range(20)], "label": ["no", "yes"] * 10}
    test = {"text": ["t0", "t1", "", "new"], "label": ["no", "yes", "no", "no"]}
    asked = {"train_rows": 100, "validation_rows": 6}
    found = lines(tmp_path, train, test, **asked).splitlines()
    what = "classification into 2 classes, texts in text, labels in label"
    assert found[0] == f"local:{tmp_path.name}: {what}"
    assert found[1].startswith("classes, with their training rows: no (")
    assert found[2:] == [
        "rows: train 16, validation 4 (cut from the training rows), test 4",
        "data.train_rows: 100 asked for, 16 taken",
        "data.validation_rows: 6 asked for, 4 taken, 20 % of the rows that there are",
        "not read: notes.txt",
        "rows with an empty text: test 1",
        found[-1],
    ]
    assert found[-1] in [f"test rows with the texts of a training row: {n} of 4" for n in (0, 1, 2)]


def test_shared_rows_are_pairs(tmp_path: Path) -> None:
    train = {"sentence1": ["a", "b"] * 10, "sentence2": ["c", "d"] * 10, "label": [0.5, 1.5] * 10}
    test = {"sentence1": ["a", "a", "b"], "sentence2": ["c", "d", "d"], "label": [0.5, 1.5, 2]}
    found = lines(tmp_path, train, test)
    assert "regression, texts in sentence1, sentence2" in found
    assert "labels: 0.5 … 1.5" in found
    assert "test rows with the texts of a training row: 2 of 3" in found
    assert "warning" not in found and "empty" not in found


def test_without_a_test_split_one_is_said_to_be_cut(tmp_path: Path) -> None:
    found = lines(tmp_path, make_table(50), test_rows=20)
    assert "test 10 (cut from the training rows)" in found
    assert "data.test_rows: 20 asked for, 10 taken, 20 % of the rows" in found


@pytest.mark.parametrize(
    ("table", "warning"),
    [
        (
            {"text": list("abcdef") * 5, "label": ["Yes", "yes ", "no", "no", "No!", "x"] * 5},
            "warning: classes that differ only in case or blanks: 'Yes', 'yes '",
        ),
        (
            {"text": range(20), "label": [0.5] * 20},
            "warning: all training rows have the same label",
        ),
        ({"text": [""] * 20, "label": [0, 1] * 10}, "warning: all texts in column text of train"),
        ({"text": [" "] * 20, "label": [0, 1] * 10}, "warning: all texts in column text of train"),
        (
            {"text": range(50), "label": [f"id {i}" for i in range(50)]},
            "warning: 50 of 50 classes have one training row at most (is label the column of",
        ),
    ],
)
def test_what_looks_odd_is_a_warning(tmp_path: Path, table: dict, warning: str) -> None:
    assert warning in lines(tmp_path, table)


def test_known_classes_that_training_lacks_are_a_warning(tmp_path: Path) -> None:
    table = make_table(40)
    table[table["label"] == 1].to_csv(tmp_path / "train.csv", index=False)
    dataset = resolve_data("sst2", "bert", Data(path=str(tmp_path)))
    found = overview(dataset, cut_splits(dataset))
    assert "warning: no training rows of the classes negative" in found


def test_images_are_described_without_reading_them(tmp_path: Path) -> None:
    for number, name in enumerate(("ant", "bee")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for row in range(10):
            colour = (10 * row, 0, 100 * number)
            Image.new("RGB", (6, 4), colour).save(tmp_path / f"train/{name}/{row}.png")
    (tmp_path / "train/ant/0.heic").touch()
    (tmp_path / "train/stray.png").write_bytes(b"")
    shutil.copytree(tmp_path / "train/bee", tmp_path / "test/bee")
    found = lines(tmp_path, None, family="clip")
    assert "classification into 2 classes, images in img, labels in label" in found
    assert "not read: train/ant/0.heic, train/stray.png" in found
    assert "training row:" not in found
    dataset = resolve_data(f"local:{tmp_path}", "clip", Data())
    shared = [one for one in overview(dataset, read_splits(dataset)) if "training row:" in one]
    (rows,) = shared
    assert rows.startswith("test rows with the image of a training row: ")
    assert rows.endswith(" of 10") and not rows.endswith(" 0 of 10")


def test_image_tables_are_described_by_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "dot.png"
    Image.new("RGB", (2, 2)).save(path)
    table = pd.DataFrame({"img": [path.read_bytes()] * 20, "label": ["ant", "bee"] * 10})
    table.to_parquet(tmp_path / "train.parquet")
    found = lines(tmp_path, None, family="clip")
    assert "rows: train 13, validation 3" in found and "not read: dot.png" in found


def test_the_stage_plan_prints_it(tmp_path: Path, tiny_bert: Path, monkeypatch: Any, capsys: Any):
    make_table(60).to_csv(tmp_path / "train.csv", index=False)
    own = {"dataset": f"local:{tmp_path}", "model": f"local:{tiny_bert}"}
    monkeypatch.chdir(tmp_path)
    params = read_yaml(ROOT / "params.yaml") | own
    params["training"]["epochs"] = 20  # so few rows make few steps
    write_yaml("params.yaml", params)
    for folder in ("src", "stages"):
        Path(folder).symlink_to(ROOT / folder)
    runpy.run_path(str(ROOT / "stages/plan.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "ISP prunes to" in printed and "ISP's denoisers take 120 more" in printed
    assert "classification into 2 classes, texts in sentence, labels in label" in printed
