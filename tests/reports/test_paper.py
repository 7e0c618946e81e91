"""The paper's Tables 2 and 3: the transcription, the test against LTH, and what stands where."""

import io
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import cells_of, ledger_of, of_seeds, result
from instant_soup.data.datasets import DATASETS
from instant_soup.models.known import MODELS
from instant_soup.reports import accuracy_tables, ledger, marks, paper
from instant_soup.reports.render import MISSING, Chapter, markdown
from instant_soup.reports.tables import write_tables

PAPER = paper.read_paper()
SST2 = {"model": "bert-base", "dataset": "sst2", "preset": "paper", "target_sparsity": 0.6}


def chapter_of(name: str, runs: pd.DataFrame) -> Chapter:
    """The paper's columns, ours beside them."""
    return paper.chapter(name, PAPER[name], paper.comparison(PAPER[name], runs))


def results_of(runs: pd.DataFrame) -> Chapter:
    """What was measured here, in a chapter whatever data it is of."""
    found = accuracy_tables.chapters(runs)
    return Chapter("Results", "", [table for chapter in found for table in chapter.tables])


def printed(name: str) -> dict[tuple[str, str, float], str]:
    """(method, dataset, sparsity) → what the paper printed."""
    rows = paper.paper_numbers(PAPER[name]).to_dict("records")
    return {(row["method"], row["dataset"], row["target_sparsity"]): row["paper"] for row in rows}


def mean(text: str) -> float:
    return float(text.split("±")[0])


# The transcription


def test_the_paper_s_tables_are_whole_and_of_datasets_and_models_we_know():
    assert len(printed("table2")) == 6 + 10 * 18 and len(printed("table3")) == 9 + 7 * 9
    for name, table in PAPER.items():
        assert MODELS[table["model"]].family == table["family"]
        for column in table["columns"]:
            assert DATASETS[column["dataset"]].metric == column["metric"]
        for (method, *_), text in printed(name).items():
            parts = [float(part) for part in text.split("±")]
            assert len(parts) == (2 if method in ("dense", "isp") else 1) and parts[0] < 100


def test_the_transcription_agrees_with_the_paper_s_other_tables():
    two, three = printed("table2"), printed("table3")
    # Table 4, with denoisers; Table 6, fine-tuned base (its QNLI and MNLI are of other runs).
    assert mean(two["isp", "svhn", 0.7]) != mean(two["isp", "svhn", 0.8]) == 96.46
    assert mean(two["isp", "cifar100", 0.8]) == 71.09
    assert mean(three["isp", "qqp", 0.9]) == 90.59 and mean(three["isp", "qnli", 0.7]) == 90.06
    dense = [mean(two["dense", dataset, 0.0]) for dataset in ("stanford_cars", "cifar10")]
    assert dense == [76.43, 97.6] and two["dense", "cifar100", 0.0] == "89.35 ± 0.19"


def test_isp_is_the_paper_s_best_but_for_three_columns():
    """A misplaced digit or shifted column would show: the paper's claim holds cell by cell."""
    lost = set()
    for name in PAPER:
        for (method, dataset, sparsity), text in printed(name).items():
            if sparsity and mean(text) > mean(printed(name)["isp", dataset, sparsity]):
                lost.add((method, dataset, sparsity))
    assert lost == {
        ("lth_rewind", "mnist", 0.8), ("early_bird", "rte", 0.6), ("lth", "cola", 0.5)
    }  # fmt: skip


def test_the_paper_s_numbers_are_shown_as_printed(tmp_path):
    nothing = ledger_of(tmp_path)
    three = chapter_of("table3", nothing)
    text = markdown([three])
    assert cells_of(text, "ISP")[0] == "82.71 ± 0.6"
    assert "90.0" in cells_of(text, "LTH (IMP)")  # not 90
    assert "Full (dense), unpruned: MNLI: paper 82.4 ± 0.5; QQP: paper 90.2 ± 0.5" in text
    assert "ours" not in text.partition("## ")[2] and "–" not in text.partition("## ")[2]
    assert len(three.tables) == 3 and len(chapter_of("table2", nothing).tables) == 6


