"""Pruning criteria: which weights of a network to keep, found without training it.

Each is a function `criterion(weights, sparsity, probe) -> Mask` in a file of its own: `weights` are
the prunable weights (name → tensor), `sparsity` is a fraction, `probe` is whatever else it may look
at: a seed, settings, and for those in PASSES the network and some batches. It prunes exactly
round(S · total) weights. To add one, write such a file and name it below and in `tasks.BASELINES`
(docs/method.md, "Adding a criterion").
"""

from collections.abc import Callable

import torch

from instant_soup.methods.erdos_renyi import erdos_renyi
from instant_soup.methods.fisher import fisher, fisher_scores
from instant_soup.methods.grasp import grasp
from instant_soup.methods.layerwise import layerwise
from instant_soup.methods.min_density import min_density
from instant_soup.methods.n_of_m import n_of_m
from instant_soup.methods.one_shot import magnitude, one_shot
from instant_soup.methods.probe import Probe
from instant_soup.methods.random import random
from instant_soup.methods.snip import snip
from instant_soup.sparsity.masks import Mask

Criterion = Callable[[dict[str, torch.Tensor], float, Probe], Mask]

CRITERIA: dict[str, Criterion] = {
    "random": random,
    "erdos_renyi": erdos_renyi,
    "one_shot": one_shot,
    "layerwise": layerwise,
    "min_density": min_density,
    "n_of_m": n_of_m,
    "snip": snip,
    "grasp": grasp,
}
# Those that look at batches, and what a batch costs them, in forward passes. A gradient is three.
# GraSP takes the gradient, then a forward pass, its gradient and the derivative of both (2 · 3).
PASSES = {"snip": 3, "grasp": 3 + 9}

__all__ = ["CRITERIA", "PASSES", "Criterion", "Probe", "fisher", "fisher_scores", "magnitude"]
