"""The base folder: which family of models it holds, and its weights.

A base folder is what `prepare_model` writes: weights and configuration in the layout that
transformers (bert.py) or open_clip (clip.py) load, and prunable.json. Each family's module has
`prepare_base`, `start_weights`, `random_weights`, `classifier` and the file name `WEIGHTS`.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from instant_soup.files import read_json
from instant_soup.models import bert, clip
from instant_soup.models.forward import forward_flops as forward_flops
from instant_soup.models.head import Head as Head
from instant_soup.models.matrices import Weights

FAMILIES = {"bert": bert, "clip": clip}


def family(base: Path) -> Any:
    """The module that knows a base folder's models: clip or bert."""
    return family_named("clip" if (base / clip.CONFIG).exists() else "bert")


def family_named(name: str) -> Any:
    """The module of a family."""
    return FAMILIES[name]


def base_weights(base: Path) -> Weights:
    """All weights of a base folder, under their own names."""
    return load_file(base / family(base).WEIGHTS)


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
