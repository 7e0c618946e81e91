"""Figures of the verdict: the best methods by sparsity and budget, and a diagram of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from instant_soup.reports.figures import BELOW, _colour_and_marker, _label_axes, _save
from instant_soup.reports.glance import with_choice
from instant_soup.reports.results import percent, row_order, short
from instant_soup.reports.statistics import critical_difference, mean_ranks
from instant_soup.reports.verdict import (
    LIMITS,
    against,
    best_rows,
    budget_words,
    comparable,
    competing,
    costs_of,
    rank_tables,
)

CAPTIONS = {
    "verdict.png": "How close the best method comes to the dense network at each sparsity. There "
    "is one panel for each budget (fine-tunings, search included). The best method is large, with "
    "its 95 % bootstrap interval; its competitors are small. Points are means over tasks and "
    "seeds. Each sparsity has its own tasks. Methods far below the others are outside the panel.",
    "critical_difference.png": "Which methods differ by rank. A method further left is better. Its "
    "mean rank is over columns: a column is a task at a sparsity. Only methods that were run on "
    "all columns, with the same seeds on the same kinds of processor, are ranked. The bars at the "
    "right join methods that Nemenyi's test does not tell apart. The bar at the top is the "
    "critical difference.",
}


def draw(ledger: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Draw the figures of CAPTIONS into a folder; their paths."""
    runs = comparable(ledger)
    paths = [Path(folder) / name for name in CAPTIONS]
    best_by_budget(runs, paths[0])
    ranks(rank_tables(runs), paths[1])
    return paths


def best_by_budget(runs: pd.DataFrame, path: str | Path) -> None:
    """A panel for each preset and budget of `comparable` runs: the best row and its competitors."""
    best = with_choice(best_rows(runs))
    presets = sorted(set(best["preset"]))
    lines = 2 * max(1, len(presets))
    figure = Figure(figsize=(10, 3.4 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, 2, squeeze=False, sharey=True)
    drawn: dict[str, Any] = {}
    for number, preset in enumerate(presets):
        own, of_preset = best[best["preset"] == preset], runs[runs["preset"] == preset]
        for axes, budget in zip(panels[2 * number : 2 * number + 2].ravel(), LIMITS, strict=True):
            drawn |= _budget_panel(axes, of_preset, own, budget)
            axes.set_title(f"preset {preset}, {budget_words(budget)}", fontsize=9)
    for axes in panels[:, 1]:
        axes.set_ylabel("")
    if not presets:
        panels[0, 0].text(0.5, 0.5, "no results yet", ha="center", va="center")
    names = sorted(drawn, key=row_order)
    figure.legend([drawn[name] for name in names], list(map(short, names)), **BELOW, ncols=6)
    _save(figure, path)


def _budget_panel(
    axes: Axes, runs: pd.DataFrame, best: pd.DataFrame, budget: float
) -> dict[str, Any]:
    """Draw a panel of a preset's best rows; the markers that it shows, by method, for a legend."""
    drawn: dict[str, Any] = {}
    sparsities = sorted(set(best["sparsity"]))
    bottom = 1.35 * min(best[["distance", "low"]].min(axis=None), -1.0)
    top = max(best[["distance", "high"]].max(axis=None), 0.0)
    for line in best[best["budget"] == budget].to_dict("records"):
        place = sparsities.index(line["sparsity"])
        own = runs[runs["sparsity"] == line["sparsity"]]
        cost, distances = costs_of(own), against(own, None)
        full = competing(distances, line["tasks"])
        for method, distance in full.loc[cost[full.index].round(1) <= budget, "mean"].items():
            if distance < bottom:
                continue
            colour, marker = _colour_and_marker(str(method), runs["method"])
            look: dict[str, Any] = {"color": colour, "marker": marker, "ls": ""}
            if method == line["method"]:
                ends = [[distance - line["low"]], [line["high"] - distance]]
                bars = {"yerr": np.nan_to_num(ends), "capsize": 3, "elinewidth": 1.0}
                axes.errorbar(place, distance, ms=8, **look, **bars)
            else:
                axes.plot(place + 0.25, distance, ms=4, alpha=0.8, **look)
            drawn[str(method)] = Line2D([], [], ms=5, **look)
    axes.axhline(0, color="#000000", lw=0.8)
    axes.set_xticks(range(len(sparsities)), [f"{100 * s:g}" for s in sparsities])
    axes.set_xlim(-0.6, len(sparsities) - 0.2)
    axes.set_ylim(bottom, top + 0.05 * (top - bottom))
    _label_axes(axes, "sparsity (%)", "points from dense")
    return drawn


def ranks(tables: list[tuple[str, pd.DataFrame]], path: str | Path) -> None:
    """A critical-difference diagram (Demšar 2006) for each of `rank_tables`, rows downwards."""
    heights = [0.6 + 0.27 * scores.shape[1] for _, scores in tables] or [3.0]
    size = (7.2, sum(heights) + 0.9 * len(heights))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    for axes, (preset, scores) in zip(panels, tables, strict=False):
        _ranks_panel(axes, scores)
        sparsities = scores.index.get_level_values("sparsity")
        ends = dict.fromkeys((percent(sparsities.min()), percent(sparsities.max())))
        title = (
            f"preset {preset}: {scores.shape[1]} methods on {len(scores)} columns, "
            f"{' to '.join(ends)} sparse"
        )
        axes.set_title(title, fontsize=9)
    if not tables:
        panels[0].text(0.5, 0.5, "nothing to rank yet", ha="center", va="center")
        panels[0].set_axis_off()
    _save(figure, path)


def _ranks_panel(axes: Axes, scores: pd.DataFrame) -> None:
    ordered = mean_ranks(scores).sort_values(kind="stable")
    places, least = ordered.to_numpy(), critical_difference(scores)
    for height, (method, rank) in enumerate(ordered.items()):
        colour, marker = _colour_and_marker(str(method), scores.columns)
        axes.plot(rank, height, color=colour, marker=marker, ms=7)
        axes.text(rank + 0.02 * len(places), height, f"{rank:.2f}", va="center", fontsize=7)
    groups = cliques(places, least)
    right = len(places) + 0.4
    for number, (first, last) in enumerate(groups):
        x = right + (number + 1) * 0.02 * len(places)
        axes.plot([x, x], [first - 0.25, last + 0.25], color="#333333", lw=2.5, clip_on=False)
    axes.plot([1, 1 + least], [-1, -1], color="#333333", lw=1.5, marker="|", ms=7)
    axes.text(1 + least / 2, -1.2, f"critical difference {least:.2f}", ha="center", fontsize=7)
    axes.set_yticks(range(len(places)), [short(str(method)) for method in ordered.index])
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(places) - 0.4, -1.9)
    axes.set_xticks(range(1, len(places) + 1))
    axes.set_xlim(0.7, right + (len(groups) + 1) * 0.02 * len(places))
    _label_axes(axes, "mean rank (1 is best)", "")


def cliques(ranks: np.ndarray, least: float) -> list[tuple[int, int]]:
    """(first, last) of the largest runs of sorted ranks that are within `least` of each other."""
    found: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = int(np.searchsorted(ranks, rank + least, side="right")) - 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
