"""Rows that learn from the dense row's network, by the stages' own scripts."""

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
    state_in,
)
from instant_soup.config.sections import Recipe
from instant_soup.errors import UserError
from instant_soup.files import read_json, read_yaml
from instant_soup.pipeline.plan import plan
from instant_soup.pipeline.stage_files import RetrainStage

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

DENSE, LOOK_AHEADS = Path("models/retrained/dense"), 2 * 3
ROWS = ["one_shot", "gmp", "lth", "random_init"]


def test_rows_learn_from_the_dense_row_and_pay_for_it_once(enter_short: Any) -> None:
    enter_short("alone", ROWS)
    run_script("dense_finetune")
    run_isp()
    run_row("one_shot")
    dense, alone = (
        state_in(DENSE),
        {n: state_in(f"models/retrained/{n}") for n in ("isp", "one_shot")},
    )
    total, dense_cost = dense.step, cost_in(DENSE)

    enter_short("taught", ROWS, teacher="dense")
    run_isp()
    for row in ROWS:
        run_row(row)
    run_script("dense_finetune")  # its training is in the store already
    assert_same_weights(state_in(DENSE).weights, dense.weights)
    assert cost_in(DENSE)["flops"] == dense_cost["flops"]
    costs = {row: cost_in(f"models/retrained/{row}") for row in ("isp", *ROWS)}
    steps = {row: (cost["steps"], cost["search_steps"]) for row, cost in costs.items()}
    assert steps == {
        "isp": (total, LOOK_AHEADS + total),
        "one_shot": (total, total),
        "gmp": (total, total),
        "lth": (total, 2 * total),  # its first network learns, too
        "random_init": (total, state_in("models/isp/round_1").step + LOOK_AHEADS + total),
    }
    # The teacher's fine-tuning, and its forward pass at each step.
    for row, times in (("one_shot", 1 + 4 / 3), ("gmp", 1 + 4 / 3), ("lth", 1 + 8 / 3)):
        assert costs[row]["flops"] == pytest.approx(times * dense_cost["flops"])
    for row, state in alone.items():
        taught = state_in(f"models/retrained/{row}").weights
        assert any(not taught[name].equal(w) for name, w in state.weights.items())
    run_script("evaluate", "--method", "one_shot")
    assert read_json("reports/results/one_shot.json")["variant"].startswith(
        "training.epochs=1 training.learning_rate=0.005"
    )
    assert "training.teacher=dense" in read_json("reports/results/one_shot.json")["variant"]


def test_without_hardness_rows_are_those_without_a_teacher(enter_short: Any) -> None:
    found = []
    for name, how in (("alone", {}), ("beside", {"teacher": "dense", "hardness": 0.0})):
        enter_short(name, ROWS, **how)
        run_isp()
        run_row("gmp")
        found.append([state_in(f"models/retrained/{row}").weights for row in ("isp", "gmp")])
    for one, other in zip(*found, strict=True):
        assert_same_weights(one, other)


def test_an_interrupted_row_goes_on_with_its_teacher(enter_short: Any, capsys: Any) -> None:
    finished = []
    total = 0
    for name, at in (("whole", 0), ("in-the-teacher", 4), ("in-the-row", 5)):
        enter_short(name, ROWS, teacher="dense")
        run_script("find_ticket", "--method", "one_shot")
        if at:
            step = at + total * (name == "in-the-row")
            run_script_until(step, "sparse_retrain", "--method", "one_shot")
        run_script("sparse_retrain", "--method", "one_shot")
        finished.append(state_in("models/retrained/one_shot").weights)
        cost, total = (
            cost_in("models/retrained/one_shot"),
            state_in("models/retrained/one_shot").step,
        )
        assert cost["steps"] == cost["search_steps"] == total
        label = {"in-the-teacher": "teacher", "in-the-row": "retrain one_shot"}.get(name)
        goes_on = f"{label}: continuing from the checkpoint at step {at - 1}\n"
        assert label is None or goes_on in capsys.readouterr().out
    for other in finished[1:]:
        assert_same_weights(finished[0], other)


def planned(**training: Any) -> dict[str, Any]:
    params = read_yaml(Path(__file__).parents[2] / "params.yaml")
    return plan({**params, "training": {**params["training"], **training}})


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"teacher": "isp"}, ["training.teacher: 'isp'", "none | dense"]),
        ({"teacher": "dense", "temperature": 0}, ["training.temperature: 0", "more than 0"]),
        ({"teacher": "dense", "temperature": -1.5}, ["training.temperature: -1.5"]),
        ({"teacher": "dense", "temperature": 1000}, ["training.temperature: 1000", "at most 100"]),
        ({"teacher": "dense", "hardness": 1.5}, ["training.hardness: 1.5", "at least 0", "1"]),
        ({"teacher": "dense", "hardness": -0.1}, ["training.hardness: -0.1"]),
        ({"hardness": 0.5}, ["training.hardness: 0.5 is for training.teacher: dense", "null"]),
        ({"teacher": "none", "temperature": 4.0}, ["training.temperature: 4.0 is for", "null"]),
    ],
)
def test_a_mistake_about_teachers_is_refused(training: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        planned(**training)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_the_plan_says_who_learns_from_what() -> None:
    alone, taught = planned(), planned(teacher="dense", temperature=4.0)
    assert taught["dense"] == alone["dense"]  # so it is not trained again
    assert taught["weak_masks_0"] == alone["weak_masks_0"]
    stage = RetrainStage.of(taught["retrain_isp"])
    assert stage.recipe.taught and stage.recipe.temperature == 4.0
    assert stage.teacher == Recipe(**alone["dense"]["recipe"])
    assert RetrainStage.of(alone["retrain_isp"]).teacher is None
    assert taught["evaluate_isp"]["variant"] == "training.teacher=dense training.temperature=4"
