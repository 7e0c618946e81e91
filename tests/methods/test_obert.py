"""oBERT and CAP: exact counts, what moves, whose gradients, going on to the bit, memory."""

import copy
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

import instant_soup
from helpers import (
    ROOT,
    BareRun,
    Toy,
    assert_pruned,
    batches_of,
    loader,
    loss,
    new_classifier,
    perceptron,
    trainer,
)
from instant_soup.errors import UserError
from instant_soup.files import read_yaml
from instant_soup.methods.base import Method
from instant_soup.methods.cap import CAP
from instant_soup.methods.obert import OBERT
from instant_soup.methods.registry import create
from instant_soup.models import memory
from instant_soup.pipeline.plan import plan
from instant_soup.sparsity import masks, scores, surgeon
from instant_soup.training.checkpoints import Record
from instant_soup.training.loop import logits_of, loss_of
from instant_soup.training.pruner import PrunesInRounds

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 24
SHORT: dict[str, Any] = {"gradient_batches": 3, "block": 4, "compression_rate": 0.3}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("obert", {}),
    ("obert", {"block": 1, "update": "none"}),
    ("obert", {"gradients": "training"}),
    ("obert", {"gradients": "training", "update": "joint", "block": 32}),
    ("cap", {}),
    ("cap", {"gradients": "training"}),
]


def prune(method: str, model: nn.Module | None = None, **own: Any) -> instant_soup.Pruned:
    given = {"steps": STEPS, "learning_rate": 3e-3, "sparsity": 0.6, "precision": "fp32", **SHORT}
    own = {**given, **own}
    return instant_soup.prune(model or perceptron(), loader(), loss, method=method, **own)


@pytest.mark.parametrize("sparsity", [0.371, 0.6, 0.949])
@pytest.mark.parametrize(("method", "own"), KINDS)
def test_it_prunes_to_the_weight(method: str, own: dict[str, Any], sparsity: float) -> None:
    assert_pruned(prune(method, sparsity=sparsity, **own), sparsity)


# A round


@pytest.fixture
def run() -> BareRun:
    """A run of 69 prunable weights with dropout, at step 2 of six batches."""
    model = Toy(4, 6, 5, 3)
    batches = [{**batch, "x": batch["x"].float()} for batch in batches_of(4, 3, batches=6)]
    run = BareRun(model.matrices(), network=model, batches=batches)
    run.state.step, run.target = 2, 0.6
    return run


def obert(kind: type[OBERT] = OBERT, **own: Any) -> OBERT:
    made = {"block": 4, "gradient_batches": 3, "mask_finding": 0.3, **own}
    return kind(**made)


def fisher_by_hand(run: BareRun, block: int) -> dict[str, torch.Tensor]:
    """Of the batches 2, 3 and 4, without dropout."""
    network = run.network(run.state, run.recipe).eval()
    fisher: dict[str, torch.Tensor] = {}
    for batch in run.rows_of[2:5]:
        network.zero_grad()
        loss_of(logits_of(network, batch), batch["labels"]).backward()
        gradients = {n: p.grad for n, p in network.named_parameters() if n in run.mask}
        fisher = surgeon.add_gradients(fisher, gradients, block)
    return fisher


def test_fresh_gradients_are_of_the_batches_that_come_next(run: BareRun) -> None:
    expected = fisher_by_hand(run, 4)
    found = obert()._fresh(run)
    assert found.keys() == expected.keys() == run.mask.keys()
    for name, f in expected.items():
        torch.testing.assert_close(found[name], f)


def test_each_batch_counts_as_a_gradient(run: BareRun) -> None:
    with patch.object(BareRun, "flops", lambda *_: (10.0, 1.0)):
        obert().find_mask(run, 0, 0.6)
    assert run.cost.flops == 3 * 3 * 11


