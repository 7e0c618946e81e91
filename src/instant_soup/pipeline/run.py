"""The pipeline's run: training over DVC's folders, with a curve, validation and MLflow."""

import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from instant_soup.config.sections import Recipe
from instant_soup.data.batches import (
    Split,
    evaluation_batches,
    load_split,
    training_batches,
)
from instant_soup.files import project_root
from instant_soup.models import base as models
from instant_soup.models import matrices
from instant_soup.models.head import Head
from instant_soup.pipeline import outlook, workspace
from instant_soup.pipeline.budget import Budget
from instant_soup.pipeline.workspace import BASE, ENCODED, START
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training import checkpoints, loop, metrics
from instant_soup.training.checkpoints import Record
from instant_soup.training.cost import Cost, processor
from instant_soup.training.pruner import Pruner
from instant_soup.training.run import AfterStep, Run
from instant_soup.training.schedule import Steps
from instant_soup.training.state import State, Weights

if TYPE_CHECKING:
    from instant_soup.pipeline.tracking import StageRun


class PipelineRun(Run):
    """A run in a stage: the network of models/base on the data of data/encoded.

    Its curve has a row where something was measured: step (done so far), train_loss (mean since
    the row before), validation (the task's metric: of a network just pruned, at even distances
    and at the end), sparsity. Its rows go to the tracked `run` as they come.
    """

    def __init__(
        self,
        state: State,
        mask: Mask,
        recipe: Recipe,
        tracked: "StageRun | None" = None,
        *,
        code: str = "",
        engine: str = "",
        teacher: Recipe | None = None,
        stored: bool = True,
        **more: Any,
    ) -> None:
        """`engine`: digest of the sources that train. Without `stored` nothing is gone on from.

        `teacher`: the dense row's recipe, where the run's own has a teacher.
        """
        self.steps = budget(recipe)
        store, origin = None, ""
        if stored:
            store = checkpoints.pipeline_store()
            origin = checkpoints.digest(
                *[engine, processor(), workspace.inputs_digest(), state.step, mask],
                *[state.weights, state.first_moments, state.second_moments],
            )
        total = self.steps.total
        super().__init__(state, mask, recipe, total, store=store, origin=origin, code=code, **more)
        self.tracked, self.where = tracked, loop.device()
        self.tickets: dict[str, tuple[Mask, Cost]] = {}
        self.head = Head()
        self.splits: dict[str, Split] = {}
        self.engine, self.teacher = engine, teacher
        models.share_counts(project_root() / ".dvc/tmp/instant-soup/flops.json")
        if code:  # of a stage's own run, not of its teacher's
            Budget.planned().check(workspace.training_rows())
            outlook.tell()

    @cached_property
    def of_teacher(self) -> "PipelineRun":
        """The dense row's run, at its end: the store has it, or it is trained here."""
        assert self.teacher is not None
        dense = PipelineRun(*workspace.load_start(START), self.teacher, engine=self.engine)
        dense.splits = self.splits
        dense.train(dense.total, "teacher")
        dense.state = State(dense.state.weights, step=dense.total)  # which needs no moments
        return dense

    @property
    def inputs_at(self) -> Mapping[str, int]:
        """As of matrices.inputs_at."""
        return matrices.inputs_at(self.network(self.state, self.recipe))

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training split."""
        return self.steps.steps_per_epoch

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return self.where

    @property
    def rows(self) -> int:
        """The number of training rows."""
        return workspace.training_rows()

    def network(self, state: State, recipe: Recipe) -> nn.Module:
        """The classifier with a state's weights."""
        return build(state, recipe).to(self.where)

    def train(self, last: int, label: str, **how: Any) -> None:
        """Train, and take the measured rows into the curve."""
        if self.recipe.taught and self.state.step < last:
            _ = self.of_teacher  # before this training's own entry of the store is held
        super().train(last, label, **how)

    def take(
        self,
        network: nn.Module,
        state: State,
        pruner: Pruner | Mask,
        recipe: Recipe,
        cost: Cost,
        *,
        last: int,
        total: int | None,
        label: str,
        rows: torch.Tensor | None = None,
        after_step: AfterStep | None = None,
    ) -> State:
        """Take the engine's steps over the training split, or over some of its rows."""
        data = self._split("train")
        teacher = None
        if recipe.taught and total is not None and state.step < last:  # no look-ahead
            teacher = classifier(self.of_teacher.state)
        started, first = time.perf_counter(), state.step
        state = loop.train(
            network, state, pruner, data if rows is None else data.subset(rows), recipe, cost,
            last=last, total=total, label=label, teacher=teacher, after_step=after_step,
        )  # fmt: skip
        outlook.note_pace(state.step - first, time.perf_counter() - started)
        return state

    def batches(self, first: int, last: int) -> Iterator[Any]:
        """The training batches of the steps first … last − 1."""
        for _, batch in training_batches(self._split("train"), self.recipe, first, last):
            yield batch

    def loss(self, network: nn.Module, batch: Any) -> torch.Tensor:
        """The training loss of a batch."""
        return loop.loss_of(loop.logits_of(network, batch), batch["labels"])

    def in_parts(self, batch: Any, number: int) -> list[tuple[Any, float]]:
        """Some rows in each part: the loss is a mean in which all rows count alike."""
        rows = len(batch["labels"])
        split = torch.arange(rows).tensor_split(min(number, rows))
        return [({k: v[own] for k, v in batch.items()}, len(own) / rows) for own in split]

    def flops(self, network: nn.Module, batch: Any) -> tuple[float, float]:
        """FLOPs of a forward pass of a batch: in prunable matrices, and elsewhere."""
        return models.forward_flops(network, self.mask, batch)

    def precision(self, recipe: Recipe) -> str:
        """What a recipe's precision is on the device here."""
        return loop.resolve_precision(recipe.precision, self.device)

    def score(self, weights: Weights) -> float:
        """The validation score of a network with these weights; its cost is counted."""
        started = time.perf_counter()
        network = self.network(State(weights), self.recipe)
        validation = self._split("validation")
        kept, prunable = masks.count(self.mask)
        for index in evaluation_batches(validation):
            self.cost.add_forward(*self.flops(network, validation.rows(index)), kept, prunable)
        score = metrics.merit(self.recipe.metric, self.validate(network))
        self.cost.seconds += time.perf_counter() - started
        return score

    def validate(self, network: nn.Module) -> float:
        """A network's value of the validation metric, uncounted."""
        precision = loop.resolve_precision(self.recipe.precision)
        predictions = loop.predict(network.to(self.where), self._split("validation"), precision)
        return metrics.score(self.recipe.metric, *predictions)

    def record(self, folder: Any, cost: Cost, last: int) -> Record:
        """The record of a training, with a row for each measurement."""

        def row(step: int, mean: float | None, validating: bool) -> dict[str, Any]:
            assert self.at_work is not None
            network, pruner = self.at_work
            score = self.validate(network) if validating else None
            sparsity = round(masks.sparsity(pruner.mask), 6)
            return {"step": step, "train_loss": mean, "validation": score, "sparsity": sparsity}

        def show(row: dict[str, Any]) -> None:
            if self.tracked is not None:
                self.tracked.curve(**row)
                self.tracked.live()

        return Record(
            folder,
            cost,
            last=last,
            row_every=max(1, self.total // 50),
            validate_every=max(1, round(self.total / self.recipe.evaluations)),
            row=row,
            show=show,
        )

    def first_row(self, network: nn.Module) -> dict[str, Any] | None:
        """The curve's row of a network that was just pruned, before it trains on."""
        score, sparsity = self.validate(network), round(masks.sparsity(self.mask), 6)
        return {
            **{"step": self.state.step, "train_loss": None},
            **{"validation": score, "sparsity": sparsity},
        }

    def ticket_of(self, row: str) -> tuple[Mask, Cost]:
        """The mask that another row has found, and its cost."""
        return self.tickets[row]

    def random_state(self) -> State:
        """A state at step 0 with random weights in place of the pre-trained ones."""
        return State(models.family(BASE).random_weights(BASE, self.head))

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            self.splits[name] = load_split(ENCODED / f"{name}.safetensors", self.where)
        return self.splits[name]


def budget(recipe: Recipe) -> Steps:
    """The steps of a training on the encoded data, in all and in an epoch."""
    return Steps.of(recipe.epochs, workspace.training_rows(), recipe.batch_size)


def build(state: State, recipe: Recipe) -> nn.Module:
    """The classifier around a state's weights; of texts with dropout and freeze_embeddings."""
    return models.family(BASE).classifier(
        BASE,
        state.weights,
        outputs=workspace.outputs(),
        dropout=recipe.dropout,
        freeze_embeddings=recipe.freeze_embeddings,
    )


def classifier(state: State) -> nn.Module:
    """The classifier around a state's weights, for evaluation."""
    return models.family(BASE).classifier(BASE, state.weights, outputs=workspace.outputs())
