"""What both pre-trainings share: the steps, with checkpoints and a curve, and the curve's file."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from instant_soup.config.sections import Pretraining, Recipe
from instant_soup.files import new_file
from instant_soup.models.matrices import NEAR_ZERO, prunable
from instant_soup.pipeline.tracking import StageRun
from instant_soup.training import loop
from instant_soup.training.checkpoints import Record, Store
from instant_soup.training.cost import Cost, processor
from instant_soup.training.state import State

Curve = list[dict[str, Any]]

CLIP_NORM = 1.0
ROWS, EVALUATIONS = 50, 5  # rows of the curve, and how many of them are validated


def recipe_of(settings: Pretraining) -> Recipe:
    """The settings of training of a pre-training."""
    return Recipe.of_pretraining(settings, CLIP_NORM)


def train(
    model: nn.Module,
    key: tuple[Any, ...],
    settings: Pretraining,
    run: StageRun,
    store: Store,
    *,
    batches: Callable[[int], Iterator[tuple[int, Any]]],
    loss: Callable[[Any], torch.Tensor],
    row: Callable[[int, float, bool], dict[str, Any]],
    begin: Callable[[int], None] = lambda step: None,
    tidy: Callable[[], None] = lambda: None,
) -> tuple[State, Curve]:
    """Train a model from its random weights; an equal call goes on from an interrupted one's.

    Args:
        model: The model, which is trained in place on the engine's device.
        key: What the training is known by, beside its settings.
        settings: The section `pretraining`; of a stage with the digest of its sources.
        run: The stage's record.
        store: Where checkpoints are, until the stage's output is in place and it is told to forget.
        batches: `batches(first)` yields the numbers and batches of the steps from `first` on.
        loss: The loss of a batch.
        row: `row(step, mean, validating)` is the curve's row after a step, with the mean loss since
            the row before.
        begin: Called with the first step, when the model has its weights and is where it trains.
        tidy: Called after each step.

    Returns:
        The state and the curve.
    """
    total, cost = settings.steps, Cost()

    def show(row: dict[str, Any]) -> None:
        run.curve(**row)
        run.live()

    def after_step(step: int, loss: torch.Tensor, snapshot: Callable[[], State]) -> None:
        tidy()
        record.after_step(step, loss, snapshot)

    here = replace(settings, precision=loop.resolve_precision(settings.precision))
    with store.entry(*key, processor(), asdict(here), keep=False) as folder:
        record = Record(
            folder, cost, last=total, row_every=max(1, total // ROWS),
            validate_every=max(1, total // EVALUATIONS), row=row, show=show,
        )  # fmt: skip
        state = record.resume(State({}), "pre-training")
        if state.step > 0:
            model.load_state_dict(state.weights)
        model.to(loop.device()).train()
        begin(state.step)
        with record.going():
            state = loop.take_steps(
                model, state, {}, batches(state.step), loss, None, recipe_of(settings), cost,
                last=total, total=total, label="pre-training", after_step=after_step,
            )  # fmt: skip
    return state, record.curve


def near_zero(model: nn.Module) -> float:
    """Share of a model's prunable weights with |w| < NEAR_ZERO (arXiv 2306.03805)."""
    weights = list(prunable(model).values())
    return float(
        sum((w.abs() < NEAR_ZERO).sum() for w in weights) / sum(w.numel() for w in weights)
    )


def write_curve(folder: Path, columns: tuple[str, ...], curve: Curve) -> None:
    """Write a curve beside its model, as CSV."""
    with new_file(folder / "curve.csv") as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(curve)
