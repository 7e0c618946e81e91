"""All tables of the ledger, made once: for the files in `reports/tables/` and for the page."""

from pathlib import Path

import pandas as pd

from instant_soup.reports import (
    ablations,
    accuracy_tables,
    cost_tables,
    dense_soups,
    equal_cost,
    essential_sparsity,
    glance,
    head_to_head,
    methods,
    paper,
    verdict,
)
from instant_soup.reports.ledger import apart_by_origin
from instant_soup.reports.render import Chapter, in_all_forms
from instant_soup.reports.results import costs, summary, write_texts


def all_chapters(every: pd.DataFrame) -> dict[str, list[Chapter]]:
    """All chapters of the whole ledger, by the name of their files."""
    runs = apart_by_origin(every)
    return {
        "verdict": [glance.chapter(every), *verdict.chapters(every)],
        "results": accuracy_tables.chapters(runs),
        "isp_against": [head_to_head.chapter(runs)],
        "cost": [cost_tables.chapter(runs)],
        "equal_cost": [equal_cost.chapter(every)],
        **paper.chapters(runs),
        "methods": methods.chapters(every),
        "ablations": [ablations.chapter(runs)],
        "dense_soups": [dense_soups.chapter(runs)],
        "essential_sparsity": [essential_sparsity.chapter(runs)],
    }


def numbers(name: str, every: pd.DataFrame) -> pd.DataFrame | None:
    """What a file's CSV has instead of the tables' cells, in full precision; None: the cells."""
    match name:
        case "verdict":
            return verdict.numbers(every)
        case "methods":
            return methods.comparison(every)
        case "results":
            return summary(apart_by_origin(every))
        case "cost":
            return costs(apart_by_origin(every))
        case "table2" | "table3":
            return paper.numbers(name, apart_by_origin(every))
    return None


def write_tables(
    folder: str | Path, every: pd.DataFrame, chapters: dict[str, list[Chapter]]
) -> list[Path]:
    """Write NAME.md, NAME.tex and NAME.csv for each of `all_chapters`; their paths."""
    texts: dict[str, str] = {}
    for name, own in chapters.items():
        texts |= in_all_forms(name, own)
        if (table := numbers(name, every)) is not None:
            texts[f"{name}.csv"] = table.to_csv(index=False, lineterminator="\n")
    return write_texts(folder, texts)
