"""What differences between rows are worth: intervals, tests and ranks over tasks and seeds.

Differences come paired: two rows on the same task with the same seed. The distributions are
scipy's; tests compare with statsmodels and scikit-posthocs.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

SIGNIFICANT = 0.05  # of a p-value, corrected for the number of comparisons
RESAMPLES = 2000
COVERAGE = 95.0  # of intervals, in percent


def without_gaps(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows and columns make the largest part of a table without NaN (two bool arrays).

    Of equally large parts the one with more rows.
    """
    known = ~np.isnan(table)
    shared = np.empty((0, len(table)), dtype=bool)  # the rows that some columns have in common
    for rows in np.unique(known, axis=1).T:
        shared = np.unique([*shared, *(shared & rows), rows], axis=0)
    parts = [(rows, known[rows].all(axis=0)) for rows in shared if rows.any()]
    nothing = np.zeros(len(table), dtype=bool), np.zeros(table.shape[1], dtype=bool)
    return max(
        parts, key=lambda part: (part[0].sum() * part[1].sum(), part[0].sum()), default=nothing
    )


def bootstrap_interval(differences: Sequence[np.ndarray]) -> tuple[float, float]:
    """Ends of the bootstrap interval of a mean of task means: resamples tasks, then their seeds.

    `differences`: an array over seeds for each task, in a fixed order. Percentiles of RESAMPLES
    hierarchical resamples (Davison & Hinkley 1997, §3.8), the same for the same numbers. NaN for
    a single run, which has no spread.
    """
    if sum(map(len, differences)) < 2:
        return np.nan, np.nan
    random = np.random.default_rng(0)
    seeds = np.array([len(own) for own in differences])
    padded = np.zeros((len(differences), seeds.max()))
    for task, own in enumerate(differences):
        padded[task, : len(own)] = own
    tasks = random.integers(len(differences), size=(RESAMPLES, len(differences)))
    drawn = random.random((*tasks.shape, seeds.max()))
    drawn = (drawn * seeds[tasks][..., None]).astype(int)  # which of the task's seeds
    counted = np.arange(seeds.max()) < seeds[tasks][..., None]  # as many as the task has
    values = np.where(counted, padded[tasks[..., None], drawn], 0.0)
    means = (values.sum(axis=-1) / seeds[tasks]).mean(axis=-1)
    low, high = np.percentile(means, [50 - COVERAGE / 2, 50 + COVERAGE / 2])
    return float(low), float(high)


def paired_p(differences: Sequence[np.ndarray]) -> float:
    """p of a two-sided test that a mean of task means is zero, on these tasks, over seeds.

    Each task has a spread of its own, so it is Welch's t-test: with one task the paired t-test,
    with two that of one task's differences against the other's negated. NaN where there is nothing
    to test: a task with a single run, or a difference without any spread. 1 for none at all.
    """
    if min(map(len, differences)) < 2:
        return np.nan
    mean = np.mean([own.mean() for own in differences])
    variances = np.array([own.var(ddof=1) / len(own) for own in differences])
    if variances.sum() < 1e-18:
        return 1.0 if abs(mean) < 1e-9 else np.nan
    freedom = variances.sum() ** 2 / sum(
        v**2 / (len(own) - 1) for v, own in zip(variances, differences, strict=True)
    )
    t = mean / (np.sqrt(variances.sum()) / len(differences))
    return float(2 * stats.t.sf(abs(t), freedom))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values corrected for their number by Holm's step-down procedure (1979).

    As `multipletests` of statsmodels, which collects garbage for a fifth of a second at each call.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected


def mean_ranks(scores: pd.DataFrame) -> pd.Series:
    """Mean rank of each column of `scores` (higher is better) over its lines; ties share ranks."""
    return scores.round(9).rank(axis=1, ascending=False).mean()


def friedman_p(scores: pd.DataFrame) -> float:
    """p of Friedman's test that all columns rank alike; NaN for under three columns or lines."""
    if min(scores.shape) < 3:
        return np.nan
    return float(stats.friedmanchisquare(*scores.round(9).to_numpy().T).pvalue)


def nemenyi(scores: pd.DataFrame, column: str) -> pd.Series:
    """p of each column against `column` by Nemenyi's test of mean ranks (Demšar 2006)."""
    lines, count = scores.shape
    apart = (mean_ranks(scores) - mean_ranks(scores)[column]).abs()
    q = apart / np.sqrt(count * (count + 1) / (12 * lines))
    return pd.Series(stats.studentized_range.sf(q, count, np.inf), scores.columns)


def critical_difference(scores: pd.DataFrame) -> float:
    """The smallest difference of mean ranks that Nemenyi's test calls SIGNIFICANT."""
    lines, count = scores.shape
    q = stats.studentized_range.isf(SIGNIFICANT, count, np.inf)
    return float(q * np.sqrt(count * (count + 1) / (12 * lines)))
