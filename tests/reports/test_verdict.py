"""The verdict: what may be compared, hand-computed best rows, and nothing that depends on order."""

import numpy as np
import pandas as pd
import pytest

from helpers import cells_of, ledger_of, of_seeds, result
from instant_soup.reports import verdict, verdict_figures
from instant_soup.reports.claim import claim
from instant_soup.reports.glance import glance, with_choice
from instant_soup.reports.origins import apart_by_origin
from instant_soup.reports.render import Chapter, markdown
from instant_soup.reports.tables import all_chapters, write_tables

DENSE = {"target_sparsity": 0.0}


def runs_of(method: str, points: list[list[float]], cost: float = 1.0, **changes) -> list[dict]:
    """Results on two tasks, these points from dense networks that have 80 and 60 %, and up."""
    found = []
    for dataset, dense, own in zip(("reviews", "news"), (0.8, 0.6), points, strict=False):
        values = [dense + 0.01 * seed + point / 100 for seed, point in enumerate(own)]
        changes = {"cost": {"flops": 10.0 * cost}, **changes}
        found += of_seeds(method, *values, dataset=dataset, **changes)
    return found


RUNS = [
    *runs_of("dense", [[0, 0, 0], [0, 0, 0]], **DENSE),
    *runs_of("one_shot", [[-5, -6, -5], [-3, -3, -4]]),
    *runs_of("isp_plus", [[-1, -2, 0], [-2, -1, 0]]),
    *runs_of("isp", [[-2.1, -3, -0.9], [-3, -2.2, -0.8]], cost=1.6),
    *runs_of("lth", [[1, 0, 0.5], [1, 1.5, 2]], cost=4.0),
    *(SNIP := runs_of("snip", [[9, 9.5, 9.2]])),
]


def chapters(ledger: pd.DataFrame) -> list[Chapter]:
    runs = verdict.comparable(ledger)
    return verdict.chapters(runs, verdict.best_rows(runs))


def test_the_best_row_of_each_budget_by_hand(tmp_path):
    lines = verdict.verdict(ledger_of(tmp_path, *RUNS)).set_index("budget")
    assert list(lines["method"]) == ["isp_plus", "isp_plus", "lth", "lth"]
    assert lines["distance"].to_numpy() == pytest.approx([-1.0, -1.0, 1.0, 1.0])
    assert list(lines["rows"]) == [2, 3, 4, 4]  # SNIP was not run on all tasks
    assert list(lines["ahead"]) == [("snip",)] * 4
    assert list(lines["tasks"]) == [2] * 4 and list(lines["runs"]) == [6] * 4
    assert lines["cost"][5.0] == 4.0


def test_a_row_is_within_noise_by_its_corrected_p(tmp_path):
    near = runs_of("progressive", [[-2, 0, -1], [-1, -2, -1]])
    lines = verdict.verdict(ledger_of(tmp_path, *RUNS, *near)).set_index("budget")
    assert lines["within"][1.0] == ("progressive",)  # one-shot is beyond it


def test_differences_are_paired_by_task_and_seed(tmp_path):
    table = verdict.against(verdict.comparable(ledger_of(tmp_path, *RUNS)), "isp_plus")
    assert table.loc["isp", "mean"] == pytest.approx(-1.0)
    assert -1.2 < table.loc["isp", "low"] < -1 < table.loc["isp", "high"] < -0.8
    assert list(table.loc["snip", ["tasks", "runs"]]) == [1, 3]
    assert table.loc["snip", "mean"] == pytest.approx((10 + 11.5 + 9.2) / 3)
    assert (table["p_holm"] >= table["p"]).all()


def test_differences_chosen_beforehand_are_corrected_for_their_own_number_alone(tmp_path):
    pairs = [("isp", "lth"), ("isp_plus", "isp"), ("isp", "granet")]  # GraNet was not run
    few, many = (
        verdict.between(verdict.comparable(ledger_of(tmp_path / str(i), *RUNS[:n])), pairs)
        for i, n in enumerate((-len(SNIP), len(RUNS)))
    )
    assert few.equals(many) and list(few.index) == pairs[:2]
    low, high = sorted(few["p"])
    assert sorted(few["p_holm"]) == pytest.approx([min(2 * low, max(2 * low, high)), high])
    assert few.loc[("isp_plus", "isp"), "mean"] == pytest.approx(1.0)


