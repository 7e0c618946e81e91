"""Relatives of movement pruning: by hand, to the weight, on weights that stay, to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers import BareRun, assert_goes_on_to_the_bit, drive, matrices_and_gradients, same
from instant_soup.errors import UserError
from instant_soup.methods.registry import create
from instant_soup.sparsity import masks, scores
from instant_soup.training.movement_pruner import (
    BiPPruner,
    JackpotPruner,
    MovementPruner,
    SoftMovementPruner,
)

pytestmark = pytest.mark.usefixtures("one_thread")

MASK = {"w": torch.ones(10, 11, dtype=torch.bool), "v": torch.ones(3, 7, dtype=torch.bool)}
SPARSITY, PRUNED = 0.77, 101  # of 131 weights
OWN: dict[str, Any] = {"begin": 2, "settled": 14, "total": 20, "learning_rate": 0.1, "every": 2}
SOFT = {"scope": "global", "threshold": 0.4, "penalty": 50.0}


def soft(**changes: Any) -> SoftMovementPruner:
    return SoftMovementPruner(MASK, SPARSITY, **{**OWN, **SOFT, **changes})


def smp(scope: str = "magnitude") -> MovementPruner:
    return MovementPruner(MASK, SPARSITY, **OWN, scope=scope, frozen=True)


def jackpots() -> JackpotPruner:
    return JackpotPruner(MASK, SPARSITY, **OWN, scope="magnitude", frozen=True)


def bip() -> BiPPruner:
    return BiPPruner(MASK, SPARSITY, **OWN, scope="global", implicit=0.5)


ALL: list[Callable[[], Any]] = [soft, smp, jackpots, bip]
FROZEN: list[Callable[[], Any]] = [smp, jackpots]


@pytest.mark.parametrize("make", ALL)
def test_each_settles_to_the_weight(make: Callable[[], Any]) -> None:
    start, gradients = matrices_and_gradients()
    driven = drive(make(), start, gradients, range(20))
    assert driven.pruner.finished and driven.zeros() == PRUNED
    assert all(same(seen, driven.seen[13]) for seen in driven.seen[13:])
    assert not same(driven.seen[5], driven.seen[13])
    assert driven.pruner.tensors().keys() == {"settled", "mask.w", "mask.v"}
    for name, weight in driven.weights.items():
        for moment in driven.optimizer.state.get(weight, {}).values():
            if moment.shape == weight.shape:
                assert not moment[~driven.seen[13][name]].any()


@pytest.mark.parametrize("make", ALL)
def test_each_goes_on_from_its_tensors_to_the_bit(make: Callable[[], Any]) -> None:
    assert_goes_on_to_the_bit(make, (1, 4, 7, 13, 14, 17))


@pytest.mark.parametrize("make", [jackpots, bip])
def test_some_are_at_the_target_from_the_first_step_on(make: Callable[[], Any]) -> None:
    start, gradients = matrices_and_gradients()
    driven = drive(make(), start, gradients, range(0))
    assert driven.zeros() == PRUNED
    assert same(driven.pruner.mask, scores.magnitude(start, SPARSITY))
    driven = drive(make(), start, gradients, range(20))
    assert {masks.count(seen) for seen in driven.seen} == {(30, 131)}


# Frozen weights


@pytest.mark.parametrize("make", FROZEN)
def test_frozen_weights_are_the_pretrained_ones_to_the_bit(make: Callable[[], Any]) -> None:
    start, gradients = matrices_and_gradients()
    driven = drive(
        make(), start, gradients, range(20),
        make=lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    )  # fmt: skip
    for name, weight in driven.weights.items():
        assert torch.equal(weight.detach(), start[name] * driven.pruner.mask[name])
        assert not driven.optimizer.state.get(weight)  # no moments
        assert not driven.pruner.factors[name].any()  # hooks let no gradient through


def test_densities_are_those_of_magnitude_or_alike_or_the_scores_own() -> None:
    start, gradients = matrices_and_gradients()
    start["v"] *= 3
    kept = {}
    for scope in ("magnitude", "local", "global"):
        mask = drive(smp(scope), start, gradients, range(20)).pruner.mask
        assert masks.count(mask) == (30, 131)
        kept[scope] = {name: int(m.sum()) for name, m in mask.items()}
    by_magnitude = scores.magnitude(start, SPARSITY)
    assert kept["magnitude"] == {name: int(m.sum()) for name, m in by_magnitude.items()}
    assert kept["local"] == {"w": 25, "v": 5}
    assert not same(drive(smp(), start, gradients, range(20)).pruner.mask, by_magnitude)


def test_a_jackpot_may_drop_the_largest_weight() -> None:
    """w = [3, -2, 1], s = [1, 1, 0.99], g = [1, 0.2, -1], rate 0.1: s = [0.7, 1.04, 1.09]."""
    pruner = JackpotPruner(
        {"w": torch.ones(3, dtype=torch.bool)}, 1 / 3, begin=0, settled=9, total=10**9,
        learning_rate=0.1, every=1, scope="magnitude", frozen=True,
    )  # fmt: skip
    start = {"w": torch.tensor([3.0, -2.0, 1.0])}
    driven = drive(pruner, start, [{"w": torch.tensor([1.0, 0.2, -1.0])}], range(1))
    # And a decay of 5e-4 · s, by the same rate.
    first = [0.7 - 5e-5, 1.04 - 5e-5, 1.09 - 4.95e-5]
    assert pruner.learnt["w"].tolist() == pytest.approx(first, abs=1e-6)
    assert driven.weights["w"].tolist() == [0.0, -2.0, 1.0]


@pytest.mark.parametrize("kind", [JackpotPruner, BiPPruner])
def test_scores_at_the_target_go_on_with_nine_tenths_of_the_step_before(kind: Any) -> None:
    """A constant slope: steps of 1, 1.9 and 2.71 times the rate."""
    own = {"implicit": 0.0, "scope": "global"} if kind is BiPPruner else {"scope": "magnitude"}
    pruner = kind(
        {"w": torch.ones(2, dtype=torch.bool)}, 0.5, begin=0, settled=9, total=10**9,
        learning_rate=0.1, every=1, frozen=True, **own,
    )  # fmt: skip
    start, slope = {"w": torch.tensor([2.0, 1.0])}, {"w": torch.tensor([-5.0, -3.0])}
    drive(pruner, start, [slope], range(0))
    before, scores_seen = pruner.learnt["w"].clone(), []
    for steps in (1, 2, 3):
        drive(pruner, start, [slope] * 3, range(steps))
        scores_seen.append((pruner.learnt["w"] - before).tolist())
    for found, steps in zip(scores_seen, (1, 2.9, 5.61), strict=True):
        assert found == pytest.approx([steps, 0.3 * steps], rel=2e-3)  # to a jackpot's decay


@pytest.mark.parametrize("name", ["smp", "lottery_jackpots"])
def test_frozen_weights_are_frozen_to_the_end_of_the_budget(name: str) -> None:
    method: Any = create(name, "bert", "paper", {})
    assert method.needed_until(100) == 100 > method.settled(100)
    assert create("movement", "bert", "paper", {}).needed_until(100) == 70  # type: ignore[attr-defined]


# BiP


def test_the_bi_level_gradient_by_hand() -> None:
    """θ = [2, 1], m = [1, 0], ∇z = [0.5, -1], γ = 1: [1 - 0.25, -1 - 0]; a step of 0.1."""
    pruner = BiPPruner(
        {"w": torch.ones(2, dtype=torch.bool)}, 0.5, begin=0, settled=9, total=10**9,
        learning_rate=0.1, every=1, scope="global", implicit=1.0,
    )  # fmt: skip
    driven = drive(
        pruner, {"w": torch.tensor([2.0, 1.0])}, [{"w": torch.tensor([0.5, -1.0])}], range(1),
        make=lambda p: torch.optim.SGD(p, lr=1.0),
    )  # fmt: skip
    # From [2, 1], the magnitudes.
    assert pruner.learnt["w"].tolist() == pytest.approx([2 - 0.075, 1 + 0.1])
    assert driven.weights["w"].tolist() == [1.5, 0.0] and pruner.stored["w"].tolist() == [1.5, 1.0]


# Soft movement


def test_the_penalty_by_hand() -> None:
    """λ σ'(0) / (matrices · weights of one), λ at 7/8 of its last value when half the ramp is."""
    pruner = soft(penalty=8.0)
    start, gradients = matrices_and_gradients()
    drive(pruner, start, gradients, range(0))
    for step, penalty in ((2, 0.0), (8, 7.0), (14, 8.0)):
        for name, one in start.items():
            found = pruner._slope(step, name, torch.zeros_like(one))
            expected = torch.full_like(one, penalty * 0.25 / 2 / one.numel())
            torch.testing.assert_close(found, expected)
    both = pruner._slope(14, "w", torch.ones(10, 11)) - pruner._slope(14, "w", torch.zeros(10, 11))
    torch.testing.assert_close(both, start["w"])


