"""DVC's folders: what the stages leave there for one another, and in which files."""

import csv
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instant_soup.files import new_file, new_folder, read_json, sha256, write_json
from instant_soup.pipeline.stage_files import isp_round, weak_mask_file
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training.checkpoints import Curve
from instant_soup.training.cost import Cost, processor
from instant_soup.training.run import Run
from instant_soup.training.state import State, load_state, save_state

BASE = Path("models/base")
ENCODED = Path("data/encoded")
START = Path("models/start")
INPUTS = "inputs.json"  # beside a finished network: the inputs_digest of its run
COLUMNS = ("step", "train_loss", "validation", "sparsity")  # of a curve


# Encoded data and base model


def read_info() -> dict[str, Any]:
    """What the encoded data are: kind, labels, columns, templates, max_length, outputs, rows."""
    return read_json(ENCODED / "info.json")


def training_rows() -> int:
    """Number of training rows."""
    return read_info()["rows"]["train"]


def outputs() -> int:
    """How many outputs a classifier of the encoded data has."""
    return read_info()["outputs"]


def inputs_digest() -> list[str]:
    """What the encoded data are, and the base model but for its weights, file by file."""
    return [sha256(file) for file in (*sorted(ENCODED.iterdir()), *sorted(BASE.glob("*.json")))]


def prunable_shapes() -> dict[str, list[int]]:
    """Name → shape of the base model's prunable weights."""
    return read_json(BASE / "prunable.json")


# States, with the masks that go with them


def load_start(folder: str | Path) -> tuple[State, Mask]:
    """A state and the mask that goes with it, already applied."""
    state, mask = load_state(Path(folder) / "state"), load_mask(folder)
    state.prune(mask)
    return state, mask


def load_mask(folder: str | Path) -> Mask:
    """The mask in a folder, which must fit the base model."""
    return masks.load(Path(folder) / "mask.safetensors", prunable_shapes())


def save_ticket(folder: str | Path, run: Run, **description: object) -> None:
    """Write the ticket that a run has found: its mask and curve.

    If training does not begin at the start again, its state is written too.
    """
    finished = run.state.step >= run.total
    told = {"cost": asdict(run.cost), "found": run.found, "finished": finished}
    with new_folder(folder) as unfinished:
        masks.save(unfinished / "mask.safetensors", run.mask, **told, **description)
        if run.state.step > 0 or run.own_state:
            state = State(run.state.weights, step=run.state.step) if finished else run.state
            save_state(unfinished / "state", state)
        save_curve(unfinished / "curve.csv", run.curve)


def load_ticket(
    folder: str | Path, start: str | Path
) -> tuple[State, Mask, Cost, Curve, dict[str, Any]]:
    """Read a saved ticket.

    Args:
        folder: The ticket's folder.
        start: The folder with the state that training begins with, if the ticket has none.

    Returns:
        The state, pruned; the mask, the cost, the curve so far, and what the result says of the
        search.
    """
    folder = Path(folder)
    mask = load_mask(folder)
    description = masks.describe(folder / "mask.safetensors")
    own = folder / "state"
    where = own if own.exists() else Path(start) / "state"
    state = load_state(where, moments=not description["finished"])
    state.prune(mask)
    cost = Cost()
    cost.add(description["cost"])
    return state, mask, cost, load_curve(folder / "curve.csv"), description["found"]


def save_curve(path: str | Path, curve: Iterable[dict[str, Any]]) -> None:
    """Write a curve as CSV; what was not measured at a step is empty."""
    with new_file(path) as unfinished, open(unfinished, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(curve)


def load_curve(path: str | Path) -> Curve:
    """Read a curve written by `save_curve`."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(v) if v else None for name, v in row.items()} for row in rows]


# ISP's rounds


def mask_finding(rounds: int, denoisers: int) -> tuple[Cost, Curve, list[dict[str, Any]]]:
    """What ISP's rounds cost together, their curve, and a record of each.

    A record has round, sparsity, steps, the masks' agreement, and `before`, the validation score at
    the end of the round's training. (`after`, just after pruning, is in the next stage's curve.)
    """
    cost, curve, records = Cost(), [], []  # type: tuple[Cost, Curve, list[dict[str, Any]]]
    for i in range(rounds):
        folder = isp_round(i)
        soup = read_json(folder / "soup.json")
        parts = [read_json(folder / "state/cost.json"), {"seconds": soup.pop("seconds")}]
        parts += [masks.describe(weak_mask_file(i, n))["cost"] for n in range(denoisers)]
        for part in parts:
            cost.add(part)
        own_curve = load_curve(folder / "state/curve.csv")
        curve += own_curve
        steps = int(parts[0]["steps"])
        before = own_curve[-1]["validation"]
        records.append({"round": i, "steps": steps, "before": before, **soup})
    return cost, curve, records


def isp_ticket(rounds: int, denoisers: int) -> tuple[Mask, Cost]:
    """The mask of ISP's last round, and what all rounds have cost."""
    return load_mask(isp_round(rounds - 1)), mask_finding(rounds, denoisers)[0]


# Results


def save_result(
    folder: str | Path,
    run: Run,
    rounds: list[dict[str, Any]] | None = None,
    **more: Any,
) -> None:
    """Write a finished run: weights, mask, curve, and run.json with its cost, rounds and `more`.

    Beside it lies what the data and the base model were, for who reads them later.
    """
    with new_folder(folder) as unfinished:
        save_state(unfinished / "state", State(run.state.weights, step=run.state.step))
        masks.save(unfinished / "mask.safetensors", run.mask)
        save_curve(unfinished / "curve.csv", run.curve)
        told = {
            "validation": run.curve[-1]["validation"] if run.curve else None,
            "cost": asdict(run.cost),
            "processor": processor(),
            **more,
        }
        if rounds:
            # The row that each later stage begins with: the network just after it was pruned.
            after = [row["validation"] for row in run.curve if row["train_loss"] is None]
            told["rounds"] = [{**r, "after": score} for r, score in zip(rounds, after, strict=True)]
        write_json(unfinished / "run.json", told)
        write_json(unfinished / INPUTS, inputs_digest())
