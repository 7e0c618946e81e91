"""Instant Soup within transformers.Trainer: exact sparsity, zeros that stay, resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

import instant_soup
from helpers import CALLBACK_SETTINGS, Sentences, new_classifier, trainer
from instant_soup.errors import UserError
from instant_soup.library import prune
from instant_soup.methods import criteria
from instant_soup.sparsity import masks

pytestmark = pytest.mark.usefixtures("one_thread")


class Stop(TrainerCallback):
    """Ends training after some steps, as a crash would, with a checkpoint written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True
        return control


def zeros(model: nn.Module, mask: masks.Mask) -> bool:
    """Whether every pruned weight is exactly zero, and no other."""
    parameters = dict(model.named_parameters())
    return all(torch.equal(parameters[name] != 0, kept) for name, kept in mask.items())


def test_the_trainers_model_is_pruned_to_the_weight_and_its_zeros_stay(
    tmp_path: Path, tiny_bert: Path
) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    callback = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)
    run = trainer(tmp_path, model, callback)
    run.train()
    assert callback.rounds.ends == [4, 12]
    kept, total = masks.count(callback.mask)
    assert len(callback.mask) == 12 and total - kept == round(0.6 * total)
    assert zeros(model, callback.mask)
    assert callback.cost.steps == 2 * 2 * 3
    parameters = dict(model.named_parameters())
    for name, here in callback.mask.items():
        assert (parameters[name] != before[name])[here].float().mean() > 0.9
        moments = run.optimizer.state[parameters[name]]
        assert not moments["exp_avg"][~here].any() and not moments["exp_avg_sq"][~here].any()
    assert not any(p._backward_hooks for p in parameters.values())


@pytest.mark.parametrize(
    ("step", "changes"),
    [(2, {}), (4, {}), (20, {}), (4, {"score": "fisher", "denoisers": 0})],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, tiny_bert: Path, step: int, changes: dict
) -> None:
    own = {**CALLBACK_SETTINGS, **changes}
    whole, resumed = new_classifier(tiny_bert, 2, 0), new_classifier(tiny_bert, 2, 0)
    first = instant_soup.InstantSoupCallback(**own)
    trainer(tmp_path / "whole", whole, first).train()
    soup = instant_soup.InstantSoupCallback(**own)
    trainer(tmp_path / "cut", new_classifier(tiny_bert, 2, 0), soup, Stop(step)).train()
    again = instant_soup.InstantSoupCallback(**own)
    run = trainer(tmp_path / "cut", resumed, again)
    run.train(resume_from_checkpoint=str(tmp_path / f"cut/checkpoint-{step}"))
    assert all(torch.equal(kept, again.mask[name]) for name, kept in first.mask.items())
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_checkpoint_pruned_otherwise_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)
    trainer(tmp_path, new_classifier(tiny_bert, 2, 0), soup, Stop(20)).train()
    other = instant_soup.InstantSoupCallback(**{**CALLBACK_SETTINGS, "sparsity": 0.5})
    run = trainer(tmp_path, new_classifier(tiny_bert, 2, 0), other)
    with pytest.raises(UserError, match="at step 20; by these settings"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))


def test_look_aheads_leave_the_trainers_random_numbers_alone(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same masks found with and without drawing: dropout and data order must not change."""
    found = prune.find_mask

    def without_looking(
        model: nn.Module, state: Any, mask: Any, batches: Any, loss: Any, rounds: Any, *rest: Any
    ) -> masks.Mask:
        none = prune.Rounds(rounds.sparsities, rounds.ends, 0, 0, "union", "magnitude")
        return found(model, state, mask, batches, loss, none, *rest)

    def looking_in_vain(*arguments: Any) -> masks.Mask:
        found(*arguments)
        return without_looking(*arguments)

    ends = []
    for find in (without_looking, looking_in_vain):
        monkeypatch.setattr(prune, "find_mask", find)
        model = new_classifier(tiny_bert, 2, 0)
        trainer(tmp_path, model, instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)).train()
        ends.append(model.state_dict())
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


def test_own_loss_and_batches_are_what_a_look_ahead_takes(tmp_path: Path, tiny_bert: Path) -> None:
    asked = []

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        asked.append(batch["name"])
        return model(**batch["rows"]).loss

    rows = torch.utils.data.default_collate([Sentences()[i] for i in range(4)])
    own = instant_soup.InstantSoupCallback(
        **CALLBACK_SETTINGS, loss=loss, batches=[{"name": "own", "rows": rows}]
    )
    trainer(tmp_path, new_classifier(tiny_bert, 2, 0), own).train()
    assert asked == ["own"] * 12


def test_frozen_matrices_are_pruned_all_the_same(tmp_path: Path, tiny_bert: Path) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layer.0" not in name)
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)
    trainer(tmp_path, model, soup).train()
    assert zeros(model, soup.mask) and masks.sparsity(soup.mask) == pytest.approx(0.6, abs=1e-4)


def test_fisher_prunes_by_the_trainers_own_moments(tmp_path: Path, tiny_bert: Path) -> None:
    """One round: its mask is that of w² · v at its step, by hand."""
    once = {**CALLBACK_SETTINGS, "compression_rate": 0.6, "denoisers": 0, "score": "fisher"}
    soup = instant_soup.InstantSoupCallback(**once)
    trainer(tmp_path / "pruned", new_classifier(tiny_bert, 2, 0), soup).train()
    (end,) = soup.rounds.ends
    model = new_classifier(tiny_bert, 2, 0)
    run = trainer(tmp_path / "dense", model, Stop(end))
    run.train()
    matrices = prune.choose(model)
    moments = {name: run.optimizer.state[p]["exp_avg_sq"] for name, p in matrices.items()}
    expected = criteria.fisher(matrices, moments, 0.6)
    assert all(torch.equal(soup.mask[name], kept) for name, kept in expected.items())


def test_fisher_without_moments_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS, score="fisher")
    run = trainer(tmp_path, new_classifier(tiny_bert, 2, 0), soup)
    run.args.optim = "sgd"
    with pytest.raises(UserError, match="score: fisher needs the second moments"):
        run.train()


def test_a_run_that_ends_before_the_last_prune_says_so(tmp_path: Path, tiny_bert: Path) -> None:
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)
    run = trainer(tmp_path, new_classifier(tiny_bert, 2, 0), soup, Stop(6))
    with pytest.warns(UserWarning, match="ended early: pruned to 30% of 60%"):
        run.train()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fp16": True}, "fp16: true is not allowed"),
        (
            {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"},
            "load_best_model_at_end: true is not allowed",
        ),
    ],
)
def test_what_would_undo_the_pruning_is_refused(
    tmp_path: Path, tiny_bert: Path, changes: dict, words: str
) -> None:
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)
    run = trainer(tmp_path, new_classifier(tiny_bert, 2, 0), soup, eval_dataset=Sentences())
    for name, value in changes.items():
        setattr(run.args, name, value)
    with pytest.raises(UserError, match=words):
        run.train()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparsity": 1.0}, "sparsity: 1.0"),
        ({"combine": "best"}, "union | intersection | vote"),
        ({"score": "best"}, "magnitude | fisher"),
    ],
)
def test_bad_settings_are_refused_at_once(changes: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        instant_soup.InstantSoupCallback(**{**CALLBACK_SETTINGS, **changes})
    assert words in str(caught.value)
