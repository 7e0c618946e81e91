"""Whether one row of a table is better than another: paired over common seeds, shown as ▲ and ▼."""

import numpy as np
import pandas as pd
from scipy.special import stdtr

from instant_soup.reports.ledger import SECTION
from instant_soup.reports.render import MISSING, Cell
from instant_soup.reports.results import CELL, UNPRUNED, over_seeds, scale
from instant_soup.reports.statistics import SIGNIFICANT
from instant_soup.training.metrics import merit


def against_lth(ledger: pd.DataFrame) -> pd.DataFrame:
    """Per CELL with an LTH at the same sparsity: CELL, p_vs_lth, and mark: better, worse or ""."""
    rows = []
    sparse = ledger[~ledger["method"].isin(UNPRUNED)]
    for _, runs in sparse.groupby([*SECTION, "variant", "target_sparsity"]):
        if not (runs["method"] == "lth").any():
            continue
        values = {method: own.set_index("seed")["value"] for method, own in runs.groupby("method")}
        lth = values.pop("lth")
        cells = runs[runs["method"] != "lth"].drop_duplicates("method").sort_values("method")
        for cell in cells.to_dict("records"):
            own = values[cell["method"]]
            rows.append([*(cell[key] for key in CELL), paired_test(own, lth)[0]])
            rows[-1].append(mark_of(own, lth, cell["metric"]))
    types = {**dict.fromkeys(CELL, str), "target_sparsity": float, "p_vs_lth": float, "mark": str}
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def paired_test(one: pd.Series, other: pd.Series) -> tuple[float, float]:
    """(two-sided p of a paired t-test, mean difference) over the seeds (index) common to both.

    p is NaN for fewer than two seeds, and where the differences are all alike up to rounding:
    they have no spread to test against.
    """
    seeds = one.index.intersection(other.index)
    differences = one[seeds].to_numpy() - other[seeds].to_numpy()
    n, mean = len(seeds), float(differences.mean()) if len(seeds) else np.nan
    if n < 2 or np.ptp(differences) < 1e-9:
        return np.nan, mean
    t = mean / np.sqrt(differences.var(ddof=1) / n)
    return float(2 * stdtr(n - 1, -abs(t))), mean  # scipy.stats' ttest_rel, without its import


def mark_of(one: pd.Series, other: pd.Series, metric: str) -> str:
    """Whether one is significantly better or worse than another, by `paired_test`; else nothing."""
    p, difference = paired_test(merit(metric, one), merit(metric, other))
    return ("better" if difference > 0 else "worse") if p < SIGNIFICANT else ""


def seeds_cell(values: pd.Series | None, other: pd.Series | None, metric: str) -> Cell:
    """Mean ± deviation of a metric over seeds, marked where it differs from another row's."""
    if values is None:
        return Cell(MISSING)
    text = over_seeds(scale(metric) * values)
    mark = mark_of(values, other, metric) if other is not None and other is not values else ""
    return Cell(f"{text} (n = {len(values)})", mark=mark)
