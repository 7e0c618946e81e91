"""The loss of a network that has a teacher, by hand; and the engine with one."""

from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import assert_same, bert_settings, bits, copied, new_classifier, random_texts
from instant_soup.config.sections import Recipe
from instant_soup.models import bert, matrices
from instant_soup.sparsity import masks, scores
from instant_soup.training import loop
from instant_soup.training.cost import Cost
from instant_soup.training.state import State

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

# softmax([0, ln 3]) is (1/4, 3/4): from (1/2, 1/2) it is ½ ln 2 + ½ ln 2/3 = ½ ln 4/3 away.
APART = 0.5 * log(4 / 3)


@pytest.mark.parametrize(
    ("temperature", "hardness", "wanted"),
    [
        (2.0, 0.0, log(10)),  # softmax([0, 2 ln 3]) is (1/10, 9/10)
        (2.0, 1.0, 4 * APART),
        (2.0, 0.25, 0.75 * log(10) + 0.25 * 4 * APART),
        (1.0, 1.0, 0.5 * log(0.5 / 0.1) + 0.5 * log(0.5 / 0.9)),
    ],
)
def test_the_loss_of_one_row(temperature: float, hardness: float, wanted: float) -> None:
    logits, taught = torch.tensor([[0.0, 2 * log(3)]]), torch.tensor([[7.0, 7.0]])
    loss = loop.distilled(logits, taught, torch.tensor([0]), temperature, hardness)
    assert float(loss) == pytest.approx(wanted, rel=1e-5)


def test_the_loss_is_the_mean_over_rows_and_the_divergence_from_the_teacher() -> None:
    logits = torch.tensor([[0.0, 2 * log(3)], [5.0, 5.0]])
    taught, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    assert float(loop.distilled(logits, taught, labels, 2.0, 1.0)) == pytest.approx(2 * APART)
    # The other way round it is ¼ ln ½ + ¾ ln 3/2.
    turned = 4 * (0.25 * log(0.5) + 0.75 * log(1.5)) / 2
    assert float(loop.distilled(taught, logits, labels, 2.0, 1.0)) == pytest.approx(turned)


def test_of_numbers_it_is_the_mean_squared_error_against_the_teachers() -> None:
    logits, taught = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [6.0]])
    labels = torch.tensor([1.0, 1.0])  # hard: (0 + 4) / 2; soft: (1 + 9) / 2
    for hardness, wanted in ((0.0, 2.0), (1.0, 5.0), (0.5, 3.5)):
        assert float(loop.distilled(logits, taught, labels, 7.0, hardness)) == wanted


RECIPE = Recipe(learning_rate=5e-3, batch_size=8, seed=3, precision="fp32", teacher="dense")


@pytest.fixture
def train(tiny_bert: Path) -> Any:
    """Five steps of a pruned network with dropout: its state, and their cost."""
    data, start = random_texts(), State(dict(new_classifier(tiny_bert, 2, 0).state_dict()))
    whole = bert.classifier(tiny_bert, start.weights, **bert_settings(2, 0.1))
    weights = {name: w.detach() for name, w in matrices.prunable(whole).items()}
    mask = scores.magnitude(weights, 0.6)

    def run(teacher: Any, recipe: Recipe = RECIPE) -> tuple[State, Cost]:
        state, cost = copied(start), Cost()
        state.prune(mask)
        model = bert.classifier(tiny_bert, state.weights, **bert_settings(2, 0.1))
        trained = loop.train(
            model, state, mask, data, recipe, cost, last=5, total=5, label="test", teacher=teacher
        )
        assert masks.sparsity(mask) == pytest.approx(0.6, abs=1e-4)
        return copied(trained), cost

    return run


def test_without_hardness_a_teacher_changes_nothing_but_the_cost(
    train: Any, tiny_bert: Path
) -> None:
    teacher = bert.classifier(
        tiny_bert, new_classifier(tiny_bert, 2, 9).state_dict(), **bert_settings(2, 0.1)
    )
    before = {name: w.clone() for name, w in teacher.state_dict().items()}
    alone, cost = train(None)
    beside, dearer = train(teacher, replace(RECIPE, hardness=0.0))
    assert_same(alone, beside)
    # A forward pass of the dense network at each step: a third of a dense step.
    assert dearer.flops == pytest.approx(cost.flops * 4 / 3)
    assert dearer.sparse_flops - cost.sparse_flops == pytest.approx(cost.flops / 3)
    taught, _ = train(teacher)
    head = "classifier.weight"
    assert not torch.equal(taught.weights[head], alone.weights[head])
    # It is evaluated: its own dropout, which it has where it comes from, has no part in it.
    still = bert.classifier(tiny_bert, before, **bert_settings(2, 0.0))
    again, _ = train(teacher.train())
    assert_same(taught, again)
    assert_same(taught, train(still)[0])
    assert all(torch.equal(bits(w.float()), bits(before[n].float()))
               for n, w in teacher.state_dict().items())  # fmt: skip
