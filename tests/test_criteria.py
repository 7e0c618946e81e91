"""Pruning criteria: magnitude against a plain sort, random against chance."""

import math

import numpy as np
import pytest
import torch

from instant_soup import criteria, masks
from instant_soup.tasks import BASELINES

SPARSITIES = (0.1, 0.5, 0.7, 0.93)


def some_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Three matrices of different sizes and scales, with ties and zeros among the weights."""
    draws = torch.Generator().manual_seed(seed)
    weights = {
        "layer.0.w": torch.randn(37, 41, generator=draws),
        "layer.1.w": torch.randn(64, 20, generator=draws) * 0.3,
        "layer.2.w": torch.randn(11, 101, generator=draws).mul(8).round() / 8,
    }
    weights["layer.1.w"][3] = 0.0
    return weights


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_magnitude_is_what_a_stable_sort_in_doubles_keeps(sparsity: float) -> None:
    weights = some_weights()
    flat = np.concatenate([w.numpy().astype(np.float64).reshape(-1) for w in weights.values()])
    pruned = math.floor(sparsity * len(flat) + 0.5)
    kept = np.zeros(len(flat), dtype=bool)
    kept[np.argsort(-np.abs(flat), kind="stable")[: len(flat) - pruned]] = True

    mask = criteria.magnitude(weights, sparsity)
    np.testing.assert_array_equal(torch.cat([m.flatten() for m in mask.values()]).numpy(), kept)


def test_magnitude_leaves_the_weights_alone_and_ignores_the_seed() -> None:
    weights, before = some_weights(), some_weights()
    one, other = (criteria.magnitude(weights, 0.5, seed) for seed in (0, 1))
    assert all(torch.equal(weights[n], before[n]) for n in weights)
    assert all(torch.equal(one[n], other[n]) for n in weights)


def test_magnitude_does_not_see_the_sign() -> None:
    weights = some_weights()
    flipped = {name: -w for name, w in weights.items()}
    a, b = criteria.magnitude(weights, 0.7), criteria.magnitude(flipped, 0.7)
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_magnitude_takes_half_precision_weights() -> None:
    weights = {name: w.bfloat16() for name, w in some_weights().items()}
    assert masks.count(criteria.magnitude(weights, 0.5))[0] == criteria.keep_count(weights, 0.5)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("method", sorted(criteria.CRITERIA))
def test_every_criterion_prunes_exactly_the_share(method: str, sparsity: float) -> None:
    weights = some_weights()
    mask = criteria.CRITERIA[method](weights, sparsity, 3)
    kept, total = masks.count(mask)
    assert total - kept == math.floor(sparsity * total + 0.5)
    assert {n: m.shape for n, m in mask.items()} == {n: w.shape for n, w in weights.items()}


def test_every_baseline_of_the_plan_has_a_criterion() -> None:
    assert set(BASELINES) == set(criteria.CRITERIA)


def test_a_random_mask_depends_on_the_seed_and_on_nothing_but_it() -> None:
    weights = some_weights()
    one = criteria.random(weights, 0.5, 1)
    torch.rand(7)  # the global generator has no say
    again = criteria.random(some_weights(seed=9), 0.5, 1)  # nor have the weights
    other = criteria.random(weights, 0.5, 2)
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_a_random_mask_prunes_every_layer_alike(sparsity: float) -> None:
    for seed in range(5):
        for name, kept in criteria.random(some_weights(), sparsity, seed).items():
            size = kept.numel()
            spread = math.sqrt(size * sparsity * (1 - sparsity))
            # The layer's count is hypergeometric: tighter than binomial; 4.5 σ is 1 in 150,000.
            assert abs(size - int(kept.sum()) - sparsity * size) < 4.5 * spread, (seed, name)


def test_two_random_masks_overlap_as_chance_has_it() -> None:
    one, other = (criteria.random(some_weights(), 0.7, seed) for seed in (1, 2))
    _, total = masks.count(one)
    bound = 4.5 / math.sqrt(total)  # cosine of independent masks: 1 − S, spread below 1/√total
    assert abs(masks.cosine_similarity(one, other) - 0.3) < bound
