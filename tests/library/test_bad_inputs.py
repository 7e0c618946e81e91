"""What the three doors are given wrongly: one line each, before any step where that can be."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import instant_soup
from helpers import (
    PRUNE_SETTINGS,
    Sentences,
    digest,
    loader,
    loss,
    new_classifier,
    perceptron,
    trainer,
)
from instant_soup.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

NAN = float("nan")


def said(call: Any, *given: Any, **named: Any) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(UserError) as caught:
        call(*given, **named)
    line = str(caught.value)
    assert "\n" not in line and ("allowed: " in line or "it takes: " in line)
    return line


def no_step(*_: Any) -> torch.Tensor:
    raise AssertionError("it trained")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sparsity", x) for x in (0, 1, -0.5, NAN, 1.5, "0.8", None, True, [0.5])),
        *(("steps", x) for x in (0, -1, 2.5, "10", None, True, NAN)),
        *(("learning_rate", x) for x in (0, -1e-3, NAN, float("inf"), "fast", [1e-3])),
        *(("weight_decay", x) for x in (-1, NAN, 2, "much")),
        *(("warmup", x) for x in (-0.1, 1, NAN)),
        *(("clip_norm", x) for x in (0, -1, NAN, "1")),
        *(("seed", x) for x in (-1, 1.5, "0", None)),
        *(("precision", x) for x in ("fp16", "double", 32, torch.bfloat16)),
        *(("denoisers", x) for x in (-1, 2.5, "3")),
        *(("compression_rate", x) for x in (0, 1, NAN, -1)),
        *(("mask_finding", x) for x in (1, -0.1, NAN, "all")),
        *(("batches", x) for x in (None, 3, no_step)),
        *(("loss", x) for x in (None, "mse", 0.5)),
        *(("validate", x) for x in ("accuracy", 1.0)),
        *(("prunable", x) for x in ("0.weight", ["0.weight"])),
        ("method", ["isp"]),
        ("method", None),
        ("sparsty", 0.5),
        ("lr", 1e-3),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_prune_names_the_argument_that_is_wrong(name: str, value: Any) -> None:
    own = {**PRUNE_SETTINGS, "batches": loader(), "loss": no_step, name: value}
    assert said(instant_soup.prune, perceptron(), **own).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sparsity", x) for x in (0, 1, NAN, "0.8", None)),
        *(("steps", x) for x in (0, 2.5, None)),
        *(("learning_rate", x) for x in (0, NAN, "fast")),
        *(("epoch", x) for x in (0, -1, 2.5)),
        *(("clip_norm", x) for x in (0, NAN)),
        *(("batches", x) for x in (3, iter([1]))),
        ("loss", "mse"),
        ("prunable", 3),
        ("sparsty", 0.5),
        ("optimizer", None),
        ("optimizer", "adam"),
        ("optimizer", torch.optim.SGD(perceptron().parameters(), lr=0.1)),
        *(("resume", x) for x in ({}, 3, {"step": 1, "tensors": None}, {"step": -1})),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_pruner_names_the_argument_that_is_wrong(name: str, value: Any) -> None:
    model = perceptron()
    own = {"optimizer": torch.optim.AdamW(model.parameters()), "steps": 24, "sparsity": 0.6}
    own |= {"batches": loader(), "loss": no_step, name: value}
    assert said(instant_soup.Pruner, model, **own).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sparsity", x) for x in (0, 1, NAN, "0.8", None)),
        *(("batches", x) for x in (3, iter([1]))),
        ("loss", "mse"),
        ("prunable", 3),
        ("look_ahed", 3),
        ("method", 3),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_the_callback_names_the_argument_that_is_wrong(name: str, value: Any) -> None:
    assert said(instant_soup.InstantSoupCallback, **{name: value}).startswith(f"{name}: ")


# Batches


def test_numbers_of_numpy_are_those_of_python() -> None:
    """As a sweep over np.arange gives them; what is kept of them can be written as JSON."""
    plain = {"steps": 12, "sparsity": 0.5, "seed": 3, "learning_rate": 0.5**8, "denoisers": 2}
    odd = {n: np.float32(v) if isinstance(v, float) else np.int64(v) for n, v in plain.items()}
    found = [
        instant_soup.prune(perceptron(), loader(), loss, **{**PRUNE_SETTINGS, **given})
        for given in (plain, odd)
    ]
    assert digest(found[0].mask) == digest(found[1].mask)
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters())
    own = {"steps": np.int64(12), "sparsity": np.float32(0.5), "prunes": np.int64(3)}
    own |= {"learning_rate": np.float32(1e-3), "clip_norm": np.float32(1)}
    pruner = instant_soup.Pruner(model, optimizer, method="gmp", cycles=np.int8(1), **own)
    json.dumps({name: value for name, value in pruner.state_dict().items() if name != "tensors"})


def test_batches_that_cannot_be_iterated_again_are_refused_before_any_step() -> None:
    for once in (iter(loader()), (b for b in loader()), map(list, loader()), zip([1], strict=True)):
        line = said(instant_soup.prune, perceptron(), once, no_step, **PRUNE_SETTINGS)
        assert line.startswith("batches: ") and "can be iterated only once" in line


@pytest.mark.parametrize("method", ["isp", "one_shot", "snip", "movement"])
def test_empty_batches_are_refused(method: str) -> None:
    own = {k: v for k, v in PRUNE_SETTINGS.items() if k not in ("denoisers", "look_ahead")}
    for empty in ([], (), {}):
        line = said(instant_soup.prune, perceptron(), empty, no_step, **own, method=method)
        assert line.startswith("batches: nothing in them")


# Losses


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda m, b: 1.0, "it returned float"),
        (lambda m, b: None, "it returned NoneType"),
        (lambda m, b: m(b[0]), r"it returned a tensor of shape [16, 2]"),
        (lambda m, b: {"loss": loss(m, b)}, "it returned dict"),
        (lambda m, b: loss(m, b).detach(), "does not depend on what is trained"),
        (lambda m, b: loss(m, b).item(), "it returned float"),
        (lambda m, b: np.float32(1), "it returned float32"),
    ],
)
def test_what_is_no_loss_is_refused(wrong: Any, words: str) -> None:
    for method in ("isp", "one_shot", "snip"):
        own = {k: v for k, v in PRUNE_SETTINGS.items() if k not in ("denoisers", "look_ahead")}
        line = said(instant_soup.prune, perceptron(), loader(), wrong, **own, method=method)
        assert line.startswith("loss: ") and words in line


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("isp", "the loss has no gradient for the network that trains"),
        *((name, "gradients: all are zero") for name in ("snip", "grasp", "obert", "cap")),
    ],
)
def test_a_loss_of_the_model_outside_is_told_where_a_copy_trains(method: str, words: str) -> None:
    model = perceptron()
    own = {k: v for k, v in PRUNE_SETTINGS.items() if k not in ("denoisers", "look_ahead")}
    line = said(
        instant_soup.prune, model, loader(), lambda _, batch: loss(model, batch),
        **own, method=method,
    )  # fmt: skip
    assert words in line


@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("method", ["isp", "one_shot", "snip", "grasp", "movement", "granet"])
def test_a_loss_that_is_not_finite_is_one_line(method: str, bad: float) -> None:
    own = {k: v for k, v in PRUNE_SETTINGS.items() if k not in ("denoisers", "look_ahead")}

    def diverges(model: nn.Module, batch: Any) -> torch.Tensor:
        return loss(model, batch) * bad

    with pytest.raises(UserError) as caught:
        instant_soup.prune(perceptron(), loader(), diverges, **own, method=method)
    assert "\n" not in str(caught.value)


def test_a_validation_that_gives_no_number_is_refused() -> None:
    own = {k: v for k, v in PRUNE_SETTINGS.items() if k not in ("denoisers", "look_ahead")}
    for score in (None, "good", NAN, torch.ones(3)):
        line = said(
            instant_soup.prune, perceptron(), loader(), loss, **own, method="greedy_soup",
            networks=2, validate=lambda model, score=score: score,
        )  # fmt: skip
        assert line.startswith("validate: it returned ")


# A criterion of one's own


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (lambda w: None, "it returned NoneType"),
        (lambda w: list(w.values()), "it returned list"),
        (lambda w: {}, "names and shapes of the weights: none of 0.weight"),
        (lambda w: {**w, "other": w["0.weight"]}, "some of other"),
        (lambda w: {n: t.T for n, t in w.items()}, "those of 0.weight are [8, 32], of [32, 8]"),
        (lambda w: {n: t.mean() for n, t in w.items()}, "those of 0.weight are [], of [32, 8]"),
        (lambda w: {n: t.numpy() for n, t in w.items()}, "the scores of 0.weight are ndarray"),
        (lambda w: {n: t.to("meta") for n, t in w.items()}, "of 0.weight are on the meta device"),
        (lambda w: {n: t + 1j for n, t in w.items()}, "of 0.weight are of torch.complex64"),
        (lambda w: {n: t.sqrt() for n, t in w.items()}, "the scores of 0.weight hold NaN"),
    ],
)
def test_scores_that_cannot_rank_are_refused(scores: Any, words: str) -> None:
    own = {k: v for k, v in PRUNE_SETTINGS.items() if k not in ("denoisers", "look_ahead")}
    line = said(
        instant_soup.prune, perceptron(), loader(), loss, **own, method=lambda w, g, s: scores(w)
    )
    assert line.startswith("method: ") and words in line


@pytest.mark.parametrize(
    "scores", [lambda w: w.abs(), lambda w: w.abs().double(), lambda w: (w.abs() * 1e6).long()]
)
def test_scores_of_any_real_type_rank(scores: Any) -> None:
    own = {k: v for k, v in PRUNE_SETTINGS.items() if k not in ("denoisers", "look_ahead")}
    pruned = instant_soup.prune(
        perceptron(), loader(), loss, **own,
        method=lambda w, g, s: {n: scores(t) for n, t in w.items()},
    )  # fmt: skip
    expected = instant_soup.prune(perceptron(), loader(), loss, **own, method="progressive")
    for name, kept in expected.mask.items():
        assert (pruned.mask[name] == kept).float().mean() > 0.99


def test_a_criterion_that_works_in_place_leaves_the_network_alone() -> None:
    own = {k: v for k, v in PRUNE_SETTINGS.items() if k not in ("denoisers", "look_ahead")}
    found = [
        instant_soup.prune(perceptron(), loader(), loss, **own, method=method).model.state_dict()
        for method in (
            lambda w, g, s: {n: t.abs() for n, t in w.items()},
            lambda w, g, s: {n: t.abs_() for n, t in w.items()},
        )
    ]
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


# A loop


def test_a_call_that_a_loop_leaves_out_is_told() -> None:
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters())
    pruner = instant_soup.Pruner(model, optimizer, method="progressive", steps=24)
    assert said(pruner.after_step).startswith("after_step: called at step 0 where after_backward")
    pruner.after_backward()
    assert said(pruner.after_backward).startswith("after_backward: called at step 0 where after_s")
    pruner.after_step()


def test_a_state_beside_another_models_weights_is_told() -> None:
    model = perceptron()
    own = {"method": "one_shot", "steps": 24, "sparsity": 0.75}
    state = instant_soup.Pruner(model, torch.optim.AdamW(model.parameters()), **own).state_dict()
    other = perceptron(1)
    pruner = instant_soup.Pruner(other, torch.optim.AdamW(other.parameters()), **own, resume=state)
    loss(other, next(iter(loader()))).backward()
    assert said(pruner.after_backward).startswith("resume: 0.weight is not zero where the state's")


@pytest.mark.parametrize("change", [{"steps": 25}, {"sparsity": 0.5}, {"method": "random"}])
def test_a_state_of_another_run_is_refused(change: dict) -> None:
    own = {"method": "one_shot", "steps": 24, "sparsity": 0.75}
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters())
    state = instant_soup.Pruner(model, optimizer, **{**own, **change}).state_dict()
    pruner = instant_soup.Pruner(model, optimizer, **own)
    name = next(iter(change))
    assert said(pruner.load_state_dict, state).startswith(f"resume: its {name} is {change[name]}")


def test_a_checkpoint_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for odd in (tmp_path / "file", tmp_path / "file/below", "nul\0", 3):
        own = {**PRUNE_SETTINGS, "checkpoint": odd}
        line = said(instant_soup.prune, perceptron(), loader(), no_step, **own)
        assert line.startswith("checkpoint: ") and "cannot be written" in line


# A Trainer


def test_what_a_trainer_cannot_do_beside_pruning_has_its_reason(
    tmp_path: Path, tiny_bert: Path
) -> None:
    soup = instant_soup.InstantSoupCallback("progressive")
    run = trainer(tmp_path, new_classifier(tiny_bert, 2, 0), soup, eval_dataset=Sentences())
    for name in ("fp16", "load_best_model_at_end", "fsdp", "deepspeed"):
        args = copy.copy(run.args)
        setattr(args, name, True)
        begin = {"model": run.model, "train_dataloader": run.get_train_dataloader()}
        line = said(soup.on_train_begin, args, run.state, run.control, **begin)
        assert line.startswith(f"{name}: not allowed beside pruning, as ")