def test_the_threshold_decides_and_leaves_a_little_of_each_matrix() -> None:
    start, gradients = matrices_and_gradients()
    pruner = soft(penalty=0.0)
    driven = drive(pruner, start, gradients, range(8))
    for name, score in pruner.learnt.items():
        assert torch.equal(driven.pruner.mask[name], score.sigmoid() > 0.4 * 7 / 8)
    pruner.learnt["w"].fill_(-9.0)[3, 4] = -8.0
    pruner.learnt["v"].fill_(9.0)
    mask = pruner._moving(13)
    assert mask["w"].nonzero().tolist() == [[3, 4]] and mask["v"].all()
    pruner.learnt = {"w": torch.arange(1000.0) - 2000}
    pruner.parameters = {"w": torch.nn.Parameter(torch.zeros(1000))}
    assert pruner._moving(13)["w"].nonzero().flatten().tolist() == [*range(995, 1000)]  # 0.5 %


def test_what_the_penalty_has_pruned_too_much_comes_back_in_the_end() -> None:
    start, gradients = matrices_and_gradients()
    driven = drive(soft(penalty=1e6, threshold=0.45), start, gradients, range(20))
    assert masks.count(driven.seen[12])[0] < 30 == masks.count(driven.seen[13])[0]
    back = driven.seen[13]["w"] & ~driven.seen[12]["w"]
    held = drive(soft(penalty=1e6, threshold=0.45), start, gradients, range(13)).pruner.stored["w"]
    came = drive(soft(penalty=1e6, threshold=0.45), start, gradients, range(14)).weights["w"]
    assert back.any() and ((came.detach() - held)[back].abs() < 0.1).all()  # two steps' worth


