"""Data: the packaged reviews as published, fair splits, local and hub copies, encoding, batches."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from helpers import ROOT, make_table
from instant_soup.config.fields import defaults_of
from instant_soup.config.sections import Data, Recipe
from instant_soup.data import batches, folders, labels, reviews, tables, texts
from instant_soup.data.batches import Texts
from instant_soup.data.datasets import DATASETS, Dataset
from instant_soup.data.reviews import REVIEWS
from instant_soup.data.splits import cut, read_splits
from instant_soup.errors import UserError
from instant_soup.files import read_json, write_json

SOURCES = str(ROOT / "src")


# The packaged reviews (downloaded once into the user's cache)


@pytest.fixture(scope="module")
def ratings() -> pd.DataFrame:
    """The reviews with their ratings."""
    return reviews.read_reviews("regression")


def test_the_ratings_are_complete_and_in_range(ratings: pd.DataFrame) -> None:
    assert len(ratings) == 10_603  # 10,605 as published, two texts of them twice
    assert ratings["sentence"].is_unique
    assert (ratings["sentence"].str.len() > 0).all()
    assert ratings["label"].dtype == np.float64
    assert ratings["label"].between(-4, 4).all()
    assert ratings["label"].min() == -3.875 and ratings["label"].max() > 3.9
    assert int((ratings["label"] == 0).sum()) == 37


def test_the_sentiments_are_the_ratings_signs(ratings: pd.DataFrame) -> None:
    sentiments = reviews.read_reviews("classification")
    rated = ratings[ratings["label"] != 0]
    assert len(sentiments) == 10_603 - 37
    assert sentiments["sentence"].tolist() == rated["sentence"].tolist()
    assert sentiments["label"].tolist() == [int(r > 0) for r in rated["label"]]
    assert 0.45 < sentiments["label"].mean() < 0.55
    assert list(sentiments.index) == list(range(len(sentiments)))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache folder with nothing in it."""
    monkeypatch.setenv("INSTANT_SOUP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_archive_with_the_wrong_checksum_is_refused(empty_cache: Path) -> None:
    empty_cache.mkdir()
    (empty_cache / REVIEWS["archive"]).write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(UserError, match="SHA-256") as caught:
        reviews.download_reviews()
    assert str(empty_cache / REVIEWS["archive"]) in str(caught.value)
    assert "delete it" in str(caught.value)


def test_one_flipped_bit_in_the_archive_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(reviews.download_reviews().read_bytes())
    assert hashlib.sha256(content).hexdigest() == REVIEWS["sha256"]
    content[len(content) // 2] ^= 1
    (tmp_path / REVIEWS["archive"]).write_bytes(content)
    monkeypatch.setenv("INSTANT_SOUP_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="SHA-256"):
        reviews.read_reviews("classification")


def test_without_a_network_the_reviews_are_refused_and_nothing_is_left(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    with pytest.raises(UserError, match=r"could not download vaderSentiment==0\.5") as caught:
        reviews.download_reviews()
    assert "\n" not in str(caught.value)
    assert list(empty_cache.iterdir()) == []


# Splits


def planned(folder: Path, **changes: Any) -> Dataset:
    """A dataset as the plan resolves it, for a local folder."""
    known = Dataset(
        source="local",
        path=str(folder),
        text=["sentence"],
        labels=["negative", "positive"],
        test="validation",
        validation_rows=30,
        test_rows=25,
    )
    return dataclasses.replace(known, **changes)


def test_splits_are_disjoint_and_nothing_is_lost(tiny_data: Path) -> None:
    splits = read_splits(planned(tiny_data))
    assert {name: len(table) for name, table in splits.items()} == {
        "train": 170,
        "validation": 30,
        "test": 40,
    }
    both = pd.concat([splits["train"], splits["validation"]])
    given = pd.read_parquet(tiny_data / "train.parquet")
    assert sorted(both["sentence"]) == sorted(given["sentence"])
    official = pd.read_parquet(tiny_data / "validation.parquet")
    pd.testing.assert_frame_equal(splits["test"], official)


def test_without_a_test_split_one_is_cut_from_the_training_rows(tmp_path: Path) -> None:
    table = make_table(200)
    table.to_parquet(tmp_path / "train.parquet")
    splits = read_splits(planned(tmp_path))
    assert {n: len(t) for n, t in splits.items()} == {"train": 145, "validation": 30, "test": 25}
    texts = [set(t["sentence"]) for t in splits.values()]
    assert set.union(*texts) == set(table["sentence"])
    assert sum(len(t) for t in texts) == 200


def test_the_cuts_keep_text_and_label_together(tmp_path: Path) -> None:
    table = make_table(100)
    table.to_parquet(tmp_path / "train.parquet")
    label_of = dict(zip(table["sentence"], table["label"], strict=True))
    for split in read_splits(planned(tmp_path)).values():
        assert [label_of[s] for s in split["sentence"]] == split["label"].tolist()


def test_the_cuts_are_always_the_same(tmp_path: Path) -> None:
    make_table(100).to_parquet(tmp_path / "train.parquet")
    one = read_splits(planned(tmp_path))
    np.random.seed(1)
    other = read_splits(planned(tmp_path))
    for name in one:
        pd.testing.assert_frame_equal(one[name], other[name])


def test_the_cuts_are_random(tmp_path: Path) -> None:
    rest, taken = cut(pd.DataFrame({"i": range(1000)}), 200)
    assert taken["i"].is_monotonic_increasing and rest["i"].is_monotonic_increasing
    assert 400 < taken["i"].mean() < 600
    assert len(np.unique(np.diff(taken["i"]))) > 5


@pytest.mark.parametrize("rows", [2, 50, 120])
def test_test_and_validation_do_not_depend_on_train_rows(tmp_path: Path, rows: int) -> None:
    make_table(200).to_parquet(tmp_path / "train.parquet")
    whole = read_splits(planned(tmp_path))
    fewer = read_splits(planned(tmp_path, train_rows=rows))
    for name in ("validation", "test"):
        pd.testing.assert_frame_equal(whole[name], fewer[name])
    assert len(fewer["train"]) == rows
    assert set(fewer["train"]["sentence"]) < set(whole["train"]["sentence"])


def test_the_test_split_does_not_depend_on_validation_rows(tmp_path: Path) -> None:
    make_table(200).to_parquet(tmp_path / "train.parquet")
    one = read_splits(planned(tmp_path))["test"]
    other = read_splits(planned(tmp_path, validation_rows=5))["test"]
    pd.testing.assert_frame_equal(one, other)


def test_fewer_training_rows_are_among_more(tmp_path: Path) -> None:
    make_table(200).to_parquet(tmp_path / "train.parquet")
    few = read_splits(planned(tmp_path, train_rows=40))["train"]
    more = read_splits(planned(tmp_path, train_rows=80))["train"]
    assert set(few["sentence"]) < set(more["sentence"])


def test_a_small_table_gives_up_a_fifth_at_most() -> None:
    rest, taken = cut(make_table(20), 500)
    assert (len(rest), len(taken)) == (16, 4)


def test_validation_takes_its_share_at_most(tmp_path: Path) -> None:
    make_table(95).to_parquet(tmp_path / "train.parquet")
    make_table(10, seed=1).to_parquet(tmp_path / "validation.parquet")
    rows = {
        share: len(read_splits(planned(tmp_path, validation_share=share))["validation"])
        for share in (0.1, 0.2, 0.5)
    }
    assert rows == {0.1: 9, 0.2: 19, 0.5: 30}  # data.validation_rows is 30


@pytest.mark.parametrize(("preset", "share"), [("paper", 0.1), ("quick", 0.2)])
def test_the_papers_preset_takes_a_tenth(preset: str, share: float) -> None:
    assert defaults_of(Data, "bert", preset)["validation_share"] == share


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    make_table(4).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="too few rows: the validation split would be empty"):
        read_splits(planned(tmp_path))


# Local copies


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv"])
def test_parquet_csv_and_tsv_are_read_alike(tmp_path: Path, suffix: str) -> None:
    table = make_table(60)
    table.loc[0, "sentence"] = 'fine, "really" fine\tfilm'
    for name, rows in (("train", table), ("validation", table[:10])):
        if suffix == "parquet":
            rows.to_parquet(tmp_path / f"{name}.parquet")
        else:
            separator = "\t" if suffix == "tsv" else ","
            rows.to_csv(tmp_path / f"{name}.{suffix}", index=False, sep=separator)
    splits = read_splits(planned(tmp_path))
    assert splits["test"]["sentence"].tolist() == table["sentence"][:10].tolist()
    assert splits["test"]["label"].tolist() == table["label"][:10].tolist()


def test_pairs_string_labels_and_other_columns(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "idx": range(10),
            "hypothesis": [f"h{i}" for i in range(10)],
            "premise": [f"p{i}" for i in range(10)],
            "label": ["contradiction", "entailment"] * 5,
        }
    )
    table.to_csv(tmp_path / "train.csv", index=False)
    table.to_csv(tmp_path / "validation_matched.csv", index=False)
    facts = DATASETS["mnli"]
    dataset = planned(tmp_path, text=list(facts.text), labels=list(facts.labels), test=facts.test)
    test = read_splits(dataset)["test"]
    assert list(test.columns) == ["premise", "hypothesis", "label"]
    assert test["premise"].tolist() == table["premise"].tolist()
    assert test["label"].tolist() == [2, 0] * 5


def test_regression_labels_become_floats_even_from_whole_numbers(tmp_path: Path) -> None:
    table = make_table(20)
    table["label"] = range(20)
    table.to_csv(tmp_path / "train.csv", index=False)
    splits = read_splits(planned(tmp_path, kind="regression", labels=[]))
    assert all(t["label"].dtype == np.float32 for t in splits.values())
    assert sorted(pd.concat(splits.values())["label"]) == list(range(20))


def test_an_empty_text_is_an_empty_text(tmp_path: Path) -> None:
    table = make_table(20)
    table.loc[3, "sentence"] = None
    table.to_csv(tmp_path / "train.csv", index=False)
    splits = read_splits(planned(tmp_path))
    assert "" in pd.concat(splits.values())["sentence"].tolist()


@pytest.mark.parametrize(
    ("held_out", "chosen"),
    [
        (("validation_matched", "test", "validation"), "validation_matched"),
        (("test", "validation"), "test"),
        (("validation",), "validation"),
    ],
)
def test_the_datasets_own_test_split_is_taken_first(tmp_path, held_out, chosen) -> None:
    make_table(10).to_parquet(tmp_path / "train.parquet")
    for seed, name in enumerate(held_out, 1):
        make_table(5, seed).to_parquet(tmp_path / f"{name}.parquet")
    _, paths = folders.split_paths(tmp_path, "validation_matched")
    test = tables.read_files(paths or [], text=["sentence"])
    expected = make_table(5, 1 + held_out.index(chosen))
    assert test["sentence"].tolist() == expected["sentence"].tolist()


@pytest.mark.parametrize("ending", ["", "-0123456789abcdef"])
def test_a_split_in_several_files_is_read_in_order(tmp_path: Path, ending: str) -> None:
    table = make_table(30)
    for i in range(3):
        part = table[10 * i : 10 * i + 10]
        part.to_parquet(tmp_path / f"train-0000{i}-of-00003{ending}.parquet")
    paths, held_out = folders.split_paths(tmp_path, "test")
    found = tables.read_files(paths, text=["sentence"], label=["label"])
    pd.testing.assert_frame_equal(found, table)
    assert held_out is None


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00003.parquet", "train-00002-of-00003.parquet"),
        ("train-00000-of-00001.parquet", "train.parquet"),
        ("train.csv", "train.parquet"),
    ],
    ids=["one missing", "also whole", "also CSV"],
)
def test_files_that_are_not_one_split_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="for the train split; allowed: one file, or all") as caught:
        folders.split_paths(tmp_path, "test")
    assert all(name in str(caught.value) for name in names)


