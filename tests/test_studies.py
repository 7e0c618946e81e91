"""The studies: their ISP is the pipeline's, they go on where they were, and choose as they say."""

import math
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import better_soups
import denoiser_rates
import language_masks
import language_one_shot
import pandas as pd
import pytest
import torch

import pretraining
from helpers import ROOT, make_project, run_isp, run_script, save_causal
from instant_soup.errors import UserError
from instant_soup.files import read_json, read_yaml
from instant_soup.pipeline.plan import Params, check

pytestmark = pytest.mark.usefixtures("one_thread")


CHANGES: dict[str, Any] = {
    "sparsity": 0.4,
    "methods": [],
    "data": {"max_length": 16},
    "training": {"epochs": 2, "batch_size": 8, "precision": "fp32", "learning_rate": 3e-3},
    "isp": {"compression_rate": 0.2, "calibration": 0.2, "look_ahead": 2, "denoisers": 2},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_data: Path) -> Path:
    """A project with ISP run to its end by the stages, two rounds of two denoisers."""
    folder = tmp_path_factory.mktemp("study")
    make_project(folder, tiny_bert, tiny_data, **CHANGES)
    with chdir(folder):
        run_isp(rounds=2)
        run_script("evaluate", "--method", "isp")
    return folder


def run(project: Path, variant: str) -> dict[str, Any]:
    params = read_yaml(ROOT / "params.yaml")
    for key, value in CHANGES.items():
        params[key] = {**params[key], **value} if isinstance(value, dict) else value
    with chdir(project):
        return better_soups.run(check(params), variant)


@pytest.fixture(scope="module")
def union(project: Path) -> dict[str, Any]:
    """What the study finds of ISP as the paper has it."""
    return run(project, "union")


def test_the_union_is_the_pipelines_isp(project: Path, union: dict[str, Any]) -> None:
    result = read_json(project / "reports/results/isp.json")
    assert union["test"] == result["test"]["accuracy"]
    assert union["overlap_one_shot"] == result["overlap_one_shot"]
    assert union["flops"] == pytest.approx(result["cost"]["flops"])


@pytest.mark.parametrize("variant", [v for v in better_soups.VARIANTS if v != "union"])
def test_every_variant_runs_and_costs_what_it_says(
    project: Path, union: dict[str, Any], variant: str
) -> None:
    usual, found = union["flops"], run(project, variant)["flops"]
    if variant in ("progressive", "progressive_fisher"):
        assert found < 0.9 * usual
    elif variant == "distilled":
        assert found > 1.3 * usual
    else:  # batches of other lengths differ a little
        assert found == pytest.approx(usual, rel=0.1)