def test_methods_within_noise_come_nearest_first(tmp_path):
    far = runs_of("movement", [[-9, -70, -2], [-60, -1, -40]])
    near = runs_of("progressive", [[-2, 0, -1], [-1, -2, -1]])
    lines = verdict.verdict(ledger_of(tmp_path, *RUNS, *far, *near)).set_index("budget")
    assert lines["within"][1.0] == ("progressive", "movement")


def test_sparsities_that_all_seeds_have_are_averaged_first(tmp_path):
    """What one seed alone has stays out: the seeds' spread would be that of the sparsities."""
    sparsities = [
        result("isp", value, target_sparsity=s, seed=seed)
        for s, seed, value in [
            (0.5, 0, 0.8), (0.6, 0, 0.1), (0.7, 0, 0.6), (0.5, 1, 0.9), (0.7, 1, 0.7),
        ]
    ]  # fmt: skip
    runs = verdict.comparable(ledger_of(tmp_path, *sparsities, *of_seeds("dense", 0.9, 0.9)))
    assert verdict.against(runs, None).loc["isp", "mean"] == pytest.approx(-15)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_changes_nothing(tmp_path, seed):
    ledger = ledger_of(tmp_path, *RUNS)
    shuffled = ledger.sample(frac=1, random_state=seed)
    pd.testing.assert_frame_equal(verdict.verdict(shuffled), verdict.verdict(ledger))
    assert markdown(chapters(shuffled)) == markdown(chapters(ledger))


@pytest.mark.parametrize(
    "odd",
    [
        {"variant": "isp.denoisers=6"},
        {"variant": "training.teacher=dense"},
        {"variant": "training.retrain=mask_lora"},
        {"variant": "training.epochs=4"},
        # Without a dense network of their own:
        {"precision": "fp32"},
        {"base": "other"},
        {"processor": "another"},
    ],
)
def test_other_settings_teachers_precisions_bases_and_processors_stay_out(tmp_path, odd):
    plain = verdict.verdict(ledger_of(tmp_path / "a", *RUNS))
    others = runs_of("isp", [[20, 20, 20], [20, 20, 20]], **odd)
    others = [{**one, "seed": 10 + number} for number, one in enumerate(others)]
    mixed = verdict.verdict(apart_by_origin(ledger_of(tmp_path / "b", *RUNS, *others)))
    pd.testing.assert_frame_equal(mixed, plain)


def test_each_origin_has_its_own_dense_network(tmp_path):
    """PLATON ran on another processor only, where dense is 5 points lower; ISP+ on both."""
    there = {"processor": "another"}
    others = [
        *runs_of("dense", [[-5, -5, -5], [-5, -5, -5]], **DENSE, **there),
        *runs_of("isp_plus", [[-7, -7, -7], [-7, -7, -7]], **there),
        *runs_of("platon", [[-8, -7.5, -8.5], [-8, -8, -8]], **there),
    ]
    runs = verdict.comparable(apart_by_origin(ledger_of(tmp_path, *RUNS, *others)))
    assert verdict.against(runs, None).loc["platon", "mean"] == pytest.approx(-3.0)
    assert verdict.against(runs, None).loc["isp_plus", "mean"] == pytest.approx(-1.5)
    # Only what both ran on one processor counts.
    assert verdict.against(runs, "isp_plus").loc["platon", "mean"] == pytest.approx(-1.0)
    assert "platon" not in verdict.against(runs, "isp").index


def test_what_never_ran_on_the_winners_processor_is_not_tested_against_it(tmp_path):
    there = {"processor": "another"}
    others = [
        *runs_of("dense", [[-5, -5, -5], [-5, -5, -5]], **DENSE, **there),
        *runs_of("isp_plus", [[-7, -7.5, -7], [-7, -7, -7.5]], **there),
        *runs_of("platon", [[3, 3.5, 3], [3, 3, 3.5]], **there),
    ]
    lines = verdict.verdict(apart_by_origin(ledger_of(tmp_path, *RUNS, *others)))
    assert set(lines["method"]) == {"platon"}
    line = lines[lines["budget"] == 2].iloc[0]
    assert "isp" in line["untested"] and "isp_plus" not in line["untested"] + line["within"]


