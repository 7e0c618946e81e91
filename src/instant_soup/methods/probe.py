"""What a criterion may look at beside the weights, and gradients of the training loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from instant_soup.training.loop import logits_of, loss_of

Batch = dict[str, torch.Tensor]
Weights = dict[str, torch.Tensor]


@dataclass
class Probe:
    """A seed, the settings of `criteria`, and for data-driven criteria the network and batches."""

    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    model: nn.Module | None = None
    batches: list[Batch] = field(default_factory=list)

    def prunable(self, weights: Weights) -> list[nn.Parameter]:
        """The model's own parameters of these names, in this order."""
        assert self.model is not None
        parameters = dict(self.model.named_parameters())
        return [parameters[name] for name in weights]

    @contextmanager
    def losses(self) -> Iterator[Iterator[torch.Tensor]]:
        """Yield each batch's training loss with its graph, in fp32 and without dropout.

        Attention runs unfused: torch's fused kernels have no second derivative.
        """
        model = self.model
        assert model is not None
        model.eval()
        if hasattr(model, "set_attn_implementation"):
            model.set_attn_implementation("eager")  # type: ignore[operator]
        with sdpa_kernel(SDPBackend.MATH):
            yield (loss_of(logits_of(model, batch), batch["labels"]) for batch in self.batches)


def gradient(weights: Weights, probe: Probe) -> list[torch.Tensor]:
    """The mean loss's gradient over the probe's batches, one tensor for each prunable weight."""
    parameters = probe.prunable(weights)
    total = [torch.zeros_like(p) for p in parameters]
    with probe.losses() as losses:
        for loss in losses:
            torch._foreach_add_(total, list(torch.autograd.grad(loss, parameters)))
    torch._foreach_div_(total, len(probe.batches))
    return total


def hessian_product(
    weights: Weights, probe: Probe, vector: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The mean loss's Hessian over the prunable weights, times a vector shaped like them.

    The product is linear in the loss, so it is added up batch by batch: memory for one batch's
    second-order graph is all it takes.
    """
    parameters = probe.prunable(weights)
    total = [torch.zeros_like(p) for p in parameters]
    with probe.losses() as losses:
        for loss in losses:
            first = torch.autograd.grad(loss, parameters, create_graph=True)
            along = sum((g * v).sum() for g, v in zip(first, vector, strict=True))
            torch._foreach_add_(total, list(torch.autograd.grad(along, parameters)))  # type: ignore
    torch._foreach_div_(total, len(probe.batches))
    return total