def test_finished_runs_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple] = []

    def fake(params: Params, variant: str) -> dict[str, float]:
        counted.append((params.top.seed, params.top.sparsity, variant))
        if variant == "fisher":
            raise UserError("the loss is nan")
        return dict.fromkeys(better_soups.COLUMNS[len(better_soups.KEY) :], 0.5)

    monkeypatch.setattr(better_soups, "RESULTS", tmp_path / "runs.csv")
    monkeypatch.setattr(better_soups, "run", fake)
    monkeypatch.setattr(better_soups, "prepare", lambda *_, **__: None)
    words = ["x", "--task", "reviews-sentiment", "--seeds", "0", "1", "--sparsities", "0.7",
             "--variants", "union", "fisher"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    better_soups.main()
    assert counted == [(s, 0.7, v) for s in (0, 1) for v in ("union", "fisher")]
    better_soups.main()
    assert len(counted) == 4
    monkeypatch.setattr(sys, "argv", [*words, "--look-ahead", "30"])  # another setting
    better_soups.main()
    assert len(counted) == 8


def test_a_models_folder_counts_by_its_weights_and_data_not_by_where_they_lie(
    tmp_path: Path,
) -> None:
    def digest(folder: str, weights: bytes, rows: int) -> str:
        model = tmp_path / folder
        model.mkdir(exist_ok=True)
        (model / better_soups.CONFIG).write_text("{}")
        (model / better_soups.WEIGHTS).write_bytes(weights)
        changes = better_soups.changes_of(f"mnist-sample={model}", model)
        changes["data"]["test_rows"] = rows
        return better_soups.digest_of(check(better_soups.params_with(**changes)))

    assert digest("here", b"same", 100) == digest("there", b"same", 100)
    others = [digest("here", b"other", 100), digest("here", b"same", 101)]
    assert len({digest("here", b"same", 100), *others}) == 3


def test_recorded_runs_keep_their_digests(tmp_path: Path) -> None:
    def digest(task: str) -> str:
        changes = {**better_soups.changes_of(task, tmp_path), "isp": {"look_ahead": 10}}
        return better_soups.digest_of(check(better_soups.params_with(**changes)))

    recorded = better_soups.read_runs()
    own = set(recorded.loc[recorded["task"] == "reviews-sentiment", "settings"])
    assert own == {digest("reviews-sentiment")}
    (tmp_path / better_soups.CONFIG).write_text("{}")
    (tmp_path / better_soups.WEIGHTS).write_bytes(b"x\n")
    assert digest("mnist-sample") == "f46991a8"  # of these weights, when runs were recorded


def test_a_task_that_cannot_be_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(better_soups, "prepare", None)
    for words, reason in (
        (["--task", "reviews"], "unknown 'reviews'"),
        (["--task", "mnist-sample", "--image-model", "nowhere"], "--image-model: nowhere"),
    ):
        monkeypatch.setattr(sys, "argv", ["x", *words])
        with pytest.raises(UserError, match=reason):
            better_soups.main()


def test_validation_chooses_among_those_of_equal_cost() -> None:
    rows = []
    for variant, validation, test, flops in (
        ("union", 0.80, 0.80, 1.8),
        ("vote", 0.82, 0.79, 1.8),
        ("fisher", 0.81, 0.90, 1.8),  # the best on test, which is not looked at
        ("distilled", 0.95, 0.95, 2.8),
        ("progressive", 0.99, 0.99, 1.0),
        ("saliency", 0.99, 0.99, 1.8),  # tried with one seed only
        ("diverse", 0.99, 0.99, 1.8),  # and this has diverged once
    ):
        for seed in (0, 1, 2) if variant != "saliency" else (0,):
            rows.append({
                "task": "a", "sparsity": "0.7", "seed": seed, "variant": variant, "settings": "s",
                "validation": validation + seed / 100, "test": test + seed / 100, "flops": flops,
                "overlap_own": 1.0,
            })  # fmt: skip
    rows[-1] |= {"validation": math.nan, "test": math.nan}
    cells = better_soups.cells_of(pd.DataFrame(rows))
    finalists = better_soups.whole(cells)
    assert set(cells["variant"]) - set(finalists["variant"]) == {"saliency"}
    table = better_soups.summary(finalists)
    assert better_soups.chosen_of(table) == "vote"
    vote = table.set_index("variant").loc["vote"]
    assert (vote["validation"], vote["test"]) == pytest.approx((2.0, -1.0))
    assert (vote["n"], vote["better"]) == (3, 0)
    scores = better_soups.scores_table(finalists, ["vote"]).splitlines()
    assert scores == ["| variant | a 0.7 |", "| --- | ---: |", "| vote | 80.00 ± 1.00 |"]
    first = better_soups.shared(cells)
    assert set(first["seed"]) == {0} and set(first["variant"]) == set(cells["variant"])


def test_pre_training_is_reported_by_the_seeds_that_are_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "CURVES", tmp_path / "pretraining_curves.csv")
    monkeypatch.setattr(pretraining, "WEIGHTS", tmp_path / "pretraining_weights.csv")
    curves, weights = [], []
    for objective, end in (("contrastive", 0.9), ("supervised", 0.7)):
        for seed in (0, 1):
            where = {"objective": objective, "steps_of_run": 1000, "seed": seed}
            # As good as dense up to `end`, from there a point worse with every tenth.
            for sparsity in pretraining.SPARSITIES[: 3 if seed and end == 0.7 else None]:
                test = 0.9 - 0.1 * max(0, sparsity - end)
                curves.append({**where, "sparsity": sparsity, "validation": 0.5, "test": test})
            weights += [{**where, "step": s, "near_zero": s / 10000} for s in (20, 1000)]
    pd.DataFrame(curves).to_csv(pretraining.CURVES, index=False)
    pd.DataFrame(weights).to_csv(pretraining.WEIGHTS, index=False)
    pretraining.report()
    text = (tmp_path / "pretraining.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if "1000 steps" in line]
    assert [row[1] for row in rows] == ["90.00 ± 0.00 (n = 2)", "90.00 (n = 1)"]
    assert [row[-2] for row in rows] == ["90 (90 … 90)", "80"]
    assert rows[0][-1] == "0.2 → 10.0 |"
    assert (tmp_path / "pretraining.png").stat().st_size


def test_denoisers_that_hardly_move_agree_with_the_network(project: Path) -> None:
    params = read_yaml(ROOT / "params.yaml")
    for key, value in CHANGES.items():
        params[key] = {**params[key], **value} if isinstance(value, dict) else value
    with chdir(project):
        still, far = (denoiser_rates.run(check(params), "isp", factor) for factor in (1e-9, 300.0))
        without = denoiser_rates.run(check(params), "progressive", 0.0)
    assert still["weak"] == still["soup"] == still["held"] == pytest.approx(1.0)
    assert far["weak"] < far["soup"] < 1 and far["held"] < 1
    assert without == {"test": still["test"]}


def test_a_language_model_is_measured_once_and_the_lowest_perplexity_is_bold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def fake(folder: Path, texts: str, method: str) -> list[dict[str, Any]]:
        measured.append(method)
        found = 20.0 if method == "wanda" else 30.0 + len(measured)
        return [
            {"method": method, "pattern": pattern, "sparsity": 0.50004, "perplexity": value}
            for pattern, value in (("", found), ("2:4", 1234.5))
        ]

    weights = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    monkeypatch.setattr(language_one_shot.causal, "load_pretrained", lambda folder: weights)
    monkeypatch.setattr(language_one_shot, "RESULTS", tmp_path / "rows.csv")
    monkeypatch.setattr(language_one_shot, "measured", fake)
    monkeypatch.setattr(sys, "argv", ["x", "--model", str(tmp_path)])
    for _ in range(2):
        language_one_shot.main()
    assert measured == [*language_one_shot.NAMES]
    page = (tmp_path / "rows.md").read_text()
    assert "| method | 50 % | 2:4 |" in page
    assert "| Wanda, each row | **20.0** | 1,234 |" in page
    assert "| Magnitude, all matrices | 31.0 | 1,234 |" in page
    monkeypatch.setattr(sys, "argv", ["x", "--model", str(tmp_path / "none")])
    with pytest.raises(UserError, match="is not there"):
        language_one_shot.main()


def test_masks_of_a_language_model_are_compared_pair_by_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts = save_causal(tmp_path / "llama", "llama"), tmp_path / "texts"
    texts.mkdir()
    words = "\n\n".join(f"the film is fine {i}" for i in range(200))
    (texts / "a.txt").write_text(words)
    monkeypatch.setattr(language_masks, "RESULTS", tmp_path / "language_masks.csv")
    given = ["x", "--model", str(model), "--texts", f"local:{texts}"]
    monkeypatch.setattr(sys, "argv", given)
    language_masks.main()
    language_masks.main()  # the same rows again
    rows = pd.read_csv(tmp_path / "language_masks.csv", keep_default_na=False)
    count = len(language_masks.NAMES)
    assert len(rows) == 3 * count * (count - 1) // 2
    assert rows["cosine"].between(0.2, 1).all()
    pairs = rows[rows["pattern"] == "2:4"].set_index(["one", "other"])["cosine"]
    # A group's largest are a row's, whatever else is ranked with them.
    assert pairs["magnitude-global", "magnitude-rows"] == 1.0
    assert pairs["fisher", "fisher-rows"] == 1.0
    text = (tmp_path / "language_masks.md").read_text()
    assert text.count("\n| wanda |") == 3 and "2:4" in text
