"""SNIP (Lee et al. 2019): connection sensitivity |g ⊙ θ| of the training loss before training."""

import torch

from instant_soup.methods.probe import Probe, gradient
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask


def snip(weights: dict[str, torch.Tensor], sparsity: float, probe: Probe) -> Mask:
    """The weights whose removal changes the loss of some batches most, to first order, stay."""
    gradients = gradient(weights, probe)
    scores = {
        name: (g.cpu() * w).abs().float()
        for (name, w), g in zip(weights.items(), gradients, strict=True)
    }
    return masks.keep_largest(scores, masks.keep_count(weights, sparsity))
