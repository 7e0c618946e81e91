"""Tables of texts: the rows are the file's, a cell is what stands there, the rest is refused."""

import datetime
import decimal
import re
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instant_soup.config.sections import Data
from instant_soup.data import tables, texts
from instant_soup.data.datasets import Dataset
from instant_soup.data.local import resolve_data
from instant_soup.errors import UserError


def write(folder: Path, name: str, *lines: str, encoding: str = "utf-8") -> Path:
    """A file of lines, as they are."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return folder / name


def resolve(folder: Path, **data: Any) -> Dataset:
    """A folder of texts as the plan resolves it."""
    return resolve_data(f"local:{folder}", "bert", Data(**data))


def read(folder: Path, **data: Any) -> pd.DataFrame:
    """The training rows of a folder of texts as the plan resolves it."""
    return texts.read_texts(resolve(folder, **data))[0]


def refusal(folder: Path, **data: Any) -> str:
    """The one line with which the plan refuses a folder of texts."""
    with pytest.raises(UserError) as caught:
        resolve(folder, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Quotes


def test_a_tsv_is_read_unquoted_as_glues_are(tmp_path: Path) -> None:
    sentences = [f"a film , no . {row}" for row in range(60)]
    sentences[10], sentences[41] = '"a film', '" he said'
    lines = [f"{sentence}\t{row % 2}" for row, sentence in enumerate(sentences)]
    for last in ('"fine" , they say', '"', 'it is "fine"', '"fine"'):
        write(tmp_path, "train.tsv", "sentence\tlabel", *lines, f"{last}\t1")
        assert read(tmp_path)["sentence"].tolist() == [*sentences, last]


@pytest.mark.parametrize("all_fields", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_quoted_table_is_read_as_quoted(tmp_path: Path, suffix: str, all_fields: bool) -> None:
    table = pd.DataFrame(
        {
            "sentence": [
                '"fine", he said',
                "a\ttab, and",
                "two\r\nlines\nor three",
                " blanks ",
                '"',
            ],
            "label": list("aabbb"),
        }
    )
    quoting = 1 if all_fields else 0
    separator = "," if suffix == "csv" else "\t"
    for rows in (table, table[:1], table[1:2], table[2:3]):
        path = tmp_path / f"t.{suffix}"
        rows.to_csv(path, index=False, sep=separator, quoting=quoting)
        found = tables.read_text_table(path)
        assert found.to_dict("list") == rows.to_dict("list")


@pytest.mark.parametrize("last", [3, 31])
def test_a_quote_that_swallows_rows_is_refused(tmp_path: Path, last: int) -> None:
    """Of an unquoted CSV: one sentence begins with a quote, a later one ends with one."""
    for swap in (False, True):
        rows = [[f"a film {row}", "10"[row % 2]] for row in range(40)]
        rows[2][0], rows[last][0] = '"' + rows[2][0], rows[last][0] + '"'
        lines = [",".join(row[::-1] if swap else row) for row in rows]
        write(tmp_path, "train.csv", "label,text" if swap else "text,label", *lines)
        message = refusal(tmp_path)
        assert f"a quote in line 4 makes one row of {last - 1} lines" in message
    write(tmp_path, "train.csv", "text,label", '"Dear you, hello', 'bye",x', "b,y", "c,x")
    assert read(tmp_path)["text"].tolist() == ["Dear you, hello\nbye", "b", "c"]


def pairs(letters: str) -> Any:
    """Rows of two texts each."""
    word = st.text(st.sampled_from(letters), min_size=1, max_size=6)
    return st.lists(st.tuples(word, word), min_size=1, max_size=4)


# Line breaks and separators together can make lines that look like rows.
@given(csv=pairs('ab"",\t 1') | pairs('ab""\t\n 1'), tsv=pairs('ab"",\t 1'))
@settings(max_examples=150, deadline=None)
def test_a_table_comes_back_as_it_was_written(csv: list, tsv: list, tmp_path_factory: Any) -> None:
    for suffix, separator, rows in (("csv", ",", csv), ("tsv", "\t", tsv)):
        path = tmp_path_factory.getbasetemp() / f"written.{suffix}"
        pd.DataFrame(rows, columns=["x", "y"]).to_csv(path, sep=separator, index=False)
        found = tables.read_text_table(path)
        assert list(found.itertuples(index=False, name=None)) == rows


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("train.csv", ["text,label", 'a,"x"', '"b,y', "c,x"], ["from line 3 on do not pair"]),
        ("train.csv", ["text,label", "a,x", '"b" c,y'], ["from line 3 on do not pair"]),
        ("train.csv", ["text,label", "a,x", "b,c,y"], ["line 3 has 3 fields, the header has 2"]),
        ("train.csv", ["text,label", "a,x", "b"], ["line 3 has 1 fields, the header has 2"]),
        ("train.tsv", ["text\tlabel", "a\tx", "b\tc\ty"], ["line 3 has 3 fields"]),
        ("train.tsv", ["text\tlabel", "a\tx", '"b\ty', 'b" c\ty\tz'], ["line 4 has 3 fields"]),
        ("train.csv", ["text;label", "a, b;x"], ["one column, 'text;label'", "commas in a .csv"]),
        ("train.tsv", ["text,label", "a,x"], ["one column, 'text,label'", "tabs in a .tsv"]),
        ("train.csv", [], ["train.csv is empty"]),
        ("train.csv", ["text,label"], ["train.csv has no rows"]),
        ("train.csv", ["text,label,label", "a,x,y"], ["several columns 'label' in train.csv"]),
    ],
)
def test_a_table_that_is_not_even_is_named_with_its_line(
    tmp_path: Path, name: str, lines: list[str], words: list[str]
) -> None:
    write(tmp_path, name, *lines)
    message = refusal(tmp_path)
    assert message.startswith("data.") and all(word in message for word in words), message


def test_a_table_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "text,label", "a,x", "café,y", encoding="latin-1")
    assert re.search(r"train\.csv: line 3 is not UTF-8; save the file", refusal(tmp_path))
    write(tmp_path, "train.csv", "text,label", "a,x", "café,y", encoding="utf-8-sig")
    assert read(tmp_path)["text"].tolist() == ["a", "café"]


def test_a_long_text_is_a_text(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "text,label", f'"{"a, " * 100_000}",x', "b,y")
    assert len(read(tmp_path)["text"][0]) == 300_000


def test_many_rows_are_read_quickly_and_the_odd_one_is_named(tmp_path: Path) -> None:
    rows = [f"a film of number {row},{row % 2}" for row in range(400_000)]
    write(tmp_path, "train.csv", "text,label", *rows, "the last,maybe")
    start = time.process_time()
    message = refusal(tmp_path)
    assert "'maybe' in row 400000 of train, '0' in row 0 of train" in message
    assert time.process_time() - start < 20


# Cells


def test_cells_of_text_tables_are_what_stands_there(tmp_path: Path) -> None:
    words = ["None", "NA", "null", "nan", "N/A", "007", "1e5", "0012", "1.50", "", " a ", "TRUE"]
    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        lines = [
            f"{word}{separator}{'NA' if row % 2 else 'none'}" for row, word in enumerate(words)
        ]
        folder = tmp_path / suffix
        write(folder, f"train.{suffix}", f"text{separator}label", *lines)
        assert resolve(folder).labels == ["NA", "none"]
        assert read(folder)["text"].tolist() == words
        assert read(folder)["label"].tolist() == [1, 0] * 6


def test_numbers_in_a_column_of_texts_have_their_own_spelling(tmp_path: Path) -> None:
    columns = {
        "whole": pd.array([7, 8], "int32"),
        "real": [1.5, 1e20],
        "exact": [decimal.Decimal("1.50"), decimal.Decimal("2.00")],
        "category": pd.Categorical(["x", "y"]),
        "bytes": ["é".encode(), b"b"],
    }
    pd.DataFrame({**columns, "label": ["a", "b"]}).to_parquet(tmp_path / "train.parquet")
    spelt = [["7", "8"], ["1.5", "1e+20"], ["1.50", "2.00"], ["x", "y"], ["é", "b"]]
    for column, expected in zip(columns, spelt, strict=True):
        assert read(tmp_path, text=[column])[column].tolist() == expected


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ([["a"], ["b", "c"]], "row 0 is a list, ['a']"),
        ([{"a": 1}, {"a": 2}], "row 0 is a dict"),
        ([True, False], "row 0 is a bool, True"),
        ([datetime.date(2020, 1, 2)] * 2, "row 0 is a date"),
        ([pd.Timestamp(2020, 1, 2)] * 2, "row 0 is a date"),
        ([b"fine", b"\xff"], "row 1 is a byte string, not UTF-8"),
        (["fine", None], "no text (column t of train) in row 1"),
        (pd.array([1, None], "Int64"), "no text (column t of train) in row 1"),
        ([1.5, float("nan")], "no text (column t of train) in row 1"),
    ],
)
def test_what_is_no_text_is_refused_with_its_row(tmp_path: Path, cell: Any, words: str) -> None:
    pd.DataFrame({"t": cell, "label": ["a", "b"]}).to_parquet(tmp_path / "train.parquet")
    assert words in refusal(tmp_path, text=["t"])


def test_texts_beside_columns_of_bytes_are_texts(tmp_path: Path) -> None:
    own = {"thumbnail": [b"\x89PNG", b""], "label": [0, 1]}
    for name, text in (("sentence", None), ("words", ["words"])):
        pd.DataFrame({name: ["a", "b"], **own}).to_parquet(tmp_path / "train.parquet")
        assert read(tmp_path, text=text)[name].tolist() == ["a", "b"]
    pd.DataFrame({"text": [b"a", b"b"], "label": [0, 1]}).to_parquet(tmp_path / "train.parquet")
    assert read(tmp_path)["text"].tolist() == ["a", "b"]
    pd.DataFrame(own).to_parquet(tmp_path / "train.parquet")
    assert "holds images, but model: bert reads texts" in refusal(tmp_path)


def test_a_text_column_may_not_be_called_as_the_labels_are_inside(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "label,verdict", "a,x", "b,y")
    assert "a text column called label" in refusal(tmp_path, text=["label"], label="verdict")


@pytest.mark.parametrize("own", [{"text": ["x", "x"]}, {"text": ["y", "x"], "label": "x"}])
def test_columns_are_distinct(tmp_path: Path, own: dict) -> None:
    write(tmp_path, "train.csv", "x,y,label", "a,b,c", "d,e,f")
    assert "allowed: distinct columns" in refusal(tmp_path, **own)


def test_parquet_texts_that_are_no_utf_8_are_refused(tmp_path: Path) -> None:
    odd = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"a"]).buffers())
    table = pa.table({"text": odd, "label": [0, 1]})
    pa.parquet.write_table(table, tmp_path / "train.parquet")
    assert "cannot be read as parquet" in refusal(tmp_path) and "UTF8" in refusal(tmp_path)


def test_columns_of_a_later_file_are_looked_for_too(tmp_path: Path) -> None:
    for number, columns in enumerate((["text", "label"], ["words", "label"])):
        table = pd.DataFrame([["a", "x"], ["b", "y"]], columns=columns)
        table.to_parquet(tmp_path / f"train-0000{number}-of-00002.parquet")
    assert "no column 'text'" in refusal(tmp_path)
    assert "(train-00001-of-00002.parquet)" in refusal(tmp_path)