def test_scores_of_bf16_weights_are_fp32() -> None:
    start, gradients = matrices_and_gradients()
    half = [{n: t.bfloat16() for n, t in tensors.items()} for tensors in (start, *gradients)]
    for make in ALL:
        pruner = make()
        drive(pruner, half[0], half[1:], range(5))
        assert {s.dtype for s in pruner.learnt.values()} == {torch.float32}
        assert drive(make(), half[0], half[1:], range(20)).zeros() == PRUNED


# Settings


@pytest.mark.parametrize("name", ["movement", "soft_movement", "smp"])
def test_the_ramp_has_an_extent(name: str) -> None:
    words = rf"{name}\.begin: 0\.7 is not before {name}\.end 0\.7; allowed: less than 0\.7"
    with pytest.raises(UserError, match=words):
        create(name, "bert", "paper", {name: {"begin": 0.7}}).check(0.8, 1)


@pytest.mark.parametrize("name", ["soft_movement", "smp", "lottery_jackpots", "bip"])
def test_a_method_makes_its_pruner_of_shares_of_the_budget(name: str) -> None:
    run: Any = BareRun(MASK)  # of 8 steps
    pruner: Any = create(name, "bert", "quick", {}).pruner(run, SPARSITY)
    settled, begin = (6, 0) if name in ("lottery_jackpots", "bip") else (6, 1)
    assert (pruner.begin, pruner.settled, pruner.total, pruner.every) == (begin, settled, 8, 5)
    assert pruner.frozen == (name in ("smp", "lottery_jackpots"))
