"""Movement pruning's mask: by hand, to the weight, with weights that return, to the bit."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from instant_soup.errors import UserError
from instant_soup.methods.movement import Movement
from instant_soup.methods.registry import create
from instant_soup.sparsity import masks
from instant_soup.training.movement_pruner import MovementPruner
from instant_soup.training.schedule import cubic

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 0.1  # of the scores


def attached(
    weights: dict[str, Any], tensors: dict | None = None, **changes: Any
) -> tuple[MovementPruner, dict[str, nn.Parameter], torch.optim.Optimizer]:
    """A pruner of some weights under SGD, whose scores learn at RATE without decay."""
    parameters = {name: nn.Parameter(torch.as_tensor(w)) for name, w in weights.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.0)
    own = {"begin": 0, "settled": 10**6, "total": 10**9, "learning_rate": RATE, "every": 10**9}
    own |= {"scope": "local", "sparsity": 0.5, **changes}
    pruner = MovementPruner(masks.full(parameters), own.pop("sparsity"), **own)
    pruner.attach(parameters, optimizer, tensors or {})
    return pruner, parameters, optimizer


def step(pruner: MovementPruner, parameters: dict, optimizer: Any, at: int, **gradients: Any):
    """One step of a loop with these gradients, with respect to the pruned weights."""
    for name, gradient in gradients.items():
        parameters[name].grad = torch.as_tensor(gradient).clone()
    pruner.after_backward(at)
    found = {name: parameters[name].grad.clone() for name in gradients}
    optimizer.step()
    pruner.after_step(at)
    return found


def mask_of(pruner: MovementPruner, name: str = "w") -> list[bool]:
    return pruner.mask[name].tolist()


@pytest.mark.parametrize(
    ("gradient", "scores", "kept"),
    [
        # Towards zero loses, away from it gains; Adam's first step is the rate, whatever the size.
        ([1.0, 1.0], [-RATE, RATE], [False, True]),
        ([-1.0, -1.0], [RATE, -RATE], [True, False]),  # the smaller weight, as it grows
        ([-0.001, -5.0], [RATE, -RATE], [True, False]),
    ],
)
def test_scores_follow_the_movement(gradient: list, scores: list, kept: list) -> None:
    pruner, parameters, optimizer = attached({"w": [1.0, -2.0]}, settled=2, every=1)
    step(pruner, parameters, optimizer, 0, w=gradient)
    assert pruner.learnt["w"].tolist() == pytest.approx(scores, rel=1e-3)
    step(pruner, parameters, optimizer, 1, w=gradient)
    assert mask_of(pruner) == kept and pruner.finished


def test_the_scores_rate_falls_to_zero_and_they_do_not_decay() -> None:
    """Adam's steps under one gradient are the rate: 0.1, then 3/4, a half and a quarter of it."""
    pruner, parameters, optimizer = attached({"w": [1.0, -2.0]}, total=4)
    for at, moved in enumerate((0.1, 0.175, 0.225, 0.25)):
        step(pruner, parameters, optimizer, at, w=[-1.0, -1.0])
        assert pruner.learnt["w"].tolist() == pytest.approx([moved, -moved], rel=1e-5)


def test_a_pruned_weight_gets_no_gradient_but_its_score_does() -> None:
    """M = [1, 0], dL/dW' = [0.5, 0.3]: dL/dW = [0.5, 0], dL/dA = [0.5 · w_0, 0.3 · w_1]."""
    pruner, parameters, _ = attached({"w": [1.0, -2.0]}, begin=0, settled=2, every=1)
    pruner.mask = {"w": torch.tensor([True, False])}
    pruner._count()
    pruner._make_factors()
    parameters["w"].grad = torch.tensor([0.5, 0.3])
    pruner.after_backward(0)
    assert parameters["w"].grad.tolist() == [0.5, 0.0]
    assert pruner.learnt["w"].grad.tolist() == pytest.approx([0.5, -0.6])


def test_dense_gradients_of_hooks_are_learnt_from() -> None:
    pruner, parameters, _ = attached({"w": [1.0, -2.0]})
    parameters["w"].grad = torch.tensor([0.5, 0.0])
    pruner.after_backward(0, {"w": torch.tensor([0.5, 0.3])})
    assert pruner.learnt["w"].grad.tolist() == pytest.approx([0.5, -0.6])
    assert parameters["w"].grad.tolist() == [0.5, 0.0]


def test_a_weight_comes_back_with_the_value_it_had() -> None:
    pruner, parameters, optimizer = attached(
        {"w": [1.0, -2.0, 3.0, 4.0]}, begin=0, settled=100, every=1
    )
    pruner._target = lambda steps_done: 0.25  # type: ignore[method-assign]
    step(pruner, parameters, optimizer, 0, w=[1.0, 1.0, -1.0, -1.0])
    assert mask_of(pruner) == [False, True, True, True]
    assert parameters["w"].tolist() == [0.0, -2.0, 3.0, 4.0]  # pruned between the steps
    for at in range(1, 8):
        step(pruner, parameters, optimizer, at, w=[-1.0, -1.0, -1.0, -1.0])
    assert mask_of(pruner) == [True, False, True, True]
    assert parameters["w"].tolist() == [1.0, 0.0, 3.0, 4.0]


