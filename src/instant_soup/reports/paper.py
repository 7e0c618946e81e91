"""The paper's Tables 2 and 3, with our numbers beside the columns that were measured here.

A *column* is a section at a sparsity. It is the paper's only where model, dataset, preset, metric
and sparsity are; what else was measured stands in accuracy_tables.py. Only runs with a preset's own
settings (variant "") enter. What the paper printed is in paper.yaml.
"""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from instant_soup.files import read_yaml
from instant_soup.reports.ledger import SECTION
from instant_soup.reports.marks import against_lth
from instant_soup.reports.render import MISSING, Cell, Chapter, Table
from instant_soup.reports.results import (
    CELL,
    UNPRUNED,
    bold_words,
    column_of,
    in_units,
    label,
    methods_of,
    one_count,
    percent,
    row_order,
    rows_of,
    spread_words,
    summary,
)

PAPER = "paper"  # the preset that has the paper's settings
COLUMNS_PER_TABLE = 3  # of the paper's, each with ours and the paper's number

TEXT = (
    "A number of ours compares with the paper's only if model, data, preset, metric and sparsity "
    "are the same. Those numbers stand here, all others under Results. Paper: as printed, in "
    "percent, means of three runs, with the spread where the paper gives it. ▲, ▼ and bold are "
    "about our numbers. –: not measured here, or not in the paper."
)


def read_paper() -> dict[str, dict[str, Any]]:
    """The paper's tables: name → network, family, model, columns and rows of text."""
    return read_yaml(Path(__file__).with_name("paper.yaml"))


def chapters(ledger: pd.DataFrame) -> dict[str, list[Chapter]]:
    """Both tables beside ours: the name of their files → chapter."""
    tables = read_paper().items()
    return {name: [chapter(name, table, comparison(table, ledger))] for name, table in tables}


def numbers(name: str, ledger: pd.DataFrame) -> pd.DataFrame:
    """One of the tables as `long_form`."""
    return long_form(name, comparison(read_paper()[name], ledger))


# Numbers


def paper_numbers(table: dict[str, Any]) -> pd.DataFrame:
    """What the paper printed, a row each: CELL and `paper` (text). Dense has sparsity 0."""
    columns = [(c, sparsity) for c in table["columns"] for sparsity in c["sparsities"]]
    cells = [("dense", c, 0.0) for c in table["columns"]]
    texts = table["dense"].split("|")
    for method, row in table["sparse"].items():
        cells += [(method, *column) for column in columns]
        texts += re.split(r"[|,]", row)
    rows = [
        (table["model"], column["dataset"], PAPER, column["metric"], method, "", sparsity)
        for method, column, sparsity in cells
    ]
    stripped = [text.strip() for text in texts]
    return pd.DataFrame(rows, columns=CELL).assign(paper=pd.Series(stripped, dtype=str))


def comparison(table: dict[str, Any], ledger: pd.DataFrame) -> pd.DataFrame:
    """Ours and the paper's, a row for each CELL that either has.

    Columns: CELL; n, mean and std of ours (in_units; n = 0 where there is none); p_vs_lth and
    mark (against_lth); paper (text, NaN where there is none). What the paper lacks comes first,
    then its columns in its order; methods in the order of table rows.
    """
    own = ledger[(ledger["variant"] == "") & (ledger["family"] == table["family"])]
    ours = in_units(summary(own)).merge(against_lth(own), on=CELL, how="left")
    both = ours.merge(paper_numbers(table), on=CELL, how="outer")
    both = both.assign(n=both["n"].fillna(0).astype(int), mark=both["mark"].fillna(""))
    place = {section: i for i, section in enumerate(_paper_sections(table))}
    order = []
    for row in both.to_dict("records"):
        section = tuple(row[key] for key in SECTION)
        line = (*section, row["target_sparsity"], row_order(row["method"]))
        order.append((place.get(section, -1), *line))
    return both.assign(order=order).sort_values("order").drop(columns="order")


