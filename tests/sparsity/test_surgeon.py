"""The Optimal Brain Surgeon on Fisher blocks: answers by hand, and against the whole matrix."""

import itertools
import math

import pytest
import torch

from instant_soup.errors import UserError
from instant_soup.sparsity import masks, surgeon
from instant_soup.sparsity.masks import Mask

Weights = dict[str, torch.Tensor]


def one(values: list[float]) -> Weights:
    return {"w": torch.tensor([values])}


def mask_of(values: list[int]) -> Mask:
    return {"w": torch.tensor([values], dtype=torch.bool)}


def fisher_of(gradients: list[list[float]], size: int) -> Weights:
    fisher: Weights = {}
    for g in gradients:
        fisher = surgeon.add_gradients(fisher, one(g), size)
    return fisher


def loss(f: torch.Tensor, change: torch.Tensor) -> float:
    return float(change @ f @ change / 2)


# By hand

COUPLED = torch.tensor([[2.0, 1.0, 0.5], [1.0, 2.0, 0.5], [0.5, 0.5, 1.0]])
NONE = 1e-12  # damping, where F is given as it is


def test_one_gradient_of_two_weights() -> None:
    """F = [[2, 1], [1, 2]]: λ is 1, as the mean squared gradient is."""
    fisher, w, full = fisher_of([[1.0, 1.0]], 2), one([1.0, 2.0]), mask_of([1, 1])
    found = surgeon.scores(fisher, w, full, 1.0)["w"]
    torch.testing.assert_close(found, torch.tensor([[0.75, 3.0]]))
    for together in (False, True):
        moved = surgeon.corrected(fisher, w, full, mask_of([0, 1]), 1.0, together)["w"]
        torch.testing.assert_close(moved, torch.tensor([[0.0, 2.5]]))
    change = torch.tensor([-1.0, 0.5])
    assert loss(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), change) == pytest.approx(0.75)


@pytest.mark.parametrize(("size", "expected"), [(2, [2.7083, 5.9091]), (1, [2.75, 6.0])])
def test_two_gradients_in_blocks_of_two_and_of_one(size: int, expected: list[float]) -> None:
    """λ = 0.5 beside means of squares of 5 and 2.5: 0.5 / 3.75 of their mean, the scores' unit."""
    fisher = fisher_of([[1.0, 2.0], [3.0, -1.0]], size)
    found = surgeon.scores(fisher, one([1.0, 2.0]), mask_of([1, 1]), 0.5 / 3.75)["w"]
    torch.testing.assert_close(3.75 * found, torch.tensor([expected]), atol=1e-4, rtol=0)


def test_the_mean_squared_gradient_is_of_all_that_is_kept() -> None:
    """Squares 1 and 9: of what is pruned they do not count, and those of no gradient are zero."""
    fisher = fisher_of([[1.0, 3.0]], 2)
    assert surgeon.mean_square(fisher, mask_of([1, 1])) == 5
    assert surgeon.mean_square(fisher, mask_of([0, 1])) == 9
    assert surgeon.mean_square(fisher, {**mask_of([0, 1]), "v": torch.ones(2) > 0}) == 3


