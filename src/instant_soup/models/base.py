"""What both families of models share: which weights are prunable, and a base folder's family.

A base folder is what `prepare_model` writes: weights and configuration in the layout that
transformers (bert.py) or open_clip (clip.py) load, and prunable.json. Each family's module has
`prepare_base`, `start_weights`, `classifier`, `forward_flops` and the file name `WEIGHTS`.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from instant_soup.errors import UserError
from instant_soup.files import read_json

Weights = dict[str, torch.Tensor]

NEAR_ZERO = 1e-2  # |w| below it counts as near zero (the paper's section 9 names no number)


def family(base: Path) -> Any:
    """The module that knows a base folder's models: clip or bert."""
    return family_named("clip" if (base / "open_clip_config.json").exists() else "bert")


def family_named(name: str) -> Any:
    """The module of a family; only the one that is asked for is imported."""
    if name == "clip":
        from instant_soup.models import clip

        return clip
    from instant_soup.models import bert

    return bert


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


def packaged_folder(package: str, folder: str) -> Path:
    """Folder of a model that came inside an installed wheel; the package is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model: package {package} is not installed: pip install -r requirements.txt"
        )
    return Path(spec.submodule_search_locations[0]) / folder


def _repeats(module: nn.Module) -> bool:
    """Whether a module is a stack of equal blocks: a ModuleList, or timm's kind of Sequential.

    Layers or heads in a list are none: a block has layers of its own.
    """
    if isinstance(module, nn.ModuleList):
        return not all(isinstance(child, nn.Linear) for child in module)
    kinds = {type(child) for child in module.children()}
    several = isinstance(module, nn.Sequential) and len(module) > 1
    return several and len(kinds) == 1 and nn.Linear not in kinds


def prunable(model: nn.Module) -> Weights:
    """Name → weight matrix of every linear map inside the repeated blocks of an encoder.

    For BERT: query, key, value, attention output, intermediate and output of each layer; for an
    image tower of CLIP: in- and out-projection of the attention and the two matrices of the MLP
    (paper, section 2). Found by structure: linear layers, and the in-projection parameter of
    `nn.MultiheadAttention`, below a stack of blocks. Embeddings, norms, biases, pooler, projection
    and head are outside.
    """
    stacks = [f"{name}." for name, module in model.named_modules() if _repeats(module)]
    return {
        name: weight
        for name, weight in matrices(model).items()
        if any(name.startswith(stack) for stack in stacks)
    }


def matrices(model: nn.Module) -> Weights:
    """Name → weight matrix of every linear map of a model."""
    found = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            # Three where keys or values have a width of their own.
            for kind in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                if getattr(module, kind) is not None:
                    found[prefix + kind] = getattr(module, kind)
        elif isinstance(module, nn.Linear):  # a MultiheadAttention's out_proj is one, too
            found[f"{prefix}weight"] = module.weight
    return found


def forward_flops(
    model: nn.Module, prunable_weights: int, batch: dict[str, torch.Tensor]
) -> tuple[float, float]:
    """FLOPs of one forward pass of a batch: those in prunable matrices, and all others."""
    known = family_named("clip" if "images" in batch else "bert")
    return known.forward_flops(model, prunable_weights, batch)


def check_weights(base: Path, model: nn.Module, weights: Weights) -> None:
    """UserError unless `weights` are exactly the model's, by name and shape."""
    expected = {name: w.shape for name, w in model.state_dict().items()}
    given = {name: w.shape for name, w in weights.items()}
    if expected != given:
        odd = sorted(n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n))
        raise UserError(f"{base}: weights of another model (first difference: {odd[0]})")
