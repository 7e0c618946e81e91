"""Image datasets: where their images are, one layout for all of them, and decoding.

A prepared image is an encoded file (PNG, JPEG, …) as bytes: unchanged, small and exact. Every image
is decoded once for all training stages, at the size of the model.
"""

import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from instant_soup.data import folders, labels, tables
from instant_soup.data.datasets import Dataset
from instant_soup.data.mnist import read_mnist_sample
from instant_soup.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import torch

IMAGE, LABEL = "img", "label"  # columns of the images that lie in class folders
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's, of 8 bits and less


# Local folders


def folder_table(folder: Path, dataset: Dataset) -> "pd.DataFrame":
    """Image files and class numbers of a split that has a folder for each class.

    The folders have the classes' names or, all of them, the classes' numbers.
    """
    import pandas as pd

    labels, files = dataset.labels, folders.class_folders(folder)
    numbers = {name: number for number, name in enumerate(labels)}
    if not files.keys() <= numbers.keys() and all(name.isdecimal() for name in files):
        numbers = {name: int(name) for name in files if int(name) < len(labels)}
    for name in files:
        if name not in numbers:
            raise UserError(
                f"dataset: folder {folder / name} is no class; allowed: {folders.some(labels)}, or "
                f"for all folders numbers, 0 … {len(labels) - 1}"
            )
        if not files[name]:
            inside = folders.some([path.name for path in folders.shown_files(folder / name)], 3)
            raise UserError(
                f"dataset: folder {folder / name} has no images, but {inside or 'no files'}; "
                "allowed: what Pillow opens (PNG, JPEG, …)"
            )
    rows = [(path, numbers[name]) for name, paths in files.items() for path in paths]
    return pd.DataFrame(rows, columns=[dataset.image, dataset.label])


def known_classes(schema: Any, label: str, path: Path) -> list[str]:
    """The class names that the Hugging Face hub wrote into a parquet file; none elsewhere."""
    try:
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = written.get("info", {}).get("features", {}).get(label)
    except (ValueError, AttributeError):
        raise UserError(
            f"data.path: {path}: the hub's notes on its columns are damaged; write the file anew"
        ) from None
    return feature.get("names", []) if isinstance(feature, dict) else []


def guess_classes(paths: list[Path], label: str) -> list[str]:
    """Class names from the labels alone: the distinct texts.

    Raises:
        UserError: If the labels are numbers.
    """
    found = labels.read_labels(tables.read_files(paths, label=[label]), label, "train")
    if found.dtype.kind == "f":
        raise UserError(
            f"data.label: column {label!r} holds floats; allowed: class numbers or names"
        )
    if found.dtype.kind in "iu":
        raise UserError(
            f"data.prompts: column {label!r} holds numbers, and nothing names their classes: put "
            "the names, from that of 0 on, into a file with classes and templates"
        )
    return labels.guess(found, label, "classification")[1]


def describe_local(
    folder: Path,
    test: str,
    image: str | None = None,
    label: str | None = None,
    classes: list[str] | None = None,
) -> Dataset | None:
    """What a local folder of images holds; no image is read, and labels only if need be.

    Args:
        folder: The local folder.
        test: Name of the test split.
        image: The image column that the user names.
        label: The label column that the user names.
        classes: The class names that the user gives.

    Returns:
        Image column, label column and class names, which are those of the training split; None if
        the folder has no images.

    Raises:
        UserError: If it lacks a column that the user names, or does not say what it holds.
    """
    train, _ = folders.split_paths(folder, test)
    if train[0].is_dir():
        for key, named, own in (("image", image, IMAGE), ("label", label, LABEL)):
            if named and named != own:  # as which an exported folder knows them
                raise UserError(f"data.{key}: {named}: class folders have no columns; name none")
        found = sorted(folders.class_folders(train[0]))
        return Dataset(image=IMAGE, label=LABEL, labels=classes or found)
    label = label or LABEL
    if train[0].suffix != ".parquet":
        return None
    schema = tables.read_schema(train[0])
    columns = tables.image_columns(schema)
    if image is None and not columns:
        return None
    if image is None and len(columns) > 1:
        raise UserError(f"data.image: name the image column; the data has {', '.join(columns)}")
    image = image or columns[0]
    tables.check_columns(schema.names, [image], "image", train[0].name)
    tables.check_columns(schema.names, [label], "label", train[0].name)
    names = classes or known_classes(schema, label, train[0]) or guess_classes(train, label)
    return Dataset(image=image, label=label, labels=names)


