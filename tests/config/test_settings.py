"""The plan: every mistake refused in one line that names it, and who depends on what."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from helpers import ROOT, make_table
from instant_soup.data.datasets import DATASETS
from instant_soup.errors import UserError
from instant_soup.files import read_yaml, write_yaml
from instant_soup.methods import registry
from instant_soup.pipeline.plan import ROUNDS, needy
from instant_soup.pipeline.plan import plan as plan_of
from instant_soup.pipeline.stage_files import TicketStage

PARAMS = {**read_yaml(ROOT / "params.yaml"), "methods": ["one_shot", "random"]}
IDLE = {"idle": True}
REMOVED = "this key is taken out"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of params.yaml are relative to the project: here an empty folder."""
    monkeypatch.chdir(tmp_path)


def params(**changes: Any) -> dict[str, Any]:
    """The repository's params.yaml with some keys changed ("isp__subset" is isp.subset)."""
    changed = copy.deepcopy(PARAMS)
    for key, value in changes.items():
        *sections, name = key.split("__")
        place = changed
        for section in sections:
            place = place[section]
        if value is REMOVED:
            del place[name]
        else:
            place[name] = value
    return changed


def plan(**changes: Any) -> dict[str, dict[str, Any]]:
    """The plan of the changed params.yaml."""
    return plan_of(params(**changes))


def refusal(**changes: Any) -> str:
    """The one line with which the changed params.yaml is refused."""
    with pytest.raises(UserError) as caught:
        plan(**changes)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700  # all rows by name
    return message


