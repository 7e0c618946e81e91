"""The knee finder on curves whose knee is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import cells_of, ledger_of, of_seeds, result
from instant_soup.reports import essential_sparsity, figures
from instant_soup.reports.essential_sparsity import curves_of, knee, knee_over_seeds
from instant_soup.reports.render import markdown
from instant_soup.sparsity.pq import free_share

# (√4 + √1)² / (4 + 1) = 1.8 of four must stay by the PQ index, the two parts together.
FOUR_ONE = {"a": torch.tensor([[4.0, 0.0]]), "b": torch.tensor([[-1.0], [0.0]])}
SPARSITIES = [round(0.1 * i, 1) for i in range(1, 10)]


def bent(at: float, slope: float = 1.0) -> list[float]:
    """A curve that is flat at 0.9 up to a sparsity and falls by `slope` a unit from there."""
    return [0.9 - slope * max(0.0, s - at) for s in SPARSITIES]


@given(st.integers(1, 8), st.floats(0.2, 5))
def test_the_knee_is_where_the_curve_leaves_the_tolerance(tenths: int, slope: float) -> None:
    found = knee(SPARSITIES, bent(tenths / 10, slope), dense=0.9, tolerance=0.01)
    assert found == pytest.approx(min(0.9, tenths / 10 + 0.01 / slope))


def test_no_sparsity_and_all_sparsities_can_be_essential() -> None:
    assert knee(SPARSITIES, [0.5] * 9, dense=0.9, tolerance=0.01) == pytest.approx(0.1 / 40)
    assert knee(SPARSITIES, [0.9] * 9, dense=0.9, tolerance=0.01) == 0.9
    assert knee(SPARSITIES, [0.95] * 9, dense=0.9, tolerance=0.01) == 0.9


def test_a_diverged_run_is_not_within_the_tolerance() -> None:
    values = [0.9, 0.9, math.nan, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert knee(SPARSITIES, values, dense=0.9, tolerance=0.01) == 0.2


def test_what_recovers_later_does_not_count() -> None:
    values = [0.9, 0.9, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert knee(SPARSITIES, values, dense=0.9, tolerance=0.01) == pytest.approx(0.21)


def test_the_interval_covers_seeds_and_is_none_for_one() -> None:
    curves = np.array([bent(0.3), bent(0.5), bent(0.7)])
    middle, low, high = knee_over_seeds(SPARSITIES, curves, np.full(3, 0.9))
    assert (low, high) == pytest.approx((0.31, 0.71)) and low < middle < high
    alike = knee_over_seeds(SPARSITIES, np.array([bent(0.4)] * 3), np.full(3, 0.9))
    assert alike == pytest.approx((0.41, 0.41, 0.41))
    middle, low, high = knee_over_seeds(SPARSITIES, curves[:1], np.full(1, 0.9))
    assert middle == pytest.approx(0.31) and math.isnan(low) and math.isnan(high)


def test_curves_are_taken_of_seeds_that_have_them_whole(tmp_path):
    runs = of_seeds("dense", 0.90, 0.92, 0.94)
    for sparsity in SPARSITIES:
        fall = max(0.0, sparsity - 0.5)
        values = [top - fall for top in (0.90, 0.92, 0.94)]
        runs += of_seeds("one_shot", *values[:2], target_sparsity=sparsity)
        if sparsity < 0.25:  # seed 2 has not got far
            runs += [result("one_shot", values[2], seed=2, target_sparsity=sparsity)]
        runs += of_seeds(
            "lth", 0.9, 0.9, target_sparsity=sparsity, overlap_one_shot=1 - sparsity / 10
        )
    runs += of_seeds("one_shot", 0.1, target_sparsity=0.65)  # a stray sparsity of one seed
    runs += of_seeds("one_shot", 0.5, model="other")  # one sparsity is no curve
    ledger = ledger_of(tmp_path, *runs)
    ((sparsities, values, dense),) = curves_of(ledger).values()
    assert (sparsities, values.shape, list(dense)) == (SPARSITIES, (2, 9), [0.90, 0.92])
    table = markdown([essential_sparsity.chapter(ledger)])
    assert cells_of(table, "One-shot magnitude") == ["91.00", "51", "51 … 51", "2"]
    similar = table.partition("one-shot and LTH")[2]
    assert cells_of(similar, "cosine of the masks (%)")[:2] == ["99.00", "98.00"]
    assert cells_of(similar, "LTH (IMP)")[:2] == ["90.00", "90.00"]
    figures.essential_sparsity(ledger, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 3000


def test_beside_the_knee_is_what_the_pq_index_of_the_same_weights_predicts(tmp_path):
    runs = [result("dense", 0.9, base="aaaa")]
    runs += [result("one_shot", 0.9, target_sparsity=s, base="aaaa") for s in SPARSITIES]
    told = [result("dense", dataset="sst2", base="aaaa", pq_index=free_share(FOUR_ONE))]
    told += [result("dense", dataset="mrpc", base="bbbb", pq_index=0.2)]
    for more, cells in ((told, ["90", "55", "1"]), (told[1:], ["90", "1"])):  # no empty column
        (tmp_path / "results.csv").unlink(missing_ok=True)
        table = markdown([essential_sparsity.chapter(ledger_of(tmp_path, *runs, *more))])
        assert cells_of(table, "One-shot magnitude") == ["90.00", *cells]


def test_patterns_stand_beside_one_shot_at_their_density(tmp_path):
    language = {"metric": "perplexity", "family": "causal", "model": "llama", "dataset": "texts"}
    runs = of_seeds("dense", 50.0, 51.0, **language)
    for sparsity in SPARSITIES:
        runs += of_seeds("one_shot", 50.5, 51.5, target_sparsity=sparsity, **language)
    half = {"target_sparsity": 0.5, **language}
    runs += of_seeds("n_of_m", 51.0, 53.0, 60.0, **half)  # 2:4; a third seed has no equal
    runs += of_seeds("n_of_m", 52.5, 53.5, variant="criteria.m=2", **half)
    runs += of_seeds("n_of_m", 51.5, variant="criteria.m=8", **half)
    runs += of_seeds("n_of_m", 1.0, variant="criteria.m=8 training.batch_size=16", **half)
    runs += of_seeds("n_of_m", 60.0, target_sparsity=0.75, **language)  # without one-shot
    ledger = ledger_of(tmp_path, *runs)
    table = markdown([essential_sparsity.chapter(ledger)]).partition(": N:M patterns")[2]
    assert "50 %: 1:2 | 50 %: 2:4 | 50 %: 4:8 |" in table and "1:4" not in table
    assert cells_of(table, "N:M magnitude") == ["53.00", "52.00", "51.50"]
    assert cells_of(table, "One-shot magnitude") == ["51.00", "51.00", "50.50"]
    gaps = ["+2.00 ± 0.00 (n = 2)", "+1.00 ± 0.71 (n = 2)", "+1.00 (n = 1)"]
    assert cells_of(table, "difference") == gaps
    figures.essential_sparsity(ledger, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 3000


def test_without_curves_the_figure_says_so(tmp_path):
    figures.essential_sparsity(ledger_of(tmp_path, *of_seeds("one_shot", 0.5)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
