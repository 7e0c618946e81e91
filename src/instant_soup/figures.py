"""Figures of a run and of the ledger, as PNG files that are the same for the same numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from instant_soup.files import new_file
from instant_soup.tables import SECTION, label, percent, row_order, scale, summary, unit

# Okabe and Ito's palette: told apart with any colour vision; markers tell apart in print.
STYLES = {
    "dense": ("#000000", "s"),
    "random": ("#8C8C8C", "v"),
    "one_shot": ("#0072B2", "^"),
    "isp": ("#D55E00", "o"),
}
OTHER_STYLES = [("#009E73", "D"), ("#CC79A7", "P"), ("#E69F00", "X"), ("#56B4E9", "<")]
DPI = 150
BELOW: dict[str, Any] = {"loc": "outside lower center", "fontsize": 8, "frameon": False}
ABOVE: dict[str, Any] = {"loc": "lower center", "fontsize": 8, "frameon": False}
DASHES = ["--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))]  # variants of a method, which share a colour


def training_curves(curves: dict[str, pd.DataFrame], metric: str, path: str | Path) -> None:
    """Training loss and validation metric over the main network's optimiser steps.

    `curves`: method → columns step, train_loss, validation (NaN: not measured), sparsity. Dotted
    lines mark where ISP pruned.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method in sorted(curves, key=row_order):
        curve, (colour, marker) = curves[method], _style(method, curves)
        loss = curve.dropna(subset="train_loss")
        smooth = loss["train_loss"].rolling(max(1, len(loss) // 25), 1, center=True).mean()
        left.plot(loss["step"], loss["train_loss"], color=colour, alpha=0.2, lw=0.7)
        in_legend = {"marker": marker, "ms": 4, "markevery": [], "label": label(method)}
        left.plot(loss["step"], smooth, color=colour, lw=1.6, **in_legend)
        score = curve.dropna(subset="validation")
        values = scale(metric) * score["validation"]
        right.plot(score["step"], values, color=colour, lw=1.4, marker=marker, ms=4)
    if "isp" in curves:
        _mark_pruning(left, right, curves["isp"])
    _finish(left, "optimiser step", "training loss (faint: each step)")
    _finish(right, "optimiser step", f"validation {metric}{unit(metric)}")
    # Below the panels, where it hides no curve; both have the same methods.
    figure.legend(*left.get_legend_handles_labels(), **BELOW, ncols=6)
    _save(figure, path)


def isp_rounds(rounds: list[dict[str, Any]], metric: str, path: str | Path) -> None:
    """ISP's rounds: sparsity and the weak masks' agreement; the metric before and after pruning.

    `before` and `after` are the metric's value or dicts of metrics; None where not measured.
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
    margin = max(0.6, (4 - len(rounds)) / 2)  # keeps the bars of one or two rounds slim
    for axes in (left, right):
        axes.set_xticks(numbers)
        axes.set_xlim(min(numbers) - margin, max(numbers) + margin)
        axes.legend(**ABOVE, bbox_to_anchor=(0.5, 1.0), ncols=2)
    _finish(left, "round", "share (%)")
    _finish(right, "round", f"validation {metric}{unit(metric)}")
    _save(figure, path)


def layer_sparsity(results: list[dict[str, Any]], path: str | Path) -> None:
    """Sparsity of each layer, one line per sparse method (dense only if there is no other).

    Methods are set a little apart horizontally: magnitude-based masks nearly coincide.
    """
    shown = [r for r in results if r["method"] != "dense"] or results
    shown = sorted(shown, key=lambda r: row_order(r["method"], r["variant"]))
    names = list(dict.fromkeys(layer["name"] for r in shown for layer in r["layer_sparsity"]))
    figure = Figure(figsize=(max(6, 2 + 0.4 * len(names)), 4), layout="constrained")
    axes = figure.subplots()
    methods = [r["method"] for r in shown]
    for number, result in enumerate(shown):
        colour, marker = _style(result["method"], methods)
        apart = (number - (len(shown) - 1) / 2) * 0.08
        own = {layer["name"]: 100 * layer["sparsity"] for layer in result["layer_sparsity"]}
        values = [own.get(name, np.nan) for name in names]
        name = label(result["method"], result["variant"])
        x = np.arange(len(names)) + apart
        axes.plot(x, values, color=colour, marker=marker, ms=5, lw=1.2, label=name)
    for overall in sorted({round(100 * r["sparsity"], 2) for r in shown}):
        axes.axhline(overall, color="#555555", lw=0.8, ls=":", label=f"all layers: {overall:g} %")
    axes.set_xticks(range(len(names)), _short(names), rotation=45 if len(names) > 6 else 0,
                    ha="right" if len(names) > 6 else "center", fontsize=8)  # fmt: skip
    axes.set_xlim(-0.5, len(names) - 0.5)
    low, high = axes.get_ylim()
    if high - low < 2:  # a flat line is no reason to show thousandths of a percent
        axes.set_ylim(low - 1, high + 1)
    _finish(axes, "layer", "sparsity (%)")
    figure.legend(*axes.get_legend_handles_labels(), **BELOW, ncols=3)
    _save(figure, path)


def accuracy_vs_sparsity(ledger: pd.DataFrame, path: str | Path) -> None:
    """Test metric over sparsity, one panel per section of the ledger.

    Error bars and the dense band are one sample standard deviation over seeds (n > 1). Methods
    are set a little apart horizontally, so that ties stay visible.
    """
    cells = summary(ledger) if len(ledger) else pd.DataFrame(columns=[*SECTION, "method"])
    cells = cells[cells["method"] != "zero_shot"]  # far below, it would flatten all others
    sections = list(cells.groupby(SECTION, sort=True))
    columns = max(1, min(3, len(sections)))
    lines = max(1, -(-len(sections) // columns))
    figure = Figure(figsize=(max(6.4, 4.4 * columns), 3.8 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (section, own) in zip(panels, sections, strict=False):
        _sparsity_panel(axes, own, section[3], list(cells["method"]))
        axes.set_title(" · ".join(section[:3]), fontsize=9)
    for axes in panels[len(sections) :]:
        axes.set_axis_off()
    handles: dict[str, Any] = {}
    for axes in panels:
        found, names = axes.get_legend_handles_labels()
        handles = dict(zip(names, found, strict=True)) | handles
    if not sections:
        panels[0].text(0.5, 0.5, "no results yet", ha="center", va="center")
    longest = max(map(len, handles), default=1)
    ncols = max(1, min(5, 25 * columns // longest))
    figure.legend(list(handles.values()), list(handles), **BELOW, ncols=ncols)
    _save(figure, path)


def _sparsity_panel(axes: Axes, cells: pd.DataFrame, metric: str, methods: list[str]) -> None:
    factor = scale(metric)
    sparse = cells[cells["method"] != "dense"]
    ticks = sorted(set(100 * sparse["target_sparsity"])) or [0.0]
    margin = max(4.0, 0.06 * (ticks[-1] - ticks[0]))
    axes.set_xlim(ticks[0] - margin, ticks[-1] + margin)
    axes.set_xticks(ticks)
    pairs = sorted(
        set(zip(cells["method"], cells["variant"], strict=True)), key=lambda p: row_order(*p)
    )
    lines = [pair for pair in pairs if pair[0] != "dense"]
    variants = sorted({variant for _, variant in pairs if variant})
    for method, variant in pairs:
        own = cells[(cells["method"] == method) & (cells["variant"] == variant)]
        mean, spread = factor * own["mean"], factor * own["std"]
        colour, marker = _style(method, methods)
        dash: Any = DASHES[variants.index(variant) % len(DASHES)] if variant else "-"
        name = label(method, variant)
        if method == "dense":
            axes.axhline(mean.iloc[0], color=colour, lw=1.2, ls=dash, label=name)
            low, high = mean.iloc[0] - spread.iloc[0], mean.iloc[0] + spread.iloc[0]
            if not np.isnan(low):
                axes.axhspan(low, high, color=colour, alpha=0.1, lw=0)
            continue
        apart = (lines.index((method, variant)) - (len(lines) - 1) / 2) * 0.12 * margin
        bars = None if spread.isna().all() else spread  # single runs have none
        axes.errorbar(
            100 * own["target_sparsity"] + apart, mean, yerr=bars,
            color=colour, marker=marker, ms=5, lw=1.3, ls=dash, capsize=2, label=name,
            mfc="white" if variant else colour,
        )  # fmt: skip
    _finish(axes, "sparsity (%)", f"test {metric}{unit(metric)}")


def _mark_pruning(left: Axes, right: Axes, curve: pd.DataFrame) -> None:
    """Dotted lines where the sparsity jumps, with the new sparsity on them if there is room."""
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
                step, 0.99, f"to {percent(sparsity)}", transform=left.get_xaxis_transform(),
                rotation=90, ha="left", va="top", fontsize=7, color="#A04000",
            )  # fmt: skip


def _score(value: Any, metric: str) -> float:
    """A number out of a number, a dict of metrics, or None (NaN)."""
    value = value.get(metric) if isinstance(value, dict) else value
    return float("nan") if value is None else float(value)


def _style(method: str, methods: Any) -> tuple[str, str]:
    """Colour and marker of a method; those not in STYLES take turns, in alphabetical order."""
    if method in STYLES:
        return STYLES[method]
    others = sorted(set(methods) - set(STYLES))
    return OTHER_STYLES[others.index(method) % len(OTHER_STYLES)]


def _short(names: list[str]) -> list[str]:
    """Layer names without the dotted parts with which all of them begin."""
    parts = [name.split(".") for name in names]
    same = 0
    while len(names) > 1 and all(len(p) > same + 1 and p[same] == parts[0][same] for p in parts):
        same += 1
    return [".".join(p[same:]) for p in parts]


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#E5E5E5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: str | Path) -> None:
    with new_file(path) as unfinished:
        # No version of matplotlib in the file: pictures change only when their numbers do.
        figure.savefig(unfinished, dpi=DPI, format="png", metadata={"Software": None})
