"""Training the main network: the one run of T steps that all stages of a method share.

Adds to the engine what hours of work need: a curve, validation, and a checkpoint that Ctrl-C or
a crash leaves behind and the next start takes up.
"""

import csv
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from instant_soup.data.batches import evaluation_batches, load_split, steps_per_epoch
from instant_soup.errors import UserError
from instant_soup.files import new_file, new_folder, read_json, write_json
from instant_soup.models import base as models
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training import checkpoints, loop, metrics
from instant_soup.training.cost import Cost
from instant_soup.training.schedule import steps_of
from instant_soup.training.state import State, Weights, load_state, save_state, write_state

if TYPE_CHECKING:
    from instant_soup.pipeline.tracking import StageRun

BASE = Path("models/base")
ENCODED = Path("data/encoded")

Curve = list[dict[str, Any]]


def training_rows() -> int:
    """Number of training rows."""
    return read_json(ENCODED / "info.json")["rows"]["train"]


def budget(settings: dict) -> tuple[int, int]:
    """Steps in one epoch of the training data, and T: the steps of the whole budget."""
    steps = steps_per_epoch(training_rows(), settings["batch_size"])
    return steps, steps_of(settings["epochs"], steps)


def check_budget(last: int, total: int) -> None:
    """UserError when training up to step `last` goes beyond a budget of `total` steps."""
    if last > total:
        raise UserError(
            f"isp.calibration: mask finding takes the whole budget of {total} steps: lower it, or "
            "raise training.epochs"
        )


@dataclass
class Ticket:
    """What a baseline found: a mask, what finding it cost, and, where training goes on from the
    state that the mask was taken of, that state and its curve."""

    mask: Mask
    cost: Cost
    state: State | None = None
    curve: Curve = field(default_factory=list)
    drawn: dict[str, Any] = field(default_factory=dict)  # what the result shall tell of the search
    checkpoints: list[Path] = field(default_factory=list)  # to be removed when the ticket is saved


def load_start(folder: str | Path) -> tuple[State, Mask]:
    """A state and the mask that goes with it, already applied."""
    state = load_state(Path(folder) / "state")
    mask = masks.load(Path(folder) / "mask.safetensors", prunable_shapes())
    state.prune(mask)
    return state, mask


def prunable_shapes() -> dict[str, list[int]]:
    """Name → shape of the base model's prunable weights."""
    return read_json(BASE / "prunable.json")


def random_state(settings: dict) -> State:
    """A state at step 0 with random weights in place of the pre-trained ones; the head as ever."""
    return State(models.family(BASE).random_weights(BASE, {**settings, **encoded_facts()}))


def encoded_facts() -> dict[str, Any]:
    """What a model must know of the encoded data: how many outputs it has."""
    return {"outputs": read_json(ENCODED / "info.json")["outputs"]}


def build(state: State, settings: dict) -> torch.nn.Module:
    """The classifier around a state's weights; of texts with dropout and freeze_embeddings."""
    return models.family(BASE).classifier(BASE, state.weights, {**settings, **encoded_facts()})