@pytest.mark.parametrize(
    ("kind", "update", "together"),
    [(OBERT, "sum", False), (OBERT, "joint", True), (CAP, "joint", True)],
)
def test_a_round_ranks_and_corrects(run: BareRun, kind: Any, update: str, together: bool) -> None:
    fisher, before = fisher_by_hand(run, 4), copy.deepcopy(run.weights)
    rank = surgeon.sequence_scores if kind is CAP else surgeon.scores
    mask = scores.best(rank(fisher, before, run.mask, 0.1), 0.6)
    moved = surgeon.corrected(fisher, before, run.mask, mask, 0.1, together)
    found = obert(kind, update=update).find_mask(run, 0, 0.6)
    assert isinstance(found, masks.Cut)
    run.prune(found)
    for name, weight in run.weights.items():
        assert torch.equal(run.mask[name], mask[name])
        torch.testing.assert_close(weight, moved[name])
        assert not weight[~mask[name]].any()
        assert not torch.equal(weight[mask[name]], before[name][mask[name]])


def test_without_the_update_what_stays_stays_as_it_is(run: BareRun) -> None:
    before = copy.deepcopy(run.weights)
    found = obert(update="none").find_mask(run, 0, 0.6)
    assert not isinstance(found, masks.Cut)
    run.prune(found)
    assert all(torch.equal(w, before[n] * run.mask[n]) for n, w in run.weights.items())


@pytest.mark.parametrize("kind", [OBERT, CAP])
def test_masks_of_rounds_are_nested(run: BareRun, kind: Any) -> None:
    earlier = run.mask
    for i, sparsity in enumerate((0.2, 0.5, 0.8)):
        run.prune(obert(kind).find_mask(run, i, sparsity))
        assert not any((kept & ~earlier[n]).any() for n, kept in run.mask.items())
        earlier = run.mask


def test_a_dead_input_goes_first(run: BareRun) -> None:
    with torch.no_grad():
        run.state.weights["layers.0.weight"][:, 2] = 1.0
    for batch in run.rows_of:
        batch["x"][:, 2] = 0.0
    for kind in (OBERT, CAP):
        found = obert(kind, block=1, damping=1e-9).find_mask(run, 0, 6 / 69)
        assert not found.mask["layers.0.weight"][:, 2].any()


# The training's own gradients


def test_trainings_gradients_are_those_of_a_rounds_last_steps() -> None:
    seen: list[dict[str, torch.Tensor]] = []
    held: list[dict[str, torch.Tensor]] = []
    gather, find = OBERT.gather, OBERT.find_mask

    def watched(self: OBERT, kept: Any, gradients: Any) -> Any:
        seen.append({n: g.clone() for n, g in gradients.items()})
        return gather(self, kept, gradients)

    def found(self: OBERT, run: Any, *given: Any) -> Any:
        held.append({n: f.clone() for n, f in run.gradients.items()})
        return find(self, run, *given)

    with patch.object(OBERT, "gather", watched), patch.object(OBERT, "find_mask", found):
        prune("obert", gradients="training", mask_finding=0.5)
    # 60 % in two rounds of 4 and 8 steps, and of each the last three are looked at.
    assert len(seen) == 6 and len(held) == 2
    for fisher, steps in zip(held, (seen[:3], seen[3:]), strict=True):
        expected: dict[str, torch.Tensor] = {}
        for gradients in steps:
            expected = surgeon.add_gradients(expected, gradients, 4)
        assert all(torch.equal(fisher[n], f) for n, f in expected.items())


def test_steps_that_are_looked_at_lie_within_their_round() -> None:
    training = obert(gradients="training", gradient_batches=4)
    assert training.gradients_at([2, 8, 9]) == [0, 1, 4, 5, 6, 7, 8]
    assert obert().gradients_at([2, 8, 9]) == [] and not obert().remembers


def test_rounds_without_a_step_have_no_gradients() -> None:
    message = r"^gradients: training has no gradients for rounds without a step"
    with pytest.raises(UserError, match=message):
        prune(
            "obert", gradients="training", compression_rate=0.06, growing=False, mask_finding=0.25
        )
    with pytest.raises(UserError, match=r"^mask_finding: 0 prunes before the first of 24 steps"):
        prune("obert", gradients="training", mask_finding=0)
    prune("obert", mask_finding=0)  # fresh ones are there


# Going on


class Stopped(Exception):
    pass


