"""Random with Erdős–Rényi-kernel densities (Mocanu et al. 2018; Evci et al. 2020)."""

import torch

from instant_soup.methods.probe import Probe
from instant_soup.methods.random import random_scores
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask


def densities(weights: dict[str, torch.Tensor], sparsity: float) -> dict[str, float]:
    """Density of each matrix: proportional to (inputs + outputs) / (inputs · outputs), at most 1.

    Small matrices are denser. Where the common factor would take one above 1 it stays dense, and
    the factor is solved again for the rest.
    """
    raw = {name: sum(w.shape) / w.numel() for name, w in weights.items()}
    budget = masks.keep_count(weights, sparsity)
    dense: set[str] = set()
    while True:
        room = budget - sum(weights[name].numel() for name in dense)
        wanted = sum(raw[n] * w.numel() for n, w in weights.items() if n not in dense)
        factor = room / wanted if wanted else 0.0
        over = {name for name in raw if name not in dense and factor * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in dense else factor * raw[name] for name in raw}
        dense |= over


def erdos_renyi(weights: dict[str, torch.Tensor], sparsity: float, probe: Probe) -> Mask:
    """A random mask whose matrices have the densities above; drawn from the probe's seed."""
    wanted = densities(weights, sparsity)
    kept = masks.share_out(
        {name: wanted[name] * w.numel() for name, w in weights.items()},
        masks.keep_count(weights, sparsity),
    )
    return masks.keep_largest_each(random_scores(weights, probe.seed), kept)