def advance(
    state: State,
    mask: Mask,
    settings: dict,
    *,
    last: int,
    label: str,
    run: "StageRun",
    keep: list[Path] | None = None,
) -> tuple[State, Cost, Curve]:
    """Train the main network up to step `last` of its budget.

    The curve has a row where something was measured: step (done so far), train_loss (mean since
    the row before), validation (the task's metric: of a network just pruned, at even distances
    and at the end), sparsity. Its rows go to the tracked `run` as they come. Every two minutes,
    and when interrupted, a checkpoint is kept in DVC's temporary folder; an equal call goes on
    from there to the same result. For stages that call this several times, `keep` collects the
    checkpoints of finished calls instead of having them removed. Returns the new state, the cost
    and the curve.
    """
    _, total = budget(settings)
    check_budget(last, total)
    where = loop.device()
    train_data = load_split(ENCODED / "train.safetensors", where)
    validation = load_split(ENCODED / "validation.safetensors", where)
    sparsity = round(masks.sparsity(mask), 6)
    checkpoint = checkpoints.folder(
        [settings, state.step, last],
        (state.weights, state.first_moments, state.second_moments, mask),
        ENCODED.iterdir(),
    )
    cost, curve = Cost(), []  # type: tuple[Cost, Curve]
    losses: list[torch.Tensor] = []  # of the steps since the curve's last row
    if (checkpoint / "progress.json").exists():
        state = load_state(checkpoint)
        cost.add(read_json(checkpoint / "cost.json"))
        curve = read_json(checkpoint / "curve.json")
        losses = [torch.tensor(x, device=where) for x in read_json(checkpoint / "losses.json")]
        print(f"{label}: continuing from the checkpoint at step {state.step}")
    model = build(state, settings)
    precision = loop.resolve_precision(settings["precision"])

    def validate() -> float:
        predictions = loop.predict(model.to(where), validation, precision)
        return metrics.score(settings["metric"], *predictions)

    def record(row: dict[str, Any]) -> None:
        curve.append(row)
        run.curve(**row)
        run.live()

    for row in curve:
        run.curve(**row)
    if not curve and state.step > 0:
        record(_row(state.step, None, validate(), sparsity))
    log_every = max(1, total // 50)
    validate_every = max(1, round(total / settings["evaluations"]))
    last_saved = time.monotonic()

    def after_step(step: int, loss: torch.Tensor, snapshot: Callable[[], State]) -> None:
        nonlocal last_saved
        losses.append(loss.detach())
        validating = step % validate_every == 0 or step == last
        if validating or step % log_every == 0:
            mean = float(torch.stack(losses).mean())
            losses.clear()
            record(_row(step, mean, validate() if validating else None, sparsity))
        due = stop_asked.is_set() or time.monotonic() - last_saved > checkpoints.EVERY
        if due or (keep is not None and step == last):
            with new_folder(checkpoint) as unfinished:
                write_state(unfinished, snapshot())
                write_json(unfinished / "cost.json", asdict(cost))
                write_json(unfinished / "curve.json", curve)
                write_json(unfinished / "losses.json", [float(x) for x in losses])
            last_saved = time.monotonic()
        if stop_asked.is_set():
            raise KeyboardInterrupt

    with checkpoints.stop_between_steps() as stop_asked:
        state = loop.train(
            model,
            state,
            mask,
            train_data,
            settings,
            cost,
            last=last,
            total=total,
            label=label,
            after_step=after_step,
        )
    if keep is None:
        shutil.rmtree(checkpoint, ignore_errors=True)
    else:
        keep.append(checkpoint)
    return state, cost, curve


def look_ahead(
    state: State, mask: Mask, settings: dict, rows: torch.Tensor, steps: int, label: str
) -> tuple[State, Cost]:
    """Train a network for some steps beside the main run, on some of the training rows.

    A fresh optimiser at a constant rate (paper, Algorithm 2, line 4); the steps are search steps.
    The weights of `state` are trained in place, so they must be a copy that nobody else needs.
    """
    data, cost = load_split(ENCODED / "train.safetensors", loop.device()), Cost()
    fresh = State(state.weights)
    model = build(fresh, settings)
    trained = loop.train(
        model, fresh, mask, data.subset(rows), settings, cost, last=steps, total=None, label=label
    )
    cost.search_steps, cost.steps = cost.steps, 0
    return trained, cost


def validation_score(settings: dict, mask: Mask, cost: Cost) -> Callable[[Weights], float]:
    """A function that scores weights as sparse as `mask` on validation data, adding to `cost`."""
    where = loop.device()
    validation = load_split(ENCODED / "validation.safetensors", where)
    precision = loop.resolve_precision(settings["precision"])
    kept, prunable = masks.count(mask)

    def score(weights: Weights) -> float:
        started = time.perf_counter()
        network = build(State(weights), settings).to(where)
        for index in evaluation_batches(validation):
            batch = validation.rows(index)
            in_prunable, others = models.forward_flops(network, prunable, batch)
            cost.flops += in_prunable + others
            cost.sparse_flops += in_prunable * kept / prunable + others
        predictions = loop.predict(network, validation, precision)
        cost.seconds += time.perf_counter() - started
        return metrics.score(settings["metric"], *predictions)

    return score


def _row(step: int, loss: float | None, score: float | None, sparsity: float) -> dict[str, Any]:
    return {"step": step, "train_loss": loss, "validation": score, "sparsity": sparsity}


def save_curve(path: str | Path, curve: Curve) -> None:
    """Write a curve as CSV; what was not measured at a step is empty."""
    with new_file(path) as unfinished, open(unfinished, "w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train_loss", "validation", "sparsity"])
        writer.writeheader()
        writer.writerows(curve)


