"""Gradients of the training loss over some batches, and products with its Hessian."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from instant_soup.errors import UserError
from instant_soup.training import exchange
from instant_soup.training.cost import free_memory

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


def _that_fit(losses: Iterator[torch.Tensor], where: torch.device) -> Iterator[torch.Tensor]:
    """Losses; UserError where a product with the first one's Hessian takes more than is free."""
    held: dict[int, int] = {}  # bytes by place

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        first = next(losses)
    wanted, free = round(SECOND_GRAPH * sum(held.values())), free_memory(where)
    if wanted > free:
        raise UserError(
            f"method: the second derivatives of a batch's loss take about {wanted:,} bytes, more "
            f"than the {free:,} that are free on the {where}; allowed: smaller batches, or a "
            "method without second derivatives, as snip"
        )
    yield first
    yield from losses


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

    Raises:
        UserError: If that takes more memory than is free; before any second derivative.
    """
    with run.losses(batches, HESSIAN_PRODUCT) as (losses, parameters):
        every = list(parameters.values())
        along_vector = [vector[name].to(p.device) for name, p in parameters.items()]
        total = [torch.zeros_like(p) for p in every]
        for loss in _that_fit(losses, run.device):
            first = torch.autograd.grad(loss, every, create_graph=True, materialize_grads=True)
            along = sum((g * v).sum() for g, v in zip(first, along_vector, strict=True))
            second = torch.autograd.grad(along, every, materialize_grads=True)  # type: ignore[arg-type]
            torch._foreach_add_(total, list(second))
        torch._foreach_div_(total, batches)
    exchange.average(total)
    return {name: g.cpu() for name, g in zip(parameters, total, strict=True)}
