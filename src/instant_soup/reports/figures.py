"""Figures of a run and of the ledger, as PNG files that are the same for the same numbers."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, NullLocator

from instant_soup.files import new_file
from instant_soup.methods import registry
from instant_soup.reports.essential_sparsity import (
    TOLERANCE,
    curves_of,
    knee_of,
    patterns_of,
    worst,
)
from instant_soup.reports.ledger import SECTION
from instant_soup.reports.results import (
    CELL,
    SOUPS,
    ZERO_SHOT,
    blocks,
    common_settings,
    costs,
    heading,
    label,
    methods_of,
    on_test,
    percent,
    preset_rows,
    row_order,
    scale,
    summary,
    unit,
)
from instant_soup.sparsity.names import in_order, layer_of, type_of
from instant_soup.training.metrics import LOWER_IS_BETTER

# Colour and marker of each method, and of those that have none of their own.
STYLES = {
    ZERO_SHOT: ("#000000", "_"),
    **{name: method.style for name, method in registry.methods().items() if method.style},
}
OTHER_STYLES = [("#332288", "2"), ("#882255", "3"), ("#117733", "4"), ("#661100", "+")]
# These have strong lines; all others are thin and pale.
MAIN = tuple(name for name, method in registry.methods().items() if method.main)
DPI = 150
WIDEST = 44  # letters of a title, as many as the narrowest panel has room for

# Figure files with their captions; what one shows is in the docstring of the function of its name.
OF_LEDGER = {
    "accuracy_vs_sparsity.png": "How the test metric falls with sparsity: mean and sample standard "
    "deviation over seeds. Methods are set a little apart, so that ties stay visible. Lines that "
    "leave a panel go on below it; the tables have their values.",
    "cost_vs_sparsity.png": "How cost grows with sparsity: training FLOPs in dense fine-tunings, "
    "search included, means over seeds. Lottery tickets take one more fine-tuning for each round. "
    "Methods of equal cost lie on each other; most cost one fine-tuning. Tasks with one sparsity "
    "are in the tables only.",
    "essential_sparsity.png": "How much one-shot pruning by magnitude a task forgives. The line is "
    "the mean over seeds, thin lines are single seeds. The vertical line is where the mean is one "
    "point below dense, or one percent above it for a perplexity. The band is where single seeds "
    "are. Diamonds: N:M patterns.",
    "mask_similarity.png": "How alike masks are: the cosine similarity of each method's mask with "
    "the one-shot magnitude mask of the pre-trained weights at the same sparsity, means over "
    "seeds. Two random masks have their density as cosine (dotted). Tasks with one sparsity are in "
    "the chart's numbers only.",
}
OF_RUN = {
    "training_curves.png": "How the latest run trained. Left: training loss, smoothed; faint lines "
    "are the single steps of the main methods. Right: the validation metric. Both are over "
    "optimiser steps.",
    "isp_rounds.png": "ISP's rounds. Left: the mask's sparsity, and how far the weak masks agree. "
    "Right: the validation metric before and just after each prune.",
    "layer_sparsity.png": "Where the pruned weights lie: the sparsity of each layer. Methods are "
    "set a little apart.",
    "matrix_density.png": "Which matrices keep their weights: the share that each method keeps, by "
    "layer and type of matrix.",
}
BELOW: dict[str, Any] = {"loc": "outside lower center", "fontsize": 8, "frameon": False}
ABOVE: dict[str, Any] = {"loc": "lower center", "fontsize": 8, "frameon": False}
DASHES = ["--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))]  # variants of a method, which share a colour


def training_curves(curves: dict[str, pd.DataFrame], metric: str, path: str | Path) -> None:
    """Plot training loss and validation metric over the main network's steps.

    Dotted lines mark where ISP pruned.

    Args:
        curves: Method → columns step, train_loss, validation (NaN: not measured), sparsity.
        metric: The metric's name.
        path: The PNG file.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method in sorted(curves, key=row_order):
        curve, (colour, marker) = curves[method], _colour_and_marker(method, curves)
        loss = curve.dropna(subset="train_loss")
        smooth = loss["train_loss"].rolling(max(1, len(loss) // 25), 1, center=True).mean()
        if method in MAIN:
            left.plot(loss["step"], loss["train_loss"], color=colour, alpha=0.2, lw=0.7)
        in_legend = {"marker": marker, "ms": 4, "markevery": [], "label": label(method)}
        weight = _line_weight(method)
        left.plot(loss["step"], smooth, color=colour, **weight, **in_legend)
        score = curve.dropna(subset="validation")
        values = scale(metric) * score["validation"]
        right.plot(score["step"], values, color=colour, marker=marker, ms=4, **weight)
    if "isp" in curves:
        _mark_pruning(left, right, curves["isp"])
    _label_axes(left, "optimiser step", "training loss (faint: each step)")
    _label_axes(right, "optimiser step", f"validation {metric}{unit(metric)}")
    # Below the panels, where it hides no curve; both have the same methods.
    figure.legend(*left.get_legend_handles_labels(), **BELOW, ncols=6)
    _save(figure, path)


def isp_rounds(rounds: list[dict[str, Any]], metric: str, path: str | Path) -> None:
    """Plot ISP's rounds: sparsity, the weak masks' agreement, the metric before and after pruning.

    Args:
        rounds: A record for each round, none in a run without ISP; `before` and `after` are the
            metric's value or dictionaries of metrics, None if not measured.
        metric: The metric's name.
        path: The PNG file.
    """
    numbers = [r["round"] for r in rounds]
    sparsity = [100 * r["sparsity"] for r in rounds]
    agreement = [100 * _score(r.get("agreement"), metric) for r in rounds]
    before = scale(metric) * np.array([_score(r.get("before"), metric) for r in rounds])
    after = scale(metric) * np.array([_score(r.get("after"), metric) for r in rounds])

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bars = left.bar(numbers, sparsity, width=0.6, color="#9FC5E8", label="sparsity of the mask")
    left.bar_label(bars, fmt="%.3g", fontsize=8)
    left.plot(numbers, agreement, color="#D55E00", marker="o", label="agreement of weak masks")
    left.set_ylim(0, 108)
    right.vlines(numbers, before, after, color="#8C8C8C", lw=1)
    right.plot(numbers, before, color="#0072B2", marker="^", label="before pruning")
    right.plot(numbers, after, color="#D55E00", marker="v", ls="--", label="just after pruning")
    if not rounds:
        left.text(0.5, 0.5, "no rounds in this run", ha="center", transform=left.transAxes)
    margin = max(0.6, (4 - len(rounds)) / 2)  # keeps the bars of one or two rounds slim
    for axes in (left, right):
        axes.set_xticks(numbers)
        axes.set_xlim(min(numbers, default=0) - margin, max(numbers, default=0) + margin)
        axes.legend(**ABOVE, bbox_to_anchor=(0.5, 1.0), ncols=2)
    _label_axes(left, "round", "share (%)")
    _label_axes(right, "round", f"validation {metric}{unit(metric)}")
    _save(figure, path)


def layer_sparsity(results: list[dict[str, Any]], path: str | Path) -> None:
    """Plot the sparsity of each layer, one line for each sparse method.

    Dense is shown only if there is no other. Methods are set a little apart horizontally, as masks
    by magnitude nearly coincide.
    """
    shown = [r for r in results if r["method"] != "dense"] or results
    shown = sorted(shown, key=lambda r: row_order(r["method"], r["variant"]))
    names = list(dict.fromkeys(layer["name"] for r in shown for layer in r["layer_sparsity"]))
    figure = Figure(figsize=(max(7.2, 2 + 0.4 * len(names)), 4.5), layout="constrained")
    axes = figure.subplots()
    methods = [r["method"] for r in shown]
    for number, result in enumerate(shown):
        colour, marker = _colour_and_marker(result["method"], methods)
        apart = (number - (len(shown) - 1) / 2) * min(0.08, 0.7 / len(shown))
        own = {layer["name"]: 100 * layer["sparsity"] for layer in result["layer_sparsity"]}
        values = [own.get(name, np.nan) for name in names]
        name = label(result["method"], result["variant"])
        x = np.arange(len(names)) + apart
        weight = _line_weight(result["method"])
        axes.plot(x, values, color=colour, marker=marker, ms=5, label=name, **weight)
    for overall in sorted({round(100 * r["sparsity"], 2) for r in shown}):
        axes.axhline(overall, color="#555555", lw=0.8, ls=":", label=f"all layers: {overall:g} %")
    turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if len(names) > 6 else {}
    axes.set_xticks(range(len(names)), _without_common_prefix(names), fontsize=8, **turned)
    axes.set_xlim(-0.5, len(names) - 0.5)
    low, high = axes.get_ylim()
    if high - low < 2:  # a flat line is no reason to show thousandths of a percent
        axes.set_ylim(low - 1, high + 1)
    _label_axes(axes, "layer", "sparsity (%)")
    figure.legend(*axes.get_legend_handles_labels(), **BELOW, ncols=3)
    _save(figure, path)


def matrix_sparsity(statistics: dict[str, Any], path: str | Path) -> None:
    """Sparsity of each weight matrix of a mask: layers by matrix types (inspection.statistics)."""
    layers, types = ([entry["name"] for entry in statistics[key]] for key in ("layers", "types"))
    grid = np.full((len(layers), len(types)), np.nan)
    for matrix in statistics["matrices"]:
        place = layers.index(matrix["layer"]), types.index(matrix["type"])
        grid[place] = 100 * matrix["sparsity"]
    size = (2.5 + 1.1 * len(types), 2.2 + 0.32 * len(layers))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(grid, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, column in np.argwhere(~np.isnan(grid)):
        value = grid[row, column]
        colour = "white" if value > 60 else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_yticks(range(len(layers)), _without_common_prefix(layers), fontsize=8)
    axes.set_xticks(range(len(types)), types, rotation=30, ha="right", fontsize=8)
    axes.set_title(f"all: {100 * statistics['sparsity']:.2f} % sparse", fontsize=9)
    figure.colorbar(picture, ax=axes, label="sparsity (%)")
    _save(figure, path)


def matrix_density(results: list[dict[str, Any]], path: str | Path) -> None:
    """Density of each prunable matrix, a panel for each sparse method: types × layers."""
    sparse = [r for r in results if r["sparsity"] > 0 and r.get("matrix_sparsity")]
    shown = sorted(sparse, key=lambda r: row_order(r["method"], r["variant"]))
    columns = max(1, min(4, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    tables = [_by_layer_and_type(result) for result in shown]
    rows, width = tables[0].shape if tables else (6, 6)
    size = (2.2 + columns * (0.6 + 0.22 * width), lines * (0.6 + 0.28 * rows) + 0.9)
    figure = Figure(figsize=(max(7.2, size[0]), max(3.0, size[1])), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True).ravel()
    densest = max((table.to_numpy().max() for table in tables), default=1.0)
    image = None
    for axes, result, table in zip(panels, shown, tables, strict=False):
        image = axes.imshow(table, cmap="viridis", vmin=0, vmax=densest, aspect="auto")
        axes.set_title(as_text(label(result["method"], result["variant"])), fontsize=8)
        axes.set_yticks(range(rows), list(table.index), fontsize=7)
        ticks = range(0, width, 1 if width <= 6 else 3)
        axes.set_xticks(ticks, [str(table.columns[i]) for i in ticks], fontsize=7)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    if image is None:
        panels[0].text(0.5, 0.5, "no sparse results yet", ha="center", va="center")
    else:
        figure.colorbar(image, ax=list(panels), label="density", shrink=0.8, pad=0.02)
        figure.supxlabel("layer", fontsize=9)
    _save(figure, path)


def _by_layer_and_type(result: dict[str, Any]) -> pd.DataFrame:
    """A result's densities: types of matrices (rows) × layers (columns)."""
    cells: dict[str, dict[int, float]] = {}
    for matrix in result["matrix_sparsity"]:
        _, number = in_order(layer_of(matrix["name"]))
        cells.setdefault(type_of(matrix["name"]), {})[number] = 1 - matrix["sparsity"]
    return pd.DataFrame(cells).T.sort_index(axis=1)


def accuracy_vs_sparsity(ledger: pd.DataFrame, path: str | Path) -> None:
    """Test metric over sparsity, one panel per section of the ledger.

    Error bars and the dense band are one sample standard deviation over seeds (n > 1). Methods
    are set a little apart horizontally, so that ties stay visible. What is far below the MAIN
    methods leaves the panel.
    """
    rows = preset_rows(ledger)
    _panels(summary(rows) if len(rows) else pd.DataFrame(columns=CELL), _sparsity_panel, path)


def cost_vs_sparsity(ledger: pd.DataFrame, path: str | Path) -> None:
    """Training FLOPs relative to dense over sparsity, one panel per section (figure 1).

    Means over seeds, of the sparse methods; of the dense soups nothing depends on sparsity.
    """
    rows = preset_rows(ledger)
    cells = pd.DataFrame(columns=CELL)
    if len(rows):
        cost = costs(rows)[[*CELL, "flops_vs_dense"]]
        cells = summary(rows).merge(cost, on=CELL).dropna(subset=["flops_vs_dense", "mean"])
    _panels(_curves(cells[~cells["method"].isin(("dense", *SOUPS))]), _flops_panel, path)


def essential_sparsity(ledger: pd.DataFrame, path: str | Path) -> None:
    """One-shot's curve of each section with its knee: the last sparsity within ε of dense."""
    curves = curves_of(ledger)
    figure = Figure(figsize=(max(7.2, 4.2 * len(curves)), 3.8), layout="constrained")
    panels = figure.subplots(1, max(1, len(curves)), squeeze=False).ravel()
    for axes, (section, curve) in zip(panels, curves.items(), strict=False):
        sparsities, values, dense = curve
        factor, colour = scale(section[3]), STYLES["one_shot"][0]
        x = 100 * np.array([0.0, *sparsities])
        every = factor * np.concatenate([dense[:, None], values], axis=1)
        for own in every:
            axes.plot(x, own, color=colour, lw=0.6, alpha=0.4)
        axes.plot(x, every.mean(0), color=colour, marker="^", ms=5, lw=1.8, label="One-shot")
        shade, mark = STYLES["n_of_m"]
        for number, (pattern, sparsity, found) in enumerate(patterns_of(section, ledger)):
            at, value = 100 * sparsity, factor * found[:, 0].mean()
            axes.plot([at], [value], mark, color=shade, ms=6, label="" if number else "N:M")
            beside = (5, -3) if number % 2 else (-20, -3)  # by turns, as some are near
            axes.annotate(pattern, (at, value), beside, textcoords="offset points", fontsize=7)
        lower = section[3] in LOWER_IS_BETTER
        allowed, least = worst(section[3], float(dense.mean())), f"{100 * TOLERANCE:g}"
        words = f"dense + {least} %" if lower else f"dense − {least} point"
        axes.axhline(factor * allowed, color="#555555", lw=0.8, ls=":", label=words)
        middle, low, high = knee_of(section, curve)
        axes.axvline(100 * middle, color="#D55E00", lw=1.2, label=f"knee: {100 * middle:.0f} %")
        if not np.isnan(low):
            axes.axvspan(100 * low, 100 * high, color="#D55E00", alpha=0.12, lw=0)
        if lower:
            _by_logarithm(axes)
        axes.set_title(title_of(heading(section)), fontsize=9)
        axes.legend(fontsize=8, frameon=False, loc="upper left" if lower else "lower left")
        _label_axes(axes, "sparsity (%)", on_test(section[3]))
    if not curves:
        panels[0].text(0.5, 0.5, "not measured yet", ha="center", va="center")
        panels[0].set_axis_off()
    _save(figure, path)


def mask_similarity(ledger: pd.DataFrame, path: str | Path) -> None:
    """Cosine of the masks with the one-shot mask over sparsity, one panel per section (figure 3).

    Means over seeds; the dotted line is what two random masks of that density have.
    """
    rows = preset_rows(ledger)
    sparse = rows[(rows["target_sparsity"] > 0) & rows["overlap_one_shot"].notna()]
    cells = sparse.groupby(CELL, sort=True)["overlap_one_shot"].mean().reset_index(name="mean")
    _panels(_curves(cells), _similarity_panel, path)


def _curves(cells: pd.DataFrame) -> pd.DataFrame:
    """Of a summary the sections with several sparsities; all where none has."""
    several = cells.groupby(SECTION)["target_sparsity"].transform("nunique") > 1
    return cells[several] if several.any() else cells


Panel = Callable[[Axes, pd.DataFrame, str, list[str]], None]


def _panels(cells: pd.DataFrame, draw: Panel, path: str | Path) -> None:
    """Save a figure with `draw`'s panel for each section of a summary, and one legend for all.

    Rows that had a teacher, or were retrained in part, are in panels of their own.

    Sections with several sparsities come first; those with a single one get smaller panels below.
    """
    cells = cells[cells["method"] != ZERO_SHOT]  # far below, it would flatten all others
    sections = [
        (section, block, own)
        for block, rows in blocks(cells)
        for section, own in rows.groupby(SECTION)
    ]
    sections.sort(key=lambda one: _is_a_point(one[2]))
    curves = sum(not _is_a_point(own) for *_, own in sections) or max(1, len(sections))
    points = max(0, len(sections) - curves)
    columns = 1 if len(sections) < 2 else 2
    lines = -(-curves // 2)
    heights = [4.6] * lines + [3.4] * -(-points // 3)
    figure = Figure(figsize=(max(7.2, 5.6 * columns), sum(heights) + 0.9), layout="constrained")
    grid = figure.add_gridspec(len(heights), 6, height_ratios=heights)  # shares of a line's width
    wide = 6 // min(2, curves)
    places = [(number * wide, wide) for number in range(curves)]
    places += [(6 * lines + number * 2, 2) for number in range(points)]
    panels = []
    for place, width in places:
        line, left = divmod(place, 6)
        panels.append(figure.add_subplot(grid[line, left : left + width]))
    for axes, (section, block, own) in zip(panels, sections, strict=False):
        variant, own = common_settings(own)
        draw(axes, own, section[3], list(cells["method"]))
        axes.set_title(title_of(heading(section), block, variant), fontsize=9)
    handles: dict[str, Any] = {}
    for axes in panels:
        found, names = axes.get_legend_handles_labels()
        handles = dict(zip(names, found, strict=True)) | handles
    if not sections:
        panels[0].text(0.5, 0.5, "no results yet", ha="center", va="center")
    longest = max(map(len, handles), default=1)
    ncols = max(1, min(6, 60 * columns // longest))
    figure.legend(list(handles.values()), list(map(as_text, handles)), **BELOW, ncols=ncols)
    _save(figure, path)


def _is_a_point(cells: pd.DataFrame) -> bool:
    """Whether a section's summary has a single sparsity at most, so that it makes no curve."""
    return cells.loc[cells["target_sparsity"] > 0, "target_sparsity"].nunique() < 2


def _sparsity_panel(axes: Axes, cells: pd.DataFrame, metric: str, methods: list[str]) -> None:
    factor = scale(metric)
    cells = cells[~cells["method"].isin(SOUPS)]
    sparse = cells[cells["method"] != "dense"]
    ticks = sorted(set(100 * sparse["target_sparsity"])) or [0.0]
    margin = max(4.0, 0.06 * (ticks[-1] - ticks[0]))
    axes.set_xlim(ticks[0] - margin, ticks[-1] + margin)
    axes.set_xticks(ticks)
    lines = [pair for pair in methods_of(cells) if pair[0] != "dense"]
    # Side by side, so that error bars can be told apart, but nearer to their tick than to the next.
    side_by_side = min([1.2 * margin, *(0.4 * np.diff(ticks))])
    for method, variant in methods_of(cells):
        own = cells[(cells["method"] == method) & (cells["variant"] == variant)]
        mean, spread = factor * own["mean"], factor * own["std"]
        look = _line_style(method, variant, cells, methods)
        if method == "dense":
            plain = {key: look[key] for key in ("color", "ls", "label")}
            axes.axhline(mean.iloc[0], lw=1.2, **plain)
            low, high = mean.iloc[0] - spread.iloc[0], mean.iloc[0] + spread.iloc[0]
            if not np.isnan(low):
                axes.axhspan(low, high, color=look["color"], alpha=0.1, lw=0)
            continue
        apart = ((lines.index((method, variant)) + 0.5) / len(lines) - 0.5) * side_by_side
        bars = None if spread.isna().all() else spread  # single runs have none
        x = 100 * own["target_sparsity"] + apart
        axes.errorbar(x, mean, yerr=bars, capsize=2, elinewidth=0.8, **look)
    _fit_height(axes, factor * cells.set_index("method")["mean"], metric)
    _label_axes(axes, "sparsity (%)", on_test(metric))


def _similarity_panel(axes: Axes, cells: pd.DataFrame, _: str, methods: list[str]) -> None:
    for method, variant in methods_of(cells):
        own = cells[(cells["method"] == method) & (cells["variant"] == variant)]
        look = _line_style(method, variant, cells, methods)
        axes.plot(100 * own["target_sparsity"], own["mean"], **look)
    sparsities = cells["target_sparsity"]
    ends = np.array([sparsities.min() - 0.03, sparsities.max() + 0.03])
    axes.plot(100 * ends, 1 - ends, color="#555555", lw=0.8, ls=":")
    axes.set_xticks(sorted(set(100 * cells["target_sparsity"])))
    _label_axes(axes, "sparsity (%)", "cosine with the one-shot mask")


def _flops_panel(axes: Axes, cells: pd.DataFrame, _: str, methods: list[str]) -> None:
    for method, variant in methods_of(cells):
        own = cells[(cells["method"] == method) & (cells["variant"] == variant)]
        look = _line_style(method, variant, cells, methods)
        axes.plot(100 * own["target_sparsity"], own["flops_vs_dense"], **look)
    axes.set_xticks(sorted(set(100 * cells["target_sparsity"])))
    axes.set_ylim(bottom=0)
    _label_axes(axes, "sparsity (%)", "training FLOPs ÷ dense")


def _mark_pruning(left: Axes, right: Axes, curve: pd.DataFrame) -> None:
    """Dotted lines where the sparsity jumps, with the new sparsity above if there is room."""
    jumps = curve[curve["sparsity"].diff() > 0]
    steps = jumps["step"].to_numpy()
    span = max(1.0, float(curve["step"].max() - curve["step"].min()))
    roomy = len(steps) < 2 or np.diff(steps).min() > 0.035 * span
    for number, (step, sparsity) in enumerate(zip(steps, jumps["sparsity"], strict=True)):
        for axes in (left, right):
            axes.axvline(
                step, color="#D55E00", lw=0.9, ls=":", label="" if number else "ISP prunes"
            )
        if roomy:
            left.text(
                step, 1.01, f"to {percent(sparsity)}", transform=left.get_xaxis_transform(),
                rotation=90, ha="center", va="bottom", fontsize=7, color="#A04000",
            )  # fmt: skip


def _score(value: Any, metric: str) -> float:
    """A number out of a number, a dict of metrics, or None (NaN)."""
    value = value.get(metric) if isinstance(value, dict) else value
    return float("nan") if value is None else float(value)


def _fit_height(axes: Axes, means: pd.Series, metric: str) -> None:
    """Let a panel show what matters: of perplexities, which may be a thousandfold, by logarithm."""
    if metric in LOWER_IS_BETTER:
        _by_logarithm(axes)
    else:
        _leave_out_far_below(axes, means)


def _by_logarithm(axes: Axes) -> None:
    """Make a drawn panel's height logarithmic, with plain numbers even within one power of ten."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 10 * low:
        axes.yaxis.set_major_locator(AutoLocator())
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _leave_out_far_below(axes: Axes, means: pd.Series) -> None:
    """Let a panel end below its MAIN methods, so that a collapsed one does not flatten the others.

    `means`: by method. The room above is then that of what stays.
    """
    main = means[means.index.isin(MAIN)]
    best, worst, floor = means.max(), means.min(), main.min()
    gap = max(best - floor, 0.15 * (best - worst))
    if set(main.index) - {"dense"} and worst < floor - gap:
        low, high = floor - 0.6 * gap, axes.dataLim.y1
        axes.set_ylim(low, high + 0.05 * (high - low))


def _line_weight(method: str) -> dict[str, Any]:
    """How strongly a method's line is drawn."""
    return {"lw": 1.8, "alpha": 1.0} if method in MAIN else {"lw": 0.9, "alpha": 0.75}


def _line_style(
    method: str, variant: str, cells: pd.DataFrame, methods: list[str]
) -> dict[str, Any]:
    """How a method's line looks in a panel; variants share colour and marker, not dash and fill."""
    colour, marker = _colour_and_marker(method, methods)
    variants = sorted(set(cells["variant"]) - {""})
    dash: Any = DASHES[variants.index(variant) % len(DASHES)] if variant else "-"
    fill = "white" if variant else colour
    look = {"color": colour, "marker": marker, "ms": 5, "ls": dash, "mfc": fill}
    return look | {"label": label(method, variant)} | _line_weight(method)


def _colour_and_marker(method: str, methods: Any) -> tuple[str, str]:
    """Colour and marker of a method; those not in STYLES take turns, in alphabetical order."""
    if method in STYLES:
        return STYLES[method]
    others = sorted(set(methods) - set(STYLES))
    return OTHER_STYLES[others.index(method) % len(OTHER_STYLES)]


def _without_common_prefix(names: list[str]) -> list[str]:
    """Layer names without the dotted parts with which all of them begin."""
    parts = [name.split(".") for name in names]
    same = 0
    while len(names) > 1 and all(len(p) > same + 1 and p[same] == parts[0][same] for p in parts):
        same += 1
    return [".".join(p[same:]) for p in parts]


def title_of(*parts: str) -> str:
    """A panel's title, a part a line; an origin has a line of its own. None is too wide."""
    lines: list[str] = []
    for line in "\n".join(filter(None, parts)).replace(" · run ", "\nrun ").splitlines():
        short = line if len(line) <= WIDEST else line.replace(" on ", "\non ")
        for one in short.splitlines():
            lines += textwrap.wrap(one, WIDEST, break_on_hyphens=False)
    return as_text("\n".join(lines))


def as_text(name: str) -> str:
    """A name as matplotlib takes it: between two dollars it would read a formula."""
    return name.replace("$", r"\$")


def _label_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#E5E5E5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: str | Path) -> None:
    figure.set_dpi(DPI)
    with new_file(path) as unfinished:
        # Straight to the canvas, as savefig draws everything twice to find the layout. No version
        # of matplotlib in the file: pictures change only when their numbers do.
        FigureCanvasAgg(figure).print_png(unfinished, metadata={"Software": None})
