"""Soups of dense networks beside plain fine-tuning, and the paper's Table 6; of the ledger."""

import pandas as pd

from instant_soup.reports.marks import seeds_cell
from instant_soup.reports.render import MISSING, Cell, Chapter, Table
from instant_soup.reports.results import (
    SOUPS,
    by_section,
    costs,
    heading,
    label,
    number,
    unit,
)

# The paper's columns; its CIFAR headers are garbled in the text at hand, so these two are named
# after their dense values.
PAPER_COLUMNS = ("CLIP Cars", "CLIP CIFAR-10", "CLIP CIFAR-100", "BERT MNLI", "BERT QNLI")
PAPER = {
    "dense": "76.43 | 97.60 | 89.35 | 82.39 | 90.04",
    "uniform_soup": "76.32 | 97.68 | 89.20 | 82.41 | 89.76",
    "greedy_soup": "77.95 | 98.05 | 89.54 | 83.01 | 90.64",
    "instant_model_soup": "78.79 ± 0.32 | 98.01 ± 0.07 | 89.64 ± 0.12 | 83.63 ± 0.43 | "
    "91.23 ± 0.19",
}
TEXT = (
    "Test metric, mean ± sample standard deviation over seeds, and training FLOPs in dense "
    "fine-tunings, validation included. Coefficients and members were chosen on validation data. ▲ "
    "and ▼: better and worse than plain fine-tuning, with p < 0.05 in a two-sided t-test paired "
    "over common seeds. The p is not corrected for the number of tests. –: not measured. Paper: "
    "Table 6 as printed, with other models and data. Its two CIFAR columns are identified by their "
    "dense values."
)


def chapter(ledger: pd.DataFrame) -> Chapter:
    """One table: fine-tuning and each soup, a pair of columns for each section with a soup."""
    own = ledger[(ledger["variant"] == "") & ledger["method"].isin(PAPER)]
    found = [
        (section, runs) for section, runs in by_section(own) if runs["method"].isin(SOUPS).any()
    ]
    if not found:
        return Chapter("Dense soups", TEXT, [])
    columns = [
        (heading(section), name)
        for section, _ in found
        for name in (f"{section[3]}{unit(section[3])}", "FLOPs")
    ]
    columns += [("paper", name) for name in PAPER_COLUMNS]
    rows = []
    for method, printed in PAPER.items():
        cells = [cell for section, runs in found for cell in _cells(section, runs, method)]
        rows.append((label(method), [*cells, *map(Cell, printed.split(" | "))]))
    return Chapter("Dense soups", TEXT, [Table("Table 6", columns, rows, "")])


def _cells(section: tuple, runs: pd.DataFrame, method: str) -> list[Cell]:
    """A method's metric and its cost, over the seeds that a soup was made with."""
    seeds = sorted(set(runs.loc[runs["method"].isin(SOUPS), "seed"]))
    values = runs[runs["seed"].isin(seeds)].set_index("seed").groupby("method")["value"]
    if method not in values.groups:
        return [Cell(MISSING), Cell(MISSING)]
    dense = values.get_group("dense") if method != "dense" and "dense" in values.groups else None
    cost = costs(runs).set_index("method")["flops_vs_dense"][method]
    return [seeds_cell(values.get_group(method), dense, section[3]), Cell(number(cost, ".2f"))]
