"""Labels: which make classes, which a regression, and what fits neither, with its row."""

import datetime
import decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from instant_soup.config.sections import Data
from instant_soup.data import labels, texts
from instant_soup.data.datasets import Dataset
from instant_soup.data.local import resolve_data
from instant_soup.errors import UserError


def resolve(folder: Path, train: list, test: list | None = None, suffix: str = "csv", **data: Any):
    """A folder of texts with the labels given, as the plan resolves it."""
    for name, column in (("train", train), ("test", test)):
        if column is not None:
            table = pd.DataFrame({"text": [f"t{i}" for i in range(len(column))], "label": column})
            path = folder / f"{name}.{suffix}"
            table.to_parquet(path) if suffix == "parquet" else table.to_csv(path, index=False)
    return resolve_data(f"local:{folder}", "bert", Data(**data))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("column", "classes", "numbers"),
    [
        ([1, 2, 3, 10], ["1", "2", "3", "10"], [0, 1, 2, 3]),
        ([1, -1, 1, -1], ["-1", "1"], [1, 0, 1, 0]),
        ([1000, 1001], ["1000", "1001"], [0, 1]),
        (["01", "02", "10"], ["01", "02", "10"], [0, 1, 2]),
        (["10", "9"], ["9", "10"], [1, 0]),
        ([" 1 ", " 0 ", "-1"], ["-1", " 0 ", " 1 "], [2, 1, 0]),
        ([0, 1, 1], ["0", "1"], [0, 1, 1]),
        (["yes", "no", "NA"], ["NA", "no", "yes"], [2, 1, 0]),
        ([True, False], ["False", "True"], [1, 0]),
        ([2**70, 1], ["1", str(2**70)], [1, 0]),
        (["inf", "nan", "fin"], ["fin", "inf", "nan"], [1, 2, 0]),
    ],
    ids=str,
)
def test_whole_numbers_and_words_make_classes(tmp_path, suffix, column, classes, numbers) -> None:
    if suffix == "parquet" and 2**70 in column:
        column = [decimal.Decimal(one) for one in column]
    dataset = resolve(tmp_path, column, suffix=suffix)
    assert (dataset.kind, dataset.labels) == ("classification", classes)
    assert texts.read_texts(dataset)[0]["label"].tolist() == numbers


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_other_numbers_make_a_regression(tmp_path: Path, suffix: str) -> None:
    dataset = resolve(tmp_path, [0.5, 1e3, -2.0], suffix=suffix)
    assert (dataset.kind, dataset.labels, dataset.metric) == ("regression", [], "pearson")
    assert texts.read_texts(dataset)[0]["label"].tolist() == [0.5, 1000.0, -2.0]
    asked = resolve(tmp_path, [1, 2, 3], suffix=suffix, kind="regression")
    assert texts.read_texts(asked)[0]["label"].tolist() == [1.0, 2.0, 3.0]


def test_floats_that_are_whole_make_classes_when_asked(tmp_path: Path) -> None:
    assert resolve(tmp_path, [0.0, 1.0], suffix="parquet").kind == "regression"
    asked = resolve(tmp_path, [1.0, 2.0], suffix="parquet", kind="classification")
    assert asked.labels == ["1", "2"]
    assert texts.read_texts(asked)[0]["label"].tolist() == [0, 1]


def test_words_and_numbers_make_classes_when_asked(tmp_path: Path) -> None:
    dataset = resolve(tmp_path, ["0", "1", "A"], ["1"], kind="classification")
    assert dataset.labels == ["0", "1", "A"]
    assert texts.read_texts(dataset)[0]["label"].tolist() == [0, 1, 2]


FIRST, SECOND = datetime.date(2020, 1, 2), datetime.date(2020, 1, 3)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([0, 1, None], None, "no label (column label of train) in row 2"),
        ([0.0, None, 1.0], None, "no label (column label of train) in row 1"),
        (["a", None, "b"], None, "no label (column label of train) in row 1"),
        (["a", "", "b"], None, "no label (column label of train) in row 1"),
        ([0.5, 1.5, float("inf")], None, "inf"),
        ([0.5, 1.5, 1e39], None, "label 1e+39 in row 2 of train does not fit the task (regression"),
        ([[0], [0, 2]], None, "the label (column label of train) in row 0 is a list, [0]"),
        ([FIRST, SECOND], None, "the label (column label of train) in row 0 is a date"),
        ([{"a": 1}, {"a": 2}], None, "in row 0 is a dict"),
        (["a", "a"], None, "fewer than two classes (it has a)"),
        ([3, 3], None, "fewer than two classes (it has 3)"),
        (["a", "b"], ["a", "c"], "label 'c' in row 1 of test does not fit the task"),
        ([1, 2], [1, 0], "0 in row 1 of test does not fit the task"),
        (["a", "b"], ["a", None], "no label (column label of test) in row 1"),
    ],
    ids=str,
)
def test_a_label_that_cannot_be_is_refused_with_its_row(tmp_path, train, test, words) -> None:
    with pytest.raises(UserError) as caught:
        resolve(tmp_path, train, test, suffix="parquet")
    assert words in str(caught.value).replace("'0'", "0") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "asked", "words"),
    [
        (["0.5", "inf"], None, "words and numbers ('inf' in row 1 of train, '0.5' in row 0"),
        (["0", "1", "x"], None, "data.kind: classification takes each as a class"),
        (["0", "1", "x"], "regression", "'x' in row 2 of train is no finite number"),
        (["1", "0.5"], "classification", "'0.5' in row 1 of train is no whole number"),
        (["0", "", "1"], None, "no label (column label of train) in row 1"),
    ],
)
def test_labels_of_a_text_table_that_fit_no_task(tmp_path, column, asked, words) -> None:
    with pytest.raises(UserError) as caught:
        resolve(tmp_path, column, kind=asked)
    assert words in str(caught.value)


@pytest.mark.parametrize("column", [[0, 1], ["0", "1"], ["no", "yes"], [0.0, 1.0]], ids=str)
def test_a_known_tasks_labels_are_names_or_numbers(column: list) -> None:
    known = Dataset(labels=["no", "yes"])
    found = labels.label_numbers(pd.DataFrame({"label": column}), known, "train")
    assert found.tolist() == [0, 1] and found.dtype == "int64"


def test_numbers_of_images_are_class_numbers_whatever_the_names() -> None:
    known = Dataset(image="img", labels=["5", "1", "0"])
    for column, expected in (([0, 1, 2], [0, 1, 2]), (["0", "1", "5"], [2, 1, 0])):
        found = labels.label_numbers(pd.DataFrame({"label": column}), known, "train")
        assert found.tolist() == expected


def test_many_classes_are_quick() -> None:
    column = [f"class {row}" for row in range(50_000)]
    kind, names = labels.guess(pd.Series(column), "label")
    assert kind == "classification" and len(names) == 50_000
    found = labels.label_numbers(pd.DataFrame({"label": column}), Dataset(labels=names), "train")
    assert sorted(found) == list(range(50_000))