BAD: list[tuple[dict[str, Any], list[str]]] = [
    # names
    ({"sparcity": 0.5}, ["unknown key sparcity", "did you mean sparsity?"]),
    ({"zzz": 1}, ["unknown key zzz", "sparsity, dataset, model"]),
    ({"isp__lookahead": 5}, ["unknown key isp.lookahead", "did you mean isp.look_ahead?"]),
    ({"training__lr": 1e-3}, ["unknown key training.lr", "learning_rate"]),
    ({"data__max_len": 64}, ["unknown key data.max_len", "did you mean data.max_length?"]),
    ({"training__7": 1}, ["unknown key training.7"]),
    ({"sparsity": REMOVED}, ["sparsity is missing", "more than 0 and less than 1"]),
    ({"methods": REMOVED}, ["methods is missing", "a list of random | erdos_renyi"]),
    # of an earlier layout of params.yaml
    *[
        ({key: [0]}, [f"unknown key {key}"])
        for key in ("baselines", "lottery", "controls", "soups", "rounds", "weak_seeds")
    ],
    ({"training": 5}, ["training", "must be a mapping"]),
    # the target
    *[
        ({"sparsity": value}, ["sparsity", repr(value), "more than 0 and less than 1"])
        for value in (0, 1, 1.2, -0.1, "x", "0.7", True, math.nan, math.inf, None, [0.7])
    ],
    # names of things
    ({"dataset": "sst-2"}, ["dataset", "did you mean sst2?", "local:FOLDER"]),
    ({"dataset": "imagenet"}, ["dataset: unknown 'imagenet'", "reviews-sentiment | ", "wnli"]),
    ({"dataset": "local:"}, ["dataset: unknown 'local:'"]),
    ({"dataset": 5}, ["dataset", "a text"]),
    ({"model": "mini-lm"}, ["model", "did you mean minilm?", "hub:ORG/NAME"]),
    (
        {"model": "gpt"},
        ["model: unknown 'gpt'", "minilm | bert-base | clip-glyph", "hub:ORG/NAME | open_clip:"],
    ),
    ({"model": "hub:"}, ["model: unknown 'hub:'"]),
    ({"preset": "fast"}, ["preset", "quick | paper"]),
    ({"methods": ["oneshot"]}, ["methods", "random | erdos_renyi | one_shot"]),
    ({"methods": ["random", "random"]}, ["methods", "at most once"]),
    ({"methods": "random"}, ["methods", "a list"]),
    ({"methods": [["random"]]}, ["methods", "a list"]),
    ({"methods": ["isp"]}, ["methods", "a list of random | "]),  # of every run
    ({"methods": ["lth", "imp"]}, ["methods", "lth | lth_rewind | lottery_pool"]),
    ({"methods": ["random_weights"]}, ["methods", "random_init"]),
    ({"exports": ["magnitude"]}, ["exports", "dense | random | ", " | isp | "]),
    ({"exports": ["snip"]}, ["exports: snip is no row", "dense | isp | one_shot | random"]),
    ({"exports": "isp"}, ["exports", "a list"]),
    ({"export_dtype": "fp16"}, ["export_dtype: 'fp16'", "fp32 | bf16"]),
    ({"export_dtype": None}, ["export_dtype", "fp32 | bf16"]),
    ({"methods": ["n_of_m"]}, ["0.7 is no N:4 pattern", "0.25, 0.5, 0.75"]),
    ({"methods": ["min_density"], "criteria__min_density": 0.4}, ["less than 0.3"]),
    ({"methods": ["movement"], "movement__begin": 0.7}, ["movement.begin: 0.7", "less than 0.7"]),
    ({"methods": ["granet"], "granet__end": 0.8}, ["granet.regrow_until: 0.75", "at least 0.8"]),
    ({"granet__end": 0.9}, ["granet.end: 0.9", "more than 0 and at most 0.8"]),
    ({"methods": ["gmp"], "gmp__end": 0.1}, ["gmp.begin: 0.2 is not before", "less than 0.1"]),
    ({"methods": ["gmp"], "gmp__prunes": 1}, ["gmp.prunes: 1 leaves nothing", "2 or more"]),
    ({"methods": ["isp_plus"], "isp_plus__prunes": 30}, ["isp_plus.prunes: 30 is for", "cubic"]),
    (
        {"methods": ["isp_plus"], "isp_plus__lowest_rate": 0.1},
        ["isp_plus.lowest_rate: 0.1 is for isp_plus.cycles: 2 or more"],
    ),
    ({"isp__schedule": "cubic"}, ["isp.prunes: 20 are more rounds than", "at most 10"]),
    (
        {
            **{"methods": ["isp_plus"], "isp_plus__schedule": "cubic"},
            **{"isp_plus__first_cut": 0.5, "isp_plus__prunes": 5},
        },
        ["isp_plus.begin: 0 prunes before the first step", "more"],
    ),
    ({"imp__coefficients": [0.5, 2]}, ["imp.coefficients", "from 0 to 1"]),
    ({"early_bird__window": 0}, ["early_bird.window", "from 1"]),
    # numbers
    ({"seed": -1}, ["seed", "from 0 to 2147483647"]),
    ({"seed": 1.5}, ["seed", "whole number"]),
    ({"seed": True}, ["seed", "whole number"]),
    ({"data__train_rows": 1}, ["data.train_rows", "all | a whole number from 2"]),
    ({"data__train_rows": "many"}, ["data.train_rows", "all"]),
    ({"data__validation_rows": 0}, ["data.validation_rows", "from 1"]),
    ({"data__max_length": 7}, ["data.max_length", "from 8"]),
    ({"training__epochs": 0}, ["training.epochs", "more than 0"]),
    ({"training__learning_rate": 0}, ["training.learning_rate", "more than 0 and at most 1"]),
    ({"training__learning_rate": True}, ["training.learning_rate", "True is not allowed"]),
    ({"training__learning_rate": 2}, ["training.learning_rate", "more than 0 and at most 1"]),
    ({"training__weight_decay": -0.1}, ["training.weight_decay", "at least 0 and at most 1"]),
    ({"training__batch_size": 0}, ["training.batch_size", "whole number from 1"]),
    ({"training__batch_size": 16.0}, ["training.batch_size", "whole number from 1"]),
    ({"training__warmup": 1}, ["training.warmup", "less than 1"]),
    ({"training__clip_norm": 0}, ["training.clip_norm", "more than 0"]),
    ({"training__dropout": 1}, ["training.dropout", "model | a number"]),
    ({"training__dropout": "base"}, ["training.dropout", "model | a number"]),
    ({"training__freeze_embeddings": 1}, ["training.freeze_embeddings", "true | false"]),
    ({"training__precision": "fp16"}, ["training.precision", "auto | fp32 | bf16"]),
    ({"training__evaluations": 0}, ["training.evaluations", "whole number from 1"]),
    ({"isp__compression_rate": 1}, ["isp.compression_rate", "less than 1"]),
    ({"isp__compression_rate": 20}, ["isp.compression_rate", "less than 1"]),
    ({"isp__rate_of": "rest"}, ["isp.rate_of", "total | remaining"]),
    ({"isp__calibration": 0}, ["isp.calibration", "more than 0"]),
    ({"isp__look_ahead": 0}, ["isp.look_ahead", "whole number from 1"]),
    ({"isp__denoisers": -1}, ["isp.denoisers", "whole number from 0"]),
    ({"isp__subset": 0}, ["isp.subset", "more than 0 and at most 1"]),
    ({"isp__learning_rate_range": [5, 0.5]}, ["isp.learning_rate_range", "low ≤ high"]),
    ({"isp__learning_rate_range": [0, 1]}, ["isp.learning_rate_range", "above 0"]),
    ({"isp__learning_rate_range": 3}, ["isp.learning_rate_range", "[low, high]"]),
    ({"isp__weight_decay_range": [0.1]}, ["isp.weight_decay_range", "[low, high]"]),
    ({"isp__weight_decay_range": [0, "1"]}, ["isp.weight_decay_range", "[low, high]"]),
    ({"isp__combine": "mean"}, ["isp.combine", "union | intersection | vote"]),
    ({"isp__own_mask": "yes"}, ["isp.own_mask", "true | false"]),
    ({"isp__mask_finding": 1}, ["isp.mask_finding: 1", "at least 0 and less than 1"]),
    # combinations
    ({"model_soup__sparsity_range": [0.5, 1]}, ["model_soup.sparsity_range", "high < 1"]),
    ({"model_soup__coefficients": []}, ["model_soup.coefficients", "a list of numbers"]),
    (
        {"isp__compression_rate": 0.05},
        ["isp.compression_rate: 0.05 takes 14 rounds to sparsity 0.7", "a rate that takes", "10"],
    ),
    (
        {"isp__compression_rate": 0.15, "isp__rate_of": "remaining", "sparsity": 0.9},
        ["isp.compression_rate: 0.15 takes 15 rounds", "at most 10"],
    ),
    (
        {"isp__calibration": 0.1, "training__epochs": 1},
        ["isp.calibration", "100% of training.epochs", "less than 0.1"],
    ),
    ({"isp__calibration": 3, "training__epochs": 1}, ["isp.calibration", "3000%", "less than 0.1"]),
    # data keys that do not go with the dataset
    ({"data__kind": "regression"}, ["data.kind", "local:FOLDER", "reviews-sentiment"]),
    ({"data__kind": "ranking"}, ["data.kind", "classification | regression"]),
    ({"data__text": ["sentence"]}, ["data.text", "local:FOLDER"]),
    ({"data__text": ["a", "b", "c"]}, ["data.text", "one or two column names"]),
    ({"data__label": "y"}, ["data.label", "local:FOLDER"]),
    ({"data__path": "copy"}, ["data.path", "packaged", "name no folder"]),
    ({"dataset": "sst2", "data__path": "nowhere"}, ["data.path", "no folder nowhere"]),
    ({"dataset": "local:nowhere"}, ["dataset", "no folder nowhere"]),
    ({"model": "local:nowhere"}, ["model", "no folder nowhere"]),
    # what no file can be called
    ({"dataset": "local:a\0b"}, ["dataset", "cannot be a path", "null"]),
    ({"dataset": "local:" + "x" * 300}, ["dataset", "cannot be a path", "too long"]),
    ({"model": "local:~nosuchuser/m"}, ["model", "'~nosuchuser/m'", "no such user"]),
    ({"dataset": "sst2", "data__path": "~nosuchuser"}, ["data.path", "no such user"]),
    # far beyond any data
    ({"training__epochs": 1e9}, ["training.epochs", "at most 10000"]),
    ({"training__batch_size": 10**9}, ["training.batch_size", "from 1 to 65536"]),
    ({"training__evaluations": 10**9}, ["training.evaluations", "from 1 to 10000"]),
    ({"training__processes": 10**9}, ["training.processes", "from 1 to 1024"]),
    ({"isp__look_ahead": 10**9}, ["isp.look_ahead", "from 1 to 100000"]),
    ({"isp__denoisers": 10**6}, ["isp.denoisers", "from 0 to 1000"]),
    ({"isp__calibration": 1e9}, ["isp.calibration", "at most 10000"]),
    ({"criteria__batches": 10**9}, ["criteria.batches", "from 1 to 100000"]),
    ({"early_bird__every": 1e9}, ["early_bird.every", "at most 10000"]),
    ({"early_bird__window": 10**9}, ["early_bird.window", "from 1 to 1000"]),
    ({"model_soup__networks": 10**6}, ["model_soup.networks", "from 1 to 1000"]),
    ({"model_soup__steps": 10**9}, ["model_soup.steps", "from 1 to 100000"]),
    (
        {"model": "clip-glyph", "dataset": "mnist-sample", "pretraining__steps": 10**9},
        ["pretraining.steps", "from 1 to 10000000"],
    ),
    (
        {"model": "clip-glyph", "dataset": "mnist-sample", "pretraining__batch_size": 2**20},
        ["pretraining.batch_size", "up to 65536"],
    ),
]


@pytest.mark.parametrize(("changes", "parts"), BAD, ids=[str(changes)[:60] for changes, _ in BAD])
def test_a_mistake_is_refused_by_name(changes: dict[str, Any], parts: list[str]) -> None:
    message = refusal(**changes)
    assert message.startswith("params.yaml: ")
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize("given", [None, [], "sparsity: 0.7", 3])
def test_params_that_are_no_mapping_are_refused(given: Any) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: must be a mapping"):
        plan_of(given)


