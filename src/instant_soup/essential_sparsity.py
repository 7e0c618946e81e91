"""Essential sparsity (paper, section 9): how much one-shot pruning a task forgives.

A *curve* is a metric over sparsities, dense included, each value a mean over seeds.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from instant_soup.layout import MISSING, Cell, Chapter, Table, markdown
from instant_soup.ledger import SECTION
from instant_soup.tables import heading, scale, unit, write_texts

TOLERANCE = 0.01  # ε: what a result may lie below dense
LEAST = 5  # sparsities that a curve needs

TEXT = (
    "How much one-shot magnitude pruning of the pre-trained weights a task forgives: the sparsity "
    "up to which the mean over seeds stays within one point (ε = 0.01) of dense, interpolated "
    "between the measured sparsities. The interval is by resampling seeds; of few seeds it is "
    "narrow by chance as often as wide. grids/essential.yaml measures the curves."
)


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


def curves_of(ledger: pd.DataFrame) -> dict[tuple, tuple[list[float], np.ndarray, np.ndarray]]:
    """Section → sparsities, one-shot's values (seeds × sparsities) and dense's (seeds).

    Only sections with at least LEAST sparsities; only seeds that have all of them.
    """
    found = {}
    for section, runs in ledger[ledger["variant"] == ""].groupby(SECTION):
        one_shot = runs[runs["method"] == "one_shot"]
        wide = one_shot.pivot(index="seed", columns="target_sparsity", values="value")
        dense = runs[runs["method"] == "dense"].set_index("seed")["value"]
        whole = wide.dropna().index.intersection(dense.index)
        if wide.shape[1] >= LEAST and len(whole):
            values = wide.loc[whole].to_numpy()
            found[section] = list(wide.columns), values, dense[whole].to_numpy()
    return found


def chapter(ledger: pd.DataFrame) -> Chapter:
    """The knee of each task's one-shot curve."""
    tables = []
    for section, (sparsities, values, dense) in curves_of(ledger).items():
        middle, low, high = knee_over_seeds(sparsities, values, dense)
        interval = MISSING if np.isnan(low) else f"{100 * low:.0f} … {100 * high:.0f}"
        cells = [
            Cell(f"{scale(section[3]) * dense.mean():.2f}"),
            Cell(f"{100 * middle:.0f}"),
            Cell(interval),
            Cell(str(len(dense))),
        ]
        names = [f"dense {section[3]}{unit(section[3])}", "essential sparsity (%)"]
        names += ["90 % interval (%)", "n"]
        row = [("One-shot magnitude", cells)]
        tables.append(Table(heading(section), [("", name) for name in names], row, ""))
    return Chapter("Essential sparsity", TEXT, tables)


def write_tables(folder: str | Path, ledger: pd.DataFrame) -> list[Path]:
    """Write essential_sparsity.md; its path."""
    return write_texts(folder, {"essential_sparsity.md": markdown([chapter(ledger)])})
