"""Global magnitude with a guard: no matrix falls below a minimum density."""

import math

import torch

from instant_soup.errors import UserError
from instant_soup.methods.probe import Probe
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask


def min_density(weights: dict[str, torch.Tensor], sparsity: float, probe: Probe) -> Mask:
    """Each matrix keeps its largest weights up to the minimum; a global ranking fills the rest.

    One global ranking can leave a matrix almost empty, and nothing passes through it any more.
    UserError when the minimum of all matrices is more than what may stay.
    """
    scores = {name: w.abs().float() for name, w in weights.items()}
    k, least = masks.keep_count(weights, sparsity), probe.settings["min_density"]
    # Rounded, as 0.07 · 100 is 7.000000000000001 in floats.
    guarded = {name: math.ceil(round(least * w.numel(), 6)) for name, w in weights.items()}
    if sum(guarded.values()) > k:
        raise UserError(
            f"criteria.min_density: {least} of every matrix is more than a sparsity of {sparsity} "
            f"leaves; allowed: less than {1 - sparsity:.3g}"
        )
    return masks.keep_largest(scores, k, priority=masks.keep_largest_each(scores, guarded))
