"""A model's weight matrices: which there are, which of them are prunable, and whose they are."""

from pathlib import Path

import torch
from torch import nn

from instant_soup.errors import UserError

Weights = dict[str, torch.Tensor]

NEAR_ZERO = 1e-2  # |w| below it counts as near zero (the paper's section 9 names no number)


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


def check_weights(base: Path, model: nn.Module, weights: Weights) -> None:
    """UserError unless `weights` are exactly the model's, by name and shape."""
    expected = {name: w.shape for name, w in model.state_dict().items()}
    given = {name: w.shape for name, w in weights.items()}
    if expected != given:
        odd = sorted(n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n))
        raise UserError(f"{base}: weights of another model (first difference: {odd[0]})")
