"""Rows that are retrained in part, by the stages' own scripts."""

from pathlib import Path
from typing import Any

import pytest

from helpers import (
    assert_same_weights,
    cost_in,
    run_isp,
    run_row,
    run_script,
    run_script_until,
    same,
    state_in,
)
from instant_soup.errors import UserError
from instant_soup.files import read_json, read_yaml
from instant_soup.models.base import pretrained_prunable
from instant_soup.pipeline.plan import plan
from instant_soup.pipeline.run import build
from instant_soup.pipeline.stage_files import RetrainStage
from instant_soup.pipeline.workspace import BASE
from instant_soup.sparsity import masks
from instant_soup.sparsity.pq import free_share
from instant_soup.training.retraining import small_parameters

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

ROWS = ["one_shot", "lth"]


@pytest.mark.parametrize(
    "how", [{"retrain": "norms_and_biases"}, {"retrain": "mask_lora", "lora_rank": 2}]
)
def test_tickets_are_those_of_ever_and_the_last_phase_trains_in_part(
    enter_short: Any, how: dict[str, Any]
) -> None:
    finished: dict[str, Any] = {}
    for name, training in (("whole", {}), ("in-part", how)):
        enter_short(name, ROWS, **training)
        run_isp()
        for row in ROWS:
            run_row(row)
        finished[name] = {
            row: (
                state_in(f"models/retrained/{row}"),
                masks.load(f"models/retrained/{row}/mask.safetensors"),
                cost_in(f"models/retrained/{row}"),
            )
            for row in ("isp", *ROWS)
        }
    begins = {
        "isp": state_in("models/isp/round_1"),
        "one_shot": state_in("models/start"),
        "lth": state_in("models/start"),
    }
    for row, (state, mask, cost) in finished["in-part"].items():
        _, other, dearer = finished["whole"][row]
        assert same(mask, other) and masks.sparsity(mask) == pytest.approx(0.6, abs=1e-4)
        recipe = RetrainStage.read(f"models/plan/retrain_{row}.yaml").recipe
        names = small_parameters(build(state.copy(), recipe), mask)
        begin = begins[row]
        begin.prune(mask)
        for name, weight in state.weights.items():
            stays = weight.equal(begin.weights[name])
            adapted = how["retrain"] == "mask_lora" and name in mask
            assert stays != (name in names or adapted), name
        assert not any(state.weights[name][~kept].any() for name, kept in mask.items())
        steps = state.step - (begin.step if row == "isp" else 0)
        if how["retrain"] == "norms_and_biases":
            assert cost["flops"] < dearer["flops"] and cost["steps"] == dearer["steps"]
        else:
            products = steps * 6 * 2 * masks.count(mask)[1]
            assert cost["flops"] - dearer["flops"] == pytest.approx(products)
    run_script("evaluate", "--method", "one_shot")
    result = read_json("reports/results/one_shot.json")
    assert result["pq_index"] == free_share(pretrained_prunable(BASE))
    told = result["variant"].split()
    assert told[-len(how) :] == [f"training.{key}={value}" for key, value in how.items()]


@pytest.mark.parametrize("retrain", ["norms_and_biases", "mask_lora"])
def test_an_interrupted_row_goes_on_to_the_bit(enter_short: Any, capsys: Any, retrain: str) -> None:
    finished = []
    for name in ("whole", "stopped"):
        enter_short(name, ROWS, retrain=retrain)
        run_script("find_ticket", "--method", "one_shot")
        if name == "stopped":
            run_script_until(4, "sparse_retrain", "--method", "one_shot")
        run_script("sparse_retrain", "--method", "one_shot")
        finished.append(state_in("models/retrained/one_shot").weights)
    assert "continuing from the checkpoint at step 3" in capsys.readouterr().out
    assert_same_weights(*finished)


def planned(methods: list[str] | None = None, **training: Any) -> dict[str, Any]:
    params = read_yaml(Path(__file__).parents[2] / "params.yaml")
    rows = params["methods"] if methods is None else methods
    own = {**params["training"], **training}
    return plan({**params, "methods": rows, "training": own})


def test_the_plan_says_what_trains_after_the_last_mask_and_nowhere_else() -> None:
    rows = ["one_shot", "instant_model_soup"]
    whole, part = planned(rows), planned(rows, retrain="mask_lora", lora_rank=4)
    changed = {name for name in part if part[name] != whole[name]}
    assert changed == {
        *("retrain_isp", "retrain_one_shot"),
        *(f"evaluate_{row}" for row in ("dense", "isp", *rows)),
    }
    recipe = RetrainStage.of(part["retrain_isp"]).recipe
    assert (recipe.retrain, recipe.lora_rank) == ("mask_lora", 4)
    assert part["evaluate_dense"]["variant"] == "training.retrain=mask_lora training.lora_rank=4"


@pytest.mark.parametrize(
    ("methods", "training", "words"),
    [
        (None, {"retrain": "none"}, ["training.retrain: 'none'", "all | norms_and_biases"]),
        (None, {"lora_rank": 8}, ["training.lora_rank: 8 is for training.retrain: mask_lora"]),
        (None, {"retrain_rate": 2.0}, ["training.retrain_rate: 2.0 is for", "norms_and_biases"]),
        (None, {"retrain": "norms_and_biases", "lora_alpha": 8}, ["training.lora_alpha: 8 is for"]),
        (["sparse_soup"], {"retrain": "mask_lora"}, ["sparse_soup trains nothing", "all"]),
    ],
)
def test_a_mistake_about_retraining_is_refused(
    methods: list[str] | None, training: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        planned(methods, **training)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
