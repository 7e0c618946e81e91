"""What is in a dataset, in a few lines for people: task, classes, rows, and what looks odd.

`plan` prints it for local data before anything is trained, `prepare_data` for all data.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from instant_soup.data import folders, plain
from instant_soup.data.datasets import Dataset
from instant_soup.data.splits import FIFTH

if TYPE_CHECKING:
    import pandas as pd

MANY = 10  # classes, from which on it is odd that most have a single row


def described(dataset: Dataset) -> str:
    """What is known of a dataset without its rows: the kind of task, and the columns."""
    held = f"texts in {', '.join(dataset.text)}" if dataset.text else f"images in {dataset.image}"
    if dataset.kind == "language":
        return f"{dataset.name}: plain text in {dataset.text[0]}"
    into = f" into {len(dataset.labels):,} classes" if dataset.labels else ""
    return f"{dataset.name}: {dataset.kind}{into}, {held}, labels in {dataset.label}"


def overview(dataset: Dataset, splits: dict[str, "pd.DataFrame"]) -> list[str]:
    """The lines; those of warnings begin so. `splits`: train, validation and test (splits.py)."""
    found = [described(dataset)]
    if dataset.kind == "language":
        found.append(_characters(dataset, splits))
    elif dataset.kind == "regression":
        labels = splits["train"]["label"]
        found.append(f"labels: {labels.min():g} … {labels.max():g}")
        if labels.nunique() == 1:
            found.append("warning: all training rows have the same label")
    else:
        counts = np.bincount(splits["train"]["label"], minlength=len(dataset.labels)).tolist()
        named = [f"{name} ({rows:,})" for name, rows in zip(dataset.labels, counts, strict=True)]
        found.append(f"classes, with their training rows: {folders.some(named)}")
    found += _rows(dataset, splits)
    if dataset.source == "local":
        found += _left_out(dataset)
    if dataset.text:
        found += _empty(dataset, splits)
    found += _shared(dataset, splits)
    if dataset.kind == "classification":
        found += _odd_classes(dataset, counts)
    return found


def _characters(dataset: Dataset, splits: dict[str, "pd.DataFrame"]) -> str:
    """How much plain text each split has."""
    (column,) = dataset.text
    counts = {name: table[column].str.len().sum() for name, table in splits.items()}
    return f"characters: {', '.join(f'{name} {count:,}' for name, count in counts.items())}"


def _paths(dataset: Dataset) -> tuple[list[Path], list[Path] | None]:
    if dataset.kind == "language":
        return plain.split_files(Path(dataset.path), dataset.test)
    return folders.split_paths(Path(dataset.path), dataset.test)


def _rows(dataset: Dataset, splits: dict[str, "pd.DataFrame"]) -> list[str]:
    """Rows of each split, and the numbers asked for that could not be had."""
    cut = dataset.source == "packaged" or (dataset.source == "local" and not _paths(dataset)[1])
    rows = {name: len(table) for name, table in splits.items()}
    was_cut = {"validation": True, "test": cut}
    shown = [
        f"{name} {count:,}{' (cut from the training rows)' if was_cut.get(name) else ''}"
        for name, count in rows.items()
    ]
    asked = {"train": dataset.train_rows, "validation": dataset.validation_rows}
    asked |= {"test": dataset.test_rows} if cut else {}
    most = {"validation": dataset.validation_share, "test": FIFTH}
    return [f"rows: {', '.join(shown)}"] + [
        f"data.{name}_rows: {number:,} asked for, {rows[name]:,} taken"
        + ("" if name == "train" else f", {100 * most[name]:g} % of the rows that there are")
        for name, number in asked.items()
        if isinstance(number, int) and number > rows[name]
    ]


def _left_out(dataset: Dataset) -> list[str]:
    """Files in a local folder that are not read, and those whose names are of no split."""
    train, test = _paths(dataset)
    used = [*train, *(test or [])]
    found = [path.name for path in folders.visible(Path(dataset.path)) if path not in used]
    for path in used:
        if path.is_dir():
            found += [str(file.relative_to(path.parent)) for file in folders.left_out(path)]
    lines = _unsplit(train) if dataset.kind == "language" else []
    return [*lines, f"not read: {folders.some(found)}"] if found else lines


def _unsplit(train: list[Path]) -> list[str]:
    """That all files of plain text are for training; a warning if one is called like a test."""
    names = {path.stem.partition("-")[0].casefold() for path in train}
    if "train" in names:
        return []
    odd = "warning: " if names & {*folders.HELD_OUT} else ""
    read = folders.some([path.name for path in train])
    return [f"{odd}no file is called train, so all are for training: {read}"]


def _empty(dataset: Dataset, splits: dict[str, "pd.DataFrame"]) -> list[str]:
    """How many rows of each split have an empty text, and columns of nothing else."""
    blank = {
        name: table[dataset.text].map(str.isspace) | table[dataset.text].eq("")
        for name, table in splits.items()
    }
    counts = {name: int(rows.any(axis=1).sum()) for name, rows in blank.items()}
    found = [f"{name} {count:,}" for name, count in counts.items() if count]
    return [f"rows with an empty text: {', '.join(found)}"] * bool(found) + [
        f"warning: all texts in column {column} of {name} are empty"
        for name, rows in blank.items()
        for column in dataset.text
        if rows[column].all()
    ]


def _shared(dataset: Dataset, splits: dict[str, "pd.DataFrame"]) -> list[str]:
    """How many test rows have the texts, or the image, of a training row."""
    columns = dataset.text or ["img"]
    train, test = splits["train"], splits["test"]
    if columns[0] not in train or isinstance(train[columns[0]][0], Path):
        return []  # images that nobody has read yet
    known = {*zip(*(train[column] for column in columns), strict=True)}
    rows = sum(row in known for row in zip(*(test[column] for column in columns), strict=True))
    what = "texts" if dataset.text else "image"
    return [f"test rows with the {what} of a training row: {rows:,} of {len(test):,}"]


def _odd_classes(dataset: Dataset, counts: list[int]) -> list[str]:
    """Warnings of classes that may be a mistake."""
    names, found = dataset.labels, []
    plain = [" ".join(name.split()).casefold() for name in names]
    often = {name for name, times in Counter(plain).items() if times > 1}
    alike = [repr(name) for name, bare in zip(names, plain, strict=True) if bare in often]
    if alike:
        found.append(f"warning: classes that differ only in case or blanks: {folders.some(alike)}")
    none = [name for name, rows in zip(names, counts, strict=True) if not rows]
    few = sum(rows < 2 for rows in counts)
    if few >= max(MANY, len(names) / 2):
        found.append(
            f"warning: {few:,} of {len(names):,} classes have one training row at most (is "
            f"{dataset.label} the column of labels?)"
        )
    elif none:
        found.append(f"warning: no training rows of the classes {folders.some(none)}")
    return found
