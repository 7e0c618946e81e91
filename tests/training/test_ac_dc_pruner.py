"""AC/DC's mask: its phases, exact in each, with weights that start again from zero, to the bit."""

from typing import Any

import pytest
import torch

from helpers import BareRun, assert_goes_on_to_the_bit, drive, matrices_and_gradients
from instant_soup.errors import UserError
from instant_soup.methods.ac_dc import AcDc
from instant_soup.methods.registry import create
from instant_soup.sparsity import scores
from instant_soup.training.ac_dc_pruner import AcDcPruner, switches

pytestmark = pytest.mark.usefixtures("one_thread")

SPARSITY, PRUNED = 0.77, 101  # of 131 weights
# Compressed are the steps 4 … 5, 8 … 9 and from 14 on.
PHASES = {4: True, 6: False, 8: True, 10: False, 14: True}
MASK = {"w": torch.ones(10, 11, dtype=torch.bool), "v": torch.ones(3, 7, dtype=torch.bool)}


def ac_dc(ranks_by: str = "magnitude") -> AcDcPruner:
    return AcDcPruner(MASK, SPARSITY, PHASES, ranks_by)


def test_the_phases_are_the_papers() -> None:
    """Of 100: compressed at 10-15, 20-25, …, 70-75 and 85-100."""
    found = switches(10, 5, 75, 85)
    assert found == {**{at: at % 10 == 0 for at in range(10, 80, 5)}, 85: True}


def test_phases_end_where_the_last_dense_one_begins() -> None:
    assert switches(10, 20, 60, 80) == {10: True, 30: False, 50: True, 60: False, 80: True}
    assert switches(10, 20, 50, 80) == {10: True, 30: False, 80: True}
    assert list(switches(1, 1.5, 8, 9)) == [1, 2, 4, 6, 7, 8, 9]


@pytest.mark.parametrize("ranks_by", scores.SCORES)
def test_compressed_to_the_weight_and_dense_by_turns(ranks_by: str) -> None:
    start, gradients = matrices_and_gradients()
    driven = drive(ac_dc(ranks_by), start, gradients, range(20))
    pruned = [int(sum((~m).sum() for m in seen.values())) for seen in driven.seen]
    compressed = [4 <= done < 6 or 8 <= done < 10 or done >= 14 for done in range(1, 21)]
    assert pruned == [PRUNED if one else 0 for one in compressed]
    assert driven.zeros() == PRUNED and driven.pruner.finished
    for first, last in ((3, 4), (7, 8), (13, 19)):
        assert torch.equal(driven.seen[first]["w"], driven.seen[last]["w"])
    for name, weight in driven.weights.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not driven.optimizer.state[weight][moment][~driven.seen[13][name]].any()


def test_what_was_pruned_may_outgrow_what_was_not() -> None:
    """[0.3, 0.1] → [0.3, 0]; while dense two steps of SGD make it [0.1, 0.2]: → [0, 0.2]."""
    mask = {"w": torch.ones(2, dtype=torch.bool)}
    pruner = AcDcPruner(mask, 0.5, {1: True, 2: False, 4: True}, "magnitude")
    gradients = [{"w": torch.tensor([0.0, 0.0])}] * 2 + [{"w": torch.tensor([1.0, -1.0])}] * 2
    start = {"w": torch.tensor([0.3, 0.1])}
    driven = drive(pruner, start, gradients, range(4), make=lambda p: torch.optim.SGD(p, lr=0.1))
    assert driven.seen[0]["w"].tolist() == [True, False]
    assert driven.weights["w"].tolist() == pytest.approx([0.0, 0.2])


@pytest.mark.parametrize("ranks_by", scores.SCORES)
def test_masks_are_of_the_largest_scores_of_all_matrices(ranks_by: str) -> None:
    start, gradients = matrices_and_gradients()
    dense = drive(AcDcPruner(MASK, SPARSITY, {90: True}, ranks_by), start, gradients, range(4))
    weights = {name: p.detach() for name, p in dense.weights.items()}
    moments = {name: dense.optimizer.state[p]["exp_avg_sq"] for name, p in dense.weights.items()}
    expected = scores.best(scores.scores_of(ranks_by, weights, moments), SPARSITY)
    found = drive(ac_dc(ranks_by), start, gradients, range(4)).pruner.mask
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())


def test_weights_start_again_from_zero_without_momentum() -> None:
    start, gradients = matrices_and_gradients()
    cut = drive(ac_dc(), start, gradients, range(5))
    pruned = ~cut.pruner.mask["w"]
    second = cut.optimizer.state[cut.weights["w"]]["exp_avg_sq"]
    assert second[pruned].all()  # fading, so that the next steps are no larger than others
    dense = drive(ac_dc(), start, gradients, range(6))
    state = dense.optimizer.state[dense.weights["w"]]
    assert not state["exp_avg"].any() and not dense.weights["w"].detach()[pruned].any()
    after = drive(ac_dc(), start, gradients, range(7))
    moved = after.weights["w"].detach()[pruned].abs()
    assert moved.all() and moved.max() < 0.05  # the rate


@pytest.mark.parametrize("ranks_by", scores.SCORES)
def test_it_goes_on_from_its_tensors_to_the_bit(ranks_by: str) -> None:
    assert_goes_on_to_the_bit(lambda: ac_dc(ranks_by), (1, 4, 5, 6, 12, 14, 17))


def test_any_optimizer_will_do_but_for_fisher() -> None:
    start, gradients = matrices_and_gradients()

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    assert drive(ac_dc(), start, gradients, range(20), make=sgd).zeros() == PRUNED
    with pytest.raises(UserError, match="fisher needs the second moments"):
        drive(ac_dc("fisher"), start, gradients, range(20), make=sgd)


def test_its_settings_are_shares_of_the_budget() -> None:
    def method(**own: Any) -> Any:
        return create("ac_dc", "bert", "paper", {"ac_dc": own})

    assert isinstance(method(), AcDc) and method().settled(100) == 80
    with pytest.raises(UserError, match=r"ac_dc\.last_dense: 0\.8 is not before ac_dc\.end 0\.8"):
        method(last_dense=0.8).check(0.8, 1)
    with pytest.raises(UserError, match=r"ac_dc\.begin: 0\.7 is not before ac_dc\.last_dense 0\.7"):
        method(begin=0.7).check(0.8, 1)
    run: Any = BareRun(MASK)  # of 8 steps
    with pytest.raises(
        UserError, match=r"ac_dc\.phase: 0\.05 of 8 steps is less than one; .*0\.12"
    ):
        method().check_steps(0.5, run)
    found = method(phase=0.125).pruner(run, 0.5).switches
    assert found == {1: True, 2: False, 3: True, 4: False, 5: True, 6: True}


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9), ["square_avg"]),
        (lambda p: torch.optim.Adagrad(p, lr=0.01), ["sum"]),
        (lambda p: torch.optim.Rprop(p, lr=0.01), ["step_size"]),
        (lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True), ["exp_avg_sq", "max_exp_avg_sq"]),
    ],
    ids=["RMSprop", "Adagrad", "Rprop", "AdamW"],
)
def test_a_dense_phase_begins_without_momentum_but_with_the_sizes_of_steps(
    make: Any, kept: list[str]
) -> None:
    start, gradients = matrices_and_gradients()
    driven = drive(ac_dc(), start, gradients, range(6), make=make)  # dense again from step 6 on
    for weight in driven.weights.values():
        held = driven.optimizer.state[weight]
        assert all(held[key].count_nonzero() == weight.numel() for key in kept)
        assert not any(held[key].any() for key in ("exp_avg", "momentum_buffer") if key in held)