@pytest.mark.parametrize("content", [b"a: [1", b"a: 1\n  b: 2", b"a: \xff\xfe", b"\x00\x01"])
def test_a_params_file_that_is_no_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"params\.yaml: cannot be read as YAML") as caught:
        read_yaml(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


# Models of the user's own


@pytest.fixture
def own_model(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BERT, to be broken."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "own-model"))


def test_a_model_of_ones_own_is_planned(own_model: Path) -> None:
    base = plan(model="local:own-model")["base"]
    assert base["name"] == "local:own-model"
    assert base["source"] == "local"
    assert base["path"] == str(own_model)
    assert plan(model=f"local:{own_model}")["base"] == base


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_changed_file_of_ones_own_model_changes_the_plan(own_model: Path, name: str) -> None:
    before = plan(model="local:own-model")
    content = (own_model / name).read_bytes()
    # One more blank in JSON, one other bit in a weight.
    last = bytes([content[-1] ^ 1]) if name == "model.safetensors" else content[-1:] + b" "
    (own_model / name).write_bytes(content[:-1] + last)
    assert changed(before, plan(model="local:own-model")) == {"base"}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_that_lacks_a_file_is_refused(own_model: Path, name: str) -> None:
    (own_model / name).unlink()
    message = refusal(model="local:own-model")
    assert "model: own-model has no" in message and Path(name).suffix in message


def test_a_model_with_nothing_to_prune_is_refused(own_model: Path) -> None:
    weights = {"embeddings.weight": np.zeros((3, 3)), "layer.0.norm.weight": np.zeros(3)}
    save_file(weights, own_model / "model.safetensors")
    assert "own-model has nothing prunable" in refusal(model="local:own-model")


def test_a_model_whose_weights_are_damaged_is_refused(own_model: Path) -> None:
    file = own_model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    message = refusal(model="local:own-model")
    assert "model: " in message and "model.safetensors cannot be read" in message


def test_a_file_is_no_model_folder(own_model: Path) -> None:
    assert "no folder" in refusal(model="local:own-model/config.json")


# Data of the user's own


def own_data(tables: dict[str, pd.DataFrame]) -> None:
    """Write tables into the folder own-data."""
    Path("own-data").mkdir(exist_ok=True)
    for name, table in tables.items():
        if name.endswith(".parquet"):
            table.to_parquet(f"own-data/{name}")
        else:
            table.to_csv(f"own-data/{name}", index=False, sep="\t" if "tsv" in name else ",")


def test_data_of_ones_own_is_planned_by_its_columns_and_types(tiny_data: Path) -> None:
    data = plan(dataset=f"local:{tiny_data}")["data"]
    assert data["name"] == f"local:{tiny_data.name}"
    assert (data["source"], data["kind"], data["metric"]) == ("local", "classification", "accuracy")
    assert (data["text"], data["label"], data["labels"]) == (["sentence"], "label", ["0", "1"])


def test_float_labels_are_a_regression_and_strings_are_classes() -> None:
    own_data({"train.csv": pd.DataFrame({"text": list("abcd"), "label": [0.5, 1.0, 2.0, 0.0]})})
    data = plan(dataset="local:own-data")["data"]
    assert (data["kind"], data["labels"], data["metric"]) == ("regression", [], "pearson")
    own_data({"train.csv": pd.DataFrame({"text": list("abcd"), "label": ["no", "yes"] * 2})})
    data = plan(dataset="local:own-data")["data"]
    assert (data["kind"], data["labels"]) == ("classification", ["no", "yes"])


def test_whole_number_ratings_can_be_declared_a_regression() -> None:
    own_data({"train.csv": pd.DataFrame({"text": list("abcde"), "label": [1, 2, 3, 4, 5]})})
    data = plan(dataset="local:own-data", data__kind="regression")["data"]
    assert (data["kind"], data["labels"], data["metric"]) == ("regression", [], "pearson")


def test_columns_of_ones_own_are_taken_by_name() -> None:
    table = pd.DataFrame({"q": list("abcd"), "p": list("efgh"), "gold": [0, 1, 1, 0]})
    own_data({"train.tsv": table})
    data = plan(dataset="local:own-data", data__text=["q", "p"], data__label="gold")["data"]
    assert (data["text"], data["label"]) == (["q", "p"], "gold")
    files = plan(dataset="local:own-data", data__text=["q", "p"], data__label="gold")
    assert files["evaluate_dense"]["variant"] == "data.text=[q,p] data.label=gold"
    assert "name the text column" in refusal(dataset="local:own-data")
    message = refusal(dataset="local:own-data", data__text=["q", "r"], data__label="gold")
    assert "no column 'r'" in message
    assert "no column 'label'" in refusal(dataset="local:own-data", data__text=["q"])


def test_a_folder_without_training_rows_is_refused() -> None:
    own_data({"validation.csv": make_table(5)})
    message = refusal(dataset="local:own-data")
    assert "no train.parquet, train.csv" in message and "validation" in message


def test_an_unreadable_table_is_refused() -> None:
    Path("own-data").mkdir()
    Path("own-data/train.parquet").write_bytes(b"PAR1 no more")
    message = refusal(dataset="local:own-data")
    assert "train.parquet cannot be read" in message


def test_the_folder_is_named_once() -> None:
    own_data({"train.csv": make_table(10)})
    assert "data.path" in refusal(dataset="local:own-data", data__path="own-data")


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_kind_that_the_labels_do_not_fit_is_refused(kind: str) -> None:
    labels = [0.5, 1.25, 2.0, 0.0] if kind == "classification" else ["no", "yes", "no", "yes"]
    own_data({"train.csv": pd.DataFrame({"text": list("abcd"), "label": labels})})
    message = refusal(dataset="local:own-data", data__kind=kind)
    assert f"data.kind: {kind} does not fit the labels in column label" in message


def test_one_class_is_too_few() -> None:
    own_data({"train.csv": pd.DataFrame({"text": list("abcd"), "label": ["yes"] * 4})})
    assert "fewer than two classes" in refusal(dataset="local:own-data")


@pytest.mark.parametrize("labels", [["no", None, "yes", "no"], [0, None, 1, 0]])
def test_a_missing_label_is_refused_and_its_row_named(labels: list) -> None:
    own_data({"train.csv": pd.DataFrame({"text": list("abcd"), "label": labels})})
    message = refusal(dataset="local:own-data")
    assert "no label (column label of train) in row 1" in message


def test_a_class_that_training_never_showed_is_refused() -> None:
    table = pd.DataFrame({"text": list("abcd"), "label": ["no", "yes", "no", "yes"]})
    odd = pd.DataFrame({"text": list("ab"), "label": ["no", "maybe"]})
    own_data({"train.csv": table, "test.csv": odd})
    assert "label 'maybe' in row 1" in refusal(dataset="local:own-data")


def test_a_local_copy_of_a_known_dataset_is_planned_like_the_dataset(tiny_data: Path) -> None:
    remote = plan(dataset="sst2")["data"]
    local = plan(dataset="sst2", data__path=str(tiny_data))["data"]
    assert (remote["source"], remote["hub"]) == ("hub", ["nyu-mll/glue", "sst2"])
    assert (local["source"], local["path"]) == ("local", str(tiny_data))
    assert (remote["name"], local["name"]) == ("sst2", "sst2@local")
    for key in ("text", "kind", "labels", "metric", "test", "label"):
        assert local[key] == remote[key]


def test_a_class_number_out_of_range_in_a_local_copy_names_its_row() -> None:
    train, validation = make_table(20), make_table(5)
    own_data({"train.parquet": train, "validation.parquet": validation})
    plan(dataset="sst2", data__path="own-data")
    train.loc[13, "label"] = 7
    own_data({"train.parquet": train})
    message = refusal(dataset="sst2", data__path="own-data")
    assert "label 7" in message.replace("np.int64(7)", "7")
    assert "in row 13" in message and "0 … 1" in message


def test_hidden_test_labels_in_a_local_copy_name_their_row() -> None:
    hidden = make_table(5)
    hidden["label"] = -1
    own_data({"train.parquet": make_table(20), "validation.parquet": hidden})
    assert "in row 0" in refusal(dataset="sst2", data__path="own-data")


def test_words_where_a_regression_needs_numbers_name_their_row() -> None:
    table = pd.DataFrame({"sentence1": list("abc"), "sentence2": list("abc")})
    table["label"] = ["1.5", "high", "2"]
    own_data({"train.parquet": table})
    message = refusal(dataset="stsb", data__path="own-data")
    assert "label 'high' in row 1" in message and "regression; allowed: finite numbers" in message


def test_a_local_copy_without_the_datasets_columns_is_refused(tiny_data: Path) -> None:
    message = refusal(dataset="mrpc", data__path=str(tiny_data))
    assert "no column 'sentence1'" in message


# Good plans


def test_the_repositorys_own_params_are_planned() -> None:
    files = plan()
    methods = ["dense", "isp", *PARAMS["methods"]]
    expected = {"data", "base", "encode", "start", "dense", "retrain_isp", "tables"}
    expected |= {"pretrain_clip", "pretrain_lm"}
    expected |= {"export", *rounds("calibrate", "weak_masks", "soup", which=range(ROUNDS))}
    expected |= {f"{stage}_{m}" for stage in ("ticket", "retrain") for m in PARAMS["methods"]}
    expected |= {f"ticket_{m}" for m in needy()}
    expected |= {f"evaluate_{m}" for m in methods}
    assert files.keys() == expected
    assert [files[f"soup_{i}"].get("sparsity") for i in range(ROUNDS)] == [
        *(0.2, 0.4, 0.6, 0.7),
        *[None] * 6,
    ]
    beyond = rounds("calibrate", "weak_masks", "soup", which=range(4, ROUNDS))
    assert all(files[name] == IDLE for name in (*beyond, "ticket_random_init"))
    assert files["retrain_isp"]["start"] == "models/isp/round_3"


def test_the_repositorys_own_params_are_planned_as_they_are() -> None:
    raw = read_yaml(ROOT / "params.yaml")
    assert plan_of(raw)["tables"]["methods"] == ["dense", "isp", *raw["methods"]]


# What `dvc exp run -S key=value …` alone must plan, and how many rounds of ISP it takes.
WITHOUT_AN_EDIT: list[tuple[dict[str, Any], int]] = [
    ({"preset": "paper", "sparsity": 0.95}, 10),
    ({"preset": "paper", "sparsity": 0.95, "dataset": "mnist", "model": "clip-vit-b32"}, 7),
    ({"isp__denoisers": 5}, 4),
    ({"dataset": "sst2", "model": "bert-base", "preset": "paper"}, 7),
    ({"sparsity": 0.99}, 5),
    ({"isp__rate_of": "remaining", "isp__growing": False, "sparsity": 0.8}, 8),
]


@pytest.mark.parametrize(
    ("changes", "number"), WITHOUT_AN_EDIT, ids=[str(c) for c, _ in WITHOUT_AN_EDIT]
)
def test_presets_sparsities_and_denoisers_are_planned_without_an_edit(
    changes: dict[str, Any], number: int
) -> None:
    files = plan(**changes)
    needed = [i for i in range(ROUNDS) if files[f"soup_{i}"] != IDLE]
    assert needed == list(range(number))
    assert files.keys() == plan().keys()
    assert files[f"soup_{number - 1}"]["sparsity"] == changes.get("sparsity", 0.7)
    assert files["retrain_isp"]["isp_rounds"] == number
    denoisers = {
        files[f"{stage}_{i}"]["isp"]["denoisers"]
        for stage in ("weak_masks", "soup")
        for i in needed
    }
    assert denoisers == {files["retrain_isp"]["isp_denoisers"]}


def test_ten_rounds_are_the_most_and_lottery_tickets_may_take_more() -> None:
    slow = {"isp__compression_rate": 0.08, "isp__calibration": 0.01}
    assert plan(**slow, sparsity=0.8)["soup_9"]["sparsity"] == 0.8
    assert "takes 11 rounds" in refusal(**slow, sparsity=0.81)
    ticket = plan(methods=["lth"], imp__compression_rate=0.05)["ticket_lth"]
    assert ticket["settings"]["compression_rate"] == 0.05


def test_every_stage_of_the_pipeline_finds_its_plan_file() -> None:
    files = plan()
    dvc = read_yaml(ROOT / "dvc.yaml")
    named = set()
    for stage in dvc["stages"].values():
        for dependency in stage.get("do", stage).get("deps", []):
            if dependency.startswith("models/plan/"):
                named.add(dependency.removeprefix("models/plan/").removesuffix(".yaml"))
    whole = {name for name in named if "$" not in name}
    assert whole <= files.keys()
    families = {name.split("_$")[0] for name in named - whole}
    left = [f for f in files.keys() - whole if not any(f.startswith(f"{x}_") for x in families)]
    assert left == []


def test_a_plan_file_comes_back_from_yaml_as_it_was(tmp_path: Path) -> None:
    for name, contents in plan(preset="paper", sparsity=0.9).items():
        write_yaml(tmp_path / f"{name}.yaml", contents)
        assert read_yaml(tmp_path / f"{name}.yaml") == contents


CLASSES_OF = {
    **{"reviews-sentiment": 2, "reviews-rating": 0},
    **{"cola": 2, "sst2": 2, "mrpc": 2, "qqp": 2, "qnli": 2, "rte": 2, "wnli": 2, "mnli": 3},
    **{"stsb": 0, "mnist-sample": 10, "mnist": 10, "cifar10": 10, "cifar100": 100},
    **{"svhn": 10, "gtsrb": 43, "stanford_cars": 196},
    **{"reviews-text": 0, "wikitext2": 0, "wikitext103": 0},
}


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_known_dataset_is_planned(name: str) -> None:
    models = {"images": "clip-vit-b32", "texts": "minilm", "plain text": "llama-snippets"}
    model = models[DATASETS[name].holds]
    data = plan(dataset=name, model=model)["data"]
    assert data["name"] == name
    assert len(data["labels"]) == CLASSES_OF[name]


@pytest.mark.parametrize(
    ("changes", "base"),
    [
        ({"model": "bert-base"}, {"source": "hub", "repo": "bert-base-uncased"}),
        (
            {"model": "hub:google/mobilebert"},
            {"name": "hub:google/mobilebert", "source": "hub", "repo": "google/mobilebert"},
        ),
    ],
)
def test_hub_models_are_planned(changes: dict[str, str], base: dict[str, str]) -> None:
    assert plan(**changes)["base"].items() >= base.items()


def recipe(name: str = "dense", **changes: Any) -> dict[str, Any]:
    """The settings of training in a stage's file."""
    return plan(**changes)[name]["recipe"]


def test_a_null_takes_the_presets_value_and_anything_else_wins() -> None:
    assert recipe()["learning_rate"] == 1e-4
    assert recipe(training__learning_rate=0.003)["learning_rate"] == 0.003
    assert recipe(training__dropout=0.0, preset="paper")["dropout"] == 0.0
    assert recipe(training__freeze_embeddings=False)["freeze_embeddings"] is False
    assert plan(isp__denoisers=0)["soup_0"]["isp"]["denoisers"] == 0


def test_a_number_that_yaml_takes_for_a_text_is_a_number() -> None:
    assert recipe(training__learning_rate="1e-3")["learning_rate"] == 1e-3
    assert "'fast' is not allowed" in refusal(training__learning_rate="fast")


def test_a_methods_setting_has_a_default_for_each_preset_and_family() -> None:
    def every(**changes: Any) -> float:
        rows = {"methods": ["early_bird", "movement"], **changes}
        files = plan(**rows)
        return tuple(files[f"ticket_{m}"]["settings"]["every"] for m in rows["methods"])

    assert every() == (0.1, 5)
    assert every(**GLYPH) == (1.0, 5)
    assert every(preset="paper") == (1.0, 1)
    assert every(movement__every=3) == (0.1, 3)


def test_a_setting_stands_in_its_own_section_or_in_one_that_methods_share() -> None:
    sections = registry.sections()
    assert {"scope", "begin", "end"} <= sections["movement"].keys()
    assert {"compression_rate", "combine"} <= sections["isp"].keys()
    assert {"m", "min_density", "batches", "calibration_batches"} == sections["criteria"].keys()
    files = plan(methods=["progressive", "isp_plus", "lth"], isp__compression_rate=0.3)
    rates = {
        m: files[f"ticket_{m}"]["settings"]["compression_rate"]
        for m in ("progressive", "isp_plus", "lth")
    }
    assert rates == {"progressive": 0.3, "isp_plus": 0.3, "lth": 0.2}
    assert [files[f"soup_{i}"]["sparsity"] for i in range(3)] == [0.3, 0.6, 0.7]


def test_a_share_of_the_budget_may_stand_in_place_of_the_calibration() -> None:
    files = plan(isp__mask_finding=0.4, methods=["isp_plus"])
    schedule = {"calibration": 0.02, "growing": True, "mask_finding": 0.4, "ramp": None}
    assert [files[f"calibrate_{i}"]["schedule"] for i in range(4)] == [schedule] * 4
    # A round's length depends on how many there are.
    assert [files[f"calibrate_{i}"]["rounds"] for i in range(4)] == [4] * 4
    assert files["ticket_isp_plus"]["settings"]["mask_finding"] == 0.4
    assert files["evaluate_isp"]["variant"] == "isp.mask_finding=0.4"
    # The calibration that would take the whole budget has no say then.
    assert plan(isp__mask_finding=0.4, isp__calibration=3)["soup_3"]["sparsity"] == 0.7
    assert [plan()[f"calibrate_{i}"]["rounds"] for i in range(4)] == [1, 2, 3, 4]


def test_isps_rounds_may_follow_a_cubic_ramp_and_a_rate_that_restarts() -> None:
    cubic = {"isp__schedule": "cubic", "isp__prunes": 4, "isp__end": 0.4}
    files = plan(**cubic, isp__cycles=2, methods=["isp_plus"])
    assert [files[f"soup_{i}"]["sparsity"] for i in range(4)] == [0.4046875, 0.6125, 0.6890625, 0.7]
    ramp = {"prunes": 4, "first_cut": 0.0, "begin": 0.0, "end": 0.4}
    assert all(files[f"calibrate_{i}"]["schedule"]["ramp"] == ramp for i in range(4))
    assert [files[f"calibrate_{i}"]["rounds"] for i in range(4)] == [4] * 4
    # The rate is that of training; a look-ahead's is constant, and other rows have their own.
    for name, cycles in (("calibrate_0", 2), ("retrain_isp", 2), ("weak_masks_0", 1), ("dense", 1)):
        assert files[name]["recipe"]["cycles"] == cycles
    assert files["ticket_isp_plus"] == plan(methods=["isp_plus"])["ticket_isp_plus"]


def test_a_row_has_a_schedule_of_its_own() -> None:
    files = plan(methods=["gmp", "isp_plus"], isp_plus__schedule="cubic", isp_plus__cycles=3)
    for row, cycles in (("gmp", 5), ("isp_plus", 3)):
        for part in ("ticket", "retrain"):
            assert files[f"{part}_{row}"]["recipe"]["cycles"] == cycles
    assert files["evaluate_isp_plus"]["variant"] == "isp_plus.schedule=cubic isp_plus.cycles=3"
    assert files["retrain_isp"] == plan()["retrain_isp"] and files["evaluate_gmp"]["variant"] == ""


def test_a_section_may_be_left_out() -> None:
    assert plan(isp=REMOVED, training=None) == plan()


def test_the_paper_preset_is_table_1() -> None:
    files = plan(preset="paper", dataset="sst2", model="bert-base")
    dense, weak, soup = files["dense"]["recipe"], files["weak_masks_0"], files["soup_0"]
    assert dense["learning_rate"] == 2e-5
    assert dense["epochs"] == 10
    assert dense["weight_decay"] == 0.0
    assert dense["batch_size"] == 32
    assert dense["warmup"] == 0.0
    assert weak["isp"]["look_ahead"] == 30
    assert weak["isp"]["denoisers"] == soup["isp"]["denoisers"] == 4
    assert soup["isp"]["combine"] == "union" and soup["isp"]["own_mask"] is False
    steps = [files[f"soup_{i}"]["sparsity"] for i in range(7)]
    assert steps == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert files["soup_7"] == IDLE
    # Section 1: t is about a tenth of an epoch, the decay to zero over the whole budget.
    assert all(files[f"calibrate_{i}"]["schedule"]["calibration"] == 0.1 for i in range(7))
    stages = ("calibrate_3", "retrain_isp", "retrain_random")
    assert [files[stage]["recipe"]["epochs"] for stage in stages] == [10, 10, 10]


def test_calibration_may_take_all_but_the_whole_budget() -> None:
    files = plan(isp__calibration=0.099, training__epochs=1)
    assert files["calibrate_0"]["schedule"]["calibration"] == 0.099


# Which files a change touches, and so which stages rerun


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Names of the plan files that are not the same."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def rounds(*names: str, which: range) -> set[str]:
    """Plan files of the given rounds."""
    return {f"{name}_{i}" for i in which for name in names}


def evaluations(*methods: str) -> set[str]:
    """Plan files of the evaluations."""
    return {f"evaluate_{m}" for m in methods}


def test_a_sparser_target_touches_the_last_round_the_tickets_and_evaluations() -> None:
    assert changed(plan(), plan(sparsity=0.8)) == {
        *rounds("weak_masks", "soup", which=range(3, 4)),
        *("ticket_one_shot", "ticket_random"),
        *evaluations("isp", "one_shot", "random"),
    }


def test_a_target_of_one_round_more_adds_that_round() -> None:
    assert changed(plan(sparsity=0.8), plan(sparsity=0.9)) == {
        *rounds("calibrate", "weak_masks", "soup", which=range(4, 5)),
        *("retrain_isp", "ticket_one_shot", "ticket_random"),
        *evaluations("isp", "one_shot", "random"),
    }


def test_the_seed_touches_all_but_data_base_and_what_no_seed_enters() -> None:
    before = plan()
    idle = {name for name, contents in before.items() if contents == IDLE}
    untouched = {"data", "base", "encode", "ticket_one_shot", "tables", "export"} | idle
    assert changed(before, plan(seed=1)) == before.keys() - untouched


def test_the_look_ahead_touches_weak_masks_only() -> None:
    found = changed(plan(), plan(isp__look_ahead=20))
    assert found == {*rounds("weak_masks", which=range(4)), "evaluate_isp"}


@pytest.mark.parametrize("change", [{"isp__combine": "vote"}, {"isp__own_mask": True}])
def test_how_masks_are_combined_touches_soups_only(change: dict[str, Any]) -> None:
    found = changed(plan(), plan(**change))
    assert found == {*rounds("soup", which=range(4)), "evaluate_isp"}


@pytest.mark.parametrize("number", [2, 5])
def test_other_denoisers_touch_masks_and_soups_and_no_training(number: int) -> None:
    """The masks of those that stay are found once: tests/training/test_checkpoints.py."""
    assert changed(plan(), plan(isp__denoisers=number)) == {
        *rounds("weak_masks", "soup", which=range(4)),
        *("retrain_isp", "evaluate_isp"),
    }


@pytest.mark.parametrize("change", [{"training__epochs": 0.7}, {"training__evaluations": 5}])
def test_the_budget_and_its_validations_leave_masks_alone(change: dict[str, Any]) -> None:
    assert changed(plan(), plan(**change)) == {
        *rounds("calibrate", which=range(4)),
        *("dense", "retrain_isp", "retrain_one_shot", "retrain_random"),
        *evaluations("dense", "isp", "one_shot", "random"),
    }


def test_a_setting_of_one_method_touches_its_ticket_and_evaluation() -> None:
    rows = {"methods": ["snip", "movement", "random"]}
    found = changed(plan(**rows), plan(**rows, movement__scope="global"))
    assert found == {"ticket_movement", "evaluate_movement"}


def test_isps_settings_touch_the_control_that_takes_over_its_ticket() -> None:
    rows = {"methods": ["random_init"]}
    found = changed(plan(**rows), plan(**rows, isp__denoisers=2))
    assert {"ticket_random_init", "evaluate_random_init"} <= found
    assert "retrain_random_init" not in found


def test_the_calibration_touches_isps_training_only() -> None:
    found = changed(plan(), plan(isp__calibration=0.03))
    assert found == {*rounds("calibrate", which=range(4)), "evaluate_isp"}


def test_another_dataset_of_the_same_metric_touches_data_and_evaluations() -> None:
    found = changed(plan(), plan(dataset="sst2"))
    assert found == {"data", *evaluations("dense", "isp", "one_shot", "random")}


def test_another_metric_leaves_base_tickets_and_masks_alone() -> None:
    before = plan()
    idle = {name for name, contents in before.items() if contents == IDLE}
    untouched = {"base", "encode", "start", "ticket_one_shot", "ticket_random", "export"} | idle
    untouched |= rounds("soup", "weak_masks", which=range(4))
    assert changed(before, plan(dataset="reviews-rating")) == before.keys() - untouched


def test_another_model_touches_base_and_evaluations() -> None:
    found = changed(plan(), plan(model="bert-base"))
    assert found == {"base", *evaluations("dense", "isp", "one_shot", "random")}


def test_every_run_has_the_same_files() -> None:
    """What DVC's stages depend on is there whatever the sparsity, and idle where not needed."""
    for sparsity in (0.1, 0.5, 0.99):
        assert plan(sparsity=sparsity).keys() == plan().keys()


def test_a_variant_names_what_differs_from_the_preset() -> None:
    assert plan()["evaluate_isp"]["variant"] == ""
    files = plan(isp__combine="vote", training__epochs=2, data__train_rows=100)
    shared = "data.train_rows=100 training.epochs=2"
    assert files["evaluate_isp"]["variant"] == f"{shared} isp.combine=vote"
    assert files["evaluate_random"]["variant"] == shared
    assert plan(training__epochs=0.6)["evaluate_isp"]["variant"] == ""  # the preset's own value
    assert plan(training__epochs=2.0)["evaluate_isp"]["variant"] == "training.epochs=2"


def test_a_variant_does_not_name_what_nothing_reads() -> None:
    """LAMP by magnitude reads no batches, and a cubic curve no rate of rounds."""
    files = plan(
        methods=["lamp", "isp_plus"], criteria__batches=8, isp__compression_rate=0.35,
        isp_plus__schedule="cubic",
    )  # fmt: skip
    assert files["evaluate_lamp"]["variant"] == ""
    assert files["evaluate_isp_plus"]["variant"] == "isp_plus.schedule=cubic"
    assert files["evaluate_isp"]["variant"] == "isp.compression_rate=0.35"


def test_planning_does_not_wait_for_torch(tiny_data: Path) -> None:
    script = (
        "import sys, instant_soup.pipeline.plan as s; from instant_soup.files import read_yaml; "
        f"p = read_yaml({str(ROOT / 'params.yaml')!r}); s.plan(p); "
        f"s.plan({{**p, 'dataset': 'local:{tiny_data}'}}); "
        "heavy = {'torch', 'transformers', 'mlflow', 'sklearn'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Images


GLYPH = {"model": "clip-glyph", "dataset": "mnist-sample"}
LLAMA = {"model": "llama-snippets", "dataset": "reviews-text"}


def test_clip_glyph_is_pre_trained_and_starts_from_its_text_towers_head() -> None:
    files = plan(**GLYPH)
    assert files["pretrain_clip"] == {
        **{"objective": "contrastive", "steps": 1000, "batch_size": 128, "learning_rate": 1e-3},
        **{"weight_decay": 0.1, "warmup": 0.1, "seed": 0, "precision": "auto"},
    }
    assert files["base"]["path"] == "models/pretrained"
    assert files["start"]["classes"][7] == "seven" and len(files["start"]["classes"]) == 10
    assert all(template.count("{}") == 1 for template in files["start"]["templates"])
    for name in ("dense", "calibrate_0", "weak_masks_0", "retrain_isp", "retrain_one_shot"):
        found = files[name]["recipe"]
        assert found["crop"] == 0.0625
        assert found["flip"] is False
        assert found["dropout"] is None and found["freeze_embeddings"] is None
    assert files["evaluate_dense"]["zero_shot"] and not files["evaluate_isp"]["zero_shot"]


def test_only_clip_glyph_is_pre_trained_here() -> None:
    for changes in ({}, {**GLYPH, "model": "clip-vit-b32"}):
        assert plan(**changes)["pretrain_clip"] == IDLE
    assert not plan()["evaluate_dense"]["zero_shot"]


def test_what_a_seed_changes_of_images_leaves_the_start() -> None:
    one, other = plan(**GLYPH), plan(**GLYPH, seed=1)
    same = {name for name in one if one[name] == other[name]}
    assert {"pretrain_clip", "base", "encode", "start", "data", "ticket_one_shot"} <= same
    assert not same & {"dense", "calibrate_0", "retrain_one_shot", "ticket_random"}


def test_pre_training_has_its_own_parameters_and_shows_in_the_ledger() -> None:
    files = plan(**GLYPH, pretraining__steps=7)
    assert files["pretrain_clip"]["steps"] == 7
    assert {files[f"evaluate_{m}"]["variant"] for m in ("dense", "isp", "random")} == {
        "pretraining.steps=7"
    }


def test_the_precision_of_training_leaves_pre_training_as_it_is() -> None:
    assert (
        plan(**GLYPH, training__precision="fp32")["pretrain_clip"] == plan(**GLYPH)["pretrain_clip"]
    )


def test_mirror_images_are_used_where_the_dataset_allows() -> None:
    flips = {
        name: recipe(dataset=name, model="clip-vit-b32")["flip"]
        for name, task in DATASETS.items()
        if task.image
    }
    assert {name for name, flip in flips.items() if flip} == {
        "cifar10",
        "cifar100",
        "stanford_cars",
    }


def test_the_paper_preset_of_clip_is_table_one() -> None:
    files = plan(**GLYPH, preset="paper")
    dense, isp = files["dense"]["recipe"], files["weak_masks_0"]["isp"]
    assert (dense["learning_rate"], dense["epochs"], dense["weight_decay"]) == (1e-5, 22, 0.1)
    assert (dense["batch_size"], isp["look_ahead"], files["soup_0"]["sparsity"]) == (128, 50, 0.15)
    assert isp["denoisers"] == 5


def test_a_language_model_of_our_own_is_pre_trained_and_read_as_one() -> None:
    files = plan(**LLAMA)
    assert files["pretrain_clip"] == IDLE
    own = {"steps": 1000, "batch_size": 32, "objective": None}
    assert files["pretrain_lm"].items() >= own.items()
    assert files["base"].items() >= {"family": "causal", "path": "models/pretrained_lm"}.items()
    assert (files["data"]["kind"], files["data"]["labels"]) == ("language", [])
    assert files["dense"]["recipe"]["metric"] == files["tables"]["metric"] == "perplexity"
    assert files["dense"]["recipe"]["freeze_embeddings"] is None
    assert files["evaluate_dense"].items() >= {"family": "causal", "zero_shot": False}.items()
    base = plan(**{**LLAMA, "model": "causal:openai-community/gpt2"})["base"]
    expected = {"family": "causal", "source": "hub", "repo": "openai-community/gpt2"}
    assert base.items() >= expected.items()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "mnist-sample"}, ["dataset: mnist-sample holds images", "minilm reads texts"]),
        ({"model": "clip-glyph"}, ["reviews-sentiment holds texts", "reads images", "cifar10"]),
        ({**GLYPH, "data__max_length": 32}, ["data.max_length: means nothing to clip-glyph"]),
        ({**GLYPH, "training__dropout": 0.1}, ["training.dropout", "reads images"]),
        ({"training__crop": 0.1}, ["training.crop: means nothing to minilm", "reads texts"]),
        ({"pretraining__steps": 10}, ["pretraining.steps: means nothing to minilm"]),
        ({**GLYPH, "training__crop": 0.7}, ["training.crop: 0.7", "at most 0.5"]),
        ({"dataset": "wikitext2"}, ["dataset: wikitext2 holds plain text", "minilm reads texts"]),
        ({**LLAMA, "dataset": "sst2"}, ["sst2 holds texts", "reads plain text", "reviews-text"]),
        ({**LLAMA, "data__label": "x"}, ["data.label: means nothing to llama-snippets"]),
        ({**LLAMA, "training__crop": 0.1}, ["training.crop: means nothing to llama-snippets"]),
        ({**LLAMA, "model": "causal:a b"}, ["causal:a b: no repo", "causal:local:FOLDER"]),
        ({**LLAMA, "model": "causal:local:none"}, ["model: no folder none"]),
        ({**GLYPH, "data__flip": True}, ["data.flip: only for dataset: local:FOLDER"]),
        (
            {**GLYPH, "model": "clip-vit-b32", "pretraining__steps": 10},
            ["pretraining.steps: only for model: clip-glyph"],
        ),
        ({**GLYPH, "pretraining__batch_size": 100}, ["pretraining.batch_size: 100", "of 32"]),
        ({**GLYPH, "model": "open_clip:ViT-B-32"}, ["open_clip:ARCHITECTURE/TAG"]),
        ({**GLYPH, "model": "open_clip:ViT-B32/openai"}, ["did you mean ViT-B-32"]),
        ({**GLYPH, "data__prompts": "no.yaml"}, ["data.prompts: no file no.yaml"]),
    ],
)
def test_a_mistake_about_images_is_refused_by_name(
    changes: dict[str, Any], words: list[str]
) -> None:
    message = refusal(**changes)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classes: [a, b]", ["must have the keys classes and templates"]),
        ("classes: [a, a]\ntemplates: ['{}']", ["classes must be a list of distinct texts"]),
        ("classes: [1, 2]\ntemplates: ['{}']", ["classes must be a list of distinct texts"]),
        ("classes: [a, b]\ntemplates: ['a photo']", ["'a photo' must have {} just once"]),
        ("classes: [a, b]\ntemplates: ['{} {}']", ["'{} {}' must have {} just once"]),
        ("classes: [a, b]\ntemplates: ['{name}']", ["'{name}' must have {} just once"]),
        ("classes: [a, b]\ntemplates: ['{}}']", ["'{}}' must have {} just once"]),
    ],
)
def test_damaged_prompts_are_refused(text: str, words: list[str]) -> None:
    Path("prompts.yaml").write_text(text)
    message = refusal(**GLYPH, data__prompts="prompts.yaml")
    assert all(word in message for word in ["data.prompts", *words]), message


