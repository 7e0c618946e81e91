"""Prune any PyTorch model in one training run: the pipeline's own steps, without the pipeline.

pruned = instant_soup.prune(model, loader, loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
                            steps=1000, learning_rate=1e-4, sparsity=0.8)
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from instant_soup.errors import UserError
from instant_soup.files import new_folder, read_json, write_json
from instant_soup.methods import criteria
from instant_soup.methods.protocols import draw_protocol
from instant_soup.methods.rounds import calibration_steps, round_sparsities
from instant_soup.models import matrices
from instant_soup.pipeline.plan import check_values
from instant_soup.sparsity import mask_soup, masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training import loop
from instant_soup.training.cost import Cost
from instant_soup.training.state import State, load_state, write_state

Loss = Callable[[nn.Module, Any], torch.Tensor]

# What `prune` checks as params.yaml is checked.
CHECKED = ("learning_rate", "weight_decay", "warmup", "clip_norm", "precision")
RANGES = ("learning_rate_range", "weight_decay_range")
SCORES = ("magnitude", "fisher")


@dataclass
class Pruned:
    """What `prune` returns: the model (the one given, trained), its mask, what it cost."""

    model: nn.Module
    mask: Mask
    cost: dict[str, float]


@dataclass
class Rounds:
    """When to prune, how far, and how a round's mask is found; see `prune`."""

    sparsities: Sequence[float]  # after each round
    ends: list[int]  # the steps after which the rounds prune
    denoisers: int
    look_ahead: int
    combine: str
    score: str


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    steps: int,
    learning_rate: float,
    sparsity: float = 0.8,
    compression_rate: float = 0.2,
    mask_finding: float = 0.3,
    denoisers: int = 3,
    look_ahead: int = 10,
    combine: str = "union",
    score: str = "magnitude",
    learning_rate_range: tuple[float, float] = (0.5, 5.0),
    weight_decay_range: tuple[float, float] = (0.0, 0.1),
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    clip_norm: float = 1.0,
    precision: str = "auto",
    prunable: Callable[[str, torch.Tensor], bool] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> Pruned:
    """Train a model for `steps` steps and prune it on the way, by Instant Soup (Algorithm 1).

    `batches` can be iterated again and again, as a DataLoader or a list; tensors in a batch (also
    in dicts, lists and tuples) are moved to the model's device. `loss(model, batch)` is a scalar.
    The learning rate falls linearly to zero. A share `mask_finding` of the steps passes before the
    last prune, in rounds of `compression_rate` that grow longer; each takes `denoisers` times
    `look_ahead` steps beside the run. `score` is what makes a weight worth keeping: its `magnitude`
    (the paper), or `fisher`, w² times the mean squared gradient that AdamW has measured, which is
    better and with `denoisers=0` costs nothing beside the run (docs/findings.md).

    What is pruned: the matrices of the repeated blocks, `nn.MultiheadAttention` included; in a
    model without blocks, all linear maps but the last. `prunable(name, parameter)` chooses
    otherwise. With a folder `checkpoint`, every round is kept there until the run is finished, and
    an equal call goes on after the last one that was. Settings and the pre-trained matrices tell
    calls apart, data and loss do not: a run with others needs another folder.

    UserError for settings that cannot be, before any training.
    """
    settings = {
        **{"learning_rate": learning_rate, "weight_decay": weight_decay, "warmup": warmup},
        **{"clip_norm": clip_norm, "precision": precision, "seed": seed},
        **{"learning_rate_range": list(learning_rate_range), "batch_size": 1, "subset": 1.0},
        "weight_decay_range": list(weight_decay_range),
    }
    check_values("training", {name: settings[name] for name in CHECKED})
    check_values("isp", {name: settings[name] for name in RANGES})
    rounds = plan_rounds(
        steps, sparsity, compression_rate, mask_finding, denoisers, look_ahead, combine, score
    )
    matrices = choose(model, prunable)
    mask, cost, state, done = masks.full(matrices), Cost(), State(weights_of(model)), 0
    plan = [settings, steps, asdict(rounds), list(matrices)]
    kept = None if checkpoint is None else _Checkpoint(Path(checkpoint), plan, model, matrices)
    if kept is not None and kept.exists():
        state, mask, cost, done = kept.load(matrices)
        model.load_state_dict(state.weights)

    for i, end in list(enumerate(rounds.ends))[done:]:
        state = _train(model, state, mask, batches, loss, settings, cost,
                       last=end, total=steps, label=f"round {i}")  # fmt: skip
        mask = find_mask(model, state, mask, batches, loss, rounds, i, settings, cost)
        state.prune(mask)
        masks.apply(mask, dict(model.named_parameters()))
        if kept is not None:
            kept.save(state, mask, cost, i + 1)
    _train(model, state, mask, batches, loss, settings, cost,
           last=steps, total=steps, label="the rest")  # fmt: skip
    if kept is not None:
        kept.remove()
    spent = asdict(cost)
    spent["search_steps"] = spent["steps"] - steps
    spent["steps"] = steps
    return Pruned(model.eval(), mask, spent)


