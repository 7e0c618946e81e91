"""A model's weight matrices: which there are, which are prunable, and which module has them."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from instant_soup.errors import UserError
from instant_soup.sparsity.names import is_map

Weights = dict[str, torch.Tensor]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Types of transformers' models whose blocks, `h`, are made of GPT-2's `Conv1D`.
OF_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")

LEAST_SHARE = 0.9  # of the blocks' weights that must be prunable
NEAR_ZERO = 1e-2  # |w| below it counts as near zero (arXiv 2306.03805 names no number)


def _repeats(module: nn.Module) -> bool:
    """Whether a module is a stack of equal blocks: a ModuleList, or timm's kind of Sequential.

    Layers or heads in a list are none: a block has layers of its own. Neither are the parts of a
    whole that stand in a plain Sequential, such as body and head: blocks are made of the same.
    """
    children = list(module.children())
    if all(
        _type(c).__module__.startswith("torch.nn.") and not list(c.children()) for c in children
    ):
        return False
    several = isinstance(module, nn.Sequential) and len(module) > 1
    return isinstance(module, nn.ModuleList) or (several and len(set(map(_kind, children))) == 1)


def _kind(block: nn.Module) -> type | frozenset | tuple:
    """A block's type; of a plain Sequential what it is made of."""
    if not isinstance(block, nn.Sequential) or _type(block) is not nn.Sequential:
        return _type(block)
    types = [_type(child) for child in block]
    return frozenset(types) if any(list(c.children()) for c in block) else tuple(types)


def _type(module: nn.Module) -> type:
    """A module's type, without what torch's `fully_shard` puts in front of it."""
    kinds: tuple[type, ...] = type(module).__mro__
    return next(kind for kind in kinds if not kind.__module__.startswith("torch.distributed.fsdp"))


def prunable(model: nn.Module) -> Weights:
    """Find every linear map inside the repeated blocks of an encoder.

    For BERT these are query, key, value, attention output, intermediate and output of each layer.
    For CLIP's image tower they are in- and out-projection of the attention and the two matrices of
    the MLP, as in the paper. They are found by structure: whatever has two dimensions or more
    below a stack of blocks. These are linear layers, the in-projection of `nn.MultiheadAttention`,
    convolutions, and parameters that lie bare in a module (XLNet's query, the experts of Mixtral).
    Norms, biases and look-up tables are not prunable, and neither is what lies in no block:
    embeddings, pooler, projection, head.

    Args:
        model: The network.

    Returns:
        Name → weight. A weight that several modules share is there once.
    """
    return {
        name: weight
        for name, weight, module in _of_blocks(model)
        if weight.is_floating_point() and _multiplies(name, module)
    }


def _of_blocks(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, nn.Module]]:
    """Name, weight and owner of all in a model's blocks that is no vector, each once."""
    stacks = tuple(f"{name}." for name, module in model.named_modules() if _repeats(module))
    seen: set[int] = set()
    for name, module in model.named_modules():
        inside = f"{name}.".startswith(stacks)
        for own, weight in _weights(module).items() if inside else ():
            if _is_matrix(weight, module) and id(weight) not in seen:
                seen.add(id(weight))
                yield f"{name}.{own}", weight, module


def _is_matrix(weight: torch.Tensor, module: nn.Module) -> bool:
    """Whether a weight is no vector, such as a scale that is laid along an image's channels."""
    several = sum(size > 1 for size in weight.shape)
    return weight.ndim > 1 if isinstance(module, LAYERS) else several > 1


def _weights(module: nn.Module) -> Weights:
    """A module's own parameters, those of the usual layers as they multiply with them."""
    if isinstance(module, nn.MultiheadAttention):
        # Three where keys or values have a width of their own.
        kinds = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        return {kind: w for kind in kinds if (w := getattr(module, kind)) is not None}
    if isinstance(module, LAYERS):
        return {"weight": module.weight}  # computed, where something is between it and a parameter
    return (
        {}
        if isinstance(module, ParametrizationList)
        else dict(module.named_parameters(recurse=False))
    )


def _multiplies(name: str, module: nn.Module) -> bool:
    """Whether inputs are multiplied with a module's weight, not looked up in it or shifted."""
    kind = _type(module).__name__.lower()
    tables = any(word in kind for word in ("embedding", "norm"))
    return isinstance(module, LAYERS) or (not tables and is_map(name))