def test_own_prompts_replace_a_datasets() -> None:
    Path("prompts.yaml").write_text(f"classes: {list('abcdefghij')}\ntemplates: ['my {{}}']\n")
    files = plan(**GLYPH, data__prompts="prompts.yaml")
    head = {"outputs": 0, "seed": 0}
    assert files["start"] == {**head, "classes": list("abcdefghij"), "templates": ["my {}"]}
    assert "data.prompts=prompts.yaml" in files["evaluate_dense"]["variant"]


def picture_folders(*splits: str) -> None:
    """own-data/SPLIT/{cat,dog}/0.png, 1.png …"""
    from PIL import Image

    for split in splits:
        for name in ("cat", "dog"):
            folder = Path("own-data") / split / name
            folder.mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (9, 7), (40 * i, 0, 0)).save(folder / f"{i}.png")


def test_own_images_in_folders_are_planned() -> None:
    picture_folders("train", "test")
    files = plan(model="clip-vit-b32", dataset="local:own-data", data__flip=True)
    assert files["data"]["labels"] == ["cat", "dog"]
    own = {"classes": ["cat", "dog"], "templates": ["a photo of a {}."]}
    assert files["start"] == {"outputs": 0, "seed": 0, **own}
    assert files["dense"]["recipe"]["flip"] is True
    message = refusal(dataset="local:own-data")
    assert "holds images, but model: minilm reads texts" in message


