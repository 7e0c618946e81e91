"""Numbers in README.md and the docs, rendered from the ledger: none of them can go stale.

A part stands between the lines `<!-- ledger: NAME -->` and `<!-- end -->`. `make numbers` renders
all parts anew. `make tables` does not: a user's own runs must not change these files.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from instant_soup.files import new_file
from instant_soup.methods.registry import DENSE
from instant_soup.reports.claim import claim
from instant_soup.reports.glance import glance
from instant_soup.reports.ledger import SECTION, apart_by_origin, read_ledger
from instant_soup.reports.render import NOTHING, Cell, Table, markdown_table
from instant_soup.reports.results import (
    CELL,
    UNPRUNED,
    costs,
    in_units,
    label,
    percent,
    row_order,
    summary,
)
from instant_soup.reports.verdict import short, verdict

FILES = ("README.md", "docs/findings.md")
PART = re.compile(r"(<!-- ledger: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TEXTS = ("minilm", "reviews-sentiment", "quick", "accuracy")
IMAGES = ("clip-glyph", "mnist-sample", "quick", "accuracy")
SPARSITIES = (0.7, 0.9)
FROM = 0.5  # below this sparsity all rows are alike


def render(text: str, every: pd.DataFrame) -> str:
    """A file's text with each of its parts rendered from the whole ledger."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part[2]](every)}\n{part[3]}", text)


def write(every: pd.DataFrame) -> None:
    """Render the parts of FILES, those that exist here."""
    for path in filter(Path.exists, map(Path, FILES)):
        old = path.read_text()
        if (text := render(old, every)) != old:
            with new_file(path) as unfinished:
                unfinished.write_text(text)


def _verdict(every: pd.DataFrame, rivals: bool = False) -> str:
    """The verdict at a glance for the quick preset, from FROM on."""
    lines = verdict(every)
    lines = lines[(lines["preset"] == "quick") & (lines["sparsity"] >= FROM)]
    return markdown_table(glance("quick", lines, rivals)) if len(lines) else NOTHING


def _example(every: pd.DataFrame) -> str:
    """ISP+ beside ISP, LTH and dense at 80 % on the packaged texts."""
    means = {name: own[0] for name, own in _by_method(every, [TEXTS], [0.8]).items()}
    if not {"isp_plus", "isp", "lth", DENSE} <= set(means):
        return NOTHING
    plus, isp, lth, dense = (f"{means[m]['mean']:.1f} %" for m in ("isp_plus", "isp", "lth", DENSE))
    return (
        f"On movie reviews at 80 % sparsity ISP+ keeps {plus} accuracy. ISP has {isp}, LTH {lth}, "
        f"and the dense network {dense}."
    )


def _results(every: pd.DataFrame) -> str:
    """Texts and images at SPARSITIES: the methods that were run at all of these, and their cost."""
    rows = _by_method(every, [TEXTS, IMAGES], SPARSITIES)
    best = [
        max((round(cell["mean"], 2) for cell in column), default=None)
        for column in zip(*(own for name, own in rows.items() if name != DENSE), strict=True)
    ]
    lines = []
    for method in sorted(rows, key=row_order):
        values = [
            Cell(f"{cell['mean']:.2f} ± {cell['std']:.2f}", bold=round(cell["mean"], 2) == top)
            for cell, top in zip(rows[method], best, strict=False)
        ]
        cost = sorted(
            {f"{cell['flops_vs_dense']:.1f}" for cell in rows[method][:: len(SPARSITIES)]}
        )
        name = label(method) if method == DENSE else short(method)
        lines.append((name, [*values, Cell(" to ".join(cost))]))
    names = [f"{kind}, {percent(s)}" for kind in ("texts", "images") for s in SPARSITIES]
    return markdown_table(Table("", [("", name) for name in (*names, "cost")], lines, ""))


def _by_method(
    every: pd.DataFrame, sections: list[tuple], sparsities: Sequence[float]
) -> dict[str, list[pd.Series]]:
    """Method → its cells at each section and sparsity, of methods that have all; dense always."""
    rows = apart_by_origin(every)
    rows = rows[rows["variant"] == ""]
    cells = in_units(summary(rows)).merge(costs(rows)[[*CELL, "flops_vs_dense"]], on=CELL)
    known = {
        (*(cell[name] for name in SECTION), cell["method"], cell["target_sparsity"]): cell
        for _, cell in cells.iterrows()
    }
    found = {}
    for method in set(cells["method"]) - (set(UNPRUNED) - {DENSE}):
        places = [(*section, method, s) for section in sections for s in sparsities]
        if method == DENSE:
            places = [(*place[:-1], 0.0) for place in places]
        if all(place in known for place in places):
            found[method] = [known[place] for place in places]
    return found


PARTS: dict[str, Callable[[pd.DataFrame], str]] = {
    "verdict": _verdict,
    "verdict_with_rivals": partial(_verdict, rivals=True),
    "claim": claim,
    "example": _example,
    "results": _results,
}


if __name__ == "__main__":
    write(read_ledger(Path("reports/results.csv")))