def test_what_is_above_the_best_where_both_ran_is_named(tmp_path):
    """ISP+ beats one-shot where both ran, but has a lower mean, with another processor's runs."""
    there = {"processor": "another"}
    rows = [
        *runs_of("dense", [[0, 0, 0], [0, 0, 0]], **DENSE),
        *runs_of("dense", [[0, 0, 0], [0, 0, 0]], **DENSE, **there),
        *runs_of("one_shot", [[-2, -1.9, -2.1], [-2, -1.9, -2.1]]),
        *runs_of("isp_plus", [[-1.5, -1.37, -1.63], [-1.3, -1.17, -1.43]]),
        *runs_of("isp_plus", [[-4, -3.9, -4.1], [-4, -3.9, -4.1]], **there),
        *runs_of("progressive", [[-10, -10.1, -9.9], [-10, -10.1, -9.9]]),
        *runs_of("snip", [[-11, -10.8, -11.2], [-11, -10.8, -11.2]]),
    ]
    lines = verdict.verdict(apart_by_origin(ledger_of(tmp_path, *rows)))
    line = lines[lines["budget"] == 1].iloc[0]
    assert line["method"] == "one_shot" and line["ahead"] == ("isp_plus",)
    ((_, cells),) = glance("quick", lines).rows
    assert not cells[0].bold and "ahead where both ran: ISP+" in cells[0].text


def test_a_rival_that_shares_a_part_of_the_tasks_is_not_tested(tmp_path):
    """One-shot ran on both tasks, on the winner's processor on one of them."""
    there = {"processor": "another", "dataset": "news"}
    rows = [
        *runs_of("dense", [[0, 0, 0], [0, 0, 0]], **DENSE),
        *of_seeds("dense", 0.6, 0.61, 0.62, **DENSE, **there),
        *runs_of("isp_plus", [[-2, -1.9, -2.1], [-2, -1.9, -2.1]]),
        *runs_of("one_shot", [[-5, -5.2, -5.4]]),
        *of_seeds("one_shot", 0.605, 0.616, 0.624, **there),
        *runs_of("snip", [[-10, -10.1, -9.9], [-10, -10.1, -9.9]]),
    ]
    rows = [{**row, "cost": {"flops": 10.0}} for row in rows]
    lines = verdict.verdict(apart_by_origin(ledger_of(tmp_path, *rows)))
    line = lines[lines["budget"] == 1].iloc[0]
    assert line["method"] == "isp_plus" and line["untested"] == ("one_shot",)


def test_runs_are_those_of_all_origins_and_rows_with_few_seeds_are_last(tmp_path):
    there = {"processor": "another"}
    rows = [
        *runs_of("dense", [[0, 0, 0], [0, 0, 0]], **DENSE, **there),
        *runs_of("isp_plus", [[-1, -2, 0], [-2, -1, 0]], **there),
        *runs_of("platon", [[9], [9]]),
    ]
    runs = verdict.comparable(apart_by_origin(ledger_of(tmp_path, *RUNS, *rows)))
    table = verdict.against(runs, None)
    assert table["runs"]["isp_plus"] == 12 and table["runs"]["isp"] == 6
    names = [name for name, _ in verdict.chapters(runs, verdict.best_rows(runs))[1].tables[0].rows]
    assert names[-1] == "PLATON"


def test_a_difference_without_spread_is_not_tested(tmp_path):
    """The test asks about other seeds, and these say nothing of how they differ."""
    rows = [*RUNS, *runs_of("gmp", [[-9, -10, -8], [-10, -9, -8]])]  # 8 behind ISP+ in each run
    table = verdict.against(verdict.comparable(ledger_of(tmp_path, *rows)), "isp_plus")
    assert np.isnan(table["p_holm"]["gmp"]) and table["mean"]["gmp"] == pytest.approx(-8)
    # Nor does it count among the comparisons.
    few = verdict.against(verdict.comparable(ledger_of(tmp_path / "few", *RUNS)), "isp_plus")
    assert table["p_holm"]["one_shot"] == few["p_holm"]["one_shot"]


def test_the_claim_says_what_was_not_tested(tmp_path):
    single = [row for row in RUNS if row["seed"] == 0 and row["dataset"] == "reviews"]
    text = claim(ledger_of(tmp_path, *single))
    assert "Here ISP is 3.10 points below LTH, a mean over 1 task and all their" in text
    assert "That is not tested: the seeds are too few, or have no spread." in text