def test_own_texts_are_refused_for_an_image_model() -> None:
    own_data({"train.csv": make_table(20)})
    message = refusal(model="clip-vit-b32", dataset="local:own-data")
    assert "holds texts, but model: clip-vit-b32 reads images" in message


def test_a_local_clip_is_known_by_its_files(tiny_clip: Path, tiny_bert: Path) -> None:
    for word in ("local", "local-dir"):
        base = plan(model=f"{word}:{tiny_clip}", dataset="mnist-sample")["base"]
        assert (base["family"], base["path"]) == ("clip", str(tiny_clip))
    assert plan(model=f"local:{tiny_bert}")["base"]["family"] == "bert"
    Path("mine").mkdir()
    shutil.copy(tiny_clip / "open_clip_config.json", "mine")
    message = refusal(model="local:mine", dataset="mnist-sample")
    assert "model: mine has no .safetensors weights" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_cfg": None}, "must have model_cfg"),
        ({"preprocess_cfg": []}, "must have model_cfg"),
        ({"preprocess_cfg": {"size": [32, 48]}}, "takes images of 32 × 48; allowed: squares"),
    ],
)
def test_a_local_clip_that_cannot_be_used_is_refused(
    tiny_clip: Path, change: dict, words: str
) -> None:
    shutil.copytree(tiny_clip, "mine")
    config = json.loads(Path("mine/open_clip_config.json").read_text())
    Path("mine/open_clip_config.json").write_text(json.dumps({**config, **change}))
    assert words in refusal(model="local:mine", dataset="mnist-sample")


