"""GraSP (Wang et al. 2020): keep the weights that the gradient's flow needs most."""

import torch

from instant_soup.methods.probe import Probe, gradient, hessian_product
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask


def grasp(weights: dict[str, torch.Tensor], sparsity: float, probe: Probe) -> Mask:
    """Score −θ ⊙ Hg, the change of the squared gradient norm on removal; the lowest stay.

    H is the loss's Hessian over the prunable weights, g its gradient, both means over some
    batches of the pre-trained network.
    """
    product = hessian_product(weights, probe, gradient(weights, probe))
    scores = {
        name: (w * hg.cpu()).float()  # minus the score: the largest stay
        for (name, w), hg in zip(weights.items(), product, strict=True)
    }
    return masks.keep_largest(scores, masks.keep_count(weights, sparsity))
