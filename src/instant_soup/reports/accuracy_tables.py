"""The main tables: methods by sparsities, a table for each task, with the preset's own settings.

One's own data and models come first, in a chapter of their own. Changed settings of a method are
in ablations.py.
"""

from dataclasses import replace

import pandas as pd

from instant_soup.reports.marks import against_lth
from instant_soup.reports.origins import plain
from instant_soup.reports.render import Chapter, Table
from instant_soup.reports.results import (
    CELL,
    UNPRUNED,
    apart_words,
    blocks,
    bold_words,
    by_section,
    column_of,
    common_settings,
    direction,
    drawn_in,
    heading,
    in_units,
    is_own,
    methods_of,
    one_count,
    percent,
    preset_rows,
    rows_of,
    sparse_columns,
    spread_words,
    summary,
    unit,
    unpruned_rows,
    unsettled_words,
)

TEXT = (
    "Test metric by method and sparsity, with the preset's own settings. ▲ and ▼: better and "
    "worse than LTH (IMP) at the same sparsity, with p < 0.05 in a two-sided t-test paired over "
    "common seeds. The p is not corrected for the number of tests. Three seeds have little power: "
    "where there is no mark, there may still be a difference. Runs on another kind of processor, "
    "or from other weights, have tables of their own; their titles say so. –: not measured."
)


def chapters(ledger: pd.DataFrame) -> list[Chapter]:
    """A table for each task: those of one's own data or model, if there are any; then the rest."""
    tables = [
        (is_own(section), _table(section, block, rows))
        for block, own in blocks(ledger)
        for section, rows in by_section(preset_rows(own))
    ]
    own = [replace(table, task="") for mine, table in tables if mine]  # the page shows all of them
    others = [table for mine, table in tables if not mine]
    return [
        *([Chapter("Results on your own data and models", TEXT, own)] if own else []),
        *([Chapter("Results", TEXT, others)] if others or not own else []),
    ]


def _table(section: tuple, block: str, ledger: pd.DataFrame) -> Table:
    model, dataset, preset, metric = section
    cells = in_units(summary(ledger)).merge(against_lth(ledger), on=CELL, how="left")
    variant, cells = common_settings(cells.assign(mark=cells["mark"].fillna("")))
    count = one_count(cells)
    methods = [pair for pair in methods_of(cells) if pair[0] not in UNPRUNED]
    sparsities = sparse_columns(cells) if methods else []
    columns = [column_of(cells, methods, sparsity, count) for sparsity in sparsities]
    precision, bases, processors = (
        ", ".join(sorted(set(ledger[name]) - {""})) or "not recorded"
        for name in ("precision", "base", "processor")
    )
    caption = (
        f"Test {metric}{unit(metric)}, {spread_words(cells)}{bold_words(cells, columns)}"
        f"{direction(metric)} Model {plain(model)} (weights {bases}), data {dataset}, "
        f"preset {preset}, precision {precision}, processor {processors}."
        f"{unsettled_words(drawn_in(ledger, section))}{apart_words(block)}"
    )
    header = [("", f"{percent(sparsity)} sparse") for sparsity in sparsities] or [
        ("", "any sparsity")
    ]
    return Table(
        heading(section, block, variant),
        header or [("", "any sparsity")],
        rows_of(methods, columns),
        caption,
        unpruned=unpruned_rows(cells, count),
        task=heading(section),
    )
