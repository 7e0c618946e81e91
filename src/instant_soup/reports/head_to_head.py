"""ISP against each other method, seed by seed: where it wins, ties or loses, and at what cost.

A view of the ledger. Methods enter with their preset's own settings; what all of them share (data,
training) may differ from it, and then makes a table of its own.
"""

from typing import TypeAlias

import numpy as np
import pandas as pd

from instant_soup.methods.registry import DENSE
from instant_soup.reports.ledger import SECTION
from instant_soup.reports.marks import mark_of
from instant_soup.reports.render import MISSING, Cell, Chapter, Table
from instant_soup.reports.results import (
    UNPRUNED,
    UNRANKED,
    ZERO_SHOT,
    by_section,
    direction,
    has_presets_settings,
    heading,
    label,
    number,
    over_seeds,
    percent,
    ranks_nothing,
    row_order,
    scale,
    signed,
    unit,
)

TEXT = (
    "ISP's test metric minus that of each other method at the same sparsity, or minus the dense "
    "network's. Mean ± sample standard deviation of the differences over common seeds. ▲ and ▼: "
    "ISP is better and worse, with p < 0.05 in a two-sided paired t-test. The p is not corrected "
    "for the number of tests. FLOPs: ISP's training FLOPs divided by theirs, search included. –: "
    "not measured."
)
Runs: TypeAlias = dict[int, tuple[float, float]]  # of one method and sparsity: seed → value, FLOPs


def chapter(ledger: pd.DataFrame) -> Chapter:
    """A table for each section that ISP was measured in."""
    of_preset = has_presets_settings(ledger)
    columns = [*SECTION, "variant", "method", "target_sparsity", "seed", "value", "flops"]
    own = ledger.loc[of_preset & (ledger["method"] != ZERO_SHOT), columns]
    tables = [
        _table((*section, variant), runs)
        for section, of_section in by_section(own)
        for variant, runs in of_section.groupby("variant")
    ]
    return Chapter("ISP against the others", TEXT, [t for t in tables if t is not None])


def _table(section: tuple, runs: pd.DataFrame) -> Table | None:
    by_row: dict[tuple[str, float], Runs] = {}  # a frame of each takes seconds
    for run in runs.to_dict("records"):
        sparsity = 0.0 if run["method"] in UNPRUNED else run["target_sparsity"]
        by_row.setdefault((run["method"], sparsity), {})[run["seed"]] = run["value"], run["flops"]
    others = sorted(set(runs["method"]) - {"isp"}, key=row_order)
    sparsities = sorted(sparsity for method, sparsity in by_row if method == "isp")
    if not sparsities or not others:
        return None
    columns = [(f"{percent(s)} sparse", name) for s in sparsities for name in ("metric", "FLOPs")]
    dense = runs.loc[runs["method"] == DENSE, "value"]
    ranked = not ranks_nothing(section[1], section[3], dense)
    rows = []
    for method in others:
        cells: list[Cell] = []
        for sparsity in sparsities:
            theirs = by_row.get((method, 0.0 if method in UNPRUNED else sparsity), {})
            cells += _compare(by_row["isp", sparsity], theirs, section[3], ranked)
        rows.append((label(method), cells))
    caption = f"Test {section[3]}{unit(section[3])}, as differences.{direction(section[3])}"
    caption += "" if ranked else UNRANKED
    title = heading(section, section[4])
    return Table(title, columns, rows, caption, task=heading(section))


def _compare(ours: Runs, theirs: Runs, metric: str, ranked: bool) -> list[Cell]:
    """The difference over common seeds, marked if it may be, and the ratio of FLOPs."""
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return [Cell(MISSING), Cell(MISSING)]
    values, flops = (
        tuple(np.array([runs[seed][i] for seed in seeds]) for runs in (ours, theirs))
        for i in (0, 1)
    )
    gaps = scale(metric) * (values[0] - values[1])
    text = over_seeds(gaps, signed)
    isp, other = (pd.Series(own, seeds) for own in values)
    mark = mark_of(isp, other, metric) if ranked else ""
    ratio = (flops[0] / flops[1]).mean()
    return [Cell(f"{text} (n = {len(seeds)})", mark=mark), Cell(number(ratio, ".2f"))]