def test_summed_corrections_are_not_the_joint_one() -> None:
    fisher, w, after = {"w": COUPLED[None]}, one([1.0, 1.0, 1.0]), mask_of([0, 0, 1])
    full = mask_of([1, 1, 1])
    summed, joint = (
        surgeon.corrected(fisher, w, full, after, NONE, together)["w"] for together in (False, True)
    )
    torch.testing.assert_close(summed, torch.tensor([[0.0, 0.0, 1.5714]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(joint, torch.tensor([[0.0, 0.0, 2.0]]))
    assert loss(COUPLED, joint[0] - w["w"][0]) == pytest.approx(2.5)


def test_the_sequence_adds_up_to_what_each_set_costs_together() -> None:
    """Each weight's cost is that of the best correction for all that go up to it."""
    fisher, w, full = {"w": COUPLED[None]}, one([1.0, 1.0, 1.0]), mask_of([1, 1, 1])
    mean = float(COUPLED.diagonal().mean())
    costs = surgeon.sequence_scores(fisher, w, full, NONE)["w"] * mean
    order = costs[0].argsort().tolist()
    assert order[0] == 2  # whose removal alone costs least
    for k in (1, 2, 3):
        after = mask_of([int(i not in order[:k]) for i in range(3)])
        moved = surgeon.corrected(fisher, w, full, after, NONE, together=True)["w"]
        cost = loss(COUPLED, moved[0] - w["w"][0])
        assert cost == pytest.approx(float(costs[0, order[k - 1]]), rel=1e-5)
    assert float(costs.max()) == pytest.approx(4.5, rel=1e-5)  # ½ wᵀFw: all of it gone


# Against the whole matrix


@pytest.fixture
def drawn() -> tuple[Weights, Weights, Mask, list[Weights]]:
    """Two matrices, what of them is left, and five gradients."""
    draws = torch.Generator().manual_seed(0)
    shapes = {"a": (5, 7), "b": (3, 4)}
    weights = {n: torch.randn(s, generator=draws) for n, s in shapes.items()}
    mask = {n: torch.rand(s, generator=draws) > 0.3 for n, s in shapes.items()}
    gradients = [{n: torch.randn(s, generator=draws) for n, s in shapes.items()} for _ in range(5)]
    masks.apply(mask, weights)
    fisher: Weights = {}
    for g in gradients:
        fisher = surgeon.add_gradients(fisher, g, 4)
    return fisher, weights, mask, gradients


def whole(gradients: list[Weights], mask: Mask, name: str, damping: float) -> torch.Tensor:
    """A matrix's Fisher blocks on the diagonal of one matrix, damped, in units of the mean square;
    35 = 8 · 4 + 3: the last block is shorter."""
    kept = {n: k.flatten().double() for n, k in mask.items()}
    flat = [{n: g[n].flatten().double() * kept[n] for n in g} for g in gradients]
    total = sum(float(g.square().sum()) for one in flat for g in one.values())
    mean = total / sum(float(k.sum()) for k in kept.values())
    outer = sum(torch.outer(g[name], g[name]) for g in flat)
    blocks = torch.arange(len(kept[name])) // 4
    outer = outer * (blocks[:, None] == blocks[None, :])
    return outer / mean + damping * torch.eye(len(outer), dtype=torch.float64)


@pytest.mark.parametrize("at_once", [1, 10**6])
def test_scores_are_those_of_the_whole_inverse(drawn, at_once: int, monkeypatch) -> None:
    monkeypatch.setattr(surgeon, "AT_ONCE", at_once)
    fisher, weights, mask, gradients = drawn
    found = surgeon.scores(fisher, weights, mask, 0.3)
    for name, w in weights.items():
        inverse = torch.linalg.inv(whole(gradients, mask, name, 0.3))
        expected = w.flatten().double().square() / (2 * inverse.diagonal())
        expected = expected.where(mask[name].flatten(), -1.0)
        torch.testing.assert_close(found[name].flatten().double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("together", [False, True])
def test_corrections_are_those_of_the_whole_matrix(drawn, together: bool) -> None:
    fisher, weights, mask, gradients = drawn
    draws = torch.Generator().manual_seed(1)
    after = {n: k & (torch.rand(k.shape, generator=draws) > 0.4) for n, k in mask.items()}
    moved = surgeon.corrected(fisher, weights, mask, after, 0.3, together)
    for name, w in weights.items():
        f, flat = whole(gradients, mask, name, 0.3), w.flatten().double()
        gone, left = (mask[name] & ~after[name]).flatten(), after[name].flatten()
        inverse = torch.linalg.inv(f)
        if together:
            change = torch.linalg.solve(f[left][:, left], f[left][:, gone] @ flat[gone])
            expected = torch.zeros_like(flat)
            expected[left] = flat[left] + change
        else:
            expected = flat - inverse @ (flat / inverse.diagonal() * gone)
            expected = expected * left
        torch.testing.assert_close(moved[name].flatten().double(), expected, rtol=1e-4, atol=1e-5)
        assert not moved[name][~after[name]].any()


def test_the_sequence_is_that_of_one_removal_after_the_other(drawn) -> None:
    fisher, weights, mask, gradients = drawn
    found = surgeon.sequence_scores(fisher, weights, mask, 0.3)
    for name, w in weights.items():
        f, flat, kept = (
            whole(gradients, mask, name, 0.3),
            w.flatten().double(),
            mask[name].flatten(),
        )
        for block in torch.arange(len(flat)).split(4):
            here = [int(i) for i in block if kept[i]]
            gone: list[int] = []
            for _ in range(len(here)):
                costs = {i: least_loss(f, flat, here, [*gone, i]) for i in here if i not in gone}
                nearest = min(costs, key=lambda i: costs[i])
                gone.append(nearest)
                assert float(found[name].flatten()[nearest]) == pytest.approx(
                    costs[nearest], rel=1e-4
                )


def least_loss(f: torch.Tensor, w: torch.Tensor, here: list[int], gone: list[int]) -> float:
    """What it costs at least to set some weights of a block to zero."""
    left = [i for i in here if i not in gone]
    change = torch.zeros_like(w)
    change[gone] = -w[gone]
    if left:
        change[left] = torch.linalg.solve(f[left][:, left], f[left][:, gone] @ w[gone])
    return loss(f, change)


def test_nothing_depends_on_the_scale_or_number_of_gradients(drawn) -> None:
    fisher, weights, mask, _ = drawn
    more = {name: 1e-12 * f for name, f in fisher.items()}
    for rank in (surgeon.scores, surgeon.sequence_scores):
        one, other = (rank(f, weights, mask, 0.3) for f in (fisher, more))
        for name in weights:
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_blocks_of_one_rank_as_fisher_scores_do_and_much_damping_as_magnitude(drawn) -> None:
    _, weights, mask, gradients = drawn
    fisher: Weights = {}
    for g in gradients:
        fisher = surgeon.add_gradients(fisher, g, 1)
    squares = {n: sum(g[n].square() for g in gradients) for n in weights}
    for damping, worth in (
        (1e-9, {n: w.square() * squares[n] for n, w in weights.items()}),
        (1e9, {n: w.square() for n, w in weights.items()}),
    ):
        found = surgeon.scores(fisher, weights, mask, damping)
        values = torch.cat([found[n][mask[n]] for n in weights])
        expected = torch.cat([worth[n][mask[n]] for n in weights])
        assert torch.equal(values.argsort(), expected.argsort())


def test_what_no_gradient_reaches_goes_by_magnitude_and_first_of_all(drawn) -> None:
    fisher, weights, mask, _ = drawn
    del fisher["b"]
    found = surgeon.scores(fisher, weights, mask, 1e-6)
    assert found["b"][mask["b"]].max() < found["a"][mask["a"]].median()
    nowhere = surgeon.scores({}, weights, mask, 1.0)
    for name, w in weights.items():
        expected = (w.square() / 2).where(mask[name], -1.0)
        torch.testing.assert_close(nowhere[name], expected)


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e3, 1e9])
def test_few_large_gradients_beside_little_damping_leave_all_finite(scale: float) -> None:
    """A Fisher block of two gradients has rank two, but for damping that is lost in rounding."""
    draws = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(8, 64, generator=draws)}
    full, after = masks.full(weights), {"w": torch.rand(8, 64, generator=draws) > 0.5}
    fisher: Weights = {}
    for _ in range(2):
        g = torch.randn(8, 64, generator=draws)
        g[:2] *= scale
        fisher = surgeon.add_gradients(fisher, {"w": g}, 32)
    for rank in (surgeon.scores, surgeon.sequence_scores):
        assert rank(fisher, weights, full, 1e-9)["w"].isfinite().all()
    for together in (False, True):
        moved = surgeon.corrected(fisher, weights, full, after, 1e-9, together)["w"]
        assert moved.isfinite().all()
    fisher["w"][0, 0, 0] = math.nan
    with pytest.raises(UserError, match=r"^scores: some are NaN"):
        surgeon.scores(fisher, weights, full, 0.1)


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_any_block_size_and_half_precision(size: int) -> None:
    weights = {"w": torch.randn(6, 7).bfloat16()}
    mask, after = masks.full(weights), {"w": torch.rand(6, 7) > 0.5}
    fisher: Weights = {}
    for _ in range(3):
        fisher = surgeon.add_gradients(fisher, {"w": torch.randn(6, 7).bfloat16()}, size)
    assert fisher["w"].shape == (-(-42 // size), size, size) and fisher["w"].dtype == torch.float32
    for rank, together in itertools.product((surgeon.scores, surgeon.sequence_scores), (0, 1)):
        assert rank(fisher, weights, mask, 0.1)["w"].isfinite().all()
        moved = surgeon.corrected(fisher, weights, mask, after, 0.1, bool(together))["w"]
        assert moved.dtype == torch.bfloat16 and moved.isfinite().all()