def stop_at(step: int, folder: Path, method: str, **own: Any) -> None:
    """Interrupt a run, with a checkpoint, when so many steps are trained."""
    take = Record.after_step

    def after_step(self: Record, here: int, error: Any, snapshot: Any) -> None:
        take(self, here, error, snapshot)
        if here == step:
            self.save(snapshot())
            raise Stopped

    with patch.object(Record, "after_step", after_step), pytest.raises(Stopped):
        prune(method, checkpoint=folder, **own)


@cache
def whole_run(method: str, *own: tuple[str, Any]) -> instant_soup.Pruned:
    """A run without a stop: to look at, for several tests."""
    return prune(method, **dict(own))


@cache
def whole_loop(method: str, *own: tuple[str, Any]) -> tuple:
    """A loop without a stop: to look at, for several tests."""
    return looped(0, STEPS, None, method, **dict(own))


# Rounds end after the steps 2 and 7.
@pytest.mark.parametrize("step", [1, 5, 6, 7, 9])
@pytest.mark.parametrize(("method", "own"), [KINDS[i] for i in (0, 3, 4)])
def test_an_interrupted_run_goes_on_to_the_bit(
    tmp_path: Path, step: int, method: str, own: dict[str, Any]
) -> None:
    whole = whole_run(method, *own.items())
    stop_at(step, tmp_path, method, **own)
    resumed = prune(method, checkpoint=tmp_path, **own)
    assert all(torch.equal(kept, resumed.mask[n]) for n, kept in whole.mask.items())
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert whole.cost["steps"] == resumed.cost["steps"]


def looped(
    first: int, last: int, states: tuple | None, method: str, **own: Any
) -> tuple[nn.Module, instant_soup.Pruner, tuple]:
    """Steps of a loop of one's own; what is kept of it."""
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    if states:
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
    pruner = instant_soup.Pruner(
        model, optimizer, method=method, steps=STEPS, sparsity=0.6, batches=loader(), loss=loss,
        resume=states[2] if states else None, **{**SHORT, **own},
    )  # fmt: skip
    batches = list(loader().dataset[i : i + 8] for i in range(0, 96, 4))
    for step in range(first, last):
        torch.manual_seed(step)
        loss(model, batches[step]).backward()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step()
        optimizer.zero_grad()
    parts = (model, optimizer, pruner)
    return model, pruner, tuple(copy.deepcopy(part.state_dict()) for part in parts)


@pytest.mark.parametrize("cut", [1, 6, 7, 12])
@pytest.mark.parametrize(("method", "own"), [KINDS[i] for i in (0, 2, 5)])
def test_a_loop_of_ones_own_goes_on_to_the_bit(cut: int, method: str, own: Any) -> None:
    whole, pruner, _ = whole_loop(method, *own.items())
    _, _, kept = looped(0, cut, None, method, **own)
    rest, resumed, _ = looped(cut, STEPS, kept, method, **own)
    assert all(torch.equal(w, rest.state_dict()[n]) for n, w in whole.state_dict().items())
    assert masks.count(pruner.mask) == masks.count(resumed.mask)


def test_a_loop_of_ones_own_keeps_all_of_a_rounds_gradients() -> None:
    """Those of its last steps, as `prune` keeps them, and none of another round."""
    own = {"gradients": "training", "gradient_batches": 3, "block": 4}
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pruner = instant_soup.Pruner(
        model, optimizer, method="obert", steps=STEPS, sparsity=0.6, **{**SHORT, **own}
    )
    assert isinstance(pruner.inner, PrunesInRounds)
    name, expected = next(iter(pruner.mask)), torch.zeros(())
    rows = loader().dataset
    for step in range(STEPS):
        loss(model, rows[4 * step : 4 * step + 8]).backward()
        gradient = model.get_parameter(name).grad.clone()
        if pruner.inner.wants_gradients(step):
            blocks = gradient.flatten().view(-1, 4)
            expected = expected + blocks[:, :, None] * blocks[:, None, :]
        pruner.after_backward()
        optimizer.step()
        if step + 1 in pruner.inner.ends:
            torch.testing.assert_close(pruner.inner.gradients[name], expected)
            expected = torch.zeros(())
        pruner.after_step()
        optimizer.zero_grad()
    assert pruner.done and not pruner.inner.gradients


