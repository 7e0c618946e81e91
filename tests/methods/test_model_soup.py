"""Soups of weights: end points, monotone scores, sparsity kept."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from instant_soup.methods.soups import greedy_soup, interpolate, merge, uniform_soup

Weights = dict[str, torch.Tensor]


def network(seed: int) -> Weights:
    draws = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 4, generator=draws), "b": torch.randn(5, generator=draws)}


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


class Target:
    """Scores weights by minus their distance from hidden ones, and counts the looks."""

    def __init__(self, seed: int) -> None:
        self.hidden, self.looks = network(seed), 0

    def __call__(self, weights: Weights) -> float:
        self.looks += 1
        return -float(sum((weights[n] - w).norm() for n, w in self.hidden.items()))


NETWORKS = st.lists(st.integers(0, 99), min_size=1, max_size=6)


@given(st.integers(0, 99), st.integers(0, 99))
def test_a_line_ends_at_its_networks(one: int, other: int) -> None:
    assert same(interpolate(network(one), network(other), 0.0), network(one))
    assert same(interpolate(network(one), network(other), 1.0), network(other))


@given(st.integers(0, 99), st.integers(1, 5))
def test_a_soup_of_one_network_is_that_network(seed: int, times: int) -> None:
    soup = uniform_soup([network(seed)] * times)
    assert all(torch.allclose(soup[n], w, rtol=1e-6) for n, w in network(seed).items())


def test_a_uniform_soup_is_the_mean() -> None:
    soup = uniform_soup([{"w": torch.tensor([0.0, 3.0])}, {"w": torch.tensor([1.0, 6.0])}])
    assert soup["w"].tolist() == [0.5, 4.5]


@given(NETWORKS, st.integers(100, 199))
def test_a_greedy_soup_is_never_below_its_best_network(seeds: list[int], target: int) -> None:
    score, networks = Target(target), [network(seed) for seed in seeds]
    soup, chosen = greedy_soup(networks, score)
    assert score(soup) >= max(score(weights) for weights in networks)
    assert chosen[0] == max(range(len(networks)), key=lambda i: score(networks[i]))
    assert len(chosen) == len(set(chosen))
    assert same(soup, uniform_soup([networks[i] for i in chosen]))


def test_a_greedy_soup_leaves_out_what_harms() -> None:
    good, also_good, bad = (
        {"w": torch.tensor([x, y])} for x, y in [(1.0, 0.1), (1.0, -0.2), (-9.0, 0.0)]
    )
    soup, chosen = greedy_soup(
        [bad, also_good, good], lambda w: -float((w["w"] - torch.tensor([1.0, 0.0])).norm())
    )
    assert chosen == [2, 1]
    assert torch.allclose(soup["w"], torch.tensor([1.0, -0.05]))


@given(NETWORKS, st.integers(100, 199), st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4))
def test_merging_never_lowers_the_score(seeds, target: int, coefficients: list[float]) -> None:
    score = Target(target)
    current = network(seeds[0])
    best = score(current)
    for seed in seeds[1:]:
        looks = score.looks
        merged, chosen, found = merge(current, network(seed), coefficients, score, best)
        assert score.looks - looks == len(coefficients)
        assert found == score(merged) >= best
        assert chosen in (0.0, *coefficients)
        assert same(merged, interpolate(current, network(seed), chosen))
        current, best = merged, found


@given(st.integers(0, 99), st.integers(0, 99), st.floats(0, 1))
def test_mixing_tickets_of_one_mask_keeps_it(one: int, other: int, share: float) -> None:
    kept = {n: w > 0 for n, w in network(7).items()}
    first, second = ({n: w * kept[n] for n, w in network(s).items()} for s in (one, other))
    for soup in (interpolate(first, second, share), uniform_soup([first, second])):
        assert all(not soup[n][~kept[n]].any() for n in soup)
