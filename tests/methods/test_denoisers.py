"""Denoisers: a protocol is a function of its key, within its ranges and of the right spread."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import kstest

from helpers import BareRun
from instant_soup.config.sections import Recipe
from instant_soup.methods.isp import ISP
from instant_soup.seeds import generator
from instant_soup.training.protocols import Protocol, draw_protocol
from instant_soup.training.state import State

LAW = hypothesis_settings(deadline=None, max_examples=60)
RECIPE = Recipe(learning_rate=1e-4, batch_size=32, epochs=3.0, seed=11)
RATES, DECAYS = [0.5, 5.0], [0.02, 0.1]


def draw(
    rows: int,
    key: tuple[int, ...],
    rates: list[float] = RATES,
    decays: list[float] = DECAYS,
    subset: float = 0.1,
) -> Protocol:
    """A denoiser's protocol."""
    return draw_protocol(RECIPE, rates, decays, subset, rows, key)


def draws(name: str, count: int = 600) -> list[float]:
    """One drawn setting of many denoisers."""
    return [getattr(draw(40, (0, i // 4, i % 4)), name) for i in range(count)]


def test_a_uniform_factor_has_the_place_of_the_logarithmic_one():
    """Both spend one draw, so all else that is drawn is the same."""
    logarithmic = draw_protocol(RECIPE, [1.0, 10.0], DECAYS, 0.5, 200, (3,))
    uniform = draw_protocol(RECIPE, [1.0, 10.0], DECAYS, 0.5, 200, (3,), uniform=True)
    place = math.log10(logarithmic.learning_rate / RECIPE.learning_rate)
    assert uniform.learning_rate == pytest.approx(RECIPE.learning_rate * (1 + 9 * place))
    assert uniform.weight_decay == logarithmic.weight_decay
    assert torch.equal(uniform.rows, logarithmic.rows) and uniform.seed == logarithmic.seed


def test_the_same_key_draws_the_same_protocol() -> None:
    one = draw(1000, (3, 1, 2))
    torch.rand(5)
    other = draw(1000, (3, 1, 2))
    assert one.learning_rate == other.learning_rate
    assert one.weight_decay == other.weight_decay
    assert one.seed == other.seed
    assert torch.equal(one.rows, other.rows)


@pytest.mark.parametrize("key", [(4, 1, 2), (3, 2, 2), (3, 1, 3), (1, 3, 2), (3, 2, 1)])
def test_seed_round_and_denoiser_each_change_the_protocol(key: tuple[int, int, int]) -> None:
    one = draw(1000, (3, 1, 2))
    other = draw(1000, key)
    assert one.learning_rate != other.learning_rate
    assert one.weight_decay != other.weight_decay
    assert one.seed != other.seed
    assert not torch.equal(one.rows, other.rows)


def test_the_seed_drawn_is_one_that_a_run_can_have() -> None:
    seeds = draws("seed")
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0 and 2**30 < max(seeds) < 2**31


def test_a_protocol_changes_a_recipes_rate_decay_and_seed_and_nothing_else() -> None:
    protocol = draw(40, (0, 1, 2))
    own = {"learning_rate": protocol.learning_rate, "weight_decay": protocol.weight_decay}
    assert protocol.described() == {**own, "seed": protocol.seed}
    assert vars(protocol.applied_to(RECIPE)) == {**vars(RECIPE), **protocol.described()}


@pytest.mark.parametrize("seed", [0, 5])
def test_isp_draws_by_the_runs_seed_the_round_and_the_denoiser(seed: int) -> None:
    run = BareRun({"w": torch.zeros(2, 2)}, seed, batches=[{}] * 200)
    isp = ISP(learning_rate_range=RATES, weight_decay_range=DECAYS, subset=0.5)
    found = isp.protocol(run, 3, 1)
    expected = draw_protocol(run.recipe, RATES, DECAYS, 0.5, 200, (seed, 3, 1))
    assert found.described() == expected.described()
    assert torch.equal(found.rows, expected.rows)
    uniform = draw_protocol(run.recipe, RATES, DECAYS, 0.5, 200, (seed, 3, 1), uniform=True)
    assert replace(isp, draws="uniform").protocol(run, 3, 1).described() == uniform.described()


def test_a_look_ahead_is_a_fresh_training_at_a_constant_rate_beside_the_run() -> None:
    """No moments and step 0, on the protocol's rows, under the run's mask."""
    taken: list[dict[str, Any]] = []

    class Ahead(BareRun):
        def take(self, network: Any, state: State, pruner: Any, *_: Any, **how: Any) -> State:
            taken.append({**how, "state": copy.deepcopy(state), "pruner": pruner})
            state.weights["w"] += 1.0
            return state

    run = Ahead({"w": torch.ones(2, 2)}, batches=[{}] * 20)
    run.beside = lambda state, recipe: None  # type: ignore[assignment,method-assign,return-value]
    moments = {"w": torch.ones(2, 2)}
    run.state = State({"w": torch.full((2, 2), 3.0)}, moments, moments, step=5)
    run.mask = {"w": torch.eye(2) > 0}
    protocol = ISP(learning_rate_range=RATES, weight_decay_range=DECAYS).protocol(run, 0, 0)
    after = run.look_ahead(protocol, 7, "test")
    (how,) = taken
    assert (how["last"], how["total"], how["pruner"]) == (7, None, run.mask)
    assert torch.equal(how["rows"], protocol.rows)
    begun = how["state"]
    assert begun.step == 0 and not begun.first_moments and not begun.second_moments
    assert torch.equal(begun.weights["w"], run.state.weights["w"])
    assert torch.equal(after.weights["w"], run.state.weights["w"] + 1)


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
    protocol = draw(50, (seed, 0, 0), [low, high], [least, most])
    assert low * (1 - 1e-12) <= protocol.learning_rate / 1e-4 <= high * (1 + 1e-12)
    assert least <= protocol.weight_decay <= most


def test_a_range_of_one_value_gives_that_value() -> None:
    protocol = draw(50, (0, 0, 0), [2.0, 2.0], [0.03, 0.03])
    assert protocol.learning_rate == pytest.approx(2e-4)
    assert protocol.weight_decay == pytest.approx(0.03)


def test_the_learning_rate_is_log_uniform() -> None:
    low, high = (math.log(f) for f in RATES)
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
    chosen = draw(rows, (0, 0, 0), subset=subset).rows.tolist()
    assert len(chosen) == size
    assert len(set(chosen)) == size
    assert chosen == sorted(chosen)
    assert chosen[0] >= 0 and chosen[-1] < rows


def test_the_subsets_reach_all_rows_evenly() -> None:
    times = torch.zeros(320)
    for n in range(400):
        times[draw(320, (0, 0, n)).rows] += 1
    spread = math.sqrt(400 * 0.1 * 0.9)
    assert times.sum() == 400 * 32
    assert (times - 40).abs().max() < 5 * spread