def plan_rounds(
    steps: int,
    sparsity: float,
    compression_rate: float,
    mask_finding: float,
    denoisers: int,
    look_ahead: int,
    combine: str,
    score: str,
) -> Rounds:
    """The rounds of a run of `steps` steps; UserError naming a setting that cannot be."""
    chosen = {"compression_rate": compression_rate, "denoisers": denoisers}
    check_values("isp", {**chosen, "look_ahead": look_ahead, "combine": combine})
    if score not in SCORES:
        raise UserError(f"score: {score!r} is not allowed; allowed: {' | '.join(SCORES)}")
    if not 0 < sparsity < 1:
        raise UserError(f"sparsity: {sparsity} is not allowed; allowed: between 0 and 1")
    if not 0 <= mask_finding < 1:
        raise UserError(f"mask_finding: {mask_finding} is not allowed; allowed: from 0, below 1")
    sparsities = round_sparsities(sparsity, compression_rate, "total")
    if steps <= len(sparsities):
        raise UserError(
            f"steps: {steps} is not allowed; allowed: more than the {len(sparsities)} rounds to "
            f"sparsity {sparsity}"
        )
    lengths = [calibration_steps(i, 1) for i in range(len(sparsities))]
    t = mask_finding * steps / sum(lengths)
    ends = [round(t * sum(lengths[: i + 1])) for i in range(len(lengths))]
    if score == "fisher" and ends[0] == 0:
        raise UserError(
            f"mask_finding: {mask_finding} prunes before the first step, when there are no "
            "gradients yet; allowed with score fisher: more"
        )
    return Rounds(sparsities, ends, denoisers, look_ahead, combine, score)


def find_mask(
    model: nn.Module,
    state: State,
    mask: Mask,
    batches: Iterable[Any],
    loss: Loss,
    rounds: Rounds,
    i: int,
    settings: dict,
    cost: Cost,
) -> Mask:
    """Round i's mask of a model in training (Algorithm 2): its denoisers' soup, adjusted.

    `state` has the model's weights, and for the score `fisher` AdamW's second moments. The model
    stays as it is: copies of it are trained, each by a protocol drawn from `settings`
    (learning_rate_range, weight_decay_range and those of `training.take_steps`).
    """
    target, weak = rounds.sparsities[i], []
    for n in range(rounds.denoisers):
        protocol = draw_protocol(settings, 1, key=(settings["seed"], i, n))
        twin = copy.deepcopy(model)
        seen = _train(twin, State(weights_of(twin)), mask, batches, loss, {**settings, **protocol},
                      cost, last=rounds.look_ahead, total=None,
                      label=f"look-ahead {i}/{n}")  # fmt: skip
        weak.append(criteria.magnitude(_worth(seen, mask, rounds.score), target))
    worth = _worth(state, mask, rounds.score)
    standing = mask_soup.combine(weak or [criteria.magnitude(worth, target)], rounds.combine)
    return mask_soup.adjust(standing, worth, masks.keep_count(worth, target))


def _worth(state: State, mask: Mask, score: str) -> dict[str, torch.Tensor]:
    """What is ranked by size: a network's prunable weights, or their Fisher scores."""
    weights = {name: state.weights[name] for name in mask}
    if score == "magnitude":
        return weights
    for name in mask:
        if name not in state.second_moments:
            raise UserError(
                f"score: fisher needs the second moments of Adam or AdamW, and {name} has none "
                "(another optimizer, or frozen); allowed: magnitude"
            )
    return criteria.fisher_scores(weights, state.second_moments)


