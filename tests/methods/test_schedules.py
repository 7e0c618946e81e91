"""Schedules against the paper's numbers and against transformers' own scheduler."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from instant_soup.config.sections import Recipe
from instant_soup.methods.gmp import GMP
from instant_soup.methods.progressive import Progressive
from instant_soup.methods.registry import create
from instant_soup.methods.rounds import (
    Ramp,
    Schedule,
    calibration_steps,
    mask_finding_share,
    round_sparsities,
)
from instant_soup.training.schedule import cyclic, learning_rate, steps_of

LAW = settings(deadline=None, max_examples=100)
HUNDREDTHS = st.integers(1, 99).map(lambda n: n / 100)
RATES = st.integers(1, 80).map(lambda n: n / 100)


def test_the_papers_rate_reaches_70_percent_in_seven_rounds() -> None:
    assert round_sparsities(0.7, 0.1, "total") == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def test_the_last_round_stops_at_a_target_between_two_rounds() -> None:
    assert round_sparsities(0.7, 0.15, "total") == [0.15, 0.3, 0.45, 0.6, 0.7]
    assert round_sparsities(0.05, 0.2, "total") == [0.05]


def test_a_target_beside_a_round_by_float_noise_is_that_round() -> None:
    assert round_sparsities(1 - 0.7, 0.1, "total") == [0.1, 0.2, 1 - 0.7]
    assert round_sparsities(1 - 0.9, 0.1, "total") == [1 - 0.9]


def test_the_released_codes_rate_takes_a_share_of_what_is_left() -> None:
    assert round_sparsities(0.35, 0.1, "remaining") == [0.1, 0.19, 0.271, 0.3439, 0.35]


@LAW
@given(HUNDREDTHS, RATES, st.sampled_from(("total", "remaining")))
def test_sparsities_rise_to_exactly_the_target(target: float, rate: float, rate_of: str) -> None:
    sparsities = round_sparsities(target, rate, rate_of)
    assert sparsities[-1] == target
    assert all(a < b for a, b in zip([0.0, *sparsities], sparsities, strict=False))


@LAW
@given(HUNDREDTHS, HUNDREDTHS, RATES, st.sampled_from(("total", "remaining")))
def test_all_rounds_but_the_last_are_the_same_for_every_target(a, b, rate, rate_of) -> None:
    near = round_sparsities(min(a, b), rate, rate_of)
    far = round_sparsities(max(a, b), rate, rate_of)
    assert far[: len(near) - 1] == near[:-1]


def test_round_i_trains_i_plus_one_times_the_seed_steps() -> None:
    assert [calibration_steps(i, 8) for i in range(4)] == [8, 16, 24, 32]


@LAW
@given(st.integers(1, 12), st.integers(1, 50), st.integers(1, 20), st.integers(50, 500))
def test_the_share_is_the_sum_of_the_calibration_steps(rounds, t, epochs, per_epoch) -> None:
    spent = sum(calibration_steps(i, t) for i in range(rounds))
    share = mask_finding_share(rounds, t / per_epoch, epochs)
    assert share * epochs * per_epoch == pytest.approx(spent)


def test_the_papers_seven_rounds_take_28_percent_of_its_ten_epochs() -> None:
    assert mask_finding_share(7, 0.1, 10) == pytest.approx(0.28)


def test_rounds_end_where_their_calibrations_add_up() -> None:
    """t of 0.05 epochs of 200 steps: 10, 20, 30, … steps, or 10 each."""
    assert Schedule(0.05, True).ends(4, 1000, 200) == [10, 30, 60, 100]
    assert Schedule(0.05, False).ends(4, 1000, 200) == [10, 20, 30, 40]


def test_rounds_may_share_a_part_of_the_budget_instead() -> None:
    """Whatever an epoch is, and where nobody knows how long it is."""
    for per_epoch in (200, 7, None):
        assert Schedule(0.05, True, 0.2).ends(4, 1000, per_epoch) == [20, 60, 120, 200]
        assert Schedule(0.05, False, 0.2).ends(4, 1000, per_epoch) == [50, 100, 150, 200]


@example(rounds=2, total=85, share=0.7, growing=True)
@LAW
@given(st.integers(1, 10), st.integers(50, 5000), st.floats(0, 0.99), st.booleans())
def test_rounds_end_in_order_and_with_their_share(rounds, total, share, growing) -> None:
    ends = Schedule(1.0, growing, share).ends(rounds, total, None)
    assert len(ends) == rounds and ends == sorted(ends)
    assert ends[-1] == round(share * total)


@LAW
@given(st.integers(1, 9), st.integers(1, 40), st.floats(0.01, 1), st.booleans())
def test_another_target_leaves_the_ends_of_the_rounds_before(
    rounds, per_epoch, calibration, growing
) -> None:
    schedule = Schedule(calibration, growing)
    longer = schedule.ends(rounds + 1, 10_000, per_epoch)
    assert longer[:-1] == schedule.ends(rounds, 10_000, per_epoch)


def test_a_methods_share_is_that_of_its_rounds_or_the_one_it_is_given() -> None:
    rows = {"compression_rate": 0.1, "calibration": 0.1}
    assert Progressive(**rows).share(0.7, 10) == pytest.approx(0.28)
    assert Progressive(**rows, mask_finding=0.4).share(0.7, 10) == 0.4
    assert Progressive(**rows, growing=False).share(0.7, 10) == pytest.approx(0.07)


def test_a_ramp_with_a_large_first_cut_is_that_of_obert() -> None:
    """0.7 to 0.9 at the epochs 2, 6, …, 26 of 30 (Kurtic et al. 2022)."""
    ramp = Ramp(prunes=7, first_cut=0.7 / 0.9, begin=2 / 30, end=26 / 30)
    found = ramp.sparsities(0.9)
    assert found == pytest.approx([0.7, 0.7843, 0.8407, 0.875, 0.8926, 0.8991, 0.9], abs=5e-5)
    assert found[-1] == 0.9 and ramp.ends(30) == [2, 6, 10, 14, 18, 22, 26]


def test_a_ramp_without_a_first_cut_begins_with_nothing() -> None:
    """The sparsities 0, .4625, .7, .7875, .8: the first is no prune."""
    ramp = Ramp(prunes=4, first_cut=0.0, begin=0.1, end=0.5)
    assert ramp.sparsities(0.8) == pytest.approx([0.4625, 0.7, 0.7875, 0.8])
    assert ramp.ends(100) == [20, 30, 40, 50]
    assert Ramp(prunes=1, first_cut=0.0, begin=0.1, end=0.5).sparsities(0.8) == [0.8]


@LAW
@given(
    st.integers(2, 60), st.floats(0, 0.99), st.floats(0, 0.9), st.floats(0.01, 0.5),
    HUNDREDTHS, st.integers(10, 3000),
)  # fmt: skip
def test_a_ramp_rises_to_exactly_the_target_within_its_steps(
    prunes, first_cut, begin, length, target, total
) -> None:
    ramp = Ramp(prunes, first_cut, begin, min(0.99, begin + length))
    sparsities, ends = ramp.sparsities(target), ramp.ends(total)
    assert len(sparsities) == len(ends) == prunes and sparsities[-1] == target
    assert sparsities == sorted(sparsities) and ends == sorted(ends)
    assert begin * total - 1 <= ends[0] and ends[-1] <= ramp.end * total + 1
    if prunes <= ramp.fit(total):
        assert len(set(ends)) == prunes


def test_how_many_prunes_fit_is_no_matter_of_floats() -> None:
    assert Ramp(1, 0.0, 0.1, 0.7).fit(10) == 6 and Ramp(1, 0.5, 0.1, 0.7).fit(10) == 7
    assert len(set(Ramp(6, 0.0, 0.1, 0.7).ends(10))) == 6


def test_gmp_is_a_ramp_with_a_first_cut_and_restarts() -> None:
    gmp = create("gmp", "bert", "paper", {})
    assert isinstance(gmp, GMP) and gmp.ramp == Ramp(30, 0.75, 0.2, 0.8)
    assert gmp.share(0.9, 1) == 0.8 and gmp.sparsities(0.9)[0] == pytest.approx(0.675)
    recipe = gmp.recipe(Recipe(epochs=1.0))
    assert (recipe.cycles, recipe.lowest_rate) == (5, 0.01)
    assert GMP(cycles=1).recipe(Recipe(epochs=1.0)) == Recipe(epochs=1.0)


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "steps"), [(1, 300, 300), (0.03, 300, 9), (2.5, 3, 8), (0.001, 10, 1)]
)
def test_epochs_become_steps_at_least_one(epochs: float, per_epoch: int, steps: int) -> None:
    assert steps_of(epochs, per_epoch) == steps


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(0, 10, 2e-5) == 2e-5


def test_the_rate_falls_in_equal_steps_to_zero_at_the_total() -> None:
    rates = [learning_rate(step, 8, 4.0) for step in range(9)]
    assert rates == [4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5, 0.0]


def test_the_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    rates = [learning_rate(step, 8, 4.0, 4) for step in range(9)]
    assert rates == [1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0, 0.0]


def test_in_cycles_the_rate_falls_from_its_height_to_its_lowest_again_and_again() -> None:
    """Height 1, lowest 0, five steps a cycle: 1, .75, .5, .25, 0, 1, …"""
    rates = [learning_rate(step, 10, 1.0, 0, 2, 0.0) for step in range(10)]
    assert rates == [1, 0.75, 0.5, 0.25, 0] * 2
    rates = [learning_rate(step, 11, 2.0, 0, 3, 0.1) for step in range(11)]
    falls = [[2.0, 1.1, 0.2], [2.0, 1.4, 0.8, 0.2], [2.0, 1.4, 0.8, 0.2]]
    assert rates == pytest.approx([rate for fall in falls for rate in fall])


def test_cycles_begin_after_the_warm_up_and_one_is_none() -> None:
    rates = [learning_rate(step, 12, 1.0, 2, 2, 0.0) for step in range(12)]
    assert rates == [0.5, 1.0, *[1, 0.75, 0.5, 0.25, 0] * 2]
    for step in range(12):
        assert learning_rate(step, 12, 0.3, 2, 1, 0.5) == learning_rate(step, 12, 0.3, 2)


@LAW
@given(st.integers(1, 500), st.integers(2, 20), st.floats(0, 1))
def test_every_cycle_has_its_length_and_its_ends(total, cycles, lowest) -> None:
    cycles = min(cycles, total)
    rates = [cyclic(step, total, cycles, lowest) for step in range(total)]
    starts = [total * k // cycles for k in range(cycles + 1)]
    for first, following in itertools.pairwise(starts):
        fall = rates[first:following]
        assert fall[0] == 1 and fall == sorted(fall, reverse=True)
        assert fall[-1] == (pytest.approx(lowest) if len(fall) > 1 else 1)


def transformers_rates(total: int, peak: float, warmup: int) -> list[float]:
    """The rate of every step under transformers' scheduler, and that after the last."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup, total)
    rates = []
    for _ in range(total + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (100, 0), (330, 0), (100, 10), (37, 36)])
def test_the_rate_is_that_of_transformers_linear_schedule(total: int, warmup: int) -> None:
    peak = 2e-5
    theirs = transformers_rates(total, peak, warmup)
    ours = [learning_rate(step, total, peak, warmup) for step in range(total + 1)]
    assert ours[warmup:] == pytest.approx(theirs[warmup:], abs=1e-20)
    # In the warm-up theirs is one step behind: its first step has a rate of zero and is lost.
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1], abs=1e-20)
