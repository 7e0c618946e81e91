"""Layer budgets against numbers by hand, brute force and their own sums."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import on_shards
from instant_soup.errors import UserError
from instant_soup.sparsity import budgets, masks

LAW = settings(deadline=None, max_examples=60)


def test_lamp_is_the_share_of_what_is_no_smaller() -> None:
    energies = {"a": torch.tensor([1.0, 9.0, 4.0]), "b": torch.tensor([100.0, 100.0])}
    found = budgets.lamp(energies)
    assert found["a"].tolist() == pytest.approx([1 / 14, 1, 4 / 13])
    assert found["b"].tolist() == pytest.approx([0.5, 1])
    # The nine and the second hundred stay, where magnitude keeps both hundreds.
    kept = masks.keep_largest(found, 2)
    assert kept["a"].tolist() == [False, True, False] and kept["b"].tolist() == [False, True]
    assert not masks.keep_largest(energies, 2)["a"].any()


def test_lamp_of_zeros_is_zero_and_every_matrix_has_its_one() -> None:
    found = budgets.lamp({"a": torch.zeros(2, 2), "b": torch.tensor([[0.0, 1e-30]])})
    assert not found["a"].any() and found["b"].tolist() == [[0, 1]]
    draws = torch.Generator().manual_seed(0)
    energies = {n: torch.rand(7, 5, generator=draws) * 10**i for i, n in enumerate("abc")}
    found = budgets.lamp(energies)
    for name, shares in found.items():
        assert shares.max() == 1 and shares.dtype == torch.float64
        assert torch.equal(shares.flatten().argsort(), energies[name].flatten().argsort())
        scaled = budgets.lamp({name: 3 * energies[name]})[name]
        torch.testing.assert_close(scaled, shares, rtol=1e-6, atol=0)


@LAW
@given(st.lists(st.tuples(*[st.integers(0, 3).map(float)] * 2), max_size=7), st.integers(1, 4))
def test_lamp_of_shards_is_that_of_the_whole(rows: list, shards: int) -> None:
    whole = torch.tensor(rows).view(-1, 2)
    parts = list(whole.tensor_split(shards))
    found = on_shards(parts, lambda part, own: budgets.lamp({"w": part}, own)["w"])
    assert [one.shape for one in found] == [part.shape for part in parts]
    assert torch.equal(torch.cat(found), budgets.lamp({"w": whole})["w"])


def test_what_has_diverged_is_not_ranked() -> None:
    found = budgets.lamp({"a": torch.tensor([1.0, float("nan"), 2.0])})
    with pytest.raises(UserError, match=r"^scores: some are NaN"):
        masks.keep_largest(found, 1)


SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=6)


@LAW
@given(SIZES, st.floats(0, 1), st.randoms(use_true_random=False))
def test_budgets_add_up_within_their_bounds(sizes, share, random) -> None:
    most = {str(i): size for i, size in enumerate(sizes)}
    total = int(share * sum(sizes))
    wanted = {name: random.uniform(-0.2, 2) * size for name, size in most.items()}
    found = budgets.allot(wanted, most, total)
    assert sum(found.values()) == total
    assert all(0 <= found[name] <= most[name] for name in most)
    parts = {name: max(0.0, value) for name, value in wanted.items()}
    near = budgets.in_proportion(parts, most, total)
    assert sum(near.values()) == pytest.approx(total)
    below = [n for n in most if near[n] < most[n] and parts[n] > 1e-9]
    factors = [near[name] / parts[name] for name in below]
    assert factors == pytest.approx([factors[0]] * len(factors) if factors else [])


def test_what_fits_is_only_rounded() -> None:
    wanted = {"a": 2.5, "b": 3.4, "c": 1.1}
    most = dict.fromkeys(wanted, 9)
    assert budgets.allot(wanted, most, 7) == masks.share_out(wanted, 7) == {"a": 3, "b": 3, "c": 1}
    assert budgets.allot({"a": 5.0, "b": 0.0}, {"a": 2, "b": 4}, 5) == {"a": 2, "b": 3}
    assert budgets.allot({"a": 5e-324}, {"a": 2}, 1) == {"a": 1}


def test_owls_densities_are_the_papers() -> None:
    """Outlier shares 1, 3, 5 % at 70 %: .22, .30, .38."""
    found = budgets.by_outliers({"a": 1, "b": 3, "c": 5}, dict.fromkeys("abc", 10), 0.7, 0.08)
    assert list(found.values()) == pytest.approx([0.22, 0.30, 0.38])
    other = budgets.by_outliers({"a": 1, "b": 3}, {"a": 10, "b": 30}, 0.7, 0.08)
    assert 10 * other["a"] + 30 * other["b"] == pytest.approx(0.3 * 40)
    assert budgets.by_outliers({"a": 2, "b": 2}, {"a": 1, "b": 1}, 0.7, 0.08)["a"] == (
        pytest.approx(0.3)
    )


def test_an_outlier_is_so_many_times_the_layers_mean() -> None:
    scores = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([[1.0, 6.0]])]  # mean 2
    assert budgets.outlier_share(scores, 2.5) == pytest.approx(0.2)
    assert budgets.outlier_share(scores, 3.5) == 0 == budgets.outlier_share([torch.ones(0)], 2)
    assert budgets.outlier_share([torch.tensor([1.0, 1.0, 4.0])], 2) == 0  # twice, not above


def test_importance_shares_what_is_above_the_least() -> None:
    """At 50 %: all keep 40 %, the rest goes by importance, up to the whole layer."""
    sizes = {"a": 100, "b": 100}
    assert budgets.by_importance({"a": 1, "b": 3}, sizes, 0.5) == pytest.approx({"a": 45, "b": 55})
    small = {"a": 10, "b": 990}
    found = budgets.by_importance({"a": 1, "b": 1}, small, 0.5)
    assert found == pytest.approx({"a": 10, "b": 490})  # a's half of the rest is more than it has
    assert sum(budgets.by_importance({"a": 0, "b": 0}, sizes, 0.95).values()) == pytest.approx(10)


def test_the_least_distortion_of_two_layers_is_the_optimum() -> None:
    kept = {"a": [2, 1, 0], "b": [2, 1, 0]}
    costs = {"a": [0, 1, 10.0], "b": [0, 3, 3.5]}
    # Even: 4; b dense and a empty: 10.
    assert budgets.least_distortion(kept, costs, 2) == {"a": 2, "b": 0}
    assert budgets.least_distortion(kept, costs, 3) == {"a": 1, "b": 2}
    assert budgets.least_distortion(kept, costs, 4) == {"a": 2, "b": 2}


@LAW
@given(SIZES.filter(lambda s: len(s) < 5), st.floats(0, 1), st.randoms(use_true_random=False))
def test_the_least_distortion_is_that_of_brute_force(sizes, share, random) -> None:
    kept = {str(i): sorted({0, n // 3, n // 2, n}, reverse=True) for i, n in enumerate(sizes)}
    costs = {name: [random.random() for _ in numbers] for name, numbers in kept.items()}
    total = int(share * sum(sizes))
    found = budgets.least_distortion(kept, costs, total)
    assert sum(found.values()) <= total
    spent = sum(costs[name][kept[name].index(number)] for name, number in found.items())
    every = itertools.product(*(range(len(numbers)) for numbers in kept.values()))
    least = min(
        sum(costs[n][a] for n, a in zip(kept, choice, strict=True))
        for choice in every
        if sum(kept[n][a] for n, a in zip(kept, choice, strict=True)) <= total
    )
    assert spent == pytest.approx(least)


def test_what_does_not_fill_its_unit_takes_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four weights are two units: three weights of one matrix would take both."""
    monkeypatch.setattr(budgets, "UNITS", 2)
    kept, costs = {n: [3, 2, 0] for n in "ab"}, {n: [0.0, 1.0, 10.0] for n in "ab"}
    assert budgets.least_distortion(kept, costs, 4) == {"a": 2, "b": 2}


def test_many_weights_are_weighed_in_few_units() -> None:
    """Within a unit a matrix; never more than there are."""
    kept = {str(i): [10**6 * a // 10 for a in range(10, -1, -1)] for i in range(20)}
    costs = {name: [(10 - n * 10 / 10**6) ** 2 for n in kept[name]] for name in kept}
    found = budgets.least_distortion(kept, costs, 6 * 10**6)
    assert 6 * 10**6 - sum(found.values()) <= 20 * math.ceil(6 * 10**6 / budgets.UNITS) + 10**5
    assert sum(found.values()) <= 6 * 10**6
