"""PLATON's mask: by hand, to the weight, with zeros that leak and zeros that do not, to the bit."""

import itertools
from typing import Any

import pytest
import torch

from helpers import (
    BareRun,
    assert_goes_on_to_the_bit,
    drive,
    matrices_and_gradients,
)
from instant_soup.errors import UserError
from instant_soup.methods.platon import Platon
from instant_soup.methods.registry import create
from instant_soup.sparsity import masks
from instant_soup.training.platon_pruner import PlatonPruner
from instant_soup.training.schedule import cubic

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"w": (10, 11), "v": (3, 7)}


def still(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def platon(shapes: dict | None = None, sparsity: float = 0.77, **changes: Any) -> PlatonPruner:
    """A pruner of two matrices with cuts after the steps 4, 6, …, 12; the last one at 14."""
    mask = {n: torch.ones(s, dtype=torch.bool) for n, s in (shapes or SHAPES).items()}
    own = {"begin": 3, "settled": 14, "every": 2, "hard": False}
    own |= {"sensitivity_decay": 0.5, "uncertainty_decay": 0.5, **changes}
    return PlatonPruner(mask, sparsity, **own)


def test_the_score_by_hand() -> None:
    """β₁ = β₂ = 0.5, windows of two: |w · g| = 4, 2, 1, 3 → s = 1.125, then 0.875."""
    gradients = [{"w": torch.tensor([g])} for g in (2.0, -1.0, 0.5, 1.5)]
    found = []
    for steps in (2, 4):
        pruner = platon({"w": (1,)}, begin=9, settled=10)
        drive(pruner, {"w": torch.tensor([-2.0])}, gradients, range(steps), make=still)
        parts = pruner.sensitivity["w"].item(), pruner.uncertainty["w"].item()
        found.append((*parts, parts[0] * parts[1]))
    assert found == [(1.5, 0.75, 1.125), (1.75, 0.5, 0.875)]


def test_the_weights_are_those_after_the_step() -> None:
    """SGD takes 2 to 1: |1 · 1| / 1, of which a half."""
    pruner = platon({"w": (1,)}, begin=9, settled=10, every=1)
    start, gradients = {"w": torch.tensor([2.0])}, [{"w": torch.tensor([1.0])}]
    drive(pruner, start, gradients, range(1), make=lambda p: torch.optim.SGD(p, lr=1.0))
    assert pruner.sensitivity["w"].item() == 0.5


@pytest.mark.parametrize(("decay", "kept"), [(0.5, [False, True]), (1.0, [True, False])])
def test_the_uncertain_one_stays_unless_uncertainty_is_off(decay: float, kept: list) -> None:
    """A sensitivity of 3, 3, 3, … is the larger one, but there is no doubt about it."""
    gradients = [{"w": torch.tensor([3.0, 4.0 * (at % 2)])} for at in range(16)]
    pruner = platon({"w": (2,)}, 0.5, begin=14, settled=16, every=1, uncertainty_decay=decay)
    drive(pruner, {"w": torch.ones(2)}, gradients, range(16), make=still)
    assert pruner.mask["w"].tolist() == kept


@pytest.mark.parametrize("hard", [False, True])
def test_masks_follow_the_schedule_and_settle_to_the_weight(hard: bool) -> None:
    start, gradients = matrices_and_gradients()
    driven = drive(platon(hard=hard), start, gradients, range(20))
    zeros = [int(sum((~m).sum() for m in seen.values())) for seen in driven.seen]
    for at, pruned in enumerate(zeros):
        done = at + 1
        cut = done if done % 2 == 0 or not hard else done - 1
        wanted = round(131 * (1 - cubic(cut, 3, 14, 1.0, 0.23)))
        assert pruned == (101 if done >= 14 else wanted if hard or done % 2 == 0 else 0)
    assert driven.zeros() == 101 == round(0.77 * 131)
    last = driven.seen[13]
    for name, weight in driven.weights.items():
        assert all(torch.equal(seen[name], last[name]) for seen in driven.seen[13:])
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not driven.optimizer.state[weight][moment][~last[name]].any()
    assert driven.pruner.tensors().keys() == {"settled", "mask.w", "mask.v"}


def test_leaky_zeros_grow_again_and_may_survive() -> None:
    start, gradients = matrices_and_gradients()
    cut = drive(platon(), start, gradients, range(6))
    assert 0 < cut.zeros() == int(sum((~m).sum() for m in cut.pruner.mask.values()))
    assert not cut.pruner.factors  # gradients reach them
    after = drive(platon(), start, gradients, range(7))
    assert after.zeros() == 0 and after.pruner.kept == 131  # seen dense, and counted so
    whole = drive(platon(), start, gradients, range(20))
    cuts = [whole.seen[at] for at in (3, 5, 7, 9, 11, 13)]
    back = [bool((b["w"] & ~a["w"]).any()) for a, b in itertools.pairwise(cuts)]
    assert any(back)


def test_hard_zeros_never_return() -> None:
    start, gradients = matrices_and_gradients()
    driven = drive(platon(hard=True), start, gradients, range(20))
    for before, after in itertools.pairwise(driven.seen):
        assert not any((after[name] & ~before[name]).any() for name in before)


def test_a_weight_without_gradients_goes_first() -> None:
    """However large it is; and so does a matrix that the loss does not reach."""
    start, gradients = matrices_and_gradients()
    start["w"][:, 0] = 100.0
    for step in gradients:
        step["w"][:, 0] = 0.0
        del step["v"]
    driven = drive(platon(sparsity=0.3), start, gradients, range(20))
    assert not driven.pruner.mask["w"][:, 0].any() and not driven.pruner.mask["v"].any()
    assert driven.zeros() == round(0.3 * 131)


@pytest.mark.parametrize("hard", [False, True])
def test_it_goes_on_from_its_tensors_to_the_bit(hard: bool) -> None:
    assert_goes_on_to_the_bit(lambda: platon(hard=hard), (1, 4, 5, 12, 14, 17))


def test_statistics_of_bf16_weights_are_fp32() -> None:
    start, gradients = matrices_and_gradients()
    half = [{n: t.bfloat16() for n, t in tensors.items()} for tensors in (start, *gradients)]
    driven = drive(platon(), half[0], half[1:], range(8))
    assert {t.dtype for t in driven.pruner.sensitivity.values()} == {torch.float32}
    assert drive(platon(), half[0], half[1:], range(20)).zeros() == 101


def test_nothing_is_pruned_at_sparsity_zero() -> None:
    start, gradients = matrices_and_gradients()
    pruned = drive(platon(sparsity=0.0), start, gradients, range(20))
    dense = drive(platon(begin=30, settled=40), start, gradients, range(20))
    assert all(torch.equal(w, dense.weights[name]) for name, w in pruned.weights.items())


def test_its_settings_are_shares_of_the_budget() -> None:
    method = create("platon", "bert", "paper", {})
    assert isinstance(method, Platon) and method.settled(100) == 70 and method.every == 10
    with pytest.raises(UserError, match=r"platon\.begin: 0\.7 is not before platon\.end 0\.7"):
        create("platon", "bert", "paper", {"platon": {"begin": 0.7}}).check(0.8, 1)
    steady = {"sensitivity_decay": 0.0}  # so Î − Ī is zero, and so are all scores
    with pytest.raises(UserError, match=r"sensitivity_decay: 0 .*uncertainty_decay 1$"):
        create("platon", "bert", "paper", {"platon": steady}).check(0.8, 1)
    create("platon", "bert", "paper", {"platon": steady | {"uncertainty_decay": 1}}).check(0.8, 1)
    run: Any = BareRun({"w": torch.ones(4, 4)})  # of 8 steps
    with pytest.raises(UserError, match=r"platon\.every: 10 is more than the 6 .*at most 6"):
        method.check_steps(0.5, run)
    assert masks.count(create("platon", "bert", "quick", {}).pruner(run, 0.5).mask) == (16, 16)
