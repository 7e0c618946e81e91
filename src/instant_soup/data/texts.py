"""Text datasets: one layout for all of them, and what the columns of an unknown table are."""

from pathlib import Path
from typing import TYPE_CHECKING

from instant_soup.data import folders, labels, tables
from instant_soup.data.datasets import Dataset
from instant_soup.data.reviews import read_reviews
from instant_soup.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMNS = (
    ("sentence",),
    ("text",),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
)


def usual_columns(columns: list[str]) -> list[str]:
    """The text columns among those of a table, by their usual names; none where none is there."""
    known = [list(usual) for usual in TEXT_COLUMNS if set(usual) <= set(columns)]
    return max(known, key=len, default=[])


def describe_local(
    folder: Path,
    test: str,
    text: list[str] | None = None,
    label: str | None = None,
    kind: str | None = None,
    classes: list[str] | None = None,
) -> Dataset | None:
    """What a local folder of texts holds. What the user does not say is guessed.

    Args:
        folder: The local folder.
        test: Name of the test split.
        text: The text columns that the user names.
        label: The label column that the user names.
        kind: The kind of task that the user asks for.
        classes: The class names that the user gives.

    Returns:
        Text columns, kind and class names; None if the folder has images instead.
    """
    train, _ = folders.split_paths(folder, test)
    if train[0].is_dir():
        return None
    columns = tables.column_names(train[0])
    text, label = text or usual_columns(columns), label or "label"
    if not text:
        if train[0].suffix == ".parquet" and tables.image_columns(tables.read_schema(train[0])):
            return None
        raise UserError(
            f"data.text: name the text column(s); the data has {columns} ({train[0].name})"
        )
    tables.check_columns(columns, text, "text", train[0].name)
    if len({*text, label}) <= len(text):
        raise UserError(f"data.text: {text} beside data.label: {label}; allowed: distinct columns")
    if "label" in text:
        raise UserError("data.text: a text column called label; allowed: another name")
    found = labels.read_labels(tables.read_files(train, label=[label]), label, "train")
    kind, names = labels.guess(found, label, kind)
    return Dataset(
        text=text, kind=kind, labels=(classes or names) if kind != "regression" else [], label=label
    )


def normalise(table: "pd.DataFrame", dataset: Dataset, split: str) -> "pd.DataFrame":
    """The task's text columns and `label` as class numbers or floats; checked."""
    import pandas as pd

    columns = {c: tables.spelt(table[c], f"text (column {c} of {split})") for c in dataset.text}
    numbers = labels.label_numbers(table, dataset, split)
    return pd.DataFrame({**columns, "label": numbers}).reset_index(drop=True)


def read_texts(dataset: Dataset) -> tuple["pd.DataFrame", "pd.DataFrame | None"]:
    """Training and test rows of a text dataset; None for a test split that has to be cut."""
    test = None
    if dataset.source == "packaged":
        train = read_reviews(dataset.kind)
    elif dataset.source == "hub":
        train, test = tables.read_hub(dataset)
    else:
        wanted = {"text": dataset.text, "label": [dataset.label]}
        train_paths, test_paths = folders.split_paths(Path(dataset.path), dataset.test)
        train = tables.read_files(train_paths, **wanted)
        test = tables.read_files(test_paths, **wanted) if test_paths else None
    train = normalise(train, dataset, "train")
    return train, None if test is None else normalise(test, dataset, "test")