def test_own_images_with_numbers_for_classes_want_names() -> None:
    picture_folders("train")
    files = [path for path in sorted(Path("own-data/train").glob("*/*.png"))]
    Path("numbered").mkdir()
    table = pd.DataFrame({"img": [p.read_bytes() for p in files], "label": [0] * 6 + [1] * 6})
    table.to_parquet("numbered/train.parquet")
    numbered = {"model": "clip-vit-b32", "dataset": "local:numbered"}
    assert "data.prompts: column 'label' holds numbers" in refusal(**numbered)
    Path("prompts.yaml").write_text("classes: [cat, dog]\ntemplates: ['a photo of a {}.']\n")
    named = plan(**numbered, data__prompts="prompts.yaml")
    assert named["data"]["labels"] == ["cat", "dog"]


def test_changed_images_change_the_plan() -> None:
    picture_folders("train", "test")
    plan_of = {"model": "clip-vit-b32", "dataset": "local:own-data"}
    before = plan(**plan_of)["data"]["digest"]
    assert before == plan(**plan_of)["data"]["digest"] and "24 files below" in before
    shutil.copy("own-data/train/dog/3.png", "own-data/train/cat/3.png")
    assert plan(**plan_of)["data"]["digest"] != before


# Further rows


EVERY_ROW = {"methods": [name for name in registry.selectable() if name != "n_of_m"]}


