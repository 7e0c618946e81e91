"""ISP against each other method, seed by seed: where it wins, ties or loses, and at what cost.

A view of the ledger. Methods enter with their preset's own settings; what all of them share (data,
training) may differ from it, and then makes a table of its own.
"""

from pathlib import Path

import pandas as pd

from instant_soup.methods.registry import DENSE
from instant_soup.reports.ledger import SECTION
from instant_soup.reports.paper import mark_of
from instant_soup.reports.render import MISSING, Cell, Chapter, Table, markdown
from instant_soup.reports.results import (
    UNPRUNED,
    UNRANKED,
    ZERO_SHOT,
    heading,
    label,
    number,
    percent,
    ranks_nothing,
    row_order,
    scale,
    shared_settings,
    unit,
    write_texts,
)

TEXT = (
    "ISP's test metric minus each other method's at the same sparsity (or minus the dense "
    "network's), mean ± sample standard deviation of the differences over common seeds. ▲ and ▼: "
    "ISP is better and worse, p < 0.05 in a two-sided paired t-test, not corrected for the number "
    "of tests. FLOPs: ISP's training FLOPs ÷ theirs, search included. –: not measured."
)


def write_tables(folder: str | Path, ledger: pd.DataFrame) -> list[Path]:
    """Write isp_against.md; its path."""
    return write_texts(folder, {"isp_against.md": markdown([chapter(ledger)])})


def chapter(ledger: pd.DataFrame) -> Chapter:
    """A table for each section that ISP was measured in."""
    of_preset = ledger["variant"] == ledger["variant"].map(shared_settings)
    columns = [*SECTION, "variant", "method", "target_sparsity", "seed", "value", "flops"]
    own = ledger.loc[of_preset & (ledger["method"] != ZERO_SHOT), columns]
    sections = own.groupby([*SECTION, "variant"], sort=True) if len(own) else []
    tables = [_table(section, runs) for section, runs in sections]
    return Chapter("ISP against the others", TEXT, [t for t in tables if t is not None])


def _table(section: tuple, runs: pd.DataFrame) -> Table | None:
    isp = runs[runs["method"] == "isp"]
    others = sorted(set(runs["method"]) - {"isp"}, key=row_order)
    sparsities = sorted(set(isp["target_sparsity"]))
    if not sparsities or not others:
        return None
    columns = [(f"{percent(s)} sparse", name) for s in sparsities for name in ("metric", "FLOPs")]
    dense = runs.loc[runs["method"] == DENSE, "value"]
    ranked = not ranks_nothing(section[1], section[3], dense)
    rows = []
    for method in others:
        cells: list[Cell] = []
        theirs = runs[runs["method"] == method]
        for sparsity in sparsities:
            ours = isp[isp["target_sparsity"] == sparsity].set_index("seed")
            at_hand = theirs
            if method not in UNPRUNED:
                at_hand = theirs[theirs["target_sparsity"] == sparsity]
            cells += _compare(ours, at_hand.set_index("seed"), scale(section[3]), ranked)
        rows.append((label(method), cells))
    caption = f"Test {section[3]}{unit(section[3])}, as differences.{'' if ranked else UNRANKED}"
    return Table(heading(section, section[4]), columns, rows, caption)


def _compare(ours: pd.DataFrame, theirs: pd.DataFrame, factor: float, ranked: bool) -> list[Cell]:
    """The difference over common seeds, marked if it may be, and the ratio of FLOPs."""
    seeds = ours.index.intersection(theirs.index)
    if not len(seeds):
        return [Cell(MISSING), Cell(MISSING)]
    gaps = factor * (ours["value"][seeds] - theirs["value"][seeds])
    text = f"{gaps.mean():+.2f}" + (f" ± {gaps.std(ddof=1):.2f}" if len(seeds) > 1 else "")
    mark = mark_of(ours["value"], theirs["value"]) if ranked else ""
    ratio = (ours["flops"][seeds] / theirs["flops"][seeds]).mean()
    return [Cell(f"{text} (n = {len(seeds)})", mark=mark), Cell(number(ratio, ".2f"))]