def first_image(path: Path, column: str) -> Any:
    """The image cell in row 0 of a parquet file, without reading the others."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return next(file.iter_batches(1, columns=[column])).column(0)[0].as_py()


def check_local(folder: Path, dataset: Dataset) -> None:
    """Check that a local folder has the columns and labels of the dataset.

    Only the first image of each file or folder is read.

    Raises:
        UserError: If it has not.
    """
    train, held_out = folders.split_paths(folder, dataset.test)
    for split, paths in (("train", train), ("test", held_out or [])):
        for path in paths:
            rows_of = split if len(paths) == 1 else path.name
            if path.is_dir():
                table = folder_table(path, dataset)
                if not len(table):
                    raise UserError(f"data.path: {path} has no rows, or no CLASS/IMAGE")
                cell = table[dataset.image][0]
            else:
                schema = tables.read_schema(path)
                tables.check_columns(schema.names, [dataset.image], "image", path.name)
                if names := known_classes(schema, dataset.label, path):
                    tables.check_class_names(names, dataset.labels)
                table = tables.read_files([path], label=[dataset.label])
                cell = first_image(path, dataset.image)
            labels.label_numbers(table, dataset, rows_of)
            image_file = encoded(cell, path.parent, f"row 0 of {rows_of}")
            to_rgb(load(image_file), origin(image_file, 0, rows_of))


# Tables


def encoded(cell: Any, folder: Path, where: str) -> bytes | Path:
    """An image's encoded bytes, or the file that holds them (relative to `folder`).

    `cell` is one of these or, in the Hugging Face hub's form, {bytes, path} with one of them.
    """
    value = cell
    if isinstance(cell, dict):
        value = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if isinstance(value, str) and value:
        return folder / value
    if not isinstance(value, bytes | Path):
        shown = repr(cell)[:60]
        raise UserError(
            f"dataset: image in {where} is {shown}; allowed: the bytes of an image file, "
            "its path, or {bytes, path}"
        )
    return value


def origin(image: bytes | Path, row: int, split: str) -> str:
    """What to call an image in an error: its row among those that came, and its file."""
    return f"row {row} of {split}" + (f" ({image})" if isinstance(image, Path) else "")


def load(image: bytes | Path) -> bytes:
    """An image's encoded bytes."""
    if isinstance(image, bytes):
        return image
    try:
        return image.read_bytes()
    except OSError as error:
        raise UserError(f"dataset: image {image} cannot be read ({error.strerror})") from None


