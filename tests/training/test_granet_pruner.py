"""GraNet's mask: by hand, to the weight, with weights that return from zero, to the bit."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from helpers import BareRun, assert_goes_on_to_the_bit, drive, matrices_and_gradients, same
from instant_soup.errors import UserError
from instant_soup.methods.erdos_renyi import ErdosRenyi
from instant_soup.methods.registry import create
from instant_soup.sparsity import masks, scores
from instant_soup.training.granet_pruner import GraNetPruner, exchanged, regenerate
from instant_soup.training.schedule import cubic

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_smallest_goes_and_the_steepest_comes() -> None:
    weights = torch.tensor([5.0, 4.0, 3.0, 0.0, 0.0])
    kept = torch.tensor([True, True, True, False, False])
    gradients = torch.tensor([9.0, 9.0, 0.5, -2.0, 1.0])
    found = regenerate(weights, kept, gradients, 1 / 3)
    assert found.tolist() == [True, True, False, True, False]


def test_what_is_dropped_may_come_back_at_once() -> None:
    """It never left, and keeps its value."""
    weights = torch.tensor([5.0, 4.0, 3.0, 0.0, 0.0])
    kept = torch.tensor([True, True, True, False, False])
    gradients = torch.tensor([0.0, 0.0, 7.0, 2.0, 1.0])
    assert torch.equal(regenerate(weights, kept, gradients, 1 / 3), kept)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_as_many_stay(share: float) -> None:
    torch.manual_seed(0)
    for density in (0.0, 0.1, 0.6, 1.0):
        kept = torch.rand(20, 20) < density
        found = regenerate(torch.rand(20, 20) * kept, kept, torch.randn(20, 20), share)
        assert found.sum() == kept.sum()
        assert not torch.equal(found, kept) or density in (0.0, 1.0)


def test_the_share_decays_by_a_cosine_to_a_hundredth() -> None:
    assert exchanged(0, 100, 0.5) == pytest.approx(0.5)
    assert exchanged(50, 100, 0.5) == pytest.approx((0.5 + 0.005) / 2)
    assert exchanged(100, 100, 0.5) == pytest.approx(0.005)


def test_the_last_update_has_the_targets_own_count() -> None:
    """1 − (1 − 0.1) is a little less than 0.1, and a half would be rounded down."""
    weight = nn.Parameter(torch.arange(1.0, 16).view(3, 5))
    pruner = GraNetPruner(
        {"w": torch.ones(3, 5, dtype=torch.bool)}, 0.1, every=1, end=2, settled=2, total=4,
        regrow=0.5,
    )  # fmt: skip
    pruner.attach({"w": weight}, torch.optim.AdamW([weight]), {})
    for step in range(2):
        weight.grad = torch.ones(3, 5)
        pruner.after_backward(step)
        pruner.after_step(step)
    assert pruner.done and masks.count(pruner.mask) == (masks.number_kept(15, 0.1), 15) == (13, 15)


def test_the_sparsity_rises_by_the_cubic_schedule() -> None:
    """From dense to 0.8 in four updates: 0, .4625, .7, .7875, .8."""
    expected = [0, 0.4625, 0.7, 0.7875, 0.8]
    assert [1 - cubic(k, 0, 4, 1.0, 0.2) for k in range(5)] == pytest.approx(expected)


def run(
    steps: range,
    start: torch.Tensor,
    gradients: list[torch.Tensor],
    state: Any = None,
    tensors: dict | None = None,
    hooked: bool = False,
    **changes: Any,
) -> tuple[GraNetPruner, nn.Parameter, torch.optim.Optimizer, list[torch.Tensor]]:
    """Steps of AdamW under the pruner; also the mask after each step."""
    parameter = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([parameter], lr=0.05)
    if state is not None:
        optimizer.load_state_dict(state)
    own = {"every": 2, "end": 8, "settled": 12, "total": 16, "regrow": 0.5, **changes}
    pruner = GraNetPruner({"w": torch.ones(start.shape, dtype=torch.bool)}, 0.75, **own)
    pruner.attach({"w": parameter}, optimizer, tensors or {})
    seen = []
    for at in steps:
        parameter.grad = gradients[at].clone()
        if hooked:
            parameter.grad *= pruner.mask["w"]
        wanted = pruner.wants_gradients(at)
        pruner.after_backward(at, ({"w": gradients[at]} if wanted else {}) if hooked else None)
        assert not parameter.grad[~pruner.mask["w"]].any()
        optimizer.step()
        pruner.after_step(at)
        seen.append(pruner.mask["w"].clone())
        assert not parameter.detach()[~seen[-1]].any()
    return pruner, parameter, optimizer, seen


@pytest.fixture
def gradients() -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(10, 12, generator=draws) for _ in range(16)]


@pytest.fixture
def start() -> torch.Tensor:
    return torch.randn(10, 12, generator=torch.Generator().manual_seed(1))


def test_masks_move_and_settle_to_the_weight(start: Any, gradients: list) -> None:
    pruner, _, _, seen = run(range(16), start, gradients)
    sparsities = [1 - int(kept.sum()) / 120 for kept in seen]
    # Updates are after the steps 2, 4, …, 12.
    for at, sparsity in enumerate(sparsities):
        k = min((at + 1) // 2 * 2, 8)
        assert sparsity == pytest.approx(1 - cubic(k, 0, 8, 1.0, 0.25), abs=1 / 120)
    assert int((~seen[-1]).sum()) == 90 and masks.sparsity(pruner.mask) == 0.75
    back = [bool((after & ~before).any()) for before, after in itertools.pairwise(seen)]
    # Up to step 10 weights come back; the update at step 12 only prunes, and then nothing moves.
    assert [at + 2 for at, any_back in enumerate(back) if any_back] == [4, 6, 8, 10]
    assert all(torch.equal(kept, seen[11]) for kept in seen[11:]) and pruner.finished


def test_a_weight_that_comes_back_starts_at_zero_without_moments(start: Any, gradients: list):
    _, parameter, optimizer, seen = run(range(4), start, gradients)
    back = seen[3] & ~seen[2]
    assert back.any() and not parameter.detach()[back].any()
    for moment in ("exp_avg", "exp_avg_sq"):
        assert not optimizer.state[parameter][moment][back].any()
        assert not optimizer.state[parameter][moment][~seen[3]].any()


def test_what_comes_back_has_the_steepest_dense_gradient(start: Any, gradients: list) -> None:
    _, _, _, seen = run(range(4), start, gradients)
    back = seen[3] & ~seen[2]
    weakest = gradients[3].abs()[back].min()
    assert weakest >= gradients[3].abs()[~seen[3] & ~seen[2]].max()


def test_gradients_of_hooks_are_the_same(start: Any, gradients: list) -> None:
    plain, hooked = (run(range(16), start, gradients, hooked=h) for h in (False, True))
    assert torch.equal(plain[1], hooked[1]) and torch.equal(plain[3][-1], hooked[3][-1])


@pytest.mark.parametrize("cut", [1, 2, 5, 12, 14])
def test_it_goes_on_from_its_tensors_to_the_bit(start: Any, gradients: list, cut: int) -> None:
    whole = run(range(16), start, gradients)
    first = run(range(cut), start, gradients)
    kept = copy.deepcopy((first[1].detach(), first[2].state_dict(), first[0].tensors()))
    rest = run(range(cut, 16), kept[0], gradients, kept[1], kept[2])
    assert torch.equal(whole[1], rest[1]) and torch.equal(whole[3][-1], rest[3][-1])
    assert rest[0].finished


def granet(**changes: Any) -> GraNetPruner:
    """Updates of two matrices after the steps 3, 6, 9, 12 and 14."""
    mask = {n: torch.ones(s, dtype=torch.bool) for n, s in {"w": (10, 11), "v": (3, 7)}.items()}
    own = {"every": 3, "end": 8, "settled": 14, "total": 20, "regrow": 0.4, **changes}
    return GraNetPruner(mask, 0.77, **own)


def test_by_fisher_the_cheapest_go_and_what_returns_starts_with_a_second_moment() -> None:
    start, gradients = matrices_and_gradients()
    driven = drive(granet(every=2, regrow=1e-9, ranks_by="fisher"), start, gradients, range(2))
    dense = drive(granet(every=20, end=20, settled=20), start, gradients, range(2))
    weights = {name: p.detach() for name, p in dense.weights.items()}
    moments = {name: dense.optimizer.state[p]["exp_avg_sq"] for name, p in dense.weights.items()}
    target = 1 - cubic(2, 0, 8, 1.0, 0.23)
    gone = ~scores.fisher(weights, moments, target)["w"]
    # One weight of the matrix is exchanged at least.
    assert int((~driven.pruner.mask["w"] & ~gone).sum()) <= 1
    whole = drive(granet(ranks_by="fisher"), start, gradients, range(6))
    back = whole.seen[5]["w"] & ~whole.seen[4]["w"]
    state = whole.optimizer.state[whole.weights["w"]]
    assert back.any() and not state["exp_avg"][back].any()
    assert torch.equal(state["exp_avg_sq"][back], gradients[5]["w"][back].square())
    plain = drive(granet(), start, gradients, range(6))
    returned = plain.seen[5]["w"] & ~plain.seen[4]["w"]
    assert not plain.optimizer.state[plain.weights["w"]]["exp_avg_sq"][returned].any()


def test_by_fisher_it_is_exact_and_goes_on_to_the_bit() -> None:
    start, gradients = matrices_and_gradients()
    assert drive(granet(ranks_by="fisher"), start, gradients, range(20)).zeros() == 101
    assert_goes_on_to_the_bit(lambda: granet(ranks_by="fisher"), (1, 3, 7, 14, 18))
    with pytest.raises(UserError, match="fisher needs the second moments"):
        drive(
            granet(ranks_by="fisher"), start, gradients, range(6),
            make=lambda p: torch.optim.SGD(p, lr=0.1),
        )  # fmt: skip


def rigl(run: Any, **own: Any) -> Any:
    method = create("rigl", "bert", "quick", {"rigl": {"every": 1, **own}})
    return method, method.pruner(run, 0.77)


@pytest.mark.parametrize("start", ["magnitude", "erdos_renyi"])
@pytest.mark.parametrize("score", ["magnitude", "fisher"])
def test_rigl_is_as_sparse_from_the_first_step_on(start: str, score: str) -> None:
    weights, gradients = matrices_and_gradients(8)
    run = BareRun(weights)
    _, pruner = rigl(run, start=start, score=score)
    first = pruner.mask
    expected = (
        scores.magnitude(weights, 0.77) if start == "magnitude" else ErdosRenyi().mask(run, 0.77)
    )
    assert same(first, expected)
    driven = drive(pruner, weights, gradients, range(8))
    assert {int(sum((~m).sum() for m in seen.values())) for seen in driven.seen} == {101}
    of_each = {name: int(m.sum()) for name, m in first.items()}
    assert all({name: int(m.sum()) for name, m in s.items()} == of_each for s in driven.seen)
    moves = [not torch.equal(a["w"], b["w"]) for a, b in itertools.pairwise(driven.seen)]
    assert moves == [True] * 4 + [False] * 3  # until step 6 of 8
    assert pruner.finished


def test_rigl_exchanges_a_share_that_falls_to_nothing() -> None:
    """α = 0.3: 0.15 in the middle, 0 at the end."""
    assert [exchanged(t, 60, 0.3, 0.0) for t in (0, 30, 60)] == pytest.approx([0.3, 0.15, 0.0])


def test_rigl_goes_on_to_the_bit_whatever_its_first_mask() -> None:
    weights, gradients = matrices_and_gradients(8)
    start = {"start": "erdos_renyi"}
    whole = drive(rigl(BareRun(weights), **start)[1], weights, gradients, range(8))
    for cut in (1, 4, 7):
        first = drive(rigl(BareRun(weights), **start)[1], weights, gradients, range(cut))
        kept = first.kept()
        rest = drive(rigl(BareRun(kept[0]), **start)[1], weights, gradients, range(cut, 8), kept)
        assert torch.equal(whole.weights["w"], rest.weights["w"])
        assert same(whole.pruner.mask, rest.pruner.mask)


def test_a_matrix_without_gradients_is_pruned_without_regrowth() -> None:
    parameters = {n: nn.Parameter(torch.randn(6, 6)) for n in ("w", "v")}
    pruner = GraNetPruner(
        masks.full(parameters), 0.5, every=1, end=2, settled=4, total=8, regrow=0.5
    )
    optimizer = torch.optim.SGD(parameters.values(), lr=0.0)
    pruner.attach(parameters, optimizer, {})
    for at in range(8):
        parameters["w"].grad = torch.randn(6, 6)
        pruner.after_backward(at)
        optimizer.step()
        pruner.after_step(at)
    assert masks.count(pruner.mask) == (36, 72)


def test_its_settings_are_shares_of_the_budget() -> None:
    granet = create("granet", "bert", "quick", {})
    assert granet.settled(100) == 75  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"granet.regrow_until: 0.4 is before granet.end 0.5"):
        create("granet", "bert", "quick", {"granet": {"regrow_until": 0.4}}).check(0.8, 1)
    assert math.isclose(granet.regrow, 0.5)  # type: ignore[attr-defined]
