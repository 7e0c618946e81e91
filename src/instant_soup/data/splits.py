"""Train, validation and test rows of a dataset, cut the same way every time.

Whatever the source (packaged, hub, local), a split is a table with the task's text columns
(texts.py), or `img` (images.py), and `label`: a class number or a float; plain text (plain.py) has
no label. The test split is the official one where there is one; validation is always cut from
training rows. The cuts depend on the data alone, never on the run's seed.
"""

from typing import TYPE_CHECKING

import numpy as np

from instant_soup.data import images, plain
from instant_soup.data.datasets import Dataset
from instant_soup.data.texts import read_texts
from instant_soup.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SPLIT_SEED = 20230610


FIFTH = 0.2  # the most that a test split takes


def cut(
    table: "pd.DataFrame", rows: int, share: float = FIFTH
) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Split a table at random, but always the same way: the rest, and at most `rows` rows.

    Small tables give up `share` of their rows at most.
    """
    # Rounded, as 0.29 · 100 is 28.999999999999996 in floats.
    rows = min(rows, int(round(share * len(table), 6)))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(table))
    rest, taken = np.sort(order[rows:]), np.sort(order[:rows])
    return table.iloc[rest].reset_index(drop=True), table.iloc[taken].reset_index(drop=True)


def read_train_and_test(
    dataset: Dataset, labels_only: bool = False
) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Rows to train on, and the test split: the official one, or one cut from all rows.

    Images in files of their own stay there; with `labels_only` (for images) those in tables too.
    """
    if dataset.image:
        train, test = images.read_images(dataset, labels_only)
    elif dataset.kind == "language":
        train, test = plain.read_plain(dataset)
    else:
        train, test = read_texts(dataset)
    if test is None:
        train, test = cut(train, dataset.test_rows)
    return train, test


def cut_splits(dataset: Dataset, labels_only: bool = False) -> dict[str, "pd.DataFrame"]:
    """Train, validation and test tables of a dataset, as `read_train_and_test` reads them."""
    train, test = read_train_and_test(dataset, labels_only)
    train, validation = cut(train, dataset.validation_rows, dataset.validation_share)
    if isinstance(dataset.train_rows, int):
        order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
        train = train.iloc[np.sort(order[: dataset.train_rows])].reset_index(drop=True)
    splits = {"train": train, "validation": validation, "test": test}
    empty = [name for name, table in splits.items() if not len(table)]
    if empty:
        rows = "rows (paragraphs: blank lines end them)" if dataset.kind == "language" else "rows"
        raise UserError(f"dataset: too few {rows}: the {empty[0]} split would be empty")
    return splits


def read_splits(dataset: Dataset) -> dict[str, "pd.DataFrame"]:
    """Train, validation and test tables of a dataset, all images read and checked."""
    splits = cut_splits(dataset)
    if dataset.image:
        splits = {name: images.load_files(table) for name, table in splits.items()}
        for name, table in splits.items():
            images.check_readable(table, name)
    return splits