@pytest.mark.parametrize("lucky", ([[5], [5]], [[5, 5.1], [5.1, 5]]))
def test_a_row_with_fewer_seeds_does_not_win(tmp_path, lucky):
    lucky = runs_of("platon", lucky)
    ledger = ledger_of(tmp_path, *RUNS, *lucky)
    pd.testing.assert_frame_equal(
        verdict.verdict(ledger), verdict.verdict(ledger[ledger["method"] != "platon"])
    )
    alone = verdict.verdict(ledger[ledger["seed"] == 0])
    assert list(alone["method"])[:2] == ["platon", "platon"]


def test_a_row_with_too_few_seeds_has_no_p(tmp_path):
    """A p of 1 would say that nothing was found; nothing was tested."""
    few = runs_of("platon", [[-8], [-8]])
    ledger = ledger_of(tmp_path, *RUNS, *few)
    table = verdict.against(verdict.comparable(ledger), "isp_plus")
    assert np.isnan(table["p_holm"]["platon"]) and not table["differs"]["platon"]
    assert table["p_holm"].drop("platon").notna().all()
    (against,) = [one for one in chapters(ledger) if one.title.startswith("Every method against")]
    rows = dict(against.tables[-1].rows)
    assert rows["PLATON"][5].text == "–" and rows["ISP"][5].text != "–"


def test_where_few_methods_compete_there_is_no_choice_to_show(tmp_path):
    """Neither in the table nor in the figure."""
    few = [
        {**one, "target_sparsity": 0.75}
        for method in ("isp", "one_shot")
        for one in runs_of(method, [[-2, -2.5, -3], [-2, -3, -4]])
    ]
    lines = verdict.verdict(ledger_of(tmp_path, *RUNS, *few))
    assert set(lines["sparsity"]) == {0.7, 0.75}
    assert set(with_choice(lines)["sparsity"]) == {0.7}
    assert [name for name, _ in glance("quick", lines).rows] == ["70 %"]


def test_the_figure_has_all_intervals_and_a_legend_of_what_it_shows(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(verdict_figures, "_save", lambda figure, path: saved.append(figure))
    low = runs_of("random", [[-60, -61, -62], [-50, -51, -52]])
    runs = verdict.comparable(ledger_of(tmp_path, *RUNS, *low))
    verdict_figures.best_by_budget(runs, tmp_path / "a.png")
    best = verdict.best_rows(runs)
    for axes in saved[0].axes:
        bottom, top = axes.get_ylim()
        assert bottom < best["low"].min() and best["high"].max() < top < best["high"].max() + 1
    names = [text.get_text() for text in saved[0].legends[0].get_texts()]
    assert "ISP+" in names and "LTH" in names and "Random" not in names


def test_a_tasks_own_settings_are_those_of_most_of_its_methods(tmp_path):
    own = {"variant": "training.epochs=2"}
    rows = [*runs_of("dense", [[0, 0]], **DENSE, **own), *runs_of("isp", [[-1, -1]], **own)]
    longer = runs_of("dense", [[5, 5, 5, 5, 5]], **DENSE, variant="training.epochs=10")
    runs = verdict.comparable(ledger_of(tmp_path, *rows, *longer))
    assert list(runs["distance"]) == pytest.approx([-1, -1])


def test_presets_have_verdicts_of_their_own(tmp_path):
    paper = [{**one, "preset": "paper"} for one in RUNS]
    lines = verdict.verdict(ledger_of(tmp_path, *RUNS, *paper))
    one, other = (own.drop(columns="preset") for _, own in lines.groupby("preset"))
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))


def test_a_dense_network_that_guesses_ranks_nothing(tmp_path):
    guess = {"dataset": "wnli", "target_sparsity": 0.0}
    rows = [*of_seeds("dense", 0.4, 0.5, **guess), *of_seeds("isp", 0.9, 0.9, dataset="wnli")]
    assert verdict.comparable(ledger_of(tmp_path, *RUNS, *rows))["task"].nunique() == 2


def test_a_network_that_came_out_as_nan_counts_as_nothing(tmp_path):
    broken = of_seeds("random", float("nan"), 0.81, 0.82)
    runs = verdict.comparable(ledger_of(tmp_path, *RUNS, *broken))
    own = runs[runs["method"] == "random"]
    assert list(own["distance"]) == pytest.approx([-80, 0, 0])


