"""Pruning criteria without data: each against a plain reading of its definition, and its laws."""

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from helpers import ROOT, SPARSITIES, BareRun, Toy, batches_of, same
from instant_soup.config.fields import settings_of
from instant_soup.errors import UserError
from instant_soup.files import read_yaml
from instant_soup.methods import registry
from instant_soup.methods.base import AtStart
from instant_soup.methods.erdos_renyi import densities
from instant_soup.methods.n_of_m import pattern
from instant_soup.pipeline.plan import plan
from instant_soup.pipeline.stage_files import TicketStage
from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.ranking import WHOLE, whole_shapes

LAW = settings(deadline=None, max_examples=100)
SETTINGS = {"min_density": 0.05, "m": 4, "batches": 3, "calibration_batches": 3}
CRITERIA = sorted(n for n, method in registry.methods().items() if issubclass(method, AtStart))
SHAPES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5)
SHARES = st.integers(1, 999).map(lambda thousandths: thousandths / 1000)
Weights = dict[str, torch.Tensor]


def some_weights(seed: int = 0) -> Weights:
    """Three matrices of different sizes and scales, with ties and zeros among the weights."""
    draws = torch.Generator().manual_seed(seed)
    weights = {
        "layer.0.w": torch.randn(37, 41, generator=draws),
        "layer.1.w": torch.randn(64, 20, generator=draws) * 0.3,
        "layer.2.w": torch.randn(11, 101, generator=draws).mul(8).round() / 8,
    }
    weights["layer.1.w"][3] = 0.0
    return weights


def tied_weights(shapes: list[tuple[int, int]], seed: int) -> Weights:
    """Matrices of the given shapes; small whole numbers, so most weights tie with others."""
    draws = torch.Generator().manual_seed(seed)
    numbers = [torch.randint(-3, 4, shape, generator=draws).float() for shape in shapes]
    return {f"layer.{i}.w": w for i, w in enumerate(numbers)}


def criterion(name: str, **own: object) -> AtStart:
    """A method of the registry with settings that suit small matrices."""
    found, given = registry.create(name, "bert", "quick", {}), {**SETTINGS, **own}
    suited = {key: given[key] for key in settings_of(type(found)) if key in given}
    return cast(AtStart, replace(found, **suited))


def mask_of(name: str, weights: Weights, sparsity: float, seed: int = 0, **own: object) -> Mask:
    """What a criterion that needs no data keeps of some weights."""
    found = criterion(name, **own)
    return found.mask(BareRun(weights, seed, looks_at=found.looks_at), sparsity)


def cut_by(name: str, run: BareRun, sparsity: float) -> tuple[Mask, Weights]:
    """A criterion's mask for a run, and the weights, which one that makes up for it moves."""
    found = criterion(name).mask(run, sparsity)
    return found if isinstance(found, masks.Cut) else (found, run.weights)


def toy_run(seed: int = 3) -> BareRun:
    """The matrices of a toy network, and all that any criterion may look at."""
    model = Toy(12, 20, 8, 3).double()
    return BareRun(model.matrices(), seed, model, batches_of(12, 3))


def best_of(scores: np.ndarray, k: int) -> np.ndarray:
    """The reference: True at the k largest by a stable sort, best first."""
    kept = np.zeros(scores.size, dtype=bool)
    kept[np.argsort(-scores.reshape(-1).astype(np.float64), kind="stable")[:k]] = True
    return kept.reshape(scores.shape)


# What holds for every criterion


@pytest.mark.parametrize("method", CRITERIA)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_every_criterion_prunes_exactly_the_share(method: str, sparsity: float) -> None:
    if method == "n_of_m":
        sparsity = round(4 * sparsity) / 4 if 0.2 < sparsity < 0.9 else 0.25
    run = toy_run()
    mask, _ = cut_by(method, run, sparsity)
    kept, total = masks.count(mask)
    assert total - kept == math.floor(sparsity * total + 0.5)
    assert all(kept.dtype == torch.bool for kept in mask.values())
    shapes = [(name, weight.shape) for name, weight in run.weights.items()]
    assert [(name, kept.shape) for name, kept in mask.items()] == shapes


