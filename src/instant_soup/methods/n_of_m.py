"""N:M magnitude: N non-zero weights in every M consecutive ones of a row."""

import torch

from instant_soup.errors import UserError
from instant_soup.methods.probe import Probe
from instant_soup.methods.rounds import pattern
from instant_soup.sparsity.masks import Mask


def n_of_m(weights: dict[str, torch.Tensor], sparsity: float, probe: Probe) -> Mask:
    """The N largest |w| of each group of M consecutive inputs stay: N non-zero of every M.

    M is a setting; N = (1 − S) · M. (2:4 is what GPUs multiply faster.) Of equal magnitudes the
    first stays. UserError when N is no whole number, or a row no multiple of M.
    """
    m = probe.settings["m"]
    n = pattern(sparsity, m)
    mask = {}
    for name, weight in weights.items():
        if weight.shape[-1] % m:
            raise UserError(f"criteria.m: {m} does not divide the {weight.shape[-1]} of {name}")
        groups = weight.abs().float().view(-1, m)
        # Ranks within a group, stable: of equals the first is larger.
        ranks = groups.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        mask[name] = (ranks < n).view(weight.shape)
    return mask