def test_beside_a_dense_network_that_came_out_as_nan_there_is_no_distance(tmp_path):
    rows = [*of_seeds("dense", 0.85, 0.86, np.nan), *of_seeds("isp", 0.80, 0.81, 0.82)]
    runs = verdict.comparable(ledger_of(tmp_path, *rows))
    assert list(runs["distance"]) == pytest.approx([-5, -5])


def test_methods_that_columns_have_in_common_are_ranked(tmp_path):
    """Each pair of tasks has another sixth method, so no set of methods was run everywhere."""
    rows = []
    for number, dataset in enumerate("abcdef"):
        names = ["isp", "lth", "one_shot", "isp_plus", "snip", ("bip", "smp", "cap")[number // 2]]
        for place, name in enumerate(names):
            values = [0.8 - 0.01 * place + 0.001 * seed for seed in range(3)]
            rows += of_seeds(name, *values, dataset=dataset)
        rows += of_seeds("dense", 0.9, 0.9, 0.9, dataset=dataset)
    ((_, table),) = verdict.rank_tables(verdict.comparable(ledger_of(tmp_path, *rows)))
    assert table.shape == (6, 5)


def test_ranks_are_of_complete_tables(tmp_path):
    more = [
        {**one, "target_sparsity": s}
        for one in RUNS
        for s in (0.5, 0.6)
        if one["method"] != "dense"
    ]
    rows = [one for one in (*RUNS, *more) if one["method"] != "snip"]
    (_, scores), *others = verdict.rank_tables(verdict.comparable(ledger_of(tmp_path, *rows)))
    assert scores.shape == (6, 4) and not others
    ranks = verdict.mean_ranks(scores)
    assert dict(ranks) == {"lth": 1, "isp_plus": 2, "isp": 3, "one_shot": 4}


def test_ranks_are_of_the_seeds_that_all_methods_have_and_count_a_column_once(tmp_path):
    """At 50 % two have one seed: no column. At 60 and 70 % all ran on two processors: one each."""
    at_70 = [one for one in RUNS if one["method"] != "snip"]
    at_60 = [{**one, "target_sparsity": 0.6} for one in at_70 if one["method"] != "dense"]
    at_50 = [
        {**one, "target_sparsity": 0.5}
        for one in at_60
        if one["seed"] == 0 or one["method"] in ("isp", "lth")
    ]
    old = [{**one, "processor": "another"} for one in (*at_70, *at_60)]
    ledger = apart_by_origin(ledger_of(tmp_path, *at_70, *at_60, *at_50, *old))
    ((_, scores),) = verdict.rank_tables(verdict.comparable(ledger))
    assert list(scores.index.get_level_values("sparsity")) == [0.6, 0.7, 0.6, 0.7]
    assert list(scores["isp"]) == pytest.approx([-2, -2, -2, -2])


def test_tables_say_it_in_words(tmp_path):
    every = ledger_of(tmp_path, *RUNS)
    write_tables(tmp_path, every, all_chapters(every))
    text = (tmp_path / "verdict.md").read_text()
    assert cells_of(text, "70 %") == [
        "ISP+ −1.0 [−1.7, −0.3], best of 2; ahead where both ran: SNIP",
        "ISP+ −1.0 [−1.7, −0.3], best of 3; ahead where both ran: SNIP",
        "LTH +1.0 [+0.2, +1.7], best of 4; ahead where both ran: SNIP",
        "2",
    ]
    best = cells_of(text, "70 % sparse, ≤ 5 fine-tunings")
    assert best[:3] == ["**LTH**", "+1.00 [+0.25, +1.67]", "4.00"]
    assert "70 % sparse, any cost" not in text  # admits no further row
    assert "\\toprule" in (tmp_path / "verdict.tex").read_text()
    assert len(pd.read_csv(tmp_path / "verdict.csv")) == 4


def test_without_results_there_are_empty_tables_and_figures(tmp_path):
    ledger = ledger_of(tmp_path)
    assert len(verdict.verdict(ledger)) == 0
    assert "No results yet" in markdown(chapters(ledger))
    assert all(path.exists() for path in verdict_figures.draw(ledger, tmp_path))


def test_cliques_are_the_longest_runs_within_the_difference():
    ranks = np.array([1.0, 1.5, 2.4, 4.0, 4.2])
    assert verdict_figures.cliques(ranks, 1.0) == [(0, 1), (1, 2), (3, 4)]
