"""Accuracy against total training FLOPs, with the Pareto front: what each fine-tuning more buys."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from instant_soup.methods.registry import DENSE
from instant_soup.reports.equal_cost import epochs_of, runs_of_any_length
from instant_soup.reports.figures import (
    BELOW,
    DPI,
    _colour_and_marker,
    _fit_height,
    _label_axes,
    _save,
    title_of,
)
from instant_soup.reports.labels import name_points
from instant_soup.reports.results import (
    by_section,
    heading,
    mean_of_all,
    on_test,
    percent,
    ranks_nothing,
    row_order,
    scale,
    short,
)
from instant_soup.training.metrics import merit

NAME = "pareto.png"
CAPTION = (
    "What more fine-tunings buy: the test metric over all training FLOPs, search included, in "
    "dense fine-tunings. There is one panel for each task and sparsity with six sparse methods or "
    "more. Points are means over seeds. Methods of about equal cost stand side by side between "
    "grey lines. Hollow points were trained for longer or shorter than the task's own setting. The "
    "stepped line is the Pareto front: no cheaper method beats those on it, and they have their "
    "names. The dashed line is the dense network. Methods far below the others are outside the "
    "panel."
)
FEWEST = 6  # sparse methods of a panel
ALIKE = 1.12  # ratio of costs up to which points form one group
TICKS = (0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30)


def draw(ledger: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Draw the figure into a folder; its path."""
    runs = runs_of_any_length(ledger)
    panels = []
    places = [
        (section, sparsity, own)
        for section, rows in by_section(runs)
        for sparsity, own in rows.groupby("target_sparsity")
    ]
    for section, sparsity, own in places:
        cells = own.groupby(["method", "variant"]).agg(
            cost=("cost", "mean"), value=("value", mean_of_all), shared=("shared", "first")
        )
        dense = own.loc[own["method"] == DENSE, "value"]
        if own["method"].nunique() > FEWEST and not ranks_nothing(section[1], section[3], dense):
            panels.append((section, sparsity, cells[cells["value"].notna()].reset_index()))
    columns = 3
    lines = max(1, -(-len(panels) // columns))
    layout = ConstrainedLayoutEngine()
    figure = Figure(figsize=(15, 3.9 * lines + 0.8), layout=layout)
    every = figure.subplots(lines, columns, squeeze=False).ravel()
    figure.set_dpi(DPI)
    drawn: dict[str, Any] = {}
    fronts = []
    for axes, (section, sparsity, cells) in zip(every, panels, strict=False):
        found, on_front = _panel(axes, cells, section[3])
        drawn |= found
        fronts.append((axes, on_front))
        title = title_of(heading((*section[:3],)), f"{percent(sparsity)} sparse")
        axes.set_title(title, fontsize=9)
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    names = sorted(drawn, key=row_order)
    figure.legend([drawn[name] for name in names], list(map(short, names)), **BELOW, ncols=10)
    layout.execute(figure)
    figure.set_layout_engine("none")  # panels stay where names are put
    for axes, on_front in fronts:
        name_points(axes, **on_front)
    path = Path(folder) / NAME
    _save(figure, path)
    return [path]


def front(costs: np.ndarray, values: np.ndarray) -> list[int]:
    """Which points nothing is better than at their cost or less, by rising cost."""
    found: list[int] = []
    for point in np.lexsort((-values, costs)):
        if not found or values[point] > values[found[-1]]:
            found.append(int(point))
    return found


def side_by_side(costs: np.ndarray) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Places of points on a logarithmic axis, those of a group apart; (left, right) of each group.

    Points whose costs are within a ratio ALIKE of the group's cheapest form a group.
    """
    places = costs.astype(float)
    groups = []
    order = np.argsort(costs, kind="stable")
    while len(order):
        alike = order[costs[order] <= ALIKE * costs[order[0]]]
        middle = np.exp(np.log(costs[alike]).mean())
        apart = 1.035 ** (np.arange(len(alike)) - (len(alike) - 1) / 2)
        places[alike] = middle * apart
        if len(alike) > 1:
            groups.append((middle * apart[0] / 1.03, middle * apart[-1] * 1.03))
        order = order[len(alike) :]
    return places, groups


def _panel(axes: Axes, cells: pd.DataFrame, metric: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a panel without names.

    Returns:
        The markers of its methods, by method, for a legend; and what `name_points` takes.
    """
    is_dense = cells["method"] == DENSE
    own = cells["variant"].map(epochs_of) == cells["shared"].map(epochs_of)
    dense = scale(metric) * cells.loc[is_dense & own, "value"].to_numpy()
    for value in dense:
        axes.axhline(value, color="#333333", lw=1, ls="--")
    sparse = cells[~(is_dense & own)].sort_values(["cost", "method", "variant"])
    costs, values = sparse["cost"].to_numpy(), scale(metric) * sparse["value"].to_numpy()
    places, groups = side_by_side(costs)
    for left, right in groups:
        for side in (left, right):
            axes.axvline(side, color="#CCCCCC", lw=0.8)
    drawn: dict[str, Any] = {}
    lengths = own[sparse.index].to_numpy()
    methods = sparse["method"].to_numpy()
    for x, y, method, whole in zip(places, values, methods, lengths, strict=True):
        colour, marker = _colour_and_marker(method, methods)
        look: dict[str, Any] = {"color": colour, "marker": marker, "ls": ""}
        axes.plot(x, y, ms=7, **look | ({} if whole else {"mfc": "white"}))
        drawn[method] = Line2D([], [], ms=6, **look)
    candidates = np.flatnonzero(methods != DENSE)
    on_front = candidates[front(costs[candidates], merit(metric, values[candidates]))]
    axes.step(places[on_front], values[on_front], where="post", color="#555555", lw=1, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(min([0.6, *(places / 1.2)]), max([2.0, *(places * 1.25)]))
    shown = [tick for tick in TICKS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.set_xticks([], minor=True)
    _fit_height(axes, pd.Series(values, index=methods), metric)
    low, high = axes.transScale.transform([(1, end) for end in axes.get_ylim()])[:, 1]
    above = axes.transScale.inverted().transform((1, high + 0.1 * (high - low)))[1]
    axes.set_ylim(top=above)  # room for names
    _label_axes(axes, "training FLOPs ÷ dense", on_test(metric))
    points = np.column_stack([places, values])
    corners = np.repeat(points[on_front], 2, axis=0)
    corners = np.column_stack([corners[1:, 0], corners[:-1, 1]])  # of the front's steps
    levels = np.array([[(end, level) for end in axes.get_xlim()] for level in dense])
    return drawn, {
        "names": [short(method) for method in methods[on_front]],
        "colours": [_colour_and_marker(method, methods)[0] for method in methods[on_front]],
        "points": points[on_front],
        "others": points,
        "lines": np.concatenate(
            [np.stack([corners[:-1], corners[1:]], axis=1), levels.reshape(-1, 2, 2)]
        ),
    }
