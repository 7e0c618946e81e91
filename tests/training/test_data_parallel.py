"""Several processes that share each batch train as one process does."""

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import bert_settings, new_classifier, random_texts
from instant_soup.config.sections import Recipe
from instant_soup.data.batches import Texts
from instant_soup.errors import UserError
from instant_soup.models import bert, matrices
from instant_soup.sparsity import masks, scores
from instant_soup.training import data_parallel, loop, retraining
from instant_soup.training.cost import Cost
from instant_soup.training.state import State

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

RECIPE = Recipe(
    learning_rate=5e-3, weight_decay=0.1, batch_size=8, clip_norm=0.5, seed=3, precision="fp32"
)


@pytest.fixture(scope="module")
def data() -> Texts:
    return random_texts()


def train(base: Path, data: Texts, processes: int, after_step: Any = None, **changes: Any) -> Any:
    """Twelve steps of a pruned network: losses, state, mask and cost."""
    state = State({n: w.clone() for n, w in new_classifier(base, 2, 0).state_dict().items()})
    model = bert.classifier(base, state.weights, **bert_settings(2, 0.0))
    mask = scores.magnitude({name: w.detach() for name, w in matrices.prunable(model).items()}, 0.6)
    state.prune(mask)
    losses: list[float] = []

    def note(step: int, loss: torch.Tensor, snapshot: Any) -> None:
        losses.append(float(loss.detach()))
        if after_step is not None:
            after_step(step)

    cost, recipe = Cost(), replace(RECIPE, processes=processes, **changes)
    teacher = None
    if recipe.taught:
        weights = new_classifier(base, 2, 9).state_dict()
        teacher = bert.classifier(base, weights, **bert_settings(2, 0.0))
    pruner = retraining.pruner_of(recipe, mask, state.weights)
    with retraining.only_some(model, state, pruner, recipe):
        state = loop.train(
            model, state, pruner, data, recipe, cost,
            last=12, total=12, label="test", teacher=teacher, after_step=note,
        )  # fmt: skip
    return losses, state, mask, cost


@pytest.fixture(scope="module")
def alone(tiny_bert: Path, data: Texts) -> Any:
    return train(tiny_bert, data, 1)


def test_each_process_has_the_teacher(tiny_bert: Path, data: Texts, alone: Any) -> None:
    one, two = (train(tiny_bert, data, n, teacher="dense", temperature=1.0) for n in (1, 2))
    assert two[0] == pytest.approx(one[0], abs=1e-4) and abs(one[0][-1] - alone[0][-1]) > 1e-3
    assert two[3].flops == pytest.approx(4 / 3 * alone[3].flops)


def test_each_process_has_the_adapters(tiny_bert: Path, data: Texts, alone: Any) -> None:
    one, two = (train(tiny_bert, data, n, retrain="mask_lora", lora_rank=2) for n in (1, 2))
    assert two[0] == pytest.approx(one[0], abs=1e-4) and abs(one[0][-1] - alone[0][-1]) > 1e-3
    assert not any(two[1].weights[name][~kept].any() for name, kept in two[2].items())


def test_two_processes_have_the_losses_and_weights_of_one(
    tiny_bert: Path, data: Texts, alone: Any
) -> None:
    losses, state, mask, cost = train(tiny_bert, data, 2)
    assert losses == pytest.approx(alone[0], abs=1e-4) and len(set(losses)) == 12
    for name, weight in alone[1].weights.items():
        torch.testing.assert_close(state.weights[name], weight, rtol=1e-3, atol=1e-4)
    assert all(not state.weights[name][~kept].any() for name, kept in mask.items())
    assert masks.sparsity(mask) == pytest.approx(0.6, abs=1e-4)
    # A batch's FLOPs, up to the rows' own widths, whoever computes it.
    assert (cost.steps, cost.flops) == (12, pytest.approx(alone[3].flops))
    assert data_parallel.size() == 1 and not multiprocessing.active_children()


def test_each_process_draws_dropout_for_its_own_rows(tiny_bert: Path, data: Texts) -> None:
    """The loss is the mean of what one process would have under either process's seed."""
    twice = data.subset(torch.zeros(2, dtype=torch.long))

    def classifier() -> Any:
        weights = dict(new_classifier(tiny_bert, 2, 0).state_dict())
        model = bert.classifier(tiny_bert, weights, **bert_settings(2, 0.3))
        model.set_attn_implementation("eager")
        return model.train(), State(weights)

    model, state = classifier()
    full = masks.full(matrices.prunable(model))
    seen: list[float] = []
    recipe = replace(RECIPE, batch_size=2, processes=2)
    loop.train(model, state, full, twice, recipe, Cost(), last=1, total=None, label="test",
                   after_step=lambda step, loss, _: seen.append(float(loss.detach())))  # fmt: skip
    expected = []
    for number in (0, 1):
        model, _ = classifier()
        row = twice.rows(torch.tensor([0]))
        torch.manual_seed(RECIPE.seed * 1_000_003 + 7_919 * number)
        loss = loop.loss_of(loop.logits_of(model, row), row["labels"])
        expected.append(float(loss.detach()))
    assert abs(expected[0] - expected[1]) > 1e-3
    assert seen == [pytest.approx(sum(expected) / 2, abs=1e-6)]


def test_a_stop_between_steps_ends_the_others_too(tiny_bert: Path, data: Texts) -> None:
    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_bert, data, 2, after_step=stop)
    for child in multiprocessing.active_children():
        child.join(10)
    assert not multiprocessing.active_children() and data_parallel.size() == 1


@pytest.mark.parametrize("changes", [{"processes": 3}, {"processes": 2, "batch_size": 64}])
def test_batches_that_cannot_be_shared_are_refused(
    tiny_bert: Path, data: Texts, changes: dict
) -> None:
    with pytest.raises(UserError, match=r"do not share batches of (8|40) equally"):
        train(tiny_bert, data, **changes)


def test_a_gpu_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    data_parallel.check(2, 8, 40, "cpu")
    with pytest.raises(UserError, match=r"processes: 2; allowed: at most 1, one per GPU"):
        data_parallel.check(2, 8, 40, "cuda")
