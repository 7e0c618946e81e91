"""The verdict at a glance: the best method of each sparsity and budget, in one small table."""

from collections.abc import Hashable
from typing import Any

import pandas as pd

from instant_soup.reports.render import MISSING, Cell, Chapter, Table
from instant_soup.reports.results import BUDGETS, percent, short
from instant_soup.reports.verdict import RIVALS, budget_words, with_interval

FEWEST = 4  # methods that compete at a sparsity: fewer give no choice
TEXT = (
    "The best method at each sparsity within a budget, its distance from the dense network in "
    "points with the 95 % interval, and how many methods competed. The budget counts the training "
    "FLOPs of a method, search included, in dense fine-tunings. Bold: the method is ahead of all "
    "others beyond noise (p < 0.05, and the interval of the difference leaves zero out). Where "
    "others are within noise of the best method, or share too few seeds with it for a test, the "
    "cell names them. Each sparsity has its own tasks. So compare distances along a line, not down "
    "a column."
)


def chapter(lines: pd.DataFrame) -> Chapter:
    """A table for each preset of a verdict's lines."""
    tables = [glance(preset, own) for preset, own in lines.groupby("preset")]
    return Chapter("The verdict", TEXT, tables)


def with_choice(lines: pd.DataFrame) -> pd.DataFrame:
    """Of a verdict's lines those of sparsities at which FEWEST methods or more compete."""
    most = lines.groupby(["preset", "sparsity"])["rows"].transform("max")
    return lines[most >= FEWEST]


def glance(preset: str, lines: pd.DataFrame, rivals: bool = True) -> Table:
    """Sparsities by budgets.

    Args:
        preset: For the heading.
        lines: The preset's of `verdict`.
        rivals: Whether cells name the rows that are as good as the best.
    """
    rows = []
    for sparsity, own in with_choice(lines).groupby("sparsity"):
        by_budget = {line["budget"]: line for line in own.to_dict("records")}
        cells = [_cell(by_budget.get(budget), rivals) for budget in BUDGETS]
        rows.append((percent(float(sparsity)), [*cells, Cell(str(own["tasks"].iloc[0]))]))
    columns = [("", budget_words(budget)) for budget in BUDGETS]
    return Table(f"Preset {preset}", [*columns, ("", "tasks")], rows, "", corner="sparsity")


def _cell(line: dict[Hashable, Any] | None, rivals: bool) -> Cell:
    """The best row with its distance, and what is as good; bold where nothing is."""
    if line is None:
        return Cell(MISSING)
    points = with_interval(line["distance"], line["low"], line["high"], digits=1)
    text = f"{short(line['method'])} {points}, best of {line['rows']}"
    for kind, words in RIVALS.items():
        if rivals and line[kind]:
            text += f"; {words}: {', '.join(map(short, line[kind]))}"
    return Cell(text, bold=not any(line[kind] for kind in RIVALS))
