"""The base folder: which family of models it holds, and its weights.

A base folder is what `prepare_model` writes: weights and configuration in the layout that
transformers (bert.py, causal.py) or open_clip (clip.py) load, and prunable.json. Each family's
module has `prepare_base`, `read_weights`, `start_weights`, `random_weights`, `classifier` (which a
language model is of the tokens that follow), and the names of its files: `CONFIG`, by which a
folder is known, and `WEIGHTS`.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from instant_soup.files import read_json
from instant_soup.models import bert, causal, clip
from instant_soup.models.forward import forward_flops as forward_flops
from instant_soup.models.forward import share_counts as share_counts
from instant_soup.models.head import Head as Head
from instant_soup.models.matrices import Weights, inputs_by_type

# In the order in which a folder is looked at: bert's CONFIG is in others', too.
FAMILIES: dict[str, Any] = {"clip": clip, "causal": causal, "bert": bert}


def family(base: Path) -> Any:
    """The module that knows a base folder's models."""
    return next((one for one in FAMILIES.values() if (base / one.CONFIG).exists()), bert)


def family_named(name: str) -> Any:
    """The module of a family."""
    return FAMILIES[name]


def base_weights(base: Path) -> Weights:
    """All weights of a base folder, under their own names."""
    return family(base).read_weights(base)


def as_in_files(base: Path, tensors: Weights) -> Weights:
    """Weights or masks of a base folder's model, named and laid out as its checkpoint has them."""
    own = family(base)
    return own.layout(base).written(tensors) if own is causal else tensors


def inputs_in_files(base: Path, mask: Weights) -> dict[str, int]:
    """Name → dimension of the inputs, in what `as_in_files` makes of a mask, if not the last."""
    own = family(base)
    if own is causal:
        turned = own.layout(base).turned
        return dict.fromkeys(as_in_files(base, {n: m for n, m in mask.items() if n in turned}), 0)
    if own is clip:
        return {}
    return inputs_by_type(read_json(base / "config.json"), {n: [*m.shape] for n, m in mask.items()})


def pretrained_prunable(base: Path) -> Weights:
    """A base folder's prunable weights, as they came."""
    weights = base_weights(base)
    return {name: weights[name] for name in read_json(base / "prunable.json")}


def digest(weights: Weights) -> str:
    """Eight hex digits that only equal weights share: names, shapes, data types, values."""
    whole = hashlib.sha256()
    for name, w in sorted(weights.items()):
        whole.update(f"{name} {list(w.shape)} {w.dtype}".encode())
        whole.update(w.contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()[:8]
