"""All tables of the ledger, made once: for the files in `reports/tables/` and for the page."""

from pathlib import Path

import pandas as pd

from instant_soup.reports import (
    ablations,
    accuracy_tables,
    axes,
    cost_tables,
    dense_soups,
    equal_cost,
    essential_sparsity,
    glance,
    head_to_head,
    methods,
    paper,
    verdict,
    without_training,
)
from instant_soup.reports.render import Chapter, in_all_forms
from instant_soup.reports.results import costs, summary, write_texts


def all_chapters(runs: pd.DataFrame, studies: Path | None = None) -> dict[str, list[Chapter]]:
    """All chapters of the ledger, by the name of their files.

    Args:
        runs: The ledger, `apart_by_origin`.
        studies: The folder with the studies' rows, of which some chapters tell, too.
    """
    untrained = without_training.chapters(studies) if studies else []
    compared = verdict.comparable(runs)
    lines = verdict.best_rows(compared)
    return {
        "verdict": [glance.chapter(lines), *verdict.chapters(compared, lines)],
        "results": accuracy_tables.chapters(runs),
        "isp_against": [head_to_head.chapter(runs)],
        "cost": [cost_tables.chapter(runs)],
        "equal_cost": [equal_cost.chapter(runs)],
        **paper.chapters(runs),
        "methods": [*methods.chapters(runs), axes.chapter(runs)],
        "ablations": [ablations.chapter(runs)],
        "dense_soups": [dense_soups.chapter(runs)],
        "essential_sparsity": [essential_sparsity.chapter(runs), *untrained],
    }


def numbers(name: str, runs: pd.DataFrame) -> pd.DataFrame | None:
    """What a file's CSV has instead of the tables' cells, in full precision; None: the cells."""
    match name:
        case "verdict":
            return verdict.numbers(runs)
        case "methods":
            return methods.comparison(runs)
        case "results":
            return summary(runs)
        case "cost":
            return costs(runs)
        case "table2" | "table3":
            return paper.numbers(name, runs)
    return None


def write_tables(
    folder: str | Path, runs: pd.DataFrame, chapters: dict[str, list[Chapter]]
) -> list[Path]:
    """Write NAME.md, NAME.tex and NAME.csv for each of `all_chapters`; their paths."""
    texts: dict[str, str] = {}
    for name, own in chapters.items():
        texts |= in_all_forms(name, own)
        if (table := numbers(name, runs)) is not None:
            texts[f"{name}.csv"] = table.to_csv(index=False, lineterminator="\n")
    return write_texts(folder, texts)
