"""Sparse Model Soups: the copies share a mask, their mean is the ticket, and the cost is theirs."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import instant_soup
from helpers import loader, loss, perceptron
from instant_soup.config.sections import Recipe
from instant_soup.errors import UserError
from instant_soup.methods import sparse_soup
from instant_soup.methods.soups import uniform_soup
from instant_soup.methods.sparse_soup import SparseSoup, going_on
from instant_soup.sparsity import masks
from instant_soup.training import loop
from instant_soup.training.run import Run
from instant_soup.training.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")

# Rounds end after step 6 of 24; 18 are left.
SETTINGS: dict[str, Any] = {
    "steps": 24,
    "learning_rate": 1e-2,
    "sparsity": 0.6,
    "method": "sparse_soup",
    "mask_finding": 0.25,
    "seed": 3,
}


def prune(**changes: Any) -> instant_soup.Pruned:
    return instant_soup.prune(perceptron(), loader(), loss, **{**SETTINGS, **changes})


def test_the_mean_of_two_vectors() -> None:
    copies = [{"w": torch.tensor([1.0, 0, 3])}, {"w": torch.tensor([3.0, 0, 1])}]
    assert uniform_soup(copies)["w"].tolist() == [2, 0, 2]


@pytest.mark.parametrize("score", ["fisher", "magnitude"])
@pytest.mark.parametrize(("last_phase", "steps"), [("whole", 6 + 3 * 18), ("shared", 6 + 3 * 6)])
def test_the_ticket_is_the_mean_of_copies_under_one_mask(
    score: str, last_phase: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[dict[str, torch.Tensor]] = []
    train = Run.train

    def watched(self: Run, last: int, label: str, **how: Any) -> None:
        train(self, last, label, **how)
        if label.startswith("copy"):
            ends.append({name: w.clone() for name, w in self.state.weights.items()})

    monkeypatch.setattr(Run, "train", watched)
    pruned = prune(score=score, last_phase=last_phase)
    assert len(ends) == 3 and not torch.equal(ends[0]["0.weight"], ends[1]["0.weight"])
    for name, weight in pruned.model.state_dict().items():
        assert torch.allclose(weight, sum(end[name] for end in ends) / 3, atol=1e-6)
    kept, total = masks.count(pruned.mask)
    assert total - kept == round(0.6 * total)
    for name, mask in pruned.mask.items():
        assert all(not end[name][~mask].any() for end in ends)
        assert not pruned.model.state_dict()[name][~mask].any()
    assert pruned.cost["steps"] + pruned.cost["search_steps"] == steps


def test_copies_are_drawn_from_the_ranges_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []

    def untrained(run: Run, recipes: list[Recipe], label: str, last: int) -> list:
        seen.extend(recipes)
        return [run.state.weights]

    monkeypatch.setattr(sparse_soup, "trained_apart", untrained)
    prune(learning_rate_range=[3.0, 3.0], weight_decay_range=[0.2, 0.2])
    assert len({recipe.seed for recipe in seen}) == 3
    for recipe in seen:
        assert recipe.weight_decay == pytest.approx(0.2)
        there, wanted = (learning_rate(6, 24, rate) for rate in (recipe.learning_rate, 3e-2))
        assert there == pytest.approx(wanted)


def test_its_mask_is_the_row_s_that_it_stands_on() -> None:
    for score, row in (("fisher", "isp_plus"), ("magnitude", "progressive")):
        soup, alone = prune(score=score), prune(method=row)
        assert all(torch.equal(kept, soup.mask[name]) for name, kept in alone.mask.items())


def test_a_copy_s_rate_goes_on_from_where_the_rounds_are() -> None:
    recipe = Recipe(epochs=1.0, learning_rate=0.3, warmup=0.1)
    whole = going_on(recipe, 40, 100, 100)
    for step in (40, 70, 99):
        wanted = learning_rate(step, 100, 0.3, 10)
        assert learning_rate(step, 100, whole.learning_rate) == pytest.approx(wanted)
    shared = going_on(recipe, 40, 100, 60)
    assert learning_rate(40, 60, shared.learning_rate) == pytest.approx(0.2)
    assert learning_rate(50, 60, shared.learning_rate) == pytest.approx(0.1)
    restarting = going_on(replace(recipe, warmup=0.0, cycles=2, lowest_rate=0.0), 50, 100, 100)
    assert learning_rate(75, 100, restarting.learning_rate) == pytest.approx(0.15)


class Stopped(Exception):
    """Stands for a crash."""


@cache
def whole_run() -> instant_soup.Pruned:
    """A run without a stop: to look at, for several tests."""
    return prune()


@pytest.mark.parametrize("at", [3, 11, 40])
def test_it_goes_on_to_the_bit(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, taken, step = whole_run(), 0, loop.take_steps

    def counted(*given: Any, **how: Any) -> Any:
        nonlocal taken
        after, how = how["after_step"], dict(how)

        def after_step(*seen: Any) -> None:
            nonlocal taken
            after(*seen)
            taken += 1
            if taken == at:
                raise Stopped

        return step(*given, **{**how, "after_step": after_step})

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_steps", counted)
        with pytest.raises(Stopped):
            prune(checkpoint=tmp_path)
    resumed = prune(checkpoint=tmp_path)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    counts = ("steps", "search_steps")
    assert [whole.cost[key] for key in counts] == [resumed.cost[key] for key in counts]


def test_what_cannot_be_is_refused_before_the_copies() -> None:
    with pytest.raises(UserError, match=r"copies: 19 cannot share the 18 steps .* at most 18"):
        prune(copies=19, last_phase="shared")
    with pytest.raises(UserError, match=r"trains more than once"):
        SparseSoup().pruner(None, 0.6)  # type: ignore[arg-type]