def test_the_density_falls_by_the_cubic_schedule() -> None:
    """T = 100, from step 10 to 80, to a tenth: 1 up to 10, 0.2125 at 45, 0.1 from 80 on."""
    assert [cubic(t, 10, 80, 1.0, 0.1) for t in (0, 10, 80, 99)] == [1.0, 1.0, 0.1, 0.1]
    assert cubic(45, 10, 80, 1.0, 0.1) == pytest.approx(0.2125)
    weights = {"w": torch.randn(40, 50), "v": torch.randn(20, 100)}
    pruner, parameters, optimizer = attached(
        weights, begin=10, settled=80, every=5, sparsity=0.9, total=100
    )
    seen = {}
    for at in range(100):
        gradients = {name: torch.randn(w.shape) for name, w in weights.items()}
        step(pruner, parameters, optimizer, at, **gradients)
        seen[at + 1] = masks.sparsity(pruner.mask)
        zero = sum(int((p == 0).sum()) for p in parameters.values())
        assert zero == round(seen[at + 1] * 4000)
    assert seen[10] == 0.0 and seen[45] == pytest.approx(1 - 0.2125) and seen[46] == seen[45]
    assert seen[80] == seen[100] == pytest.approx(0.9)
    assert masks.count(pruner.mask)[0] == 400


def test_the_mask_moves_every_few_steps_from_where_the_density_begins_to_fall() -> None:
    pruner, parameters, optimizer = attached(
        {"w": torch.ones(100)}, begin=3, settled=9, every=2, sparsity=0.9
    )
    sparsities = []
    for at in range(12):
        step(pruner, parameters, optimizer, at, w=torch.randn(100))
        sparsities.append(masks.sparsity(pruner.mask))
    moves = [at + 1 for at in range(1, 12) if sparsities[at] != sparsities[at - 1]]
    assert moves == [5, 7, 9] and sparsities[0] == 0.0


def test_the_settled_mask_stays_and_moments_of_what_is_pruned_are_gone() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(6, 6))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1)
    pruner = MovementPruner(
        {"w": torch.ones(6, 6, dtype=torch.bool)}, 0.5, begin=1, settled=5, total=20,
        learning_rate=0.1, every=1, scope="local",
    )  # fmt: skip
    pruner.attach({"w": parameter}, optimizer, {})
    for at in range(20):
        step(pruner, {"w": parameter}, optimizer, at, w=torch.randn(6, 6))
        if at == 4:
            settled = pruner.mask["w"].clone()
            assert pruner.finished and not pruner.stored and not pruner.learnt
    assert torch.equal(pruner.mask["w"], settled) and torch.equal(parameter != 0, settled)
    for moment in ("exp_avg", "exp_avg_sq"):
        assert not optimizer.state[parameter][moment][~settled].any()


@pytest.mark.parametrize("scope", ["local", "global"])
def test_ranked_in_each_matrix_or_over_all(scope: str) -> None:
    torch.manual_seed(0)
    weights = {"w": torch.ones(10, 10), "v": torch.ones(10, 30)}
    pruner, parameters, optimizer = attached(weights, settled=1, scope=scope, sparsity=0.7)
    # w moves away from zero, v towards it.
    step(pruner, parameters, optimizer, 0, w=-torch.rand(10, 10), v=torch.rand(10, 30))
    kept = {name: int(m.sum()) for name, m in pruner.mask.items()}
    assert kept == ({"w": 30, "v": 90} if scope == "local" else {"w": 100, "v": 20})


@pytest.mark.parametrize("cut", [1, 4, 9, 12])
def test_it_goes_on_from_its_tensors_to_the_bit(cut: int) -> None:
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(8, 8, generator=draws)
    gradients = [torch.randn(8, 8, generator=draws) for _ in range(16)]

    def build(weights: torch.Tensor, tensors: dict | None = None) -> Any:
        return attached(
            {"w": weights.clone()}, tensors, begin=2, settled=10, total=16, every=3, sparsity=0.8
        )

    whole = build(start)
    for at in range(16):
        if at == cut:
            kept = copy.deepcopy((whole[1]["w"].detach(), whole[0].tensors()))
        step(*whole, at, w=gradients[at])
    rest = build(kept[0], kept[1])
    for at in range(cut, 16):
        step(*rest, at, w=gradients[at])
    assert torch.equal(whole[1]["w"], rest[1]["w"])
    assert torch.equal(whole[0].mask["w"], rest[0].mask["w"])


def test_a_matrix_that_no_loss_reaches_is_pruned_all_the_same() -> None:
    pruner, parameters, optimizer = attached({"w": [1.0, 2.0], "v": [3.0, 4.0]}, settled=2)
    step(pruner, parameters, optimizer, 0, w=[1.0, -1.0])
    assert pruner.tensors().keys() >= {"score.v", "scores.exp_avg.w"}
    step(pruner, parameters, optimizer, 1, w=[1.0, -1.0])
    assert mask_of(pruner, "v") == [True, False] and parameters["v"].tolist() == [3.0, 0.0]


def test_its_settings_are_shares_of_the_budget() -> None:
    movement = create("movement", "bert", "paper", {})
    assert isinstance(movement, Movement)
    assert movement.settled(100) == 70 and movement.every == 1
    with pytest.raises(UserError, match=r"movement\.begin: 0\.7 is not before movement\.end 0\.7"):
        create("movement", "bert", "paper", {"movement": {"begin": 0.7}}).check(0.8, 1)
