"""Text datasets: one layout for all of them, and what the columns of an unknown table are."""

from pathlib import Path
from typing import TYPE_CHECKING

from instant_soup.data.datasets import Dataset
from instant_soup.data.reviews import read_reviews
from instant_soup.data.tables import label_numbers, read_hub, read_local
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


def guess_task(table: "pd.DataFrame", text: list[str] | None, label: str) -> Dataset:
    """Text columns, kind and class names of an unknown table, from its columns and types."""
    columns = list(table.columns)
    if text is None:
        known = [t for t in TEXT_COLUMNS if set(t) <= set(columns)]
        if not known:
            raise UserError(f"data.text: name the text column(s); the data has {columns}")
        text = list(max(known, key=len))
    missing = [c for c in [*text, label] if c not in columns]
    if missing:
        raise UserError(f"data.text/data.label: no column {missing[0]!r}; the data has {columns}")
    values = table[label]
    if values.dtype.kind == "f":
        return Dataset(text=text, kind="regression", label=label)
    names = sorted(values.dropna().unique().tolist())
    return Dataset(text=text, labels=[str(n) for n in names], label=label)


def normalise(table: "pd.DataFrame", dataset: Dataset, split: str) -> "pd.DataFrame":
    """The task's text columns and `label` as class numbers or floats; checked."""
    missing = [c for c in dataset.text if c not in table.columns]
    if missing:
        raise UserError(f"data.text: no column {missing[0]!r}; the data has {list(table.columns)}")
    clean = table[dataset.text].fillna("").astype(str)
    clean["label"] = label_numbers(table, dataset, split)
    return clean.reset_index(drop=True)


def read_texts(dataset: Dataset) -> tuple["pd.DataFrame", "pd.DataFrame | None"]:
    """Training and test rows of a text dataset; None for a test split that has to be cut."""
    test = None
    if dataset.source == "packaged":
        train = read_reviews(dataset.kind)
    elif dataset.source == "hub":
        train, test = read_hub(dataset)
    else:
        train, test = read_local(Path(dataset.path), dataset.test)
    train = normalise(train, dataset, "train")
    return train, None if test is None else normalise(test, dataset, "test")
