"""How many weights each matrix may keep, where one global ranking shall not decide it.

A budget is a number of weights by matrix; those of all matrices add up to what a sparsity leaves.
Within its budget a matrix keeps what its scores say. LAMP is the exception: it changes the scores
themselves so that one global ranking gives each matrix its share.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch

from instant_soup.sparsity.names import layer_of

Weights = dict[str, torch.Tensor]

UNITS = 10_000  # that all kept weights are counted in, where distortions are weighed


def lamp(energies: Weights) -> Weights:
    """Each entry's share of what is no smaller than it in its matrix (Lee et al. 2021); doubles.

    `energies` are squared magnitudes, or other scores from zero up. The largest entry of a matrix
    has 1, so every matrix keeps something. Of equal ones the first counts as smaller.
    """
    found = {}
    for name, energy in energies.items():
        flat = energy.double().flatten()
        order = flat.argsort(stable=True)
        rising = flat[order]
        no_smaller = rising.flip(0).cumsum(0).flip(0)
        shares = torch.empty_like(flat)
        # A zero among zeros has no share. (NaN stays what it is, and is refused by whoever ranks.)
        shares[order] = (rising / no_smaller).where(rising != 0, 0.0)
        found[name] = shares.view(energy.shape)
    return found


def in_proportion(parts: Mapping[str, float], most: Mapping[str, float], total: float) -> dict:
    """`total` shared out in proportion to some parts, none above its most.

    What would go beyond a most goes to the others. Where all parts are zero, what may be taken at
    most counts instead. `total` is at most the sum of `most`.
    """
    found: dict[str, float] = {}
    while len(found) < len(parts):
        left = [name for name in parts if name not in found]
        room = max(0.0, total - sum(found.values()))
        own = {name: parts[name] for name in left}
        if not sum(own.values()) > 0:
            own = {name: most[name] for name in left}
        whole = sum(own.values()) or 1.0
        # The share first: room by a tiny whole would be infinite.
        near = {name: room * (own[name] / whole) for name in left}
        over = [name for name in left if near[name] > most[name]]
        if not over:
            return found | near
        found |= {name: float(most[name]) for name in over}
    return found


def allot(wanted: Mapping[str, float], most: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers that add up to exactly `total`, near what is wanted, none above its most."""
    near = {name: min(max(value, 0.0), most[name]) for name, value in wanted.items()}
    if abs(sum(near.values()) - total) >= 1:
        near = in_proportion(near, most, total)
    found = {name: math.floor(value) for name, value in near.items()}
    # The largest fractions go up, as in `masks.share_out`.
    order = sorted(near, key=lambda name: (found[name] >= most[name], found[name] - near[name]))
    for name in order[: total - sum(found.values())]:
        found[name] += 1
    return found


def of_layers(names: Mapping[str, float]) -> dict[str, float]:
    """A number by matrix, added up by layer."""
    found: dict[str, float] = {}
    for name, value in names.items():
        found[layer_of(name)] = found.get(layer_of(name), 0.0) + value
    return found


def by_importance(
    importances: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, margin: float = 0.1
) -> dict[str, float]:
    """Weights that each part keeps: few for all, the rest in proportion to importance (ECoFLaP).

    All keep the share that would stay at a sparsity `margin` above; none more than all (Sung et
    al. 2024, arXiv 2310.02998).
    """
    least = max(0.0, 1 - sparsity - margin)
    few = {name: least * size for name, size in sizes.items()}
    room = {name: size - few[name] for name, size in sizes.items()}
    rest = (1 - sparsity) * sum(sizes.values()) - sum(few.values())
    more = in_proportion(importances, room, rest)
    return {name: few[name] + more[name] for name in sizes}


def outlier_share(scores: list[torch.Tensor], times: float) -> float:
    """The share of scores that are above so many times their mean."""
    every = torch.cat([s.flatten() for s in scores]).double()
    if not len(every):
        return 0.0
    return float((every > times * every.mean()).double().mean())


def by_outliers(
    shares: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, spread: float
) -> dict[str, float]:
    """The density of each layer: higher by up to 2 · `spread` where there are more outliers (OWL).

    Their mean over all weights is 1 − sparsity: in the paper over layers, which are of one size
    there (Yin et al. 2024, arXiv 2310.05175).
    """
    low, high = min(shares.values()), max(shares.values())
    width = (high - low) or 1.0
    raised = {name: 2 * spread * (share - low) / width for name, share in shares.items()}
    mean = sum(raised[name] * sizes[name] for name in raised) / sum(sizes.values())
    return {name: value - mean + 1 - sparsity for name, value in raised.items()}


def least_distortion(
    kept: Mapping[str, list[int]], distortions: Mapping[str, list[float]], total: int
) -> dict[str, int]:
    """Of some numbers of weights by matrix those whose distortions add up to least, in `total`.

    `distortions[name][a]` is what keeping kept[name][a] of it costs; each matrix may keep none. By
    dynamic programming over all weights, in `UNITS` units at most (Xu et al. 2023). The sum is at
    most `total`.
    """
    unit = max(1, math.ceil(total / UNITS))
    capacity = total // unit
    best, chosen = np.zeros(capacity + 1), []
    for name, numbers in kept.items():
        options = np.full((len(numbers), capacity + 1), np.inf)
        for a, number in enumerate(numbers):
            units = math.ceil(number / unit)
            if units <= capacity:
                options[a, units:] = best[: capacity + 1 - units] + distortions[name][a]
        chosen.append(options.argmin(0))
        best = options.min(0)
    found, left = {}, capacity
    for name, choice in reversed(list(zip(kept, chosen, strict=True))):
        found[name] = kept[name][choice[left]]
        left -= math.ceil(found[name] / unit)
    return {name: found[name] for name in kept}