def ticket(name: str, files: dict[str, Any]) -> TicketStage:
    """A method's stage file, as the stage reads it."""
    return TicketStage.of(files[f"ticket_{name}"])


def test_every_row_is_planned_and_has_what_it_needs() -> None:
    files = plan(**EVERY_ROW)
    assert files["tables"]["methods"] == ["dense", "isp", *EVERY_ROW["methods"]]
    assert ticket("progressive", files).build().sparsities(0.7) == [0.2, 0.4, 0.6, 0.7]
    assert files["ticket_snip"]["settings"] == {"batches": 4}
    one_shot = ticket("one_shot", files)
    assert (one_shot.sparsity, one_shot.settings) == (0.7, {})
    assert one_shot.seed is one_shot.recipe is None
    control = ticket("random_init", files)
    assert (control.isp_rounds, control.isp_denoisers, control.head.seed) == (4, 3, 0)
    assert files["retrain_random_init"]["ticket"] == "models/tickets/random_init/of_isp"
    assert files["retrain_random_init"]["recipe"]["freeze_embeddings"] is False
    assert files["ticket_lth"]["settings"] == {"compression_rate": 0.2, "rate_of": "total"}
    assert ticket("lth_rewind", files).build().rewind == 0.05
    assert ticket("lottery_pool", files).build().coefficients == [0.1, 0.3, 0.5, 0.7, 0.9]