def _train(
    model: nn.Module,
    state: State,
    mask: Mask,
    batches: Iterable[Any],
    loss: Loss,
    settings: dict,
    cost: Cost,
    *,
    last: int,
    total: int | None,
    label: str,
) -> State:
    """`training.take_steps` over one's own batches and loss."""
    where = next(model.parameters()).device

    def loss_of_batch(batch: Any) -> torch.Tensor:
        return loss(model, to_device(batch, where))

    source = _steps(batches, state.step, last, settings["seed"])
    return loop.take_steps(model, state, mask, source, loss_of_batch, None, settings, cost,
                               last=last, total=total, label=label)  # fmt: skip


def choose(
    model: nn.Module, wanted: Callable[[str, torch.Tensor], bool] | None = None
) -> dict[str, torch.Tensor]:
    """Name → weight of what is pruned (see `prune`); UserError where there is nothing."""
    if wanted is not None:
        found: dict[str, torch.Tensor] = {n: p for n, p in model.named_parameters() if wanted(n, p)}
    else:
        every = matrices.matrices(model)
        found = matrices.prunable(model) or {name: every[name] for name in list(every)[:-1]}
    if not found:
        raise UserError("prunable: nothing to prune in this model: name matrices by `prunable`")
    return found


def to_device(batch: Any, where: torch.device) -> Any:
    """A batch with all tensors in it on a device; what is there already is not copied."""
    if isinstance(batch, torch.Tensor):
        return batch.to(where, non_blocking=True)
    if isinstance(batch, MutableMapping):
        moved = copy.copy(batch)  # of its own kind: a defaultdict, a BatchEncoding, …
        for key, value in batch.items():
            moved[key] = to_device(value, where)
        return moved
    if hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, where) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, where) for value in batch)
    return batch.to(where) if hasattr(batch, "to") else batch


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's tensors by name, on the CPU; the live ones there."""
    return {name: w.detach().cpu() for name, w in model.state_dict().items()}


def _steps(batches: Iterable, first: int, last: int, seed: int) -> Iterator[tuple[int, Any]]:
    """(step, batch) for the steps first … last − 1, pass after pass over the batches.

    A loader's shuffle comes from the seed and the step at which a pass begins. Where the length of
    a pass is known, a run that goes on takes up its pass where it was.
    """
    try:
        length = len(batches)  # type: ignore[arg-type]
    except TypeError:  # not known, or a loader cannot tell it
        length = None
    if length == 0:
        raise UserError("batches: nothing in them; allowed: at least one batch")
    step = first - first % length if length else first
    while step < last:
        began = step
        torch.manual_seed((seed * 1_000_003 + began) % 2**63)
        for batch in batches:
            if step >= first:
                yield step, batch
            step += 1
            if step == last:
                return
        if step == began:
            raise UserError("batches: nothing in them, or they cannot be iterated twice")


class _Checkpoint:
    """A finished round's state, mask and cost, under a digest of settings, shapes and matrices.

    A head that is drawn anew at each start of a script is no matrix, so the run goes on.
    """

    def __init__(
        self, folder: Path, plan: list, model: nn.Module, matrices: dict[str, torch.Tensor]
    ) -> None:
        shapes = {name: list(w.shape) for name, w in model.state_dict().items()}
        digest = hashlib.sha256(json.dumps([plan, shapes], sort_keys=True).encode())
        for weights in matrices.values():
            digest.update(weights.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        self.folder = folder / digest.hexdigest()[:16]

    def exists(self) -> bool:
        return (self.folder / "round.json").exists()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, state: State, mask: Mask, cost: Cost, rounds: int) -> None:
        with new_folder(self.folder) as unfinished:
            write_state(unfinished, state)
            masks.save(unfinished / "mask.safetensors", mask)
            write_json(unfinished / "round.json", {"rounds": rounds, "cost": asdict(cost)})

    def load(self, shapes: dict[str, torch.Tensor]) -> tuple[State, Mask, Cost, int]:
        kept = read_json(self.folder / "round.json")
        mask = masks.load(
            self.folder / "mask.safetensors", {n: list(w.shape) for n, w in shapes.items()}
        )
        cost = Cost()
        cost.add(kept["cost"])
        return load_state(self.folder), mask, cost, kept["rounds"]
