"""Random: a uniformly random mask over all prunable weights (paper, section 8)."""

import torch

from instant_soup.methods.probe import Probe
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask


def random_scores(weights: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """A uniform random number for each weight; doubles, as floats of 24 bits would tie often."""
    draws = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(w.shape, dtype=torch.float64, generator=draws)
        for name, w in weights.items()
    }


def random(weights: dict[str, torch.Tensor], sparsity: float, probe: Probe) -> Mask:
    """Every mask of this sparsity is as likely as any other; drawn from the probe's seed."""
    scores = random_scores(weights, probe.seed)
    return masks.keep_largest(scores, masks.keep_count(weights, sparsity))
