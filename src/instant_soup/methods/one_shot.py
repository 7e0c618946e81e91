"""One-shot magnitude: the largest weights stay (paper, section 8)."""

import torch

from instant_soup.methods.probe import Probe
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask


def magnitude(weights: dict[str, torch.Tensor], sparsity: float) -> Mask:
    """Global unstructured magnitude pruning: the largest |w| of all weights together stay."""
    scores = {name: w.abs().float() for name, w in weights.items()}
    return masks.keep_largest(scores, masks.keep_count(weights, sparsity))


def one_shot(weights: dict[str, torch.Tensor], sparsity: float, probe: Probe) -> Mask:
    """The magnitude mask of the pre-trained weights: no seed, no data."""
    return magnitude(weights, sparsity)
