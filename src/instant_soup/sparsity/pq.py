"""The PQ index: how unequal weights are, and how many of them are free by it.

Diao et al. 2023, arXiv 2302.05601. For d weights I = 1 − d^(1/q − 1/p) ‖w‖ₚ / ‖w‖_q: 0 if all have
one magnitude, near 1 if one has all of it. At least d (1 + η)^(−q/(q − p)) (1 − I)^(pq/(q − p)) of
them must stay. Here p = ½, q = 1 and η = 0. Then that number is (Σ √|w|)² / Σ |w|, to which zeros
add nothing, and I itself is the share that is free.
"""

import math
from collections.abc import Iterable

import torch

Spread = tuple[float, float]


def spread(weights: torch.Tensor) -> Spread:
    """Σ √|w| and Σ |w| of some weights."""
    sizes = weights.abs().double()
    return float(sizes.sqrt().sum()), float(sizes.sum())


def pq(spreads: Iterable[Spread], weights: int) -> dict[str, float | None]:
    """The PQ index of some matrices together, and how many weights must stay by it.

    Args:
        spreads: The `spread` of each matrix.
        weights: d, the number of weights in all.

    Returns:
        `pq_index` and `pq_least`; None if all weights are zero, or one is not finite.
    """
    roots, sizes = (sum(parts) for parts in zip(*spreads, strict=True))
    if not 0 < sizes < math.inf:
        return {"pq_index": None, "pq_least": None}
    least = roots**2 / sizes
    return {"pq_index": 1 - least / weights, "pq_least": least}


def free_share(weights: dict[str, torch.Tensor]) -> float | None:
    """The share of the weights of some matrices together that is free by their PQ index."""
    return pq(map(spread, weights.values()), sum(w.numel() for w in weights.values()))["pq_index"]
