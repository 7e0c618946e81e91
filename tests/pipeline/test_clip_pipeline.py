"""The pipeline on images, with every kind of row: a tiny CLIP, by the stages' own scripts."""

import contextlib
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers import make_project, run_isp, run_row, run_script, work_in, write_pictures
from instant_soup.sparsity import masks
from instant_soup.training.state import load_state

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

CHANGES = {
    "sparsity": 0.5,
    "methods": [
        *("one_shot", "snip", "grasp", "early_bird", "progressive"),
        *("lth", "lth_rewind", "lottery_pool", "random_init"),
    ],
    "data": {"validation_rows": 20, "test_rows": 40, "train_rows": "all"},
    "training": {"epochs": 2, "batch_size": 8, "precision": "fp32", "learning_rate": 3e-3},
    "isp": {"compression_rate": 0.3, "calibration": 0.2, "look_ahead": 2, "denoisers": 1},
    "imp": {"compression_rate": 0.3},
}
SPARSE = [*CHANGES["methods"], "isp"]
BUDGET = 2 * (100 // 8)


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_clip: Path) -> Path:
    """A project on bright and dark squares in folders, from these to the report.

    What the stages printed is in said.txt.
    """
    folder, said = tmp_path_factory.mktemp("project"), io.StringIO()
    pictures = write_pictures(tmp_path_factory.mktemp("pictures"))
    make_project(folder, tiny_clip, pictures, **CHANGES)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        work_in(folder, folder, patch)
        run_script("pretrain_clip")
        run_script("dense_finetune")
        run_isp()
        for row in CHANGES["methods"]:
            run_row(row)
        for row in (*SPARSE, "dense"):
            run_script("evaluate", "--method", row)
        run_script("tables")
    (folder / "said.txt").write_text(said.getvalue())
    return folder


def result(project: Path, method: str) -> dict:
    return json.loads((project / f"reports/results/{method}.json").read_text())


def test_every_method_has_its_exact_sparsity_budget_and_zeros(project: Path):
    prunable = 2 * 12 * 32 * 32
    for method in [*SPARSE, "dense"]:
        sparsity = 0.0 if method == "dense" else 0.5
        found = result(project, method)
        assert (found["prunable_weights"], found["pruned_weights"]) == (
            prunable,
            sparsity * prunable,
        )
        assert found["cost"]["steps"] == BUDGET
        weights = load_state(project / f"models/retrained/{method}/state", False).weights
        mask = masks.load(project / f"models/retrained/{method}/mask.safetensors")
        assert sum(int((weights[n] == 0).sum()) for n in mask) == sparsity * prunable


def test_all_prunable_matrices_moved_and_the_head_did_not(project: Path):
    start = load_state(project / "models/start/state", False).weights
    for method in ("isp", "one_shot", "lth", "progressive", "dense"):
        after = load_state(project / f"models/retrained/{method}/state", False).weights
        mask = masks.load(project / f"models/retrained/{method}/mask.safetensors")
        assert sum("out_proj" in name for name in mask) == 2
        for name, kept in mask.items():
            assert (after[name] != start[name])[kept].float().mean() > 0.9, (method, name)
        assert torch.equal(after["head"], start["head"])


def test_search_steps_are_those_outside_the_run_of_the_budget(project: Path):
    steps = {method: result(project, method)["cost"]["search_steps"] for method in SPARSE}
    assert all(steps[m] == 0 for m in ("one_shot", "snip", "grasp", "progressive"))
    assert steps["isp"] == 2 * 1 * 2  # rounds × denoisers × look-ahead
    assert steps["random_init"] == steps["isp"] + 2 + 4  # ISP's mask, with its calibration
    # The dense run and the first of two rounds; rewound, all three runs share their first step,
    # which counts with the last.
    assert steps["lth"] == steps["lottery_pool"] == 2 * BUDGET
    assert steps["lth_rewind"] == 2 * (BUDGET - 1)
    drawn = result(project, "early_bird")["drawn"]
    assert steps["early_bird"] == drawn["step"] > 0


def test_training_that_rows_have_in_common_runs_once(project: Path):
    """The dense network of the dense row and three others, and a round of LTH that two have."""
    output = (project / "said.txt").read_text()
    taken = re.findall(r"^(.*): taking the finished training", output, re.MULTILINE)
    assert sum(label in ("dense", "dense fine-tuning") for label in taken) == 3
    assert sum(label in ("lth round 0", "lottery_pool round 0") for label in taken) == 1


def test_the_control_has_isps_mask_and_other_weights(project: Path):
    masks_of = {
        m: masks.load(project / f"models/retrained/{m}/mask.safetensors")
        for m in ("isp", "random_init")
    }
    assert masks.cosine_similarity(masks_of["isp"], masks_of["random_init"]) == pytest.approx(1)
    isp, control = (
        load_state(project / f"models/retrained/{m}/state", False).weights
        for m in ("isp", "random_init")
    )
    for name, kept in masks_of["isp"].items():
        assert (isp[name] != control[name])[kept].float().mean() > 0.99


def test_zero_shot_accuracy_is_a_row_of_its_own(project: Path):
    ledger = pd.read_csv(project / "reports/results.csv", keep_default_na=False)
    row = ledger[(ledger["method"] == "zero_shot") & (ledger["dataset"].str.contains("pictures"))]
    assert len(row) == 1 and row["steps"].item() == 0
    assert float(row["value"].item()) == result(project, "dense")["zero_shot"]["accuracy"]
    table = (project / "reports/tables/results.md").read_text()
    assert "\n* Zero-shot, unpruned: " in table  # above it, as all unpruned rows
    assert "zero_shot" in json.loads((project / "reports/metrics.json").read_text())


def test_it_learns_what_zero_shot_cannot_know(project: Path):
    dense = result(project, "dense")
    assert dense["test"]["accuracy"] > 0.9 > dense["zero_shot"]["accuracy"]


def test_pre_training_passes_by_for_a_model_that_is_there(project: Path):
    assert [path.name for path in (project / "models/pretrained").iterdir()] == ["idle.txt"]