# The test against LTH


def series(**values: float) -> pd.Series:
    return pd.Series({int(seed[1:]): value for seed, value in values.items()})


def test_p_values_by_hand():
    # Student's t with 2 degrees of freedom: p = 1 − |t| / √(t² + 2); here t = 2 / (1 / √3).
    lth = series(s0=10.0, s1=20.0, s2=30.0)
    p, difference = marks.paired_test(series(s0=11.0, s1=22.0, s2=33.0), lth)
    assert p == pytest.approx(1 - math.sqrt(12) / math.sqrt(14)) and difference == 2.0
    # With 1 degree: p = 1 − (2/π) · arctan |t|; differences −1 and −3, t = −2.
    p, difference = marks.paired_test(series(s0=9.0, s1=17.0), lth)
    assert p == pytest.approx(1 - 2 / math.pi * math.atan(2)) and difference == -2.0


def test_pairs_are_the_seeds_that_both_have():
    lth = series(s0=10.0, s1=20.0, s2=30.0, s7=0.0)
    shuffled = series(s5=1.0, s2=33.0, s0=11.0, s1=22.0)
    p, difference = marks.paired_test(shuffled, lth)
    assert p == pytest.approx(1 - math.sqrt(12) / math.sqrt(14)) and difference == 2.0


@pytest.mark.parametrize("other", [
    series(s1=1.0), series(s8=1.0, s9=2.0), series(s0=0.83, s1=0.84, s2=0.85),
])  # fmt: skip
def test_no_p_value_without_two_pairs_or_without_spread(other):
    p, _ = marks.paired_test(other, series(s0=0.80, s1=0.81, s2=0.82))
    assert math.isnan(p)


def test_marks_are_for_significant_differences_in_their_direction(tmp_path):
    runs = ledger_of(
        tmp_path,
        *of_seeds("lth", 0.80, 0.82, 0.84),
        *of_seeds("isp", 0.83, 0.852, 0.871),
        *of_seeds("random", 0.70, 0.722, 0.741),
        *of_seeds("snip", 0.82, 0.81, 0.85),  # ahead, but not significantly
        *of_seeds("dense", 0.95, 0.951, 0.952),
    )
    table = markdown([results_of(runs)])
    assert cells_of(table, "ISP") == ["**85.10 ± 2.05 ▲**"]
    assert cells_of(table, "Random") == ["72.10 ± 2.05 ▼"]
    assert cells_of(table, "SNIP") == ["82.67 ± 2.08"]
    assert cells_of(table, "LTH (IMP)") == ["82.00 ± 2.00"]
    assert "* Full (dense), unpruned: 95.10 ± 0.10\n" in table
    found = marks.against_lth(runs).set_index("method")["mark"]
    assert found.to_dict() == {"isp": "better", "random": "worse", "snip": ""}


def test_lth_of_another_sparsity_or_section_is_no_partner(tmp_path):
    runs = ledger_of(
        tmp_path,
        *of_seeds("isp", 0.83, 0.852, 0.871),
        *of_seeds("lth", 0.80, 0.82, 0.84, target_sparsity=0.5),
        *of_seeds("lth", 0.80, 0.82, 0.84, dataset="other"),
        *of_seeds("lth", 0.80, 0.82, 0.84, variant="lth.rounds=3"),
    )
    assert marks.against_lth(runs).empty


# What stands where