@pytest.mark.parametrize("method", CRITERIA)
def test_every_criterion_is_a_function_of_its_arguments_and_changes_none(method: str) -> None:
    run, untouched = toy_run(), toy_run()
    torch.manual_seed(1)
    one, weights = cut_by(method, run, 0.5)
    torch.manual_seed(2)  # the global generator has no say
    before = torch.get_rng_state()
    again, others = cut_by(method, run, 0.5)
    assert same(one, again) and same(weights, others)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(run.weights[name], w) for name, w in untouched.weights.items())


@pytest.mark.parametrize("method", CRITERIA)
def test_a_criterions_ticket_is_its_mask_on_the_pre_trained_weights(method: str) -> None:
    run, expected = toy_run(), toy_run()
    criterion(method).find(run, 0.5)
    mask, weights = cut_by(method, expected, 0.5)
    assert same(run.mask, mask) and run.state.step == 0
    assert (run.cost.steps, run.cost.search_steps) == (0, 0)
    for name, weight in weights.items():
        assert torch.equal(run.state.weights[name], weight * mask[name])


@pytest.mark.parametrize(
    ("method", "own"),
    [
        *[("snip", {}), ("grasp", {}), ("grasp_absolute", {}), ("lamp", {"score": "fisher"})],
        *[("layer_budgets", {"budget": "global", "score": score}) for score in ("fisher", "snip")],
        *[("wanda", {}), ("sparsegpt", {}), ("multiflow", {})],
    ],
)
def test_a_criterion_looks_at_as_many_batches_as_it_is_told(
    method: str, own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def batches(self: BareRun, first: int, last: int) -> Iterator[Weights]:
        asked.append(last - first)
        yield from self.rows_of[first:last]

    monkeypatch.setattr(BareRun, "batches", batches)
    for number in (1, 2):
        criterion(method, batches=number, calibration_batches=number, **own).mask(toy_run(), 0.5)
        assert set(asked) == {number}
        asked.clear()


@LAW
@given(SHAPES, SHARES, st.integers(0, 99))
def test_the_share_is_exact_whatever_the_shapes(shapes, sparsity: float, seed: int) -> None:
    weights = tied_weights(shapes, seed)
    total = sum(w.numel() for w in weights.values())
    for method in ("random", "erdos_renyi", "one_shot", "layerwise", "min_density"):
        kept = masks.count(mask_of(method, weights, sparsity, seed, min_density=0.0))[0]
        assert total - kept == math.floor(sparsity * total + 0.5), method


def test_the_criteria_are_these() -> None:
    assert [
        *("erdos_renyi", "grasp", "grasp_absolute", "lamp", "layer_budgets", "layerwise"),
        *("min_density", "multiflow", "n_of_m", "one_shot", "random", "snip", "sparsegpt", "wanda"),
    ] == CRITERIA


@pytest.mark.parametrize("method", CRITERIA)
def test_a_planned_ticket_tells_its_criterion_all_that_it_asks_for(method: str) -> None:
    params = {**read_yaml(ROOT / "params.yaml"), "sparsity": 0.5, "methods": [method]}
    ticket = TicketStage.of(plan(params)[f"ticket_{method}"])
    found, run = ticket.build(), toy_run(ticket.seed or 0)
    run.looks_at = frozenset(found.looks_at)
    mask = found.mask(run, ticket.sparsity)
    kept, total = masks.count(mask.mask if isinstance(mask, masks.Cut) else mask)
    assert total == 2 * kept


# Magnitude: one global ranking


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_magnitude_is_what_a_stable_sort_in_doubles_keeps(sparsity: float) -> None:
    weights = some_weights()
    flat = np.concatenate([w.numpy().reshape(-1) for w in weights.values()])
    kept = best_of(np.abs(flat), len(flat) - math.floor(sparsity * len(flat) + 0.5))
    mask = scores.magnitude(weights, sparsity)
    np.testing.assert_array_equal(torch.cat([m.flatten() for m in mask.values()]).numpy(), kept)


# Fisher scores


def moments_like(weights: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """Second moments as AdamW may hold them: positive, of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(w.shape, generator=generator).mul(3).exp() * 1e-9
            for n, w in weights.items()}  # fmt: skip


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_fisher_keeps_where_w_squared_times_v_is_largest(sparsity: float) -> None:
    weights = some_weights()
    moments = moments_like(weights)
    flat = np.concatenate(
        [(w.square() * moments[n]).numpy().reshape(-1) for n, w in weights.items()]
    )
    kept = best_of(flat, len(flat) - math.floor(sparsity * len(flat) + 0.5))
    mask = scores.fisher(weights, moments, sparsity)
    np.testing.assert_array_equal(torch.cat([m.flatten() for m in mask.values()]).numpy(), kept)


@LAW
@given(st.integers(0, 99), st.floats(0.05, 0.95), st.integers(-30, 30))
def test_fisher_of_equal_moments_is_magnitude_and_their_scale_does_not_matter(
    seed: int, sparsity: float, exponent: int
) -> None:
    weights = {n: w + seed / 7 for n, w in some_weights().items()}
    equal = {n: torch.full_like(w, 2.0**exponent) for n, w in weights.items()}
    assert same(scores.fisher(weights, equal, sparsity), scores.magnitude(weights, sparsity))
    moments = moments_like(weights, seed)
    scaled = {n: v * 2.0**exponent for n, v in moments.items()}
    one, other = (scores.fisher(weights, v, sparsity) for v in (moments, scaled))
    assert same(one, other)


def test_one_shot_is_magnitude_whatever_the_seed() -> None:
    weights = some_weights()
    masks_found = [mask_of("one_shot", weights, 0.7, seed) for seed in (0, 1)]
    assert all(same(mask, scores.magnitude(weights, 0.7)) for mask in masks_found)


def test_magnitude_does_not_see_the_sign() -> None:
    weights = some_weights()
    flipped = {name: -w for name, w in weights.items()}
    assert same(scores.magnitude(weights, 0.7), scores.magnitude(flipped, 0.7))


def test_magnitude_takes_half_precision_weights() -> None:
    weights = {name: w.bfloat16() for name, w in some_weights().items()}
    assert masks.count(scores.magnitude(weights, 0.5))[0] == masks.keep_count(weights, 0.5)


# Random: chance, over all weights or within matrices


@pytest.mark.parametrize("method", ["random", "erdos_renyi"])
def test_a_random_mask_depends_on_the_seed_and_on_nothing_but_it(method: str) -> None:
    one = mask_of(method, some_weights(), 0.5, 1)
    again = mask_of(method, some_weights(seed=9), 0.5, 1)  # the weights have no say
    assert same(one, again)
    assert not same(one, mask_of(method, some_weights(), 0.5, 2))


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_a_random_mask_prunes_every_layer_alike(sparsity: float) -> None:
    for seed in range(5):
        for name, kept in mask_of("random", some_weights(), sparsity, seed).items():
            size = kept.numel()
            spread = math.sqrt(size * sparsity * (1 - sparsity))
            # The layer's count is hypergeometric: tighter than binomial; 4.5 σ is 1 in 150,000.
            assert abs(size - int(kept.sum()) - sparsity * size) < 4.5 * spread, (seed, name)


def test_two_random_masks_overlap_as_chance_has_it() -> None:
    one, other = (mask_of("random", some_weights(), 0.7, seed) for seed in (1, 2))
    _, total = masks.count(one)
    bound = 4.5 / math.sqrt(total)  # cosine of independent masks: 1 − S, spread below 1/√total
    assert abs(masks.cosine_similarity(one, other) - 0.3) < bound


@pytest.mark.parametrize("method", ["random", "erdos_renyi"])
def test_within_a_matrix_every_weight_is_as_likely_to_stay_as_any_other(method: str) -> None:
    weights = {"small": torch.zeros(4, 6), "wide": torch.zeros(5, 30)}
    found = [mask_of(method, weights, 0.6, seed) for seed in range(400)]
    for name in weights:
        frequency = torch.stack([mask[name] for mask in found]).double().mean(0)
        density = float(frequency.mean())
        assert 0.1 < density < 0.95
        assert (frequency - density).abs().max() < 4.5 * math.sqrt(density * (1 - density) / 400)


# Erdős–Rényi densities


@LAW
@given(SHAPES, SHARES)
def test_erdos_renyi_densities_solve_their_equation(shapes, sparsity: float) -> None:
    weights = tied_weights(shapes, 0)
    sizes = np.array([a * b for a, b in shapes])
    raw = np.array([(a + b) / (a * b) for a, b in shapes])
    budget = masks.keep_count(weights, sparsity)

    def excess(factor: float) -> float:
        return float(np.minimum(1, factor * raw) @ sizes) - budget

    factor = brentq(excess, 0, 1 / raw.min() + 1, xtol=1e-14, rtol=1e-14)
    found = densities(whole_shapes(weights, WHOLE), sparsity)
    assert list(found.values()) == pytest.approx(np.minimum(1, factor * raw), abs=1e-9)
    assert max(found.values()) <= 1


@pytest.mark.parametrize(
    ("kept", "expected"),
    [(16, (0.5, 0.25, 0.1)), (46, (1, 0.75, 0.3)), (64, (1, 1, 0.44)), (119, (1, 1, 0.99))],
    ids=["none dense", "one dense", "one makes another dense", "nearly all stay"],
)
def test_erdos_renyi_densities_of_known_matrices(kept: int, expected: tuple) -> None:
    """Raw densities are 1, 1/2 and 1/5, of 4, 16 and 100 weights: 32 at a factor of one."""
    weights = {f"w{side}": torch.zeros(side, side) for side in (2, 4, 10)}
    assert list(densities(whole_shapes(weights, WHOLE), 1 - kept / 120).values()) == pytest.approx(
        expected
    )


@LAW
@given(SHAPES, SHARES, st.integers(0, 99))
def test_an_erdos_renyi_mask_has_these_densities(shapes, sparsity: float, seed: int) -> None:
    weights = tied_weights(shapes, 0)
    mask = mask_of("erdos_renyi", weights, sparsity, seed)
    wanted = densities(whole_shapes(weights, WHOLE), sparsity)
    for name, kept in mask.items():
        assert abs(int(kept.sum()) - wanted[name] * kept.numel()) < 1 + 1e-6


# Layer-wise magnitude


@LAW
@given(SHAPES, SHARES, st.integers(0, 99))
def test_layerwise_sorts_every_matrix_by_itself(shapes, sparsity: float, seed: int) -> None:
    weights = tied_weights(shapes, seed)
    for name, kept in mask_of("layerwise", weights, sparsity).items():
        count = int(kept.sum())
        assert abs(count - (1 - sparsity) * kept.numel()) < 1 + 1e-6
        np.testing.assert_array_equal(kept.numpy(), best_of(weights[name].abs().numpy(), count))


def test_layerwise_spares_what_a_global_ranking_would_empty() -> None:
    weights = {"small": torch.full((2, 4), 0.1), "big": torch.ones(4, 4)}
    assert not scores.magnitude(weights, 0.5)["small"].any()
    mask = mask_of("layerwise", weights, 0.5)
    assert {name: int(kept.sum()) for name, kept in mask.items()} == {"small": 4, "big": 8}


# Minimum density


def guarded(weights: Weights, sparsity: float, least: float) -> Mask:
    """The criterion `min_density` with a minimum."""
    return mask_of("min_density", weights, sparsity, min_density=least)


@LAW
@given(SHAPES, SHARES, st.integers(0, 999), st.integers(0, 99))
def test_min_density_is_its_definition(shapes, sparsity: float, permille: int, seed: int) -> None:
    weights, least = tied_weights(shapes, seed), permille / 1000
    k = masks.keep_count(weights, sparsity)
    # The definition, one weight after the other, in exact arithmetic.
    floor = {n: math.ceil(Fraction(permille, 1000) * w.numel()) for n, w in weights.items()}
    if sum(floor.values()) > k:
        with pytest.raises(UserError):
            guarded(weights, sparsity, least)
        return
    sizes = {n: w.abs().flatten().tolist() for n, w in weights.items()}
    every = [(n, i) for n, w in sizes.items() for i in range(len(w))]
    by_size = sorted(every, key=lambda at: -sizes[at[0]][at[1]])  # stable
    kept: set[tuple[str, int]] = set()
    for name, least_here in floor.items():
        kept |= set([at for at in by_size if at[0] == name][:least_here])
    kept |= set([at for at in by_size if at not in kept][: k - len(kept)])
    mask = guarded(weights, sparsity, least)
    assert {(n, i) for n, m in mask.items() for i in m.flatten().nonzero().flatten().tolist()} == (
        kept
    )


def test_a_guard_that_does_not_bind_leaves_the_global_ranking() -> None:
    weights = some_weights()
    plain = scores.magnitude(weights, 0.7)
    least = min(float(kept.float().mean()) for kept in plain.values())
    assert 0 < least < 0.3
    assert same(guarded(weights, 0.7, least - 0.001), plain)
    bound = guarded(weights, 0.7, least + 0.02)
    assert not same(bound, plain)
    assert min(float(kept.float().mean()) for kept in bound.values()) >= least + 0.02


def test_a_minimum_is_rounded_up_to_whole_weights_and_not_beyond() -> None:
    """0.07 · 100 is 7.000000000000001 in floats; a matrix of 100 needs to keep 7."""
    weights = {"small": torch.full((10, 10), 0.1), "big": torch.ones(10, 30)}
    for least, kept in ((0.07, 7), (0.0701, 8), (0.0, 0)):
        assert int(guarded(weights, 0.5, least)["small"].sum()) == kept


def test_a_minimum_beyond_what_may_stay_is_refused() -> None:
    message = "min_density: 0.4 of every matrix .* sparsity of 0.7 leaves; allowed: less than 0.3$"
    with pytest.raises(UserError, match=message):
        guarded(some_weights(), 0.7, 0.4)


# N:M


@LAW
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(2, 8),
    st.integers(0, 99),
    st.data(),
)
def test_n_of_m_keeps_the_n_largest_of_every_m_in_a_row(blocks, m: int, seed: int, data) -> None:
    n = data.draw(st.integers(1, m - 1))
    weights = tied_weights([(rows, m * groups) for rows, groups in blocks], seed)
    mask = mask_of("n_of_m", weights, 1 - n / m, m=m)
    for name, weight in weights.items():
        assert mask[name].shape == weight.shape
        for row, kept in zip(weight.abs().tolist(), mask[name].tolist(), strict=True):
            for start in range(0, len(row), m):
                ranked = sorted(range(m), key=lambda i: (-row[start + i], i))
                assert [i for i in range(m) if kept[start + i]] == sorted(ranked[:n])


@pytest.mark.parametrize("m", [2, 3, 4, 7, 10, 32])
def test_every_pattern_is_found_from_its_sparsity(m: int) -> None:
    assert [pattern(1 - n / m, m) for n in range(1, m)] == list(range(1, m))


@pytest.mark.parametrize("sparsity", [0.7, 0.1, 0.9, 0.501])
def test_a_sparsity_without_a_pattern_is_refused_with_those_that_have_one(sparsity) -> None:
    with pytest.raises(UserError, match=r"no N:4 pattern; .*criteria\.m 4: 0\.25, 0\.5, 0\.75$"):
        mask_of("n_of_m", some_weights(), sparsity, m=4)


def test_a_row_that_is_no_multiple_of_m_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"criteria\.m: 4 does not divide the 41 inputs of layer"):
        mask_of("n_of_m", some_weights(), 0.5, m=4)
