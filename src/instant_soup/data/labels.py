"""Labels: what a column of them holds, the classes that it names, and their numbers.

A label is what the file says: a text in its own spelling, or a number. Whole numbers and texts make
classes, other numbers a regression.
"""

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from instant_soup.data.datasets import Dataset
from instant_soup.data.folders import some
from instant_soup.data.tables import first, spelt
from instant_soup.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

WHOLE = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def is_whole(text: str) -> bool:
    """Whether a text spells a whole number."""
    return WHOLE.fullmatch(text.strip()) is not None


def number(cell: Any) -> float:
    """A number, or the one that a text spells; nan where it spells none."""
    if isinstance(cell, str):
        return float(cell) if NUMBER.fullmatch(cell.strip()) else math.nan
    return float(cell)


def name(cell: Any) -> str:
    """What a class is called whose label this is: a text itself, 1.0 as 1."""
    return cell if isinstance(cell, str) else f"{int(cell)}" if cell == cell // 1 else f"{cell}"


def read_labels(table: "pd.DataFrame", label: str, split: str) -> "pd.Series":
    """Read the label column: texts, or numbers (true and false as these words).

    Raises:
        UserError: If there is no such column, or a row has neither a text nor a number.
    """
    values, where = table[label], f"label (column {label} of {split})"
    if values.dtype.kind == "b":
        values = values.map({True: "True", False: "False"})
    if values.dtype.kind not in "iuf" or values.isna().any():
        values = spelt(values, where)
    if (row := first(values == "")) is not None:
        raise UserError(f"dataset: no {where} in row {row}; allowed: one in each row")
    return values


def guess(values: "pd.Series", label: str, asked: str | None = None) -> tuple[str, list[str]]:
    """Tell the kind of task and the class names from the training split's labels.

    Args:
        values: The labels, as `read_labels` returns them.
        label: The column's name.
        asked: The kind that the user asks for.

    Returns:
        Kind, and class names.

    Raises:
        UserError: If the labels do not fit the kind, or are words as well as numbers and no kind is
            asked for.
    """
    found = values.unique().tolist()
    numbers = np.array([number(cell) for cell in found])
    real, names = np.isfinite(numbers), {name(cell) for cell in found}
    whole = all(map(is_whole, names))

    def shown(wanted: np.ndarray) -> str:
        cell = found[first(wanted) or 0]
        return f"{cell!r} in row {first(values == cell)} of train"

    def refuse(bad: np.ndarray, reason: str) -> None:
        if bad.any():
            raise UserError(
                f"params.yaml: data.kind: {asked} does not fit the labels in column {label}: "
                f"{shown(bad)} is {reason}"
            )

    numeric = values.dtype.kind == "f" or (real.all() and not whole)
    if asked == "regression" or (asked is None and numeric):
        asked = "regression"
        refuse(~real, "no finite number")
        return asked, []
    if asked is None and real.any() and not real.all():
        raise UserError(
            f"data.label: the labels in column {label} are words and numbers ({shown(~real)}, "
            f"{shown(real)}); allowed: words, whole numbers, or finite numbers; data.kind: "
            "classification takes each as a class"
        )
    if real.all():
        refuse(numbers != np.round(numbers), "no whole number")
    order = sorted(names, key=lambda one: (int(one), one)) if whole else sorted(names)
    return "classification", order


def class_of(cell: Any, known: dict[str, int], by_name: bool) -> int:
    """The class number of a label, out of those of the classes' names; −1 for none."""
    text = name(cell)
    if is_whole(text) and not by_name:
        return int(text) if 0 <= int(text) < len(known) else -1
    return known.get(text, -1)


def label_numbers(table: "pd.DataFrame", dataset: Dataset, split: str) -> "pd.Series":
    """Turn the label column into class numbers or floats.

    A whole number is a class number, from 0 on. If numbers are the classes' names (1 … 5, −1 and
    1), it is the class of that name. For images, whole numbers are class numbers in any case.

    Raises:
        UserError: If a row does not fit; it names the first.
    """
    import pandas as pd

    values = read_labels(table, dataset.label, split)
    codes, uniques = pd.factorize(values)
    found = uniques.tolist()
    by_name = any(map(is_whole, dataset.labels))
    by_name = by_name and not (dataset.image and values.dtype.kind in "iuf")
    if dataset.kind == "regression":
        with np.errstate(over="ignore"):  # to inf, which is refused
            numbers = np.array([number(cell) for cell in found]).astype("float32")
        bad, allowed = ~np.isfinite(numbers), "finite numbers"
    else:
        known = {label: place for place, label in enumerate(dataset.labels)}
        numbers = np.array([class_of(cell, known, by_name) for cell in found], dtype="int64")
        bad, allowed = numbers < 0, some(dataset.labels)
    if (one := first(bad)) is not None:
        if dataset.labels and not by_name and number(found[one]) == number(found[one]):
            allowed = f"0 … {len(dataset.labels) - 1}"
        raise UserError(
            f"dataset: label {found[one]!r} in row {first(codes == one)} of {split} does not fit "
            f"the task ({dataset.kind}; allowed: {allowed})"
        )
    return pd.Series(numbers[codes], values.index)