def test_our_run_of_the_paper_s_column_stands_beside_the_paper_s(tmp_path):
    runs = ledger_of(
        tmp_path,
        *of_seeds("isp", 0.90, 0.92, 0.94, **SST2),
        *of_seeds("one_shot", 0.90, 0.90, 0.90, **SST2),
        *of_seeds("n_of_m", 0.80, 0.81, 0.82, **SST2),
        *of_seeds("dense", 0.95, 0.95, 0.98, **{**SST2, "target_sparsity": 0.0}),
    )
    three = chapter_of("table3", runs)
    table = three.tables[2]
    assert table.columns[2:4] == [("SST-2", "60 % ours"), ("SST-2", "60 % paper")]
    rows = {name: [cell.text for cell in cells[2:4]] for name, cells in table.rows}
    assert rows["ISP"] == ["92.00 ± 2.00", "92.43 ± 0.6"]
    ((dense, cells),) = table.unpruned
    assert dense == "Full (dense)"
    assert [cell.text for cell in cells][:2] == [
        "paper 66.2 ± 3.6",
        "ours 96.00 ± 1.73 · paper 92.1 ± 0.1",
    ]
    assert rows["N:M magnitude"] == ["81.00 ± 1.00", MISSING]  # measured, not in the paper
    assert rows["EarlyBird"] == [MISSING, "91.2"]  # in the paper, not measured
    bold = [name for name, cells in table.rows if cells[2].bold]
    assert bold == ["ISP"] and not any(cells[3].bold for _, cells in table.rows)
    assert "N:M magnitude" not in dict(three.tables[0].rows)


PLACES = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["bert-base", "minilm", "hub:org/bert-base"]),
        "dataset": st.sampled_from(["sst2", "cola", "reviews-sentiment", "local:sst2"]),
        "preset": st.sampled_from(["paper", "quick"]),
        "metric": st.sampled_from(["accuracy", "matthews"]),
        "variant": st.sampled_from(["", "isp.denoisers=0"]),
        "target_sparsity": st.sampled_from([0.5, 0.6]),
    }
)


def key_of(place: dict[str, Any]) -> tuple:
    return tuple(place[key] for key in ledger.KEY if key in place)


COLUMNS_OF_PAPER = {("sst2", "accuracy", 0.6), ("cola", "matthews", 0.5)}


@settings(max_examples=30, deadline=None)
@given(places=st.lists(PLACES, min_size=1, max_size=8, unique_by=key_of))
def test_only_the_paper_s_own_settings_stand_in_the_paper_s_columns(tmp_path_factory, places):
    values = {f"{11 + i}.11": place for i, place in enumerate(places)}
    runs = [result("isp", float(text) / 100, **place) for text, place in values.items()]
    found = ledger_of(tmp_path_factory.mktemp("l"), *runs)
    three, ours = chapter_of("table3", found), results_of(found)
    for text, place in values.items():
        column = (place["dataset"], place["metric"], place["target_sparsity"])
        same = place["model"] == "bert-base" and place["preset"] == "paper"
        of_paper = same and column in COLUMNS_OF_PAPER
        seen = [
            [table.heading for table in chapter.tables if text in str(table.rows)]
            for chapter in (ours, three)
        ]
        own = f"{place['model']} · {place['dataset']} · {place['preset']}"
        if place["variant"]:  # of a section that has none of its own, it has the table
            assert not seen[1] and set(seen[0]) <= {f"{own} · {place['variant']}"}
        else:
            assert seen == [[own], ["RTE, SST-2, CoLA"] if of_paper else []]


def test_families_stay_in_their_table(tmp_path):
    runs = ledger_of(
        tmp_path,
        result("isp", 0.1111, model="clip-glyph", dataset="mnist-sample", family="clip"),
        result("isp", 0.2222, model="local:my-clip", dataset="local:birds", family="clip"),
        result("isp", 0.3333, model="local:x", dataset="mnist", family="clip"),
        result("isp", 0.4444, model="minilm", dataset="local:texts"),
        result("isp", 0.5555, model="hub:org/bert", dataset="mnli"),
        result(
            "dense",
            0.6666,
            model="clip-vit-b32",
            dataset="mnist",
            family="clip",
            zero_shot={"accuracy": 0.7},
        ),
    )
    numbers = {name: paper.comparison(table, runs) for name, table in PAPER.items()}
    shown = {
        name: sorted(round(mean, 2) for mean in found.loc[found["n"] > 0, "mean"])
        for name, found in numbers.items()
    }
    assert shown == {"table2": [11.11, 22.22, 33.33, 66.66, 70.0], "table3": [44.44, 55.55]}