@pytest.mark.parametrize("name", registry.selectable())
def test_a_ticket_is_told_of_the_seed_and_of_training_where_it_looks_at_them(name: str) -> None:
    method, rows = registry.method_named(name), {"methods": [name], "sparsity": 0.5}
    one, other = plan(**rows), plan(**rows, seed=1)
    seeded = "seed" in method.looks_at or "data" in method.looks_at
    assert (one[f"ticket_{name}"] != other[f"ticket_{name}"]) == seeded
    again = plan(**rows, training__learning_rate=3e-3)
    assert (one[f"ticket_{name}"] != again[f"ticket_{name}"]) == ("data" in method.looks_at)
    assert type(ticket(name, one).build()) is method


def test_another_sparsity_changes_nothing_else_that_a_ticket_depends_on() -> None:
    """So the rounds that two targets have in common are found in the store."""
    one, other = plan(**EVERY_ROW), plan(**EVERY_ROW, sparsity=0.9)
    for name in ("lth", "lth_rewind", "progressive", "isp_plus", "early_bird"):
        assert {**one[f"ticket_{name}"], "sparsity": 0.9} == other[f"ticket_{name}"]
    assert all(one[f"calibrate_{i}"] == other[f"calibrate_{i}"] for i in range(4))


def test_a_row_of_one_method_leaves_the_others_alone() -> None:
    few, more = plan(), plan(**EVERY_ROW)
    of_needy = {f"ticket_{name}" for name in needy()}
    assert all(few[name] == IDLE for name in of_needy)
    assert all(few[name] == more[name] for name in few.keys() - of_needy - {"tables"})


def test_settings_of_one_method_mark_only_its_row() -> None:
    changes = {"early_bird__threshold": 0.3, "imp__rewind": 0.2, "criteria__batches": 2}
    files = plan(**EVERY_ROW, **changes)
    rows = ("isp", "progressive", "early_bird", "lth", "lth_rewind", "snip", "n_of_m")
    variants = {m: files[f"evaluate_{m}"]["variant"] for m in rows if f"evaluate_{m}" in files}
    assert variants == {
        "isp": "",
        "progressive": "",
        "early_bird": "early_bird.threshold=0.3",
        "lth": "",
        "lth_rewind": "imp.rewind=0.2",
        "snip": "criteria.batches=2",
    }


def test_denoisers_do_not_mark_plain_progressive_pruning() -> None:
    files = plan(**EVERY_ROW, isp__denoisers=1, isp__calibration=0.01)
    assert files["evaluate_isp"]["variant"] == "isp.calibration=0.01 isp.denoisers=1"
    assert files["evaluate_progressive"]["variant"] == "isp.calibration=0.01"


def test_any_row_of_the_run_may_be_exported_and_nothing_else_changes() -> None:
    rows = ["dense", "isp", *EVERY_ROW["methods"]]
    assert plan(**EVERY_ROW, exports=rows) == plan(**EVERY_ROW)


def test_the_dtype_of_exports_concerns_them_alone() -> None:
    one, other = plan(), plan(export_dtype="bf16")
    assert (one.pop("export"), other.pop("export")) == ({"dtype": "fp32"}, {"dtype": "bf16"})
    assert one == other


def test_a_search_that_could_compare_no_masks_is_refused() -> None:
    message = refusal(methods=["early_bird"], early_bird__every=5)
    assert "early_bird.every: 5 epochs" in message and "half" in message


def test_a_soup_is_a_dense_row_with_settings_of_its_own() -> None:
    files = plan(methods=["greedy_soup"], model_soup__networks=2)
    assert ticket("greedy_soup", files).build().networks == 2
    assert files["evaluate_greedy_soup"]["target_sparsity"] == 0.0
    assert files["evaluate_greedy_soup"]["variant"] == "model_soup.networks=2"
    assert not {f"ticket_{name}" for name in ("uniform_soup", "instant_model_soup")} & files.keys()


def test_the_last_round_is_adjusted_in_any_case() -> None:
    files = plan(isp__adjust="last_round")
    assert [files[f"soup_{i}"]["adjust"] for i in range(4)] == [False, False, False, True]


def test_two_to_four_is_a_pattern() -> None:
    files = plan(methods=["n_of_m"], sparsity=0.5)
    assert files["ticket_n_of_m"]["settings"] == {"m": 4}
    assert files["ticket_n_of_m"]["sparsity"] == 0.5


@pytest.mark.parametrize("key", ["methods", "exports"])
def test_a_list_that_is_emptied_again_leaves_the_file_whole(tmp_path: Path, key: str) -> None:
    """`dvc exp run -S` writes params.yaml back, and breaks a list with a comment behind it."""
    from dvc.utils.hydra import apply_overrides

    path = shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    for change in (f"{key}=[x]", f"{key}=[]", f"{key}=[x,y]", f"{key}=[]", "sparsity=0.5"):
        apply_overrides(str(path), [change])
    assert read_yaml(path) == {**read_yaml(ROOT / "params.yaml"), key: [], "sparsity": 0.5}
