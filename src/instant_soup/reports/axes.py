"""What a teacher, or retraining fewer weights, changes: each method beside itself without.

A view of `apart_by_origin`. Methods have the settings that validation chose, as in methods.py. A
*block* is what sets runs apart, such as "training.teacher=dense" (`results.block_of`).
"""

import pandas as pd

from instant_soup.methods.registry import ISP
from instant_soup.reports.ledger import SECTION
from instant_soup.reports.methods import by_settings, chosen, difference, own_of
from instant_soup.reports.render import MISSING, Cell, Chapter, Table
from instant_soup.reports.results import (
    block_of,
    heading,
    label,
    number,
    over_seeds,
    percent,
    row_order,
    scale,
    unit,
)

TEXT = (
    "Methods with a teacher (training.teacher), and with fewer weights retrained after the last "
    "mask (training.retrain; PERP). Each has the settings that validation chose. Difference: from "
    "the same method without, over common seeds. Cost: training FLOPs in dense fine-tunings, "
    "search and the teacher's own training included. –: not measured."
)
RUN = ["target_sparsity", "method", "own", "seed"]  # what names one within a section and block


def axes(ledger: pd.DataFrame) -> pd.DataFrame:
    """The runs of blocks, a row each: `block`, `own` settings, `cost`, and `without`.

    `without` is the value of the same run outside all blocks; NaN where there is none. Runs whose
    shared settings say more than a block are left out.
    """
    runs = by_settings(ledger)
    settings = {**chosen(ledger), ISP: ""}
    plain = runs.loc[runs["shared"] == "", [*SECTION, *RUN, "value"]]
    runs = runs.assign(block=runs["shared"].map(block_of))
    runs = runs[(runs["block"] != "") & (runs["block"] == runs["shared"])]
    runs = runs[runs["method"].isin(settings)]
    columns = runs.groupby([*SECTION, "block", "target_sparsity", "method"])
    kept = [one[one["own"] == own_of(one, settings[place[-1]])] for place, one in columns]
    runs = pd.concat([runs[:0], *kept])
    found = runs.merge(plain, on=[*SECTION, *RUN], how="left", suffixes=("", "_without"))
    return found.rename(columns={"value_without": "without"}).sort_values(
        [*SECTION, "block", *RUN], ignore_index=True
    )


def chapter(ledger: pd.DataFrame) -> Chapter:
    """A table for each section and sparsity: methods by blocks."""
    found = axes(ledger).groupby([*SECTION, "target_sparsity"])
    tables = [_table(place[:4], place[4], runs) for place, runs in found]
    return Chapter("A teacher, or fewer retrained weights", TEXT, tables)


def _table(section: tuple, sparsity: float, runs: pd.DataFrame) -> Table:
    metric, blocks = section[3], sorted(set(runs["block"]))
    by_cell = {key: one for key, one in runs.groupby(["method", "own", "block"])}
    rows = []
    for method, own in sorted({key[:2] for key in by_cell}, key=lambda row: row_order(*row)):
        cells: list[Cell] = []
        for block in blocks:
            found = by_cell.get((method, own, block))
            if found is None:
                cells += [Cell(MISSING)] * 3
                continue
            seeds = f" (n = {len(found)})" if len(found) > 1 else ""
            cells += [
                Cell(over_seeds(scale(metric) * found["value"]) + seeds),
                Cell(difference(found["value"], found["without"], metric)),
                Cell(number(found["cost"].mean(), ".2f")),
            ]
        rows.append((label(method, own), cells))
    names = (f"{metric}{unit(metric)}", "difference", "cost")
    columns = [(block, name) for block in blocks for name in names]
    return Table(f"{heading(section)}, {percent(sparsity)} sparse", columns, rows, "")
