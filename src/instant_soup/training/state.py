"""The state of a run (weights, moments, step), which passes from stage to stage, and its files."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from instant_soup.errors import UserError
from instant_soup.files import check_seal, new_folder, read_json, seal, sealed, write_json
from instant_soup.sparsity import masks
from instant_soup.sparsity.compact import apart
from instant_soup.sparsity.masks import Mask

Weights = dict[str, torch.Tensor]


@dataclass
class State:
    """Everything that a run is.

    `weights` has all tensors by name, `first_moments` and `second_moments` AdamW's, `step` the
    steps done, and `of_pruner` what a moving mask keeps beside them (`Pruner.tensors`). `counts`
    has AdamW's own count of steps for parameters that had no gradient in some.
    """

    weights: Weights
    first_moments: Weights = field(default_factory=dict)
    second_moments: Weights = field(default_factory=dict)
    step: int = 0
    of_pruner: Weights = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def copy(self) -> "State":
        """The same state in memory of its own, as training changes it in place."""
        parts = (self.weights, self.first_moments, self.second_moments, self.of_pruner)
        w, m, v, own = ({n: t.clone() for n, t in tensors.items()} for tensors in parts)
        return State(w, m, v, self.step, own, dict(self.counts))

    def prune(self, mask: Mask) -> None:
        """Set pruned weights and their moments to exact zero, in place.

        Stale momentum would move pruned weights again at the next step.
        """
        masks.apply(mask, self.weights)
        for moments in (self.first_moments, self.second_moments):
            masks.apply({name: kept for name, kept in mask.items() if name in moments}, moments)


def save_state(folder: str | Path, state: State) -> None:
    """Write a state as safetensors + JSON; the folder appears only when it is complete."""
    with new_folder(folder) as unfinished:
        write_state(unfinished, state)


def write_state(folder: Path, state: State) -> None:
    """Write a state's files into an existing folder, and seal what is there then."""
    save_file(apart(state.weights), folder / "weights.safetensors")
    if state.first_moments:
        save_file(state.first_moments, folder / "first_moments.safetensors")
        save_file(state.second_moments, folder / "second_moments.safetensors")
    if state.of_pruner:
        save_file(state.of_pruner, folder / "pruner.safetensors")
    counts = {"counts": state.counts} if state.counts else {}
    write_json(folder / "progress.json", {"step": state.step, **counts})
    seal(folder)


def load_state(folder: str | Path, moments: bool = True) -> State:
    """Read a state.

    Args:
        folder: The state's folder.
        moments: Whether to read AdamW's moments too.

    Returns:
        The state.

    Raises:
        UserError: If anything of it is missing or damaged.
    """
    folder = Path(folder)
    progress = read_json(folder / "progress.json")
    try:
        state = State(_tensors(folder, "weights"), step=progress["step"])
        check_seal(folder, "progress.json")
        if moments and state.step > 0:
            state.first_moments = _tensors(folder, "first_moments")
            state.second_moments = _tensors(folder, "second_moments")
            state.counts = progress.get("counts", {})
            if (own := "pruner.safetensors") in sealed(folder) or (folder / own).exists():
                state.of_pruner = _tensors(folder, "pruner")
    except (OSError, SafetensorError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{folder}: cannot be read as a training state ({error})") from None
    return state


def _tensors(folder: Path, name: str) -> Weights:
    """Read one of a state's files of tensors, and check that it is what was saved."""
    check_seal(folder, f"{name}.safetensors")
    return load_file(folder / f"{name}.safetensors")