def test_every_method_of_the_paper_has_its_row(tmp_path):
    for table in chapter_of("table2", ledger_of(tmp_path)).tables:
        assert [name for name, _ in table.unpruned] == ["Full (dense)"]
        assert [name for name, _ in table.rows] == [
            "Random", "One-shot magnitude", "Progressive magnitude", "EarlyBird",
            "SNIP", "GraSP", "LTH (IMP)", "LTH-Rewind", "Lottery Pool", "ISP",
        ]  # fmt: skip


def test_other_sparsities_of_the_paper_s_data_stand_apart(tmp_path):
    more = {**SST2, "target_sparsity": 0.9}
    runs = ledger_of(tmp_path, result("isp", 0.7, **SST2), result("isp", 0.4, **more))
    three = markdown([chapter_of("table3", runs)])
    assert "70.00" in three and "40.00" not in three
    assert cells_of(markdown([results_of(runs)]), "ISP") == ["70.00", "40.00"]


def test_counts_of_seeds_that_differ_are_shown(tmp_path):
    runs = ledger_of(tmp_path, *of_seeds("isp", 0.8, 0.9), result("snip", 0.7))
    table = markdown([results_of(runs)])
    assert cells_of(table, "ISP") == ["**85.00 ± 7.07 (n = 2)**"]
    assert cells_of(table, "SNIP") == ["70.00 (n = 1)"]


# Files


def test_written_files(tmp_path):
    runs = [*of_seeds("isp", 0.90, 0.92, 0.94, **SST2), *of_seeds("lth", 0.9, 0.91, 0.9, **SST2)]
    runs += of_seeds("isp", 0.5, 0.7)
    every = ledger_of(tmp_path, *runs)
    written = write_tables(tmp_path / "a", every, paper.chapters(every))
    assert [path.name for path in written[:6]] == [
        f"{name}.{kind}" for name in ("table2", "table3") for kind in ("md", "tex", "csv")
    ]  # fmt: skip
    table = pd.read_csv(written[5])
    assert list(table.columns) == [
        "table", "method", "model", "dataset", "preset", "sparsity", "metric", "n", "mean", "std",
        "paper_mean", "paper_std", "p_vs_lth",
    ]  # fmt: skip
    assert len(table) == len(printed("table3")) + 1
    key = ["method", "model", "dataset", "preset", "sparsity"]
    both = table.set_index(key).loc[("isp", "bert-base", "sst2", "paper", 0.6)]
    assert both[["n", "mean", "std", "paper_mean", "paper_std"]].tolist() == pytest.approx(
        [3, 92.0, 2.0, 92.43, 0.6]
    )
    # Differences 0, 1 and 4 points: mean 5/3, variance 13/3, t = 5/3 / (√(13/3) / √3).
    t = 5 / math.sqrt(13)
    assert both["p_vs_lth"] == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    ours = table.iloc[0]  # what the paper has not comes first
    assert (ours["model"], ours["n"], ours["mean"]) == ("minilm", 2, pytest.approx(60.0))
    assert np.isnan([ours["paper_mean"], ours["p_vs_lth"]]).all()
    assert table[table["method"] == "random"]["mean"].isna().all()


def test_the_same_results_in_any_order_give_the_same_bytes(tmp_path):
    places: list[dict[str, Any]] = [{}, SST2, {"model": "clip-glyph", "dataset": "mnist-sample"}]
    runs = [
        one
        for place in places
        for method in ("isp", "lth", "zzz", "snip")
        for one in of_seeds(method, 0.7, 0.8, **place)
    ]
    files = []
    for name, some in (("a", runs), ("b", runs[::-1])):
        (tmp_path / name).mkdir()
        every = ledger_of(tmp_path / name, *some)
        written = write_tables(tmp_path / name, every, paper.chapters(every))
        files.append([path.read_bytes() for path in written])
    assert files[0] == files[1]


def test_an_empty_ledger_leaves_the_paper_s_numbers(tmp_path):
    every = ledger_of(tmp_path)
    written = write_tables(tmp_path, every, paper.chapters(every))
    assert "Not measured here yet." in written[0].read_text()
    table = pd.read_csv(io.StringIO(written[2].read_text()))
    assert (table["n"] == 0).all() and table["paper_mean"].notna().all()
