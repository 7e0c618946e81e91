"""Essential sparsity: how much one-shot pruning a task forgives (arXiv 2306.03805).

A *curve* is a metric over sparsities, dense included, each value a mean over seeds. Beside it stand
N:M patterns, and lottery tickets.
"""

from typing import TypeAlias

import numpy as np
import pandas as pd

from instant_soup.methods.n_of_m import NOfM
from instant_soup.reports.ledger import SECTION
from instant_soup.reports.render import MISSING, Cell, Chapter, Table
from instant_soup.reports.results import (
    by_section,
    heading,
    number,
    over_seeds,
    percent,
    scale,
    signed,
    unit,
)
from instant_soup.reports.statistics import without_gaps
from instant_soup.training.metrics import LOWER_IS_BETTER

TOLERANCE = 0.01  # ε: what a result may lie below dense
LEAST = 5  # sparsities that a curve needs

TEXT = (
    "Essential sparsity says how much one-shot magnitude pruning of the pre-trained weights a "
    "task forgives. It is the sparsity up to which the mean over seeds stays within ε of dense: "
    "one point of an accuracy, one percent of a perplexity. It is interpolated between the "
    "measured sparsities. Beside it are the lowest and the highest value of the single seeds. A "
    "test split of 1,000 rows measures an accuracy to about half a point (one standard error); "
    "that error is not in this range. The PQ index of the pre-trained matrices predicts how much "
    "is free for any task (Diao et al. 2023; p = 1/2, q = 1, η = 0). –: not measured yet. "
    "grids/essential.yaml, grids/language.yaml and, for the N:M patterns, grids/n_of_m.yaml "
    "measure the curves."
)
SIMILARITY_TEXT = (
    "One-shot pruning against lottery tickets: the test metric (mean over seeds), and the cosine "
    "similarity of their binary masks. The paper (figure 3) prints 96.27, 98.75 and 94.32 % at "
    "10, 20 and 30 %."
)
PATTERN_TEXT = (
    "N:M magnitude pruning (N of every M consecutive inputs of a row stay) beside one-shot pruning "
    "to the same density without a pattern: test metric, means over the seeds that both have. In "
    "the last line, mean ± sample standard deviation of the differences."
)


def heights(metric: str, values: np.ndarray) -> np.ndarray:
    """Values as a knee is looked for: of perplexity −log, so that ε is one percent of it."""
    return -np.log(values) if metric in LOWER_IS_BETTER else values


def worst(metric: str, dense: float) -> float:
    """The worst value within ε of a dense one."""
    return dense * np.exp(TOLERANCE) if metric in LOWER_IS_BETTER else dense - TOLERANCE


def knee(sparsities: list[float], values: list[float], dense: float, tolerance: float) -> float:
    """The sparsity up to which a curve stays within a tolerance of dense.

    The curve is followed from 0 to its first fall below dense − tolerance, and that crossing is
    interpolated linearly.

    Args:
        sparsities: They rise.
        values: The metric at each.
        dense: The dense network's metric.
        tolerance: In units of the metric.

    Returns:
        A sparsity: 0 if none is within, the largest if all are.
    """
    floor = dense - tolerance
    before, height = 0.0, dense
    for sparsity, value in zip(sparsities, values, strict=True):
        if not value >= floor:  # a diverged run is no good one
            if np.isnan(value):
                return before
            return before + (sparsity - before) * (height - floor) / (height - value)
        before, height = sparsity, value
    return before


def knee_over_seeds(
    sparsities: list[float],
    values: np.ndarray,
    dense: np.ndarray,
    tolerance: float = TOLERANCE,
) -> tuple[float, float, float]:
    """The knee of the mean curve, and the smallest and largest knee of a single seed.

    A few seeds give no honest interval. Their range says what one run would have found.

    Args:
        sparsities: They rise.
        values: Seeds × sparsities.
        dense: The dense network's metric, one for each seed.
        tolerance: In units of the metric.

    Returns:
        Three sparsities; with one seed the last two are NaN.
    """
    middle = knee(sparsities, list(values.mean(0)), float(dense.mean()), tolerance)
    if len(values) < 2:
        return middle, np.nan, np.nan
    each = [
        knee(sparsities, list(own), float(of_dense), tolerance)
        for own, of_dense in zip(values, dense, strict=True)
    ]
    return middle, min(each), max(each)


Curve: TypeAlias = tuple[list[float], np.ndarray, np.ndarray]


def curves_of(ledger: pd.DataFrame) -> dict[tuple, Curve]:
    """One-shot's and dense's values, by section.

    Only sections with at least LEAST sparsities count. In an uneven grid the largest part without
    gaps counts: a single run at another sparsity, or with another seed, is left out.

    Returns:
        Section → sparsities, one-shot's values (seeds × sparsities) and dense's (seeds).
    """
    found = {}
    for section, runs in by_section(ledger[ledger["variant"] == ""]):
        one_shot = runs[runs["method"] == "one_shot"]
        wide = one_shot.pivot(index="seed", columns="target_sparsity", values="value")
        dense = runs[runs["method"] == "dense"].set_index("seed")["value"]
        wide = wide.loc[wide.index.intersection(dense.index)]
        whole = wide.loc[without_gaps(wide.to_numpy())]
        if whole.shape[1] >= LEAST and len(whole):
            found[section] = list(whole.columns), whole.to_numpy(), dense[whole.index].to_numpy()
    return found