def long_form(name: str, numbers: pd.DataFrame) -> pd.DataFrame:
    """The comparison as a table for programs; n, mean and std empty where nothing was measured."""
    paper = numbers["paper"].str.split("±", expand=True).reindex(columns=[0, 1]).astype(float)
    columns = ["method", "model", "dataset", "preset", "target_sparsity", "metric"]
    table = numbers[[*columns, "n", "mean", "std"]].rename(columns={"target_sparsity": "sparsity"})
    table = table.assign(paper_mean=paper[0], paper_std=paper[1], p_vs_lth=numbers["p_vs_lth"])
    table.insert(0, "table", name)
    return table


# Tables


def chapter(name: str, table: dict[str, Any], numbers: pd.DataFrame) -> Chapter:
    """The paper's table; beside each of its columns ours, where it was measured."""
    columns = [(c, sparsity) for c in table["columns"] for sparsity in c["sparsities"]]
    groups = [columns[i : i + COLUMNS_PER_TABLE] for i in range(0, len(columns), COLUMNS_PER_TABLE)]
    tables = [_beside_paper(table, group, numbers) for group in groups]
    number = name.removeprefix("table")
    return Chapter(f"Table {number} of the paper: {table['network']}", TEXT, tables)


def _beside_paper(
    table: dict[str, Any], group: list[tuple[dict[str, Any], float]], numbers: pd.DataFrame
) -> Table:
    """A table of some of the paper's columns, each as ours and the paper's."""
    sections = [(table["model"], c["dataset"], PAPER, c["metric"]) for c, _ in group]
    cells = numbers[pd.MultiIndex.from_frame(numbers[SECTION]).isin(sections)]
    ours = cells[cells["n"] > 0]
    methods, count = methods_of(cells), one_count(ours)
    dense = [pair for pair in methods if pair[0] in UNPRUNED]
    sparse = [pair for pair in methods if pair[0] not in UNPRUNED]
    header, columns = [], []
    whole: dict[str, list[list[Cell]]] = {}  # of each dataset: the unpruned rows, ours and paper's
    for section, (column, sparsity) in zip(sections, group, strict=True):
        own = (cells[SECTION] == list(section)).all(axis=1)
        metric = "" if column["metric"] == "accuracy" else f", {column['metric']}"
        name = f"{column['name']}{metric}"
        header += [(name, f"{percent(sparsity)} ours"), (name, f"{percent(sparsity)} paper")]
        mine = ours[own[ours.index]]
        columns.append(column_of(mine, sparse, sparsity, count))
        columns.append(_paper_column(cells[own], sparse, sparsity))
        whole[name] = [
            column_of(mine, dense, sparsity, count),
            _paper_column(cells[own], dense, sparsity),
        ]
    unpruned = [
        (label(*pair), [_both(mine[row], paper[row]) for mine, paper in whole.values()])
        for row, pair in enumerate(dense)
    ]
    title = ", ".join(dict.fromkeys(column["name"] for column, _ in group))
    measured = (
        f"Ours: model {table['model']}, preset {PAPER}; {spread_words(ours)}"
        f"{bold_words(ours, columns)}"
        if len(ours)
        else "Not measured here yet."
    )
    return Table(title, header, rows_of(sparse, columns), measured, unpruned=unpruned)


def _both(ours: Cell, paper: Cell) -> Cell:
    """An unpruned network's value here and in the paper, in one cell."""
    texts = [
        f"{name} {cell.text}"
        for name, cell in (("ours", ours), ("paper", paper))
        if cell.text != MISSING
    ]
    return Cell(" · ".join(texts) or MISSING)


def _paper_sections(table: dict[str, Any]) -> list[tuple]:
    return [(table["model"], c["dataset"], PAPER, c["metric"]) for c in table["columns"]]


def _paper_column(
    cells: pd.DataFrame, methods: list[tuple[str, str]], sparsity: float
) -> list[Cell]:
    """The paper's number of each method at a sparsity."""
    at_hand = cells["method"].isin(UNPRUNED) | (cells["target_sparsity"] == sparsity)
    printed = cells[at_hand & cells["paper"].notna()].set_index("method")["paper"]
    return [Cell(printed.get(method, MISSING)) for method, _ in methods]
