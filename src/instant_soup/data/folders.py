"""What a local folder holds: files or class folders of its splits, and what is left out.

A split is a file (train.parquet, train.csv, train.tsv), the files that the hub makes of one, or a
folder of images, train/CLASS/IMAGE.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from instant_soup.errors import UserError
from instant_soup.files import files_below

TABLES = (".parquet", ".csv", ".tsv")
# Images by their names alone; any other file is one if Pillow opens it.
IMAGES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm"),
)
# The hub's names for a split in several files: train-00000-of-00002.parquet, …
SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})(-\w+)?")
# GLUE's own names for the splits that its hub copy calls otherwise.
ALSO_CALLED = {"validation": ("val", "dev"), "validation_matched": ("dev_matched",)}
HELD_OUT = ("test", "validation", "val", "dev")

Files = list[Path]


def visible(folder: Path) -> Files:
    """What is in a folder, sorted by name, but for hidden files."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def some(names: list[str], most: int = 10) -> str:
    """Names for a message: the first ones, and how many there are beside them."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


# Tables


def table_files(folder: Path) -> dict[str, Files]:
    """Split name → its files, for the parquet, CSV and TSV files of a folder."""
    files: dict[str, Files] = {}
    for suffix in TABLES:
        for path in sorted(p for p in folder.glob(f"*{suffix}") if not p.is_dir()):
            shard = SHARD.fullmatch(path.stem)
            files.setdefault(shard[1] if shard else path.stem, []).append(path)
    return files


def is_whole(paths: Files) -> bool:
    """Whether files are a split: one file, or all that the hub makes of one."""
    shards = [shard for path in paths if (shard := SHARD.fullmatch(path.stem))]
    if not shards:
        return len(paths) == 1
    numbers = [int(shard[2]) for shard in shards]
    return numbers == list(range(int(shards[0][3]))) and len(shards) == len(paths)


def check_whole(folder: Path, found: dict[str, Files], splits: Iterable[str]) -> None:
    """UserError when the files of a split are not one, nor all that the hub makes of one."""
    for split in splits:
        if not is_whole(found[split]):
            raise UserError(
                f"data.path: {folder} has {', '.join(p.name for p in found[split])} for the {split}"
                f" split; allowed: one file, or all of {split}-00000-of-0000N.parquet …"
            )


# Class folders


def is_image(path: Path) -> bool:
    """Whether a file is an image: by its suffix, else by what Pillow says of its beginning."""
    if path.suffix.lower() in IMAGES:
        return True
    try:
        with Image.open(path):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # Pillow's plugins raise a dozen kinds for what is none
        return False


def shown_files(folder: Path) -> Files:
    """The files of a folder and of those below it, but for hidden ones."""
    return [
        path
        for path in files_below(folder)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def class_folders(folder: Path) -> dict[str, Files]:
    """Folder name → image files in it and below, for a split that has a folder for each class."""
    return {
        entry.name: [path for path in shown_files(entry) if is_image(path)]
        for entry in visible(folder)
        if entry.is_dir()
    }


def has_classes(folder: Path) -> bool:
    """Whether a training split's folder has folders of images.

    Raises:
        UserError: If these are a level too deep, so that one folder would be the only class.
    """
    classes = class_folders(folder)
    for name, images in classes.items():
        below = sorted({path.relative_to(folder / name).parts[0] for path in images})
        if len(classes) == 1 and below and all((folder / name / part).is_dir() for part in below):
            raise UserError(
                f"data.path: {folder} has one folder, {name}, whose images lie in folders below it "
                f"({some(below)}), one level too deep; allowed: {folder.name}/CLASS/IMAGE"
            )
    return any(classes.values())


def left_out(folder: Path) -> Files:
    """The files of a split's folder, hidden ones apart, that are no image of a class."""
    taken = {path for paths in class_folders(folder).values() for path in paths}
    return [path for path in shown_files(folder) if path not in taken]


# Splits


def split_paths(folder: Path, test: str) -> tuple[Files, Files | None]:
    """Find the files, or the folder of class folders, of the training and the test split.

    Args:
        folder: The local folder.
        test: Name of the test split (for GLUE: validation).

    Returns:
        Paths of the training split, and of the test split: the one called `test`, or as GLUE itself
        calls that one (dev), else test, validation, val or dev; None if there is none of these.

    Raises:
        UserError: If a split is not one file, nor all the files that the hub makes of one.
    """
    tables = table_files(folder)
    found: dict[str, Files] = {p.name: [p] for p in visible(folder) if p.is_dir()}
    if "train" not in found or not has_classes(folder / "train"):
        found = tables
    elif "train" in tables:
        raise UserError(f"data.path: {folder} has a folder and a file named train; keep one")
    if "train" not in found:
        raise UserError(f"data.path: {folder} {_without_training(folder)}")
    names = dict.fromkeys((test, *ALSO_CALLED.get(test, ()), *HELD_OUT))
    held_out = next((name for name in names if name in found), None)
    check_whole(folder, found, ("train", *([held_out] if held_out else [])))
    # A folder beside a table may hold the images that it names.
    odd = alike(folder, *names)
    if held_out is None and odd and (odd.is_file() or found is not tables):
        like = "test.parquet, test.csv or test.tsv" if found is tables else "test/CLASS/IMAGE"
        raise UserError(
            f"data.path: {odd} is no test split; allowed: {like}, or none, and the test rows are "
            "cut from the training rows"
        )
    return found["train"], found[held_out] if held_out else None


def alike(folder: Path, *names: str) -> Path | None:
    """A file or folder that someone meant for a split called like one of `names`."""
    called = (path for path in visible(folder) if path.name.casefold().partition(".")[0] in names)
    return next(called, None)


def _without_training(folder: Path) -> str:
    """What a folder without a training split has instead, and what to do."""
    lacks = "has no train.parquet, train.csv, train.tsv or train/CLASS/IMAGE"
    inside = visible(folder)
    if odd := alike(folder, "train"):
        if odd.name == "train":
            return f"{lacks}: its folder train has no class folders with images"
        if (odd.is_file() and odd.suffix.lower() in TABLES) or (odd.is_dir() and not odd.suffix):
            return f"{lacks}: rename {odd.name} to train{odd.suffix.lower()}"
        return f"{lacks}: save {odd.name} as one of these tables (UTF-8, with a header)"
    folders = [path for path in inside if path.is_dir()]
    nested = [p.name for p in folders if "train" in table_files(p) or (p / "train").is_dir()]
    if nested:
        return f"{lacks}, but its folder {nested[0]} has: name that one"
    classes = [p.name for p in folders if any(is_image(path) for path in shown_files(p))]
    if classes:
        return f"{lacks}: move its folders of images ({some(classes)}) into a folder train"
    return f"{lacks} (it has {some([path.name for path in inside]) or 'nothing'})"
