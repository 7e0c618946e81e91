"""Your own model: its wrappers, which weights are pruned, and whether that is possible."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from instant_soup.config.sections import ALL
from instant_soup.errors import UserError
from instant_soup.methods.base import Method
from instant_soup.methods.budgets import IN_SHARDS
from instant_soup.methods.registry import methods
from instant_soup.models import matrices
from instant_soup.sparsity import masks
from instant_soup.training import exchange
from instant_soup.training.state import Weights

Wanted = Callable[[str, torch.Tensor], bool]

# Of the weights' own types; others are quantised.
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)
LEAST_OF_ALL = 0.5  # of all linear maps before the head, that should be prunable
# Modules that adapters put into a model: peft's of all kinds, and those of `adapters`.
ADAPTERS = ("base_layer", "adapters", "loras")


def unwrapped(model: Any) -> nn.Module:
    """The model inside the wrappers of torch.compile and data parallelism.

    Raises:
        UserError: If `model` is no module.
    """
    while True:
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:  # compiled
            model = model._orig_mod
        elif isinstance(model, nn.Module):
            return model
        else:
            raise UserError(
                f"model: {type(model).__name__} is not allowed; allowed: a torch.nn.Module"
            )


def without_ddp(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, for those who average its gradients themselves."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def choose(model: nn.Module, wanted: Wanted | None = None) -> Weights:
    """Choose the weights to prune (see `prune`), each once.

    Args:
        model: The bare model.
        wanted: `wanted(name, parameter)` says whether to prune a parameter; None: by structure.

    Returns:
        Name → weight.

    Raises:
        UserError: If there is nothing to prune, or a weight cannot be pruned.
    """
    check_made(model)
    if wanted is None:
        check_adapters(model)
        found = _by_structure(model)
    else:
        found = {name: p for name, p in model.named_parameters() if wanted(name, p)}
    if not found:
        raise UserError("prunable: nothing to prune in this model; choose matrices by `prunable`")
    for name, weight in found.items():
        check_weight(name, weight)
    return found


def check_some_stay(prunable: Weights, sparsity: float) -> None:
    """Check that a sparsity leaves something.

    Raises:
        UserError: If not even one weight would stay.
    """
    if not masks.keep_count(prunable, sparsity):
        number = sum(weight.numel() for weight in prunable.values())
        raise UserError(
            f"sparsity: {sparsity} leaves none of the {number:,} prunable weights; allowed: a "
            "sparsity that leaves one or more"
        )


def _by_structure(model: nn.Module) -> Weights:
    """The matrices of the repeated blocks; in a model without blocks, all linear maps but the last.

    A matrix that several modules share (tied) comes once, by the name it has as a parameter.
    UserError where they are too small a part of the blocks.
    """
    found = matrices.prunable(model)
    try:
        matrices.check_share(model, found)
    except UserError as error:
        raise UserError(f"prunable: {error}, or a function that names what is pruned") from None
    if not found:
        every = matrices.matrices(model)
        found = {name: every[name] for name in list(every)[:-1]}
    elif (share := matrices.share_before_the_head(model, found)) < LEAST_OF_ALL:
        warnings.warn(
            f"prunable: only {share:.0%} of the weights of this model's linear maps are in what "
            f"looks like repeated blocks ({next(iter(found))}, …), and the sparsity is of these; "
            "a function that names what is pruned can choose more",
            stacklevel=2,
        )
    own = {id(p): name for name, p in model.named_parameters()}
    for name, weight in found.items():
        if id(weight) not in own:
            raise UserError(f"model: {name} {_made_by(model, name)}")
    return {own[id(weight)]: weight for weight in found.values()}


def _made_by(model: nn.Module, name: str) -> str:
    """Why a weight is no parameter of the model, and what makes it one."""
    path, _, short = name.rpartition(".")
    module = model.get_submodule(path)
    known = {name for name, _ in module.named_parameters()} | {n for n, _ in module.named_buffers()}
    if f"{short}_mask" in known:
        how, undo = "torch.nn.utils.prune", f"torch.nn.utils.prune.remove(module, {short!r})"
    elif f"{short}_g" in known:
        how, undo = "weight_norm", f"torch.nn.utils.remove_weight_norm(module, {short!r})"
    elif f"{short}_u" in known:
        how, undo = "spectral_norm", f"torch.nn.utils.remove_spectral_norm(module, {short!r})"
    else:
        how = "a parametrization"
        undo = f"torch.nn.utils.parametrize.remove_parametrizations(module, {short!r})"
    return (
        f"is computed by {how} at every forward pass, which would undo its zeros; allowed: "
        f"parameters ({undo} makes it one)"
    )


def check_adapters(model: nn.Module) -> None:
    """Refuse a model with adapters: merging them would fill the zeros.

    Raises:
        UserError: If a parameter belongs to an adapter.
    """
    for name, _ in model.named_parameters():
        if any(part in ADAPTERS or part.startswith("lora_") for part in name.split(".")):
            raise UserError(
                f"model: {name} belongs to an adapter, and merging it would fill a pruned "
                "matrix's zeros; allowed: merge first (merge_and_unload() of peft), or choose by "
                "`prunable` what is pruned while the adapter stays apart"
            )


def check_made(model: nn.Module) -> None:
    """Refuse a model without shapes, as one that has not seen an input yet, or that cannot train.

    Raises:
        UserError: If a parameter is lazy or of inference mode, or all are one vector.
    """
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise UserError(
            "model: FullyShardedDataParallel lays matrices end to end; allowed: fully_shard(model) "
            "of torch.distributed.fsdp, with a Pruner in your own loop"
        )
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise UserError(
                f"model: {name} has no shape yet (lazy); allowed: a model that has seen a batch"
            )
        if parameter.is_inference():
            raise UserError(
                f"model: {name} was made under torch.inference_mode(), so it cannot train; "
                "allowed: a model made outside of it"
            )


def check_weight(name: str, weight: torch.Tensor) -> None:
    """Refuse a weight whose numbers are missing or cannot be ordered.

    Raises:
        UserError: If it is on the meta device, of an odd type or layout, or not finite.
    """
    if weight.is_meta:
        raise UserError(f"model: {name} is on the meta device; allowed: weights that are loaded")
    if weight.dtype not in FLOATS or weight.layout != torch.strided:
        odd = weight.dtype if weight.dtype not in FLOATS else weight.layout
        raise UserError(
            f"model: {name} is of {odd}, which cannot be pruned weight by weight; allowed: dense "
            "float32, float64, bfloat16 or float16"
        )
    if not bool(exchange.own_part(weight).isfinite().all()):
        raise UserError(f"model: {name} holds NaN or infinite numbers; allowed: finite ones")


def check_whole(prunable: Weights) -> None:
    """Refuse weights of which only a part is in each process.

    Raises:
        UserError: If one is in shards.
    """
    for name, weight in prunable.items():
        if exchange.is_sharded(weight):
            raise UserError(
                f"model: only a shard of {name} is here (FSDP or tensor parallelism); allowed: "
                "whole weights in every process, as in DistributedDataParallel, or a Pruner in "
                "your own loop"
            )


def check_shards(method: Method, prunable: Weights, retrain: str) -> None:
    """Refuse weights in shards if the method looks at whole matrices.

    Raises:
        UserError: If they are, and it does.
    """
    if not any(map(exchange.is_sharded, prunable.values())):
        return
    if not method.ranks_shards():
        fit = [n for n, kind in methods().items() if kind.ranks_shards is not Method.ranks_shards]
        raise UserError(
            f"method: {method.name} with these settings looks at whole matrices or takes batches "
            f"of its own, and the model is in shards; allowed: {' | '.join(fit)}, with a budget "
            f"of {' | '.join(IN_SHARDS)} and a score that takes no batches"
        )
    if retrain != ALL:
        raise UserError(f"retrain: {retrain} of a model in shards; allowed: {ALL}")


def check_trainable(model: nn.Module) -> None:
    """Refuse a model with no parameter that trains.

    Raises:
        UserError: If all parameters are frozen, or gradients are turned off.
    """
    if not torch.is_grad_enabled():
        raise UserError(
            "model: nothing trains under torch.no_grad() or inference_mode(); allowed: a call "
            "outside of them"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(
            "model: all of its parameters are frozen; allowed: some with requires_grad=True"
        )


def check_gradients(method: Method, prunable: Weights) -> None:
    """Refuse frozen matrices if the method ranks by gradients.

    Raises:
        UserError: If a prunable weight has no gradient.
    """
    for name, weight in prunable.items() if method.ranks_by_gradients() else ():
        if not weight.requires_grad:
            raise UserError(
                f"method: {method.name} ranks by gradients, and {name} has none, as it is frozen; "
                "allowed: requires_grad=True, or a method that ranks by magnitude"
            )


def check_precision(prunable: Weights) -> None:
    """Refuse weights that are too coarse for the small steps of the loop's optimiser.

    Raises:
        UserError: If a prunable weight trains in bf16 or fp16.
    """
    for name, weight in prunable.items():
        if weight.dtype in HALF and weight.requires_grad:
            raise UserError(
                f"model: {name} trains in {weight.dtype}, in which most small steps are lost; "
                "allowed: float32 (model.float(), and autocast for speed)"
            )


@contextmanager
def in_full_width(model: nn.Module) -> Iterator[bool]:
    """Keep bf16 and fp16 tensors in fp32 within this context; yield whether there are any.

    An optimiser's step is smaller than the last bit of most numbers there, and would be lost.
    """
    tensors = [*model.parameters(), *model.buffers()]
    narrow = {id(t): (t, t.dtype) for t in tensors if t.dtype in HALF}
    for tensor, _ in narrow.values():
        tensor.grad = None
        tensor.data = tensor.data.float()
    try:
        yield bool(narrow)
    finally:
        for tensor, before in narrow.values():
            tensor.grad = None
            tensor.data = tensor.data.to(before)
