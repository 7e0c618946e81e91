"""Denoisers: a protocol is a function of its key, within its ranges and of the right spread."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from instant_soup.methods.protocols import draw_protocol
from scipy.stats import kstest

from instant_soup.seeds import generator

LAW = hypothesis_settings(deadline=None, max_examples=60)
SETTINGS = {
    "learning_rate": 1e-4,
    "learning_rate_range": [0.5, 5.0],
    "weight_decay_range": [0.02, 0.1],
    "subset": 0.1,
    "batch_size": 32,
}


def draws(name: str, count: int = 600) -> list[float]:
    """One drawn setting of many denoisers."""
    return [draw_protocol(SETTINGS, 40, (0, i // 4, i % 4))[name] for i in range(count)]


def test_the_same_key_draws_the_same_protocol() -> None:
    one = draw_protocol(SETTINGS, 1000, (3, 1, 2))
    torch.rand(5)
    other = draw_protocol(SETTINGS, 1000, (3, 1, 2))
    assert one["learning_rate"] == other["learning_rate"]
    assert one["weight_decay"] == other["weight_decay"]
    assert one["seed"] == other["seed"]
    assert torch.equal(one["rows"], other["rows"])


@pytest.mark.parametrize("key", [(4, 1, 2), (3, 2, 2), (3, 1, 3), (1, 3, 2), (3, 2, 1)])
def test_seed_round_and_denoiser_each_change_the_protocol(key: tuple[int, int, int]) -> None:
    one = draw_protocol(SETTINGS, 1000, (3, 1, 2))
    other = draw_protocol(SETTINGS, 1000, key)
    assert one["learning_rate"] != other["learning_rate"]
    assert one["weight_decay"] != other["weight_decay"]
    assert one["seed"] != other["seed"]
    assert not torch.equal(one["rows"], other["rows"])


def test_the_seed_drawn_is_one_that_a_run_can_have() -> None:
    seeds = draws("seed")
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0 and 2**30 < max(seeds) < 2**31


def test_no_two_denoisers_of_some_runs_share_a_generator() -> None:
    keys = [(s, i, n) for s in range(10) for i in range(9) for n in range(8)]
    seeds = {generator(*key).initial_seed() for key in keys}
    assert len(seeds) == len(keys)


def test_a_key_is_more_than_its_sum_and_a_shorter_key_is_another() -> None:
    keys = [(0,), (0, 0), (0, 0, 0), (0, 1), (1, 0), (2**31 - 1, 8, 3)]
    assert len({generator(*key).initial_seed() for key in keys}) == len(keys)


@LAW
@given(
    st.floats(0.01, 1.0),
    st.floats(1.0, 100.0),
    st.floats(0.0, 0.1),
    st.floats(0.1, 0.5),
    st.integers(0, 2**31 - 1),
)
def test_the_ranges_are_respected(low, high, least, most, seed) -> None:
    ranges = {"learning_rate_range": [low, high], "weight_decay_range": [least, most]}
    protocol = draw_protocol({**SETTINGS, **ranges}, 50, (seed, 0, 0))
    assert low * (1 - 1e-12) <= protocol["learning_rate"] / 1e-4 <= high * (1 + 1e-12)
    assert least <= protocol["weight_decay"] <= most


def test_a_range_of_one_value_gives_that_value() -> None:
    ranges = {"learning_rate_range": [2.0, 2.0], "weight_decay_range": [0.03, 0.03]}
    protocol = draw_protocol({**SETTINGS, **ranges}, 50, (0, 0, 0))
    assert protocol["learning_rate"] == pytest.approx(2e-4)
    assert protocol["weight_decay"] == pytest.approx(0.03)


def test_the_learning_rate_is_log_uniform() -> None:
    low, high = (math.log(f) for f in SETTINGS["learning_rate_range"])
    shares = [(math.log(r / 1e-4) - low) / (high - low) for r in draws("learning_rate")]
    assert kstest(shares, "uniform").pvalue > 0.01
    # The test tells log-uniform from uniform.
    plain = [(r / 1e-4 - 0.5) / 4.5 for r in draws("learning_rate")]
    assert kstest(plain, "uniform").pvalue < 1e-6


def test_the_weight_decay_is_uniform() -> None:
    shares = [(d - 0.02) / 0.08 for d in draws("weight_decay")]
    assert kstest(shares, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("rows", "subset", "size"),
    [(1000, 0.1, 100), (1000, 1.0, 1000), (100, 0.1, 32), (20, 0.1, 20), (1000, 0.0555, 56)],
)
def test_the_subset_is_the_share_at_least_a_batch_at_most_all(rows, subset, size) -> None:
    chosen = draw_protocol({**SETTINGS, "subset": subset}, rows, (0, 0, 0))["rows"].tolist()
    assert len(chosen) == size
    assert len(set(chosen)) == size
    assert chosen == sorted(chosen)
    assert chosen[0] >= 0 and chosen[-1] < rows


def test_the_subsets_reach_all_rows_evenly() -> None:
    times = torch.zeros(320)
    for n in range(400):
        times[draw_protocol(SETTINGS, 320, (0, 0, n))["rows"]] += 1
    spread = math.sqrt(400 * 0.1 * 0.9)
    assert times.sum() == 400 * 32
    assert (times - 40).abs().max() < 5 * spread
