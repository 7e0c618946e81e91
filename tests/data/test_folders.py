"""Local folders: the files of a split, class folders, links, and what is said of anything else."""

import gzip
import io
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from instant_soup.config.sections import Data
from instant_soup.data import folders, images
from instant_soup.data.local import resolve_data
from instant_soup.errors import UserError
from instant_soup.files import digest

ROWS = "text,label\na,x\nb,y\n"


def lay(folder: Path, *names: str) -> Path:
    """Files below a folder: pictures where the first part is train or test, tables else."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "/" in name:
            picture = Image.new("RGB", (6, 4), (20 * number, 0, 0))
            kind = {".jfif": "JPEG", ".jpe": "JPEG", ".avif": "AVIF", ".tga": "TGA"}
            picture.save(path, kind.get(path.suffix, "PNG"))
        else:
            path.write_text(ROWS)
    return folder


def resolve(folder: Path, family: str = "bert", **data: Any) -> Any:
    """A folder as the plan resolves it."""
    return resolve_data(f"local:{folder}", family, Data(**data))


def refusal(folder: Path, family: str = "bert", **data: Any) -> str:
    """The one line with which the plan refuses a folder."""
    with pytest.raises(UserError) as caught:
        resolve(folder, family, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["Train.CSV"], "rename Train.CSV to train.csv"),
        (["train.TSV", "test.csv"], "rename train.TSV to train.tsv"),
        (["train.xlsx"], "save train.xlsx as one of these tables"),
        (["train.csv.gz"], "save train.csv.gz as one of these tables"),
        (["train.jsonl", "readme.md"], "save train.jsonl as one of these tables"),
        (["mine.csv"], "(it has mine.csv)"),
        ([], "(it has nothing)"),
        (["train.csv", "Test.csv"], "Test.csv is no test split; allowed: test.parquet, test.csv"),
        (["train.csv", "test.xlsx"], "test.xlsx is no test split"),
        (["train.csv", "dev.csv.gz"], "dev.csv.gz is no test split"),
        (["ant/0.png", "bee/1.png"], "move its folders of images (ant, bee) into a folder train"),
        (["data/train/ant/0.png", "data/train/bee/1.png"], "its folder data has: name that one"),
        (["train/0.png", "train/1.png"], "its folder train has no class folders with images"),
        (["Train/ant/0.png", "Train/bee/1.png"], "rename Train to train"),
    ],
    ids=str,
)
def test_what_is_no_split_is_named_with_what_to_do(tmp_path: Path, files: list, words: str) -> None:
    message = refusal(lay(tmp_path, *files))
    assert words in message and str(tmp_path) in message, message


def test_a_test_split_without_labels_is_named(tmp_path: Path) -> None:
    lay(tmp_path, "train.csv")
    (tmp_path / "test.csv").write_text("text\nc\n")
    assert "test.csv has one column" in refusal(tmp_path)
    (tmp_path / "test.csv").write_text("id,text\n0,c\n")
    message = refusal(tmp_path)
    assert "no column 'label'; the data has ['id', 'text'] (test.csv)" in message
    assert message.endswith("a split without labels is no test split: move it away")


@pytest.mark.parametrize(
    ("dataset", "names", "chosen"),
    [
        ("sst2", ("dev", "test"), "dev"),
        ("sst2", ("dev", "validation"), "validation"),
        ("mnli", ("dev_matched", "dev_mismatched", "test_matched"), "dev_matched"),
        ("", ("dev",), "dev"),
        ("", ("dev", "validation", "test"), "test"),
    ],
)
def test_glues_own_dev_is_a_split(tmp_path: Path, dataset: str, names: tuple, chosen: str) -> None:
    """GLUE's own test files have no labels."""
    columns = ("premise", "hypothesis") if dataset == "mnli" else ("sentence",)
    lines = {split: "\t".join([*columns, "label"]) + "\n" for split in ("train", *names)}
    for row, split in enumerate(lines):
        own = "\t".join(str(row) for _ in columns)
        text = lines[split] + f"{own}\t0\n{own}\t1\n"
        (tmp_path / f"{split}.tsv").write_text("index\n0\n" if split.startswith("test_") else text)
    test = {"sst2": "validation", "mnli": "validation_matched"}.get(dataset, "test")
    _, found = folders.split_paths(tmp_path, test)
    assert found == [tmp_path / f"{chosen}.tsv"]
    if dataset:
        resolve_data(dataset, "bert", Data(path=str(tmp_path)))


# Images

TWO = ("train/ant/0.png", "train/bee/0.png", "train/bee/1.png")