def load_curve(path: str | Path) -> Curve:
    """Read a curve written by `save_curve`."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(v) if v else None for name, v in row.items()} for row in rows]


def mask_finding(rounds: int, denoisers: int) -> tuple[Cost, Curve, list[dict[str, Any]]]:
    """What ISP's rounds cost together, their curve, and a record of each.

    A record: round, sparsity, steps, the masks' agreement, and `before`, the validation score at
    the end of the round's training (`after`, just after pruning, is in the next stage's curve).
    """
    cost, curve, records = Cost(), [], []  # type: tuple[Cost, Curve, list[dict[str, Any]]]
    for i in range(rounds):
        folder = Path(f"models/isp/round_{i}")
        soup = read_json(folder / "soup.json")
        parts = [read_json(folder / "calibration.json"), {"seconds": soup.pop("seconds")}]
        weak = [folder / f"weak/{n}.safetensors" for n in range(denoisers)]
        parts += [masks.describe(path)["cost"] for path in weak]
        for part in parts:
            cost.add(part)
        own_curve = load_curve(folder / "curve.csv")
        curve += own_curve
        steps = int(parts[0]["steps"])
        before = own_curve[-1]["validation"]
        records.append({"round": i, "steps": steps, "before": before, **soup})
    return cost, curve, records


def save_ticket(folder: str | Path, ticket: Ticket, **description: object) -> None:
    """Write a ticket: its mask, and state and curve where it has them."""
    with new_folder(folder) as unfinished:
        cost = {"cost": asdict(ticket.cost), "drawn": ticket.drawn}
        masks.save(unfinished / "mask.safetensors", ticket.mask, **cost, **description)
        if ticket.state is not None:
            save_state(unfinished / "state", ticket.state)
        save_curve(unfinished / "curve.csv", ticket.curve)
    for checkpoint in ticket.checkpoints:
        shutil.rmtree(checkpoint, ignore_errors=True)


def load_ticket(folder: str | Path, start: str | Path) -> tuple[State, Ticket]:
    """A saved ticket, and the state that its training begins with, the mask applied.

    That is the ticket's own state, or else the one in the folder `start`.
    """
    folder = Path(folder)
    mask = masks.load(folder / "mask.safetensors", prunable_shapes())
    description = masks.describe(folder / "mask.safetensors")
    own = folder / "state"
    state = load_state(own if own.exists() else Path(start) / "state")
    state.prune(mask)
    cost = Cost()
    cost.add(description["cost"])
    curve = load_curve(folder / "curve.csv")
    return state, Ticket(mask, cost, curve=curve, drawn=description["drawn"])


def save_result(
    folder: str | Path,
    state: State,
    mask: Mask,
    cost: Cost,
    curve: Curve,
    rounds: list[dict[str, Any]] | None = None,
    **more: Any,
) -> None:
    """Write a finished run: weights, mask, curve, and run.json with its cost, rounds and `more`."""
    with new_folder(folder) as unfinished:
        save_state(unfinished / "state", State(state.weights, step=state.step))
        masks.save(unfinished / "mask.safetensors", mask)
        save_curve(unfinished / "curve.csv", curve)
        run = {
            "validation": curve[-1]["validation"] if curve else None,
            "cost": asdict(cost),
            **more,
        }
        if rounds:
            # The row that each later stage begins with: the network just after it was pruned.
            after = [row["validation"] for row in curve if row["train_loss"] is None]
            run["rounds"] = [{**r, "after": score} for r, score in zip(rounds, after, strict=True)]
        write_json(unfinished / "run.json", run)
