"""Gradients of the training loss over some batches, and products with its Hessian."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from instant_soup.training import exchange

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights

GRADIENT = 3  # forward passes that a gradient costs
# A gradient, then a forward pass, its gradient and the derivative of both (2 · 3).
HESSIAN_PRODUCT = 9


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


def hessian_product(run: "Run", batches: int, vector: "Weights") -> "Weights":
    """Multiply the Hessian of the mean loss over some batches by a vector.

    The product is linear in the loss, so it is added up batch by batch. It takes the memory of one
    batch's second-order graph.

    Args:
        run: The run whose network and batches are used.
        batches: How many batches.
        vector: Name of a prunable weight → tensor of its shape.

    Returns:
        Name of a prunable weight → product of its shape; on the CPU.
    """
    with run.losses(batches, HESSIAN_PRODUCT) as (losses, parameters):
        every = list(parameters.values())
        along_vector = [vector[name].to(p.device) for name, p in parameters.items()]
        total = [torch.zeros_like(p) for p in every]
        for loss in losses:
            first = torch.autograd.grad(loss, every, create_graph=True, materialize_grads=True)
            along = sum((g * v).sum() for g, v in zip(first, along_vector, strict=True))
            second = torch.autograd.grad(along, every, materialize_grads=True)  # type: ignore[arg-type]
            torch._foreach_add_(total, list(second))
        torch._foreach_div_(total, batches)
    exchange.average(total)
    return {name: g.cpu() for name, g in zip(parameters, total, strict=True)}
