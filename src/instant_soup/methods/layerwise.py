"""Uniform magnitude: every matrix is pruned to the same sparsity by its own magnitudes."""

import torch

from instant_soup.methods.probe import Probe
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask


def layerwise(weights: dict[str, torch.Tensor], sparsity: float, probe: Probe) -> Mask:
    """The largest |w| of each matrix stay; all matrices have the same density, up to a weight."""
    kept = masks.share_out(
        {name: (1 - sparsity) * w.numel() for name, w in weights.items()},
        masks.keep_count(weights, sparsity),
    )
    return masks.keep_largest_each({n: w.abs().float() for n, w in weights.items()}, kept)