def test_images_below_a_class_and_of_any_suffix_are_taken(tmp_path: Path) -> None:
    odd = ["c.jfif", "d.jpe", "e.avif", "f.tga", "g.JPG", "without"]
    lay(tmp_path, *TWO, *(f"train/ant/2020/05/{name}" for name in odd))
    for name in ("train/ant/notes.txt", "train/ant/.hidden/x.png", "train/ant/z.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("none")
    dataset = resolve(tmp_path, "clip")
    table, _ = images.read_images(dataset)
    names = [path.name for path in table["img"]]
    assert names == ["0.png", *odd, "0.png", "1.png"]
    assert table["label"].tolist() == [0] * 7 + [1] * 2
    images.check_readable(images.load_files(table), "train")
    left = [str(path.relative_to(tmp_path)) for path in folders.left_out(tmp_path / "train")]
    assert left == ["train/ant/notes.txt", "train/ant/z.heic"]


def test_a_level_too_deep_is_told(tmp_path: Path) -> None:
    lay(tmp_path, "train/train/ant/0.png", "train/train/bee/1.png")
    message = refusal(tmp_path, "clip")
    assert "one folder, train, whose images lie in folders below it (ant, bee)" in message
    assert "one level too deep; allowed: train/CLASS/IMAGE" in message


def test_a_class_of_only_unknown_files_is_named_with_them(tmp_path: Path) -> None:
    lay(tmp_path, *TWO)
    (tmp_path / "train/cow").mkdir()
    (tmp_path / "train/cow/0.heic").write_text("none")
    assert "train/cow has no images, but 0.heic; allowed: what Pillow" in refusal(tmp_path, "clip")


def test_a_test_split_may_have_one_class_with_folders_below(tmp_path: Path) -> None:
    lay(tmp_path, *TWO, "test/ant/2020/0.png")
    _, test = images.read_images(resolve(tmp_path, "clip"))
    assert test is not None and test["label"].tolist() == [0]


def test_images_of_a_table_may_lie_in_a_folder_called_as_a_split(tmp_path: Path) -> None:
    lay(tmp_path, "test/0.png", "test/1.png")
    table = pd.DataFrame({"img": ["test/0.png", "test/1.png"], "label": ["ant", "bee"]})
    table.to_parquet(tmp_path / "train.parquet")
    assert resolve(tmp_path, "clip", image="img").labels == ["ant", "bee"]


def test_a_broken_link_among_images_is_named(tmp_path: Path) -> None:
    lay(tmp_path, *TWO)
    (tmp_path / "train/ant/-1.png").symlink_to("gone.png")
    assert "train/ant/-1.png cannot be read (No such file" in refusal(tmp_path, "clip")


def test_a_folder_called_as_a_table_is_refused(tmp_path: Path) -> None:
    for suffix in ("csv", "parquet"):
        folder = tmp_path / suffix
        (folder / f"train.{suffix}").mkdir(parents=True)
        assert f"save train.{suffix} as one of these tables" in refusal(folder)


def test_a_class_that_training_never_showed_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, *TWO, "test/ant/0.png", "test/cat/0.png")
    assert "test/cat is no class; allowed: ant, bee" in refusal(tmp_path, "clip")


def test_a_test_table_beside_class_folders_is_named(tmp_path: Path) -> None:
    lay(tmp_path, *TWO, "test.csv")
    assert "test.csv is no test split; allowed: test/CLASS/IMAGE" in refusal(tmp_path, "clip")


# Links


def test_changed_images_behind_links_change_the_digest(tmp_path: Path) -> None:
    real = lay(tmp_path / "real", "ant/0.png", "bee/1.png")
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    for name in ("ant", "bee"):
        (folder / "train" / name).symlink_to(real / name)
    dataset = resolve(folder, "clip")
    assert dataset.labels == ["ant", "bee"] and dataset.digest.startswith("2 files below:")
    lay(tmp_path / "real", "ant/2.png")
    assert digest(folder).startswith("3 files below:")
    before = digest(folder)
    os.utime(real / "ant/0.png", ns=(1, 1))
    assert digest(folder) != before
    (tmp_path / "linked").symlink_to(folder)
    assert digest(tmp_path / "linked") == digest(folder)


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, *TWO)
    (tmp_path / "train/ant/again").symlink_to(tmp_path / "train")
    assert "train/ant/again: a link to a folder that it lies in" in refusal(tmp_path, "clip")


def test_compressed_tables_are_not_taken_for_plain_ones(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(gzip.compress(ROWS.encode()))
    assert "train.csv: line 1 is not UTF-8" in refusal(tmp_path)
    content = io.BytesIO()
    pd.DataFrame({"text": ["a"]}).to_parquet(content)
    (tmp_path / "train.csv").write_bytes(content.getvalue())
    assert "train.csv" in refusal(tmp_path)
