"""Equal cost: trainings of other lengths, and nothing else, at what they cost; the Pareto front."""

import numpy as np
import pytest

from helpers import cells_of, ledger_of, of_seeds
from instant_soup.reports import equal_cost, pareto
from instant_soup.reports.origins import apart_by_origin
from instant_soup.reports.render import markdown


def runs_of(method: str, cost: float, *values: float, **changes) -> list[dict]:
    return of_seeds(method, *values, cost={"flops": 10.0 * cost}, **changes)


DENSE = {"target_sparsity": 0.0}
LONGER = {"variant": "training.epochs=1.2 isp.calibration=0.04"}
RUNS = [
    *runs_of("dense", 1, 0.8, 0.82, **DENSE),
    *runs_of("dense", 2, 0.83, 0.83, **DENSE, variant="training.epochs=1.2"),
    *runs_of("isp_plus", 1, 0.75, 0.77),
    *runs_of("isp_plus", 2, 0.78, 0.80, **LONGER),
    *runs_of("lth", 5, 0.79, 0.81),
    *runs_of("lth", 1.02, 0.70, 0.72, variant="training.epochs=0.12"),
]


def test_each_row_is_as_long_as_its_budget_allows(tmp_path):
    text = markdown([equal_cost.chapter(ledger_of(tmp_path, *RUNS))])
    at_one, at_two, at_five = "76.00 ± 1.41 (n = 2)", "79.00 ± 1.41 (n = 2)", "79.00 ± 1.41 (n = 2)"
    own = cells_of(text, "ISP+ (Fisher, no denoisers)")
    assert own == [f"**{at_one}**", "1.00", f"**{at_two}**", "2.00", at_five, "2.00"]
    lottery = cells_of(text, "LTH (IMP)")
    assert lottery[:4] == ["71.00 ± 1.41 (n = 2)", "1.02"] * 2
    assert lottery[4:] == ["**80.00 ± 1.41 (n = 2)**", "5.00"]
    assert cells_of(text, "Full (dense)")[2:4] == ["83.00 ± 0.00 (n = 2)", "2.00"]


@pytest.mark.parametrize(
    "odd",
    [
        {"variant": "isp.calibration=0.04"},
        {"variant": "training.epochs=1.2 isp.growing=false"},
        {"variant": "training.epochs=1.2 data.train_rows=8"},
        {"processor": "another"},
    ],
)
def test_what_differs_in_more_than_length_stays_out(tmp_path, odd):
    plain = markdown([equal_cost.chapter(ledger_of(tmp_path / "a", *RUNS))])
    more = runs_of("isp_plus", 1, 0.99, **odd)
    ledger = apart_by_origin(ledger_of(tmp_path / "b", *RUNS, *more))
    assert markdown([equal_cost.chapter(ledger)]) == plain


def test_a_tasks_own_length_is_one_fine_tuning(tmp_path):
    local = {"variant": "training.epochs=2", "dataset": "mrpc@local"}
    twice = {**local, "variant": "training.epochs=4 isp.calibration=0.04"}
    rows = [
        *runs_of("dense", 3, 0.7, 0.7, **DENSE, **local),
        *runs_of("isp", 3, 0.6, 0.6, **local),
        *runs_of("isp_plus", 3, 0.6, 0.6, **local),
        *runs_of("isp_plus", 6, 0.6, 0.6, **twice),
    ]
    runs = equal_cost.runs_of_any_length(ledger_of(tmp_path, *rows))
    assert sorted(runs.loc[runs["method"] == "isp_plus", "cost"]) == [1, 1, 2, 2]


def test_without_other_lengths_there_is_no_table(tmp_path):
    ledger = ledger_of(tmp_path, *runs_of("dense", 1, 0.8, **DENSE), *runs_of("isp", 1.8, 0.7))
    assert "No results yet" in markdown([equal_cost.chapter(ledger)])


def test_a_run_that_came_out_as_nan_is_not_left_out(tmp_path):
    broken = runs_of("gmp", 1, 0.9, float("nan"))
    text = markdown([equal_cost.chapter(ledger_of(tmp_path, *RUNS, *broken))])
    assert cells_of(text, "GMP\\* (magnitude)")[0] == "nan ± nan (n = 2)"
    assert cells_of(text, "ISP+ (Fisher, no denoisers)")[0].startswith("**76.00")
    runs = equal_cost.runs_of_any_length(ledger_of(tmp_path, *RUNS, *broken))
    assert np.isnan(equal_cost.at_budget(runs, 1)["mean"]["gmp"])


def test_the_best_as_printed_are_bold(tmp_path):
    metric = {"metric": "perplexity", "dataset": "text"}
    rows = [
        *runs_of("dense", 1, 40.0, **DENSE, **metric),
        *runs_of("one_shot", 1, 57.1701, **metric),
        *runs_of("one_shot", 2, 57.0, **metric, variant="training.epochs=1.2"),
        *runs_of("sparsegpt", 1, 57.1699, **metric),
    ]
    text = markdown([equal_cost.chapter(ledger_of(tmp_path, *rows))])
    assert cells_of(text, "One-shot magnitude")[0] == "**57.17 (n = 1)**"
    assert cells_of(text, "SparseGPT")[0] == "**57.17 (n = 1)**"


def test_the_front_has_what_nothing_cheaper_beats():
    costs, values = np.array([1, 1, 2, 3, 5.0]), np.array([70, 72, 71, 75, 75.0])
    assert pareto.front(costs, values) == [1, 3]


def test_points_of_equal_cost_stand_apart():
    places, groups = pareto.side_by_side(np.array([1.0, 5.0, 1.0, 1.03]))
    assert len(set(places)) == 4 and places[1] == pytest.approx(5.0)
    assert len(groups) == 1 and groups[0][0] < min(places) and max(places[[0, 2, 3]]) < groups[0][1]
    assert np.exp(np.log(places[[0, 2, 3]]).mean()) == pytest.approx(1.03 ** (1 / 3))


def test_the_figure_is_the_same_for_the_same_ledger(tmp_path):
    ledger = ledger_of(tmp_path, *RUNS)
    one, other = (pareto.draw(ledger, tmp_path)[0].read_bytes() for _ in range(2))
    assert one == other
