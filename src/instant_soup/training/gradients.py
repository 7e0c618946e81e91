"""Gradients of the training loss over some batches, and products with its Hessian."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from instant_soup.models.memory import check_free
from instant_soup.training import exchange

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights

GRADIENT = 3  # forward passes that a gradient costs
# A gradient, then a forward pass, its gradient and the derivative of both (2 · 3).
HESSIAN_PRODUCT = 9
# What a product with the Hessian holds, in graphs of the loss: 3.4 for blocks of BERT-base's width.
SECOND_GRAPH = 3.5


def mean_gradient(run: "Run", batches: int) -> "Weights":
    """The gradient of the mean loss over some batches.

    Args:
        run: The run whose network and batches are used.
        batches: How many batches.

    Returns:
        Name of a prunable weight → gradient of its shape; on the CPU.
    """
    return _mean(run, batches, lambda gradients: gradients)


def mean_squared_gradient(run: "Run", batches: int) -> "Weights":
    """The mean of the squared gradients of some batches.

    Args:
        run: The run whose network and batches are used.
        batches: How many batches.

    Returns:
        Name of a prunable weight → mean of its shape; on the CPU.
    """
    return _mean(run, batches, lambda gradients: torch._foreach_mul(gradients, gradients))


def _mean(run: "Run", batches: int, of: Callable[[Any], Any]) -> "Weights":
    with run.losses(batches, GRADIENT) as (losses, parameters):
        every = list(parameters.values())
        total = [torch.zeros_like(p) for p in every]
        for loss in losses:
            gradients = list(torch.autograd.grad(loss, every, materialize_grads=True))
            torch._foreach_add_(total, of(gradients))
        torch._foreach_div_(total, batches)
    exchange.average(total)
    return {name: g.cpu() for name, g in zip(parameters, total, strict=True)}


def _losses(run: "Run", network: Any, batch: Any, at_once: int) -> Iterator[torch.Tensor]:
    """A batch's loss, or several of parts of it, which add up to that.

    There are as many parts as it takes for a part's second derivatives to need no more than
    `at_once` bytes. UserError where even these are more than is free.
    """
    held: dict[int, int] = {}  # bytes by place

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        whole = run.loss(network, batch)
    wanted = round(SECOND_GRAPH * sum(held.values()))
    parts = run.in_parts(batch, math.ceil(wanted / at_once))
    each = wanted // len(parts)
    told = f"method: the second derivatives of a batch's loss take about {each:,} bytes"
    allowed = "smaller batches, or a method without second derivatives, as snip"
    check_free(told, each, allowed, run.device)
    if len(parts) == 1:
        yield whole
        return
    del whole
    run.count(network, batch, 1)  # the pass that only told how large the batch is
    for part, share in parts:
        yield share * run.loss(network, part)


def hessian_product(run: "Run", batches: int, vector: "Weights", at_once: int) -> "Weights":
    """Multiply the Hessian of the mean loss over some batches by a vector.

    The product is linear in the loss, so it is added up batch by batch, and over parts of a batch
    whose second-order graph is large. A run with a loss of one's own has its batches whole.

    Args:
        run: The run whose network and batches are used.
        batches: How many batches.
        vector: Name of a prunable weight → tensor of its shape.
        at_once: Bytes that second derivatives may take at a time.

    Returns:
        Name of a prunable weight → product of its shape; on the CPU.

    Raises:
        UserError: If that takes more memory than is free; before any second derivative.
    """
    with run.at_rest(batches, HESSIAN_PRODUCT) as (network, each):
        parameters = run.prunable_of(network)
        every = list(parameters.values())
        along_vector = [vector[name].to(p.device) for name, p in parameters.items()]
        total = [torch.zeros_like(p) for p in every]
        for loss in (loss for batch in each for loss in _losses(run, network, batch, at_once)):
            first = torch.autograd.grad(loss, every, create_graph=True, materialize_grads=True)
            along = sum((g * v).sum() for g, v in zip(first, along_vector, strict=True))
            second = torch.autograd.grad(along, every, materialize_grads=True)  # type: ignore[arg-type]
            torch._foreach_add_(total, list(second))
        torch._foreach_div_(total, batches)
    exchange.average(total)
    return {name: g.cpu() for name, g in zip(parameters, total, strict=True)}
