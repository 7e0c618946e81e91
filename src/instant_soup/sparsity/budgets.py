"""How many weights each matrix keeps, where one global ranking is not to decide it.

A budget has a number of weights for each matrix. They add up to what a sparsity leaves. Within its
budget a matrix keeps its largest scores. LAMP works differently: it changes the scores, so that one
global ranking gives each matrix its share.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch

from instant_soup.sparsity import masks
from instant_soup.sparsity.names import layer_of
from instant_soup.sparsity.ranking import WHOLE, Shards

Weights = dict[str, torch.Tensor]

UNITS = 10_000  # that all kept weights are counted in, where distortions are weighed


def lamp(energies: Weights, shards: Shards = WHOLE) -> Weights:
    """Divide each energy by the sum of the energies of its matrix that are no smaller (LAMP).

    Lee et al. 2021. The largest entry of a matrix gets 1, so every matrix keeps something.

    Args:
        energies: Name → squared magnitudes, or other scores from zero up. Of equal ones the first
            counts as smaller.
        shards: Which part of each matrix these are. One matrix at a time is put together.

    Returns:
        Name → scores of the same shape, in fp64.
    """
    found = {}
    for name, energy in energies.items():
        parts = shards.gather(energy.double().flatten())
        flat, lengths = torch.cat(parts), [len(part) for part in parts]
        order = flat.argsort(stable=True)
        rising = flat[order]
        no_smaller = rising.flip(0).cumsum(0).flip(0)
        shares = torch.empty_like(flat)
        # A zero among zeros has no share. (NaN stays what it is, and is refused by whoever ranks.)
        shares[order] = (rising / no_smaller).where(rising != 0, 0.0)
        found[name] = shares.split(lengths)[shards.number].view(energy.shape)
    return found


def in_proportion(parts: Mapping[str, float], most: Mapping[str, float], total: float) -> dict:
    """Share out a total in proportion to some parts, none above its limit.

    What would go beyond a limit goes to the others. If all parts are zero, the limits are the
    parts.

    Args:
        parts: Name → part, at least zero.
        most: Name → limit.
        total: What is shared out, at most the sum of the limits.

    Returns:
        Name → share, not rounded.
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
    """Round shares to whole numbers that add up to a total, none above its limit.

    Args:
        wanted: Name → share, not rounded.
        most: Name → limit.
        total: What the numbers add up to.

    Returns:
        Name → whole number.
    """
    near = {name: min(max(value, 0.0), most[name]) for name, value in wanted.items()}
    if abs(sum(near.values()) - total) >= 1:
        near = in_proportion(near, most, total)
    return masks.share_out(near, total, most)


def of_layers(names: Mapping[str, float]) -> dict[str, float]:
    """Add up the numbers of matrices by layer."""
    found: dict[str, float] = {}
    for name, value in names.items():
        found[layer_of(name)] = found.get(layer_of(name), 0.0) + value
    return found


def by_importance(
    importances: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, margin: float = 0.1
) -> dict[str, float]:
    """How many weights each part keeps by ECoFLaP: a few for all, the rest by importance.

    Sung et al. 2024, arXiv 2310.02998.

    Args:
        importances: Name → importance, at least zero.
        sizes: Name → number of weights.
        sparsity: Share of all weights to prune.
        margin: Each part keeps at least the share that would stay at `sparsity + margin`.

    Returns:
        Name → number of weights, not rounded.
    """
    least = max(0.0, 1 - sparsity - margin)
    few = {name: least * size for name, size in sizes.items()}
    room = {name: size - few[name] for name, size in sizes.items()}
    rest = (1 - sparsity) * sum(sizes.values()) - sum(few.values())
    more = in_proportion(importances, room, rest)
    return {name: few[name] + more[name] for name in sizes}


def outlier_share(scores: list[torch.Tensor], times: float) -> float:
    """The share of the scores that are above `times` their mean."""
    every = torch.cat([s.flatten() for s in scores]).double()
    if not len(every):
        return 0.0
    return float((every > times * every.mean()).double().mean())


def by_outliers(
    shares: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, spread: float
) -> dict[str, float]:
    """The density of each layer by OWL: more outliers, more weights.

    Yin et al. 2024, arXiv 2310.05175. The mean density, over all weights, is 1 − sparsity. (The
    paper takes the mean over layers, which all have the same size there.)

    Args:
        shares: Layer → share of outliers.
        sizes: Layer → number of weights.
        sparsity: Share of all weights to prune.
        spread: The layer with most outliers gets 2 · `spread` more density than that with fewest.

    Returns:
        Layer → density.
    """
    low, high = min(shares.values()), max(shares.values())
    width = (high - low) or 1.0
    raised = {name: 2 * spread * (share - low) / width for name, share in shares.items()}
    mean = sum(raised[name] * sizes[name] for name in raised) / sum(sizes.values())
    return {name: value - mean + 1 - sparsity for name, value in raised.items()}


def least_distortion(
    kept: Mapping[str, list[int]], distortions: Mapping[str, list[float]], total: int
) -> dict[str, int]:
    """Choose the numbers of weights whose distortions add up to least.

    Dynamic programming over all weights, in at most `UNITS` units (Xu et al. 2023).

    Args:
        kept: Name → numbers of weights to choose from; none is always possible.
        distortions: Name → distortion at each of these numbers.
        total: The most weights that may stay in all.

    Returns:
        Name → number of weights.
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
