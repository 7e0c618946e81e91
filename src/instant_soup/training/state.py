"""The state of a run (weights, moments, step), which passes from stage to stage, and its files."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from instant_soup.errors import UserError
from instant_soup.files import new_folder, read_json, write_json
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask

Weights = dict[str, torch.Tensor]


@dataclass
class State:
    """Everything a run is: weights, AdamW's two moments by weight name, steps done."""

    weights: Weights
    first_moments: Weights = field(default_factory=dict)
    second_moments: Weights = field(default_factory=dict)
    step: int = 0

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
    """Write a state's files into an existing folder."""
    save_file(_apart(state.weights), folder / "weights.safetensors")
    if state.first_moments:
        save_file(state.first_moments, folder / "first_moments.safetensors")
        save_file(state.second_moments, folder / "second_moments.safetensors")
    write_json(folder / "progress.json", {"step": state.step})


def _apart(weights: Weights) -> Weights:
    """Weights that share no memory, as tied ones do: safetensors refuses these."""
    seen: set[int] = set()
    found = {}
    for name, w in weights.items():
        found[name] = w.clone() if w.data_ptr() in seen else w
        seen.add(w.data_ptr())
    return found


def load_state(folder: str | Path, moments: bool = True) -> State:
    """Read a state; UserError if anything of it is missing or damaged."""
    folder = Path(folder)
    progress = read_json(folder / "progress.json")
    try:
        state = State(load_file(folder / "weights.safetensors"), step=progress["step"])
        if moments and state.step > 0:
            state.first_moments = load_file(folder / "first_moments.safetensors")
            state.second_moments = load_file(folder / "second_moments.safetensors")
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder}: cannot be read as a training state ({error})") from None
    return state