def inputs_at(model: nn.Module) -> dict[str, int]:
    """Name → dimension of the inputs, of weights that do not have them last.

    These are convolutions, and GPT-2's `Conv1D`, which is inputs × outputs.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and not isinstance(module, nn.Linear):
            found[f"{name}.weight"] = 1
        elif is_conv1d(module):
            found[f"{name}.weight"] = 0
    return found


def inputs_by_type(config: Any, shapes: Mapping[str, list[int]]) -> dict[str, int]:
    """As `inputs_at`, of the matrices of a model's blocks, by its config.json and their shapes."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    matrices = [n for n, shape in shapes.items() if len(shape) == 2 and ".h." in f".{n}"]
    return dict.fromkeys(matrices, 0) if kind in OF_CONV1D else {}


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is GPT-2's linear map, inputs × outputs."""
    return _type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def share_of(model: nn.Module, names: Iterable[str]) -> tuple[float, str]:
    """How much of a model's blocks some weights are, and the name of the largest that is missing.

    Vectors, such as biases and norms, do not count.
    """
    chosen = set(names)
    sizes = {name: weight.numel() for name, weight, _ in _of_blocks(model)}
    left = {name: size for name, size in sizes.items() if name not in chosen}
    largest = max(left, key=lambda name: left[name], default="")
    return 1 - sum(left.values()) / (sum(sizes.values()) or 1), largest


def check_share(model: nn.Module, names: Iterable[str]) -> float:
    """Check that some weights are a large enough share of a model's blocks.

    Otherwise the sparsity of a part would pass for the model's.

    Args:
        model: The network.
        names: Names of the weights.

    Returns:
        The share.

    Raises:
        UserError: If it is too small.
    """
    share, largest = share_of(model, names)
    if share < LEAST_SHARE:
        raise UserError(
            f"{share:.0%} of the weights in the model's blocks are prunable ({largest} is not); "
            f"allowed: at least {LEAST_SHARE:.0%}"
        )
    return share


def checked_prunable(name: str, model: nn.Module) -> Weights:
    """The prunable weights of a base model.

    Raises:
        UserError: If there are none, or they are too small a share.
    """
    found = prunable(model)
    try:
        share = check_share(model, found) if found else 0.0
    except UserError as error:
        raise UserError(f"model: {name}: {error}") from None
    if not found:
        raise UserError(f"model: {name} has nothing prunable (no weight matrices in blocks)")
    print(f"{name}: {share:.1%} of the weights in its blocks are prunable")
    return found


def matrices(model: nn.Module) -> Weights:
    """Name → weight of every linear map of a model: in layers, convolutions, recurrent nets."""
    found: Weights = {}
    for name, module in model.named_modules():
        if isinstance(module, (*LAYERS, nn.MultiheadAttention, nn.RNNBase)):
            prefix = f"{name}." if name else ""
            own = {short: weight for short, weight in _weights(module).items() if weight.ndim > 1}
            found |= {prefix + short: weight for short, weight in own.items()}
    return found


def head(model: nn.Module, pruned: Iterable[str]) -> Weights:
    """Name → weight of the linear maps behind the last block and the last pruned matrix.

    For a text classifier of transformers these are its pooler, if it has one, and its classifier. A
    map that is also a look-up table (tied) is left out.
    """
    every, inside = _untied(model), {*pruned, *prunable(model)}
    last = max((number for number, name in enumerate(every) if name in inside), default=-1)
    return dict(list(every.items())[last + 1 :])


def share_before_the_head(model: nn.Module, found: Weights) -> float:
    """How much some weights are of all linear maps of a model but its head, in blocks or not."""
    behind = head(model, found)
    every = {name: w for name, w in _untied(model).items() if name not in behind}
    total = sum(weight.numel() for weight in (every | found).values())
    return sum(weight.numel() for weight in found.values()) / total


def _untied(model: nn.Module) -> Weights:
    """The linear maps of a model that are no look-up tables too."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {name: w for name, w in matrices(model).items() if id(w) not in tables}


def check_weights(base: Path, model: nn.Module, weights: Weights) -> None:
    """Check that weights are exactly the model's, by name and shape.

    Raises:
        UserError: If they are not.
    """
    expected = {name: w.shape for name, w in model.state_dict().items()}
    given = {name: w.shape for name, w in weights.items()}
    if expected != given:
        odd = sorted(n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n))
        raise UserError(f"{base}: weights of another model (first difference: {odd[0]})")


def check_used(name: str, outputs: torch.Tensor, found: Weights) -> None:
    """Check that all prunable matrices take part in a pass; to prune others would be for free.

    Experts may wait for other tokens.

    Args:
        name: The model's name, for the error.
        outputs: What a pass gave, with its graph.
        found: Name → prunable weight.

    Raises:
        UserError: If one takes no part; it names the first.
    """
    gradients = torch.autograd.grad(
        outputs.float().square().sum(), list(found.values()), allow_unused=True
    )
    idle = [
        own
        for own, gradient in zip(found, gradients, strict=True)
        if gradient is None and "expert" not in own
    ]
    if idle:
        raise UserError(
            f"model: {name}: {len(idle)} of its {len(found)} prunable matrices take no part in a "
            f"pass, first {idle[0]}; allowed: a model that uses all of its blocks"
        )


def check_finite(name: str, weights: Weights) -> None:
    """Check that weights are finite.

    Raises:
        UserError: If one is not; it names the model.
    """
    for key, weight in weights.items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise UserError(
                f"model: {name}: {key} holds NaN or infinity; allowed: weights that are finite "
                "numbers"
            )