def test_a_loop_of_ones_own_gets_the_corrected_weights() -> None:
    """Between two steps: right after the cut, survivors are not what training left."""
    plain, *_ = looped(0, 2, None, "obert", update="none")
    moved, pruner, _ = looped(0, 2, None, "obert", update="sum")
    for name, kept in pruner.mask.items():
        one, other = (m.get_parameter(name).detach() for m in (plain, moved))
        assert torch.equal(one != 0, kept) and not torch.equal(one[kept], other[kept])


def test_a_trainers_checkpoint_has_the_gradients_of_the_round(
    tmp_path: Path, tiny_bert: Path
) -> None:
    """Rounds end after the steps 4 and 12; it stops at 11, two of three steps into the window."""
    own = {**SHORT, "mask_finding": 0.5, "gradients": "training"}
    whole, resumed = new_classifier(tiny_bert, 2, 0), new_classifier(tiny_bert, 2, 0)
    callbacks = [instant_soup.InstantSoupCallback("obert", sparsity=0.6, **own) for _ in "123"]
    trainer(tmp_path / "whole", whole, callbacks[0]).train()
    cut = trainer(tmp_path / "cut", new_classifier(tiny_bert, 2, 0), callbacks[1])
    cut.args.save_strategy, cut.args.save_steps = "steps", 11
    cut.train()
    again = trainer(tmp_path / "cut", resumed, callbacks[2])
    again.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-11"))
    assert all(torch.equal(w, resumed.state_dict()[n]) for n, w in whole.state_dict().items())


# Memory and settings


def test_the_memory_is_stated_and_bounded() -> None:
    method = create("obert", "bert", "quick", {"obert": {"block": 50, "memory": 1.0}})
    assert method.check_size(4_800_000) is None
    message = (
        r"^obert\.block: 50 takes 1,040,000,000 bytes for the 5,000,000 prunable weights, more "
        r"than the 1,000,000,000 bytes of obert\.memory; allowed: at most 48$"
    )
    with pytest.raises(UserError, match=message):
        method.check_size(5_000_000)
    with pytest.raises(UserError, match=r"allowed: none, this model is too large$"):
        method.check_size(10**9)


def test_what_is_not_free_is_refused_before_the_first_step(monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda where: 1000)
    message = r"^block: 4 takes 30,720 bytes .* 1,000 bytes that are free on the cpu; allowed: none"
    with pytest.raises(UserError, match=message):
        prune("obert")
    with pytest.raises(UserError, match=message):
        looped(0, 0, None, "cap")


def test_the_plan_refuses_what_does_not_fit() -> None:
    raw = {**read_yaml(ROOT / "params.yaml"), "methods": ["cap"], "cap": {"block": 800}}
    raw = {**raw, "model": "minilm", "dataset": "reviews-rating"}
    message = r"^params\.yaml: cap\.block: 800 takes 34,\d{3},\d{3},\d{3} bytes for the 10,616,832 "
    with pytest.raises(UserError, match=message):
        plan(raw)
    plan({**raw, "cap": {"block": 700}})


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("cap", {"update": "sum"}, r"cap\.update: 'sum' is not allowed; allowed: joint \| none"),
        ("obert", {"block": 0}, r"obert\.block: 0 is not allowed; allowed: a whole number from 1"),
        ("obert", {"damping": 0}, r"obert\.damping: 0 is not allowed; allowed: a number more than"),
        ("obert", {"gradients": "old"}, r"obert\.gradients: 'old' is not allowed; allowed: fresh"),
    ],
)
def test_settings_that_cannot_be(kind: str, given: dict[str, Any], message: str) -> None:
    raw = {**read_yaml(ROOT / "params.yaml"), "methods": [kind], kind: given}
    with pytest.raises(UserError, match=message):
        plan(raw)
    assert issubclass(CAP, OBERT) and issubclass(OBERT, Method)
