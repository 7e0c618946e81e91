"""Pruning criteria: which weights of a network to keep.

Each takes `weights` (prunable weight name → tensor), the target sparsity as a fraction and a
seed, and returns a mask with exactly round(S · total) weights pruned. To add a baseline, write
such a function and name it in `CRITERIA` (and in `tasks.BASELINES`, which the plan checks).
"""

from collections.abc import Callable

import torch

from instant_soup import masks
from instant_soup.masks import Mask


def keep_count(weights: dict[str, torch.Tensor], sparsity: float) -> int:
    """Number of weights that stay at a sparsity."""
    return masks.number_kept(sum(w.numel() for w in weights.values()), sparsity)


def magnitude(weights: dict[str, torch.Tensor], sparsity: float, seed: int = 0) -> Mask:
    """Global unstructured magnitude pruning: the largest |w| of all prunable weights stay.

    On the pre-trained weights this is the one-shot baseline (paper, section 4); the seed plays
    no part.
    """
    scores = {name: w.abs().float() for name, w in weights.items()}
    return masks.keep_largest(scores, keep_count(weights, sparsity))


def random(weights: dict[str, torch.Tensor], sparsity: float, seed: int) -> Mask:
    """A uniformly random mask over all prunable weights (paper, section 4)."""
    generator = torch.Generator().manual_seed(seed)
    # Doubles: floats of 24 bits would tie often among millions of weights.
    scores = {
        name: torch.rand(w.shape, dtype=torch.float64, generator=generator)
        for name, w in weights.items()
    }
    return masks.keep_largest(scores, keep_count(weights, sparsity))


CRITERIA: dict[str, Callable[[dict[str, torch.Tensor], float, int], Mask]] = {
    "one_shot": magnitude,
    "random": random,
}