def load_files(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with all images as bytes."""
    return table.assign(img=[load(image) for image in table["img"]])


def normalise(table: "pd.DataFrame", dataset: Dataset, folder: Path, split: str) -> "pd.DataFrame":
    """Bring a split into one layout.

    Labels are checked, the images are not (see `check_readable`). Without images the labels are
    all.

    Returns:
        `img`, the encoded bytes or the path of a file, `label`, the class number, and `origin`.
    """
    import pandas as pd

    numbers = labels.label_numbers(table, dataset, split).to_numpy()
    if dataset.image not in table.columns:
        return pd.DataFrame({"label": numbers})
    cells = enumerate(table[dataset.image])
    images = [encoded(cell, folder, f"row {row} of {split}") for row, cell in cells]
    origins = [origin(image, row, split) for row, image in enumerate(images)]
    return pd.DataFrame({"img": images, "label": numbers, "origin": origins})


def read_images(
    dataset: Dataset, labels_only: bool = False
) -> tuple["pd.DataFrame", "pd.DataFrame | None"]:
    """Training and test rows of an image dataset.

    Args:
        dataset: The dataset.
        labels_only: Whether to leave images in tables where they are. Images in files of their own
            stay there in any case (see `load_files`), as not all rows may be needed.

    Returns:
        Training rows and test rows; None for a test split that has to be cut.
    """
    if dataset.source == "packaged":
        table = read_mnist_sample()
        return table.assign(origin=[f"row {row} of the digits" for row in range(len(table))]), None
    folder, test = Path(dataset.path), None
    wanted = {} if labels_only else {"image": [dataset.image]}

    def read(paths: list[Path]) -> "pd.DataFrame":
        if paths[0].is_dir():
            return folder_table(paths[0], dataset)
        return tables.read_files(paths, **wanted, label=[dataset.label])

    if dataset.source == "hub":
        train, test = tables.read_hub(dataset)
    else:
        train_paths, test_paths = folders.split_paths(folder, dataset.test)
        train = read(train_paths)
        if test_paths:
            test = read(test_paths)
    train = normalise(train, dataset, folder, "train")
    return train, None if test is None else normalise(test, dataset, folder, "test")


# Decoding


def to_rgb(content: bytes, where: str) -> Image.Image:
    """Decode an image to RGB, on white if it is transparent, turned as its EXIF orientation says.

    Raises:
        UserError: If it cannot be decoded; it names the row.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "damaged, or of no known format" if unknown else " ".join(str(error).split())
        raise UserError(f"dataset: image in {where} cannot be read ({reason})") from None
    if image.mode not in MODES:
        raise UserError(
            f"dataset: image in {where} has the mode {image.mode}; allowed: {', '.join(MODES)}"
        )
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def check_readable(table: "pd.DataFrame", split: str) -> None:
    """Check that all images (bytes, see `load_files`) can be decoded.

    Raises:
        UserError: If one cannot; it names the image's origin.
    """
    _for_each(table["img"], table["origin"], f"checking {split}", lambda row, image, where: None)


def _for_each(
    images: Iterable[bytes],
    origins: Iterable[str],
    label: str,
    use: Callable[[int, Image.Image, str], None],
) -> None:
    """Decode images in threads (Pillow lets others run while it works), and use each."""
    rows = list(zip(images, origins, strict=True))
    interval = 0.2 if sys.stderr.isatty() else 30.0

    def one(row: int) -> None:
        content, where = rows[row]
        use(row, to_rgb(content, where), where)

    with ThreadPoolExecutor() as pool:
        done = pool.map(one, range(len(rows)))
        for _ in tqdm(done, label, total=len(rows), unit="image", mininterval=interval):
            pass


def fit(image: Image.Image, side: int, where: str) -> Image.Image:
    """Resize an image to `side` pixels at its shorter side, and cut the square in its middle.

    This is how open_clip prepares images: bicubic, with the rounding of torchvision.
    """
    short = min(image.size)
    width, height = (int(side * length / short) for length in image.size)
    if width * height > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise UserError(
            f"dataset: image in {where} is too long and narrow ({image.width} × {image.height} "
            f"pixels); allowed: at most {Image.MAX_IMAGE_PIXELS:,} pixels at shorter side {side}"
        )
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))


def decode(
    images: Sequence[bytes], side: int, origins: Iterable[str], label: str
) -> "torch.Tensor":
    """Decode images into one tensor.

    Args:
        images: Encoded images.
        side: Side of the result, in pixels.
        origins: What an error calls each image.
        label: What the progress bar calls them.

    Returns:
        uint8, rows × 3 × side × side, in the order given.

    Raises:
        UserError: If one cannot be read; it names its origin.
    """
    import torch

    pixels = np.empty((len(images), 3, side, side), dtype=np.uint8)

    def put(row: int, image: Image.Image, where: str) -> None:
        pixels[row] = np.asarray(fit(image, side, where)).transpose(2, 0, 1)

    _for_each(images, origins, label, put)
    return torch.from_numpy(pixels)