def knee_of(section: tuple, curve: Curve) -> tuple[float, float, float]:
    """The knee of a section's curve, and the range of its seeds' own, as `knee_over_seeds`."""
    sparsities, values, dense = curve
    values, dense = heights(section[3], values), heights(section[3], dense)
    return knee_over_seeds(sparsities, values, dense)


def in_percent(middle: float, low: float, high: float) -> tuple[str, str]:
    """A knee and its range in words, in percent."""
    interval = MISSING if np.isnan(low) else f"{100 * low:.0f} … {100 * high:.0f}"
    return f"{100 * middle:.0f}", interval


def patterns_of(section: tuple, ledger: pd.DataFrame) -> list[tuple[str, float, np.ndarray]]:
    """A section's N:M patterns beside one-shot pruning to the same density.

    Returns:
        Pattern, sparsity, and values: seeds × (N:M, one-shot), of the seeds that both have.
    """
    own = ledger[(ledger[SECTION] == list(section)).all(axis=1)]
    one_shot = own[(own["method"] == "one_shot") & (own["variant"] == "")]
    rows = own[own["method"] == NOfM.name]
    found = []
    for (variant, sparsity), runs in rows.groupby(["variant", "target_sparsity"]):
        setting, _, size = variant.partition("criteria.m=")
        if setting or " " in size:  # something else is changed, too
            continue
        m = int(size or NOfM().m)
        beside = one_shot[one_shot["target_sparsity"] == sparsity]
        both = runs.merge(beside, on="seed")[["value_x", "value_y"]].to_numpy()
        if len(both):
            found.append((f"{round((1 - sparsity) * m)}:{m}", float(sparsity), both))
    return sorted(found, key=lambda one: (one[1], int(one[0].partition(":")[2])))


def predicted(section: tuple, ledger: pd.DataFrame) -> float:
    """The free sparsity by the PQ index of the weights that a section's rows began at.

    It depends on these weights alone, so a row of another section may know it. NaN if none does.
    """
    bases = ledger.loc[(ledger[SECTION] == list(section)).all(axis=1), "base"]
    known = ledger.loc[ledger["base"].isin(set(bases) - {""}), "pq_index"].dropna()
    return float(known.iloc[-1]) if len(known) else np.nan


def chapter(ledger: pd.DataFrame) -> Chapter:
    """The knee of each task's one-shot curve, and how like lottery tickets the masks are."""
    tables: list[Table | None] = []
    for section, curve in curves_of(ledger).items():
        dense = curve[2]
        middle, interval = in_percent(*knee_of(section, curve))
        cells = [
            Cell(f"{scale(section[3]) * dense.mean():.2f}"),
            Cell(middle),
            Cell(interval),
            Cell(number(100 * predicted(section, ledger), ".0f")),
            Cell(str(len(dense))),
        ]
        names = [f"dense {section[3]}{unit(section[3])}", "essential sparsity (%)"]
        names += ["single seeds (%)", "free by the PQ index (%)", "n"]
        row = [("One-shot magnitude", cells)]
        tables.append(Table(heading(section), [("", name) for name in names], row, ""))
        tables.append(_pattern_table(section, ledger))
        tables.append(_similarity_table(section, ledger))
    return Chapter("Essential sparsity", TEXT, [table for table in tables if table is not None])


def _pattern_table(section: tuple, ledger: pd.DataFrame) -> Table | None:
    """N:M patterns and one-shot pruning at the same densities."""
    found, factor = patterns_of(section, ledger), scale(section[3])
    if not found:
        return None
    lines: dict[str, list[Cell]] = {NOfM.title: [], "One-shot magnitude": [], "difference": []}
    for _, _, values in found:
        own, beside = factor * values.mean(0)
        gaps = factor * (values[:, 0] - values[:, 1])
        gap = f"{over_seeds(gaps, signed)} (n = {len(gaps)})"
        words = (f"{own:.2f}", f"{beside:.2f}", gap)
        for cells, word in zip(lines.values(), words, strict=True):
            cells.append(Cell(word))
    columns = [(percent(sparsity), pattern) for pattern, sparsity, _ in found]
    return Table(f"{heading(section)}: N:M patterns", columns, [*lines.items()], PATTERN_TEXT)


def _similarity_table(section: tuple, ledger: pd.DataFrame) -> Table | None:
    """One-shot's and LTH's metric, and how like their masks are, over sparsities (figure 3)."""
    own = ledger[(ledger[SECTION] == list(section)).all(axis=1) & (ledger["variant"] == "")]
    runs = own.pivot_table(
        index=["target_sparsity", "seed"], columns="method", values=["value", "overlap_one_shot"]
    )
    wanted = [("value", "one_shot"), ("value", "lth"), ("overlap_one_shot", "lth")]
    if not set(wanted) <= set(runs.columns) or (paired := runs[wanted].dropna()).empty:
        return None
    at = paired.groupby("target_sparsity")
    means, seeds = at.mean(), at.size()
    shown = {
        "One-shot magnitude": scale(section[3]) * means["value", "one_shot"],
        "LTH (IMP)": scale(section[3]) * means["value", "lth"],
        "cosine of the masks (%)": 100 * means["overlap_one_shot", "lth"],
    }
    rows = [(name, [Cell(number(v, ".2f")) for v in values]) for name, values in shown.items()]
    rows.append(("seeds", [Cell(str(n)) for n in seeds]))
    columns = [("", percent(sparsity)) for sparsity in means.index]
    return Table(f"{heading(section)}: one-shot and LTH", columns, rows, SIMILARITY_TEXT)