def test_a_folder_without_a_training_split_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "dev.csv").touch()
    with pytest.raises(UserError, match=r"has no train\.parquet, .* \(it has dev\.csv\)"):
        folders.split_paths(tmp_path, "test")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 2], "label 2 in row 2 of test .* allowed: 0 … 1"),
        ([0, None, 1], r"no label \(column label of test\) in row 1"),
        ([1, 0.5], "label 0.5 in row 1 .* allowed: 0 … 1"),
        (["yes", None], r"no label \(column label of test\) in row 1"),
    ],
    ids=["out of range", "a gap", "a fraction", "a gap among words"],
)
def test_a_label_that_is_no_class_is_named_with_its_row(values: list, message: str) -> None:
    table = pd.DataFrame({"label": values})
    with pytest.raises(UserError, match=message):
        labels.label_numbers(table, Dataset(labels=["no", "yes"]), "test")


@pytest.mark.parametrize(
    "text", [("sentence",), ("question", "sentence"), ("premise", "hypothesis")]
)
def test_text_columns_are_known_by_their_usual_names(text: tuple[str, ...]) -> None:
    table = pd.DataFrame({**{c: ["x", "y"] for c in text}, "label": [0, 1]})
    assert texts.usual_columns(list(table.columns)) == list(text)


# The hub


