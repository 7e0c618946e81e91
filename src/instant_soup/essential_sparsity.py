"""Essential sparsity (paper, section 9): how much one-shot pruning a task forgives.

A *curve* is a metric over sparsities, dense included, each value a mean over seeds.
"""

import numpy as np

TOLERANCE = 0.01  # ε: what a result may lie below dense


def knee(sparsities: list[float], values: list[float], dense: float, tolerance: float) -> float:
    """The sparsity up to which the curve stays within `tolerance` of `dense`.

    `sparsities` rise. The curve is followed from 0 to its first fall below dense − tolerance, and
    that crossing is interpolated linearly; 0 if no sparsity is within, the largest if all are.
    """
    floor = dense - tolerance
    before, height = 0.0, dense
    for sparsity, value in zip(sparsities, values, strict=True):
        if value < floor:
            return before + (sparsity - before) * (height - floor) / (height - value)
        before, height = sparsity, value
    return before


def knee_over_seeds(
    sparsities: list[float],
    values: np.ndarray,
    dense: np.ndarray,
    tolerance: float = TOLERANCE,
    resamples: int = 2000,
) -> tuple[float, float, float]:
    """The knee of the mean curve, and the ends of its 90 % interval by resampling seeds.

    `values` is (seeds × sparsities), `dense` (seeds); a resampled curve takes both of the same
    seeds. With one seed there is no interval: NaN.
    """
    middle = knee(sparsities, list(values.mean(0)), float(dense.mean()), tolerance)
    if len(values) < 2:
        return middle, np.nan, np.nan
    draws = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    found = [
        knee(sparsities, list(values[own].mean(0)), float(dense[own].mean()), tolerance)
        for own in draws
    ]
    low, high = np.quantile(found, [0.05, 0.95])
    return middle, float(low), float(high)
