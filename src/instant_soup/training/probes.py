"""What a matrix is worth to the network, measured by forward passes without gradients."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from instant_soup.errors import UserError
from instant_soup.seeds import generator
from instant_soup.sparsity import masks
from instant_soup.training import exchange

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights

STEP = 1e-3  # that weights are moved by


def slopes(run: "Run", batches: int) -> dict[str, float]:
    """How steep the loss is in each matrix: |L(θ + εz) − L(θ − εz)| / 2ε, z normal in it alone.

    This is the mean over some batches. Each has a z of its own, sampled by the run's seed and step
    (Sung et al. 2024, arXiv 2310.02998). It takes two forward passes for each matrix and batch.

    Args:
        run: The run whose network and batches are used.
        batches: How many batches.

    Returns:
        Name of a prunable matrix → slope.
    """
    draws = generator(run.seed, run.state.step)
    found = dict.fromkeys(run.mask, 0.0)
    with run.at_rest(batches, 2 * len(found)) as (network, each), torch.no_grad():
        named = dict(network.named_parameters())
        for batch in each:
            for name in found:
                parameter = named[name]
                before = parameter.clone()
                # What is pruned already does not move.
                z = torch.randn(before.shape, generator=draws) * run.mask[name].cpu()
                sides = []
                for step in (STEP, -STEP):
                    parameter.copy_(before + step * z.to(before))
                    sides.append(float(run.loss(network, batch)))
                parameter.copy_(before)
                found[name] += _finite(abs(sides[0] - sides[1]) / (2 * STEP) / batches)
    return {name: exchange.mean(slope) for name, slope in found.items()}


def distortions(
    run: "Run", scores: "Weights", kept: Mapping[str, list[int]], batches: int
) -> dict[str, list[float]]:
    """What pruning each matrix alone does to the network's output (Xu et al. 2023).

    It takes one forward pass for each matrix, number and batch, except for numbers that keep all,
    and one more for each batch.

    Args:
        run: The run whose network and batches are used.
        scores: Name → scores, shaped like the weight.
        kept: Name → numbers of weights; so many of the largest scores stay.
        batches: How many batches.

    Returns:
        Name → mean squared change of the output, for each of these numbers.
    """
    held = masks.count_each(run.mask)
    passes = 1 + sum(number < held[name] for name, numbers in kept.items() for number in numbers)
    found: dict[str, list[float]] = {}
    with run.at_rest(batches, passes) as (network, each), torch.no_grad():
        named = dict(network.named_parameters())
        given, outputs = [], []
        for batch in each:  # its passes are counted by its own FLOPs, those of the last loss
            given.append(batch)
            outputs.append(output_of(run, network, batch))
        for name, numbers in kept.items():
            parameter = named[name]
            before = parameter.clone()
            found[name] = []
            for number in numbers:
                change = 0.0
                if number < held[name]:
                    mask = masks.keep_largest_each({name: scores[name]}, {name: number})[name]
                    parameter.copy_(before * mask.to(before.device))
                    for batch, output in zip(given, outputs, strict=True):
                        moved = output_of(run, network, batch) - output
                        change += float(moved.double().square().mean()) / len(given)
                found[name].append(_finite(change))
            parameter.copy_(before)
    return {name: [exchange.mean(one) for one in changes] for name, changes in found.items()}


def output_of(run: "Run", network: nn.Module, batch: Any) -> torch.Tensor:
    """What the network returns for a batch, in fp32, as one row.

    From a transformer's outputs the logits are taken; from others all floats except scalars, such
    as a loss.

    Raises:
        UserError: If the loss does not call the network.
    """
    seen: list[Any] = []
    hook = network.register_forward_hook(lambda module, given, output: seen.append(output))
    try:
        run.loss(network, batch)
    finally:
        hook.remove()
    tensors = [t for output in seen for t in _floats(getattr(output, "logits", output))]
    if not tensors:
        raise UserError(
            "budget: rate_distortion compares what the model returns, and the loss does not call "
            "the model itself; allowed: another budget"
        )
    return torch.cat([t.float().flatten() for t in tensors])


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise UserError(
            "budget: the loss or the output of the network is not finite: try a smaller learning "
            "rate"
        )
    return number


def _floats(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() and output.ndim else []
    parts = output.values() if isinstance(output, Mapping) else output
    return [t for part in parts for t in _floats(part)] if isinstance(parts, Iterable) else []