def run_offline(script: str, cache: Path) -> str:
    """Run a script without the hub, with Hugging Face's caches in a folder; its output."""
    environment = {**os.environ, "PYTHONPATH": SOURCES, "HF_HUB_OFFLINE": "1"}
    environment["HF_HOME"] = str(cache)
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def prepare_cache(folder: Path, splits: dict[str, pd.DataFrame]) -> None:
    """Lay GLUE's SST-2 out as `datasets` keeps a prepared dataset in its cache."""
    folder.mkdir(parents=True)
    infos = {}
    for name, rows in splits.items():
        schema = pa.schema([("sentence", pa.string()), ("label", pa.int64()), ("idx", pa.int32())])
        table = pa.Table.from_pandas(rows, schema, preserve_index=False)
        with pa.ipc.new_stream(folder / f"glue-{name}.arrow", schema) as writer:
            writer.write_table(table)
        infos[name] = {"name": name, "num_bytes": table.nbytes, "num_examples": len(rows)}
        infos[name]["dataset_name"] = "glue"
    features = {
        "sentence": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["negative", "positive"], "_type": "ClassLabel"},
        "idx": {"dtype": "int32", "_type": "Value"},
    }
    info = {"builder_name": "parquet", "dataset_name": "glue", "config_name": "sst2"}
    info |= {"features": features, "splits": infos, "version": {"version_str": "0.0.0"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_a_hub_dataset_comes_from_the_hubs_cache_or_is_refused(tmp_path: Path) -> None:
    train, held_out = make_table(50), make_table(10, seed=1)
    for table in (train, held_out):
        table["idx"] = np.arange(len(table), dtype=np.int32)
    place = tmp_path / "datasets/nyu-mll___glue/sst2/0.0.0/bcdcba79d07bc864"
    prepare_cache(place, {"train": train, "validation": held_out})
    script = f"""
import os
os.chdir({str(tmp_path)!r})
os.makedirs("nyu-mll/glue")  # stands in for nothing
open("nyu-mll/glue/train.csv", "w").write("sentence,label\\nother,0\\n")
"""
    script += """
import json
from instant_soup.data.datasets import DATASETS, Dataset
from instant_soup.data.splits import read_splits
from instant_soup.errors import UserError

def read(name):
    task = DATASETS[name]
    lists = {key: list(getattr(task, key)) for key in ("text", "labels", "hub")}
    facts = {"name": name, "source": task.source, "test": task.test, **lists}
    return read_splits(Dataset(**facts, validation_rows=10, test_rows=1))

try:
    read("cola")
    refused = None
except UserError as error:
    refused = str(error)
tables = {name: table.to_dict("list") for name, table in read("sst2").items()}
print(json.dumps({"refused": refused, "tables": tables}))
"""
    answer = json.loads(run_offline(script, tmp_path).splitlines()[-1])
    tables = answer["tables"]
    assert tables["test"] == held_out[["sentence", "label"]].to_dict("list")
    both = tables["train"]["sentence"] + tables["validation"]["sentence"]
    assert sorted(both) == sorted(train["sentence"]) and len(tables["validation"]["label"]) == 10
    assert answer["refused"].startswith("dataset: nyu-mll/glue/cola cannot be loaded")
    assert "data.path" in answer["refused"] and "\n" not in answer["refused"]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub:\n [Errno 101]\n unreachable")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="is there a network") as caught:
        tables.read_hub(Dataset(hub=["nyu-mll/glue", "rte"], test="validation"))
    assert "nyu-mll/glue/rte" in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_dataset_with_another_number_of_classes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    features = datasets.Features({"label": datasets.ClassLabel(names=["a", "b", "c", "d"])})
    split = datasets.Dataset.from_dict({"label": [0, 1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: split)
    known = Dataset(hub=["some/data", ""])
    with pytest.raises(
        UserError, match=r"has 4 classes \(a, b, c, …\), but 2 are named \(x, y, …\)"
    ):
        tables.read_hub(dataclasses.replace(known, labels=["x", "y"]))
    assert tables.read_hub(dataclasses.replace(known, labels=list("wxyz")))[1][
        "label"
    ].tolist() == [0, 1]


# Encoding


@pytest.mark.parametrize("pairs", [False, True], ids=["singles", "pairs"])
@pytest.mark.parametrize("max_length", [8, 64], ids=["truncated", "whole"])
def test_encoding_is_transformers_own(tiny_bert: Path, pairs: bool, max_length: int) -> None:
    from transformers import AutoTokenizer

    first = make_table(40)["sentence"].tolist()
    second = make_table(40, seed=1)["sentence"].tolist()
    first[3], second[5] = "", ""
    texts = [list(t) for t in zip(first, second, strict=True)] if pairs else [[t] for t in first]
    split = batches.encode(tiny_bert / "tokenizer.json", texts, [0, 1] * 20, max_length, pad=0)

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    arguments = (first, second) if pairs else (first,)
    theirs = tokenizer(*arguments, truncation=True, max_length=max_length, padding=False)
    assert split.lengths.tolist() == [len(ids) for ids in theirs["input_ids"]]
    assert int(split.lengths.max()) == split.input_ids.shape[1] <= max_length
    for row, length in enumerate(split.lengths.tolist()):
        assert split.input_ids[row, :length].tolist() == theirs["input_ids"][row]
        assert split.token_type_ids[row, :length].tolist() == theirs["token_type_ids"][row]
        assert not split.input_ids[row, length:].any()
    assert split.labels.dtype == torch.int64
    assert (max_length in split.lengths.tolist()) == (max_length == 8)


@pytest.mark.parametrize("pairs", [False, True], ids=["singles", "pairs"])
def test_a_text_that_spells_the_end_token_is_refused_where_it_counts(
    tiny_bert: Path, tmp_path: Path, pairs: bool
) -> None:
    """BART and T5 classify by the last end token; for others it is read as their own loaders do."""
    from instant_soup.models.encoding import encode_texts

    base = shutil.copytree(tiny_bert, tmp_path / "base")
    text = ["sentence", "second"] if pairs else ["sentence"]
    table = make_table(8).assign(second="good")
    odd = table.copy()
    odd.loc[5, "sentence"] = "good [SEP] film"
    for kind, fails in (({}, False), ({"is_encoder_decoder": True, "eos_token_id": 3}, True)):
        config = read_json(tiny_bert / "config.json")
        write_json(base / "config.json", {**config, **kind})
        encode_texts(base, table, text, 16)
        if fails:
            with pytest.raises(
                UserError, match=r"the text 'good \[SEP\] film.* spells the model's"
            ):
                encode_texts(base, odd, text, 16)
        else:
            encode_texts(base, odd, text, 16)


def test_truncated_texts_are_counted(tiny_bert: Path) -> None:
    from instant_soup.models.encoding import count_truncated, encode_texts

    words = [" ".join(["film"] * count) for count in (1, 6, 7, 20)]
    table = pd.DataFrame({"one": words, "two": ["fine", "", "", "fine"], "label": [0, 1, 0, 1]})
    for text, tokens, expected in ((["one"], 8, 2), (["one"], 32, 0), (["one", "two"], 10, 1)):
        split = encode_texts(tiny_bert, table, text, tokens)
        assert count_truncated(tiny_bert, table, text, split, tokens) == expected


def test_padding_is_the_models_own_token(tiny_bert: Path) -> None:
    texts = [["fine"], ["fine great film"]]
    split = batches.encode(tiny_bert / "tokenizer.json", texts, [0.5, 1.0], 64, pad=4)
    assert split.input_ids[0, 3:].tolist() == [4, 4]
    assert split.labels.dtype == torch.float32


def test_an_encoded_split_comes_back_from_disk(tiny_bert: Path, tmp_path: Path) -> None:
    texts = [[t] for t in make_table(9)["sentence"]]
    split = batches.encode(tiny_bert / "tokenizer.json", texts, [0] * 9, 64, pad=0)
    batches.save_split(tmp_path / "train.safetensors", split)
    back = batches.load_split(tmp_path / "train.safetensors", torch.device("cpu"))
    for name, tensor in vars(split).items():
        assert torch.equal(tensor, vars(back)[name])
        assert tensor.dtype == vars(back)[name].dtype


@pytest.mark.parametrize("damage", ["missing", "cut", "of another kind"])
def test_damaged_encoded_data_is_refused(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "train.safetensors"
    batches.save_split(path, made_split([3, 4]))
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"train\.safetensors: cannot be read as encoded data"):
        batches.load_split(path, torch.device("cpu"))


# Batches


def made_split(lengths: list[int]) -> Texts:
    """Rows of the given lengths; row r is made of the token r + 1, padded with 0."""
    size = torch.tensor(lengths, dtype=torch.int32)
    inside = torch.arange(max(lengths)) < size[:, None]
    numbers = torch.arange(1, len(lengths) + 1, dtype=torch.int32)[:, None]
    types = (inside & (torch.arange(max(lengths)) > 1)).to(torch.uint8)
    return Texts(inside * numbers, types, size, torch.arange(len(lengths)))


def random_lengths(rows: int) -> torch.Tensor:
    """Lengths from 3 to 40."""
    return torch.randint(3, 41, (rows,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("lengths", "longest"), [([3, 5, 2], 8), ([8, 1], 8), ([9, 30], 16), ([17, 30], 24), ([30], 30)]
)
def test_a_batch_is_cut_to_its_longest_row_rounded_up_to_eight(lengths, longest) -> None:
    chosen = [i for i, n in enumerate(lengths) if n <= longest]
    split = made_split([*lengths, 30])
    batch = split.rows(torch.tensor(chosen))
    assert batch["input_ids"].shape == (len(chosen), longest)
    assert batch["attention_mask"].sum(1).tolist() == [lengths[i] for i in chosen]
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] > 0).long())
    assert batch["labels"].tolist() == chosen
    for key in ("input_ids", "token_type_ids"):
        assert batch[key].dtype == torch.int64
        assert torch.equal(batch[key], vars(split)[key][chosen, :longest].long())


def test_a_subset_is_the_chosen_rows() -> None:
    subset = made_split([3, 4, 5, 6]).subset(torch.tensor([1, 3]))
    assert len(subset) == 2
    assert subset.lengths.tolist() == [4, 6] and subset.labels.tolist() == [1, 3]
    assert subset.input_ids[:, 0].tolist() == [2, 4]


@pytest.mark.parametrize(("rows", "size"), [(1000, 32), (96, 32), (33, 32), (4000, 8)])
def test_an_epochs_batches_are_full_and_take_no_row_twice(rows: int, size: int) -> None:
    found = batches.epoch_batches(random_lengths(rows), size, 0, 0)
    assert len(found) == rows // size == batches.steps_per_epoch(rows, size)
    assert {len(b) for b in found} == {size}
    taken = torch.cat(found).tolist()
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(range(rows))


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    found = batches.epoch_batches(random_lengths(5), 32, 0, 0)
    assert batches.steps_per_epoch(5, 32) == 1
    assert [sorted(b.tolist()) for b in found] == [[0, 1, 2, 3, 4]]


def test_batches_depend_on_the_key_and_on_nothing_else() -> None:
    lengths = random_lengths(200)
    one = torch.cat(batches.epoch_batches(lengths, 16, 3, 1)).tolist()
    torch.rand(3)
    assert torch.cat(batches.epoch_batches(lengths, 16, 3, 1)).tolist() == one
    assert torch.cat(batches.epoch_batches(lengths, 16, 3, 2)).tolist() != one
    assert torch.cat(batches.epoch_batches(lengths, 16, 4, 1)).tolist() != one


def test_rows_left_out_of_one_epoch_are_in_another() -> None:
    lengths = random_lengths(40)
    left = [
        set(range(40)) - set(torch.cat(batches.epoch_batches(lengths, 32, 0, e)).tolist())
        for e in range(30)
    ]
    assert all(len(rows) == 8 for rows in left)
    assert set.intersection(*left) == set()


def test_batches_hold_rows_of_similar_length() -> None:
    lengths = random_lengths(3200)
    grouped = batches.epoch_batches(lengths, 32, 0, 0)
    plain = torch.randperm(3200, generator=torch.Generator().manual_seed(0)).split(32)
    spread = [np.mean([float(lengths[b].float().std()) for b in s]) for s in (grouped, plain)]
    assert spread[0] < 0.1 * spread[1]
    # … but do not come sorted.
    means = [float(lengths[b].float().mean()) for b in grouped]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3


@pytest.mark.parametrize("first", [0, 1, 4, 5, 6, 11])
def test_a_run_that_goes_on_sees_the_batches_of_one_that_never_stopped(first: int) -> None:
    split = made_split([3 + i % 13 for i in range(42)])  # five steps an epoch
    recipe = Recipe(batch_size=8, seed=7)
    whole = list(batches.training_batches(split, recipe, 0, 12))
    tail = list(batches.training_batches(split, recipe, first, 12))
    assert [step for step, _ in tail] == list(range(first, 12))
    for (step, a), (other_step, b) in zip(whole[first:], tail, strict=True):
        assert step == other_step
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_evaluation_sees_every_row_once_shortest_first() -> None:
    split = made_split([3 + (i * 7) % 13 for i in range(300)])
    order = torch.cat(list(batches.evaluation_batches(split)))
    assert sorted(order.tolist()) == list(range(300))
    assert split.lengths[order].diff().min() >= 0


def test_a_table_is_written_whole(tmp_path: Path) -> None:
    tables.save_table(tmp_path / "new" / "train.parquet", make_table(5))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "new/train.parquet"), make_table(5))
