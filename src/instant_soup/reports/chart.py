"""What the page's chart draws: a point for each task, method and sparsity, means over seeds."""

from typing import Any

import pandas as pd

from instant_soup.reports.commands import command
from instant_soup.reports.figures import MAIN, _colour_and_marker
from instant_soup.reports.ledger import SECTION
from instant_soup.reports.origins import model_and_origin
from instant_soup.reports.results import (
    BUDGETS,
    CELL,
    UNPRUNED,
    blocks,
    by_section,
    common_settings,
    costs,
    heading,
    is_own,
    label,
    methods_of,
    on_test,
    preset_rows,
    scale,
    summary,
)
from instant_soup.training.metrics import LOWER_IS_BETTER

SHAPES = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down"}
SHAPES |= {"<": "triangle-left", ">": "triangle-right", "P": "cross", "X": "cross", "*": "diamond"}
SHAPES |= {r"$\oplus$": "square"}  # ISP+, apart from ISP; no other sparse method has it


def chart_data(runs: pd.DataFrame) -> dict[str, Any]:
    """Tasks with their points, methods with their looks, and the task shown at first, as JSON.

    `runs`: the ledger, `apart_by_origin`. At first the page shows the task with most runs. Metrics
    are in the units that tables show, `cost` is in dense fine-tunings, `cosine` that of the mask
    with the one-shot mask.
    """
    sizes: dict[str, int] = {}
    tasks = []
    for block, own in blocks(runs):
        counts = own.groupby(SECTION).size()
        for section, rows in by_section(preset_rows(own)):
            if (task := _task(section, block, rows))["points"]:
                tasks.append(task)
                sizes[task["title"]] = counts[section]
    names = {point["method"]: point["name"] for task in tasks for point in task["points"]}
    methods = []
    for method, name in names.items():
        known = method.partition(" ")[0]
        colour, marker = _colour_and_marker(known, [name.partition(" ")[0] for name in names])
        look = {"colour": colour, "shape": SHAPES.get(marker, "circle"), "main": method in MAIN}
        methods.append({"id": method, "name": name, **look})
    chosen = max(sizes, key=sizes.__getitem__, default="")
    return {"tasks": tasks, "methods": methods, "budgets": BUDGETS, "chosen": chosen}


def _task(section: tuple, block: str, rows: pd.DataFrame) -> dict[str, Any]:
    """A task's points, sparse methods only, and its dense network."""
    factor = scale(section[3])
    keys = ["method", "variant", "target_sparsity"]
    cells = summary(rows).merge(costs(rows), on=CELL, suffixes=("", "_of_cost"))
    first = rows.sort_values("seed").groupby(keys)
    seeds = first["seed"].agg(lambda own: ", ".join(map(str, own))).to_dict()
    cosines = first["overlap_one_shot"].mean().to_dict()
    commands = {key: command(_whole(own.iloc[0], block)) for key, own in first}
    variant, short = common_settings(cells)
    order = {pair: place for place, pair in enumerate(methods_of(short))}
    points, dense = [], None
    for cell, named in zip(cells.to_dict("records"), short["variant"], strict=True):
        place = (cell["method"], cell["variant"], cell["target_sparsity"])
        point = {
            "method": " ".join(filter(None, (cell["method"], named))),
            "name": label(cell["method"], named),
            "sparsity": _rounded(100 * cell["target_sparsity"]),
            "mean": _rounded(factor * cell["mean"]),
            "spread": _rounded(factor * cell["std"]),
            "seeds": seeds[place],
            "steps": _rounded(cell["steps"] + cell["search_steps"]),
            "cost": _rounded(cell["flops_vs_dense"]),
            "teraflops": _rounded(cell["flops"] / 1e12),
            "cosine": _rounded(cosines[place]),
            "command": commands[place],
            "order": order[cell["method"], named],
        }
        if cell["method"] == "dense":
            dense = point
        elif cell["method"] not in UNPRUNED:
            points.append(point)
    points.sort(key=lambda point: (point.pop("order"), point["sparsity"]))
    return {
        "title": heading(section, block, variant),
        "task": heading(section),
        "group": _group(section),
        "metric": on_test(section[3]),
        "lower": section[3] in LOWER_IS_BETTER,
        "dense": dense,
        "points": points,
    }


def _group(section: tuple) -> str:
    """Which of the choice's groups a task is in."""
    if is_own(section):
        return "Your own data and models"
    return "Run elsewhere, or from other weights" if model_and_origin(section[0])[1] else "Tasks"


def _whole(row: pd.Series, block: str) -> dict[Any, Any]:
    """A ledger row with what `blocks` took out of its variant."""
    return {**row.to_dict(), "variant": f"{block} {row['variant']}".strip()}


def _rounded(value: float) -> float | None:
    """A number with five significant digits, as JSON has no NaN."""
    return None if pd.isna(value) else float(f"{value:.5g}")
