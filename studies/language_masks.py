"""How alike the masks of a language model pruned without training are, by criterion.

    make repro FAMILY=lm                # which pre-trains the model, if it is not there yet
    python studies/language_masks.py
    python studies/language_masks.py --model hub:openai-community/gpt2 --texts wikitext2

Cosines of the masks of magnitude, Wanda, Fisher scores and SparseGPT at one sparsity, and of 2:4
patterns (arXiv 2306.03805). The page is reports/studies/language_masks.md.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from language_one_shot import asked

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from common import ROOT

from instant_soup.files import new_file
from instant_soup.library import one_shot
from instant_soup.methods.n_of_m import pattern
from instant_soup.pipeline.processes import run_stage
from instant_soup.reports.render import Cell, Chapter, Table, markdown
from instant_soup.sparsity import masks

RESULTS = ROOT / "reports/studies/language_masks.csv"
PLACE = ["model", "weights", "texts", "sparsity", "pattern"]
COLUMNS = [*PLACE, "one", "other", "cosine"]
METHODS = ("magnitude-global", "magnitude", "magnitude-rows", "wanda", "sparsegpt", "fisher",
           "fisher-rows")  # fmt: skip
AT: list[tuple[float, int | None]] = [(0.5, None), (0.7, None), (0.5, 4)]
TEXT = (
    "Cosine of two masks of a language model that is pruned once, without training; calibration "
    "text as in `instant-soup oneshot`. Two random masks have the density as theirs (0.5 and 0.3)."
)


def main() -> None:
    folder, place = asked(__doc__ or "")
    rows = pd.DataFrame(columns=COLUMNS)
    if RESULTS.exists():
        rows = pd.read_csv(RESULTS, dtype={"pattern": str, "weights": str}, keep_default_na=False)
    found = pd.DataFrame([place | row for row in cosines(folder, place["texts"])], columns=COLUMNS)
    rows = pd.concat([rows, found]) if len(rows) else found
    with new_file(RESULTS) as unfinished:
        rows = rows.drop_duplicates([*PLACE, "one", "other"], keep="last")
        rows.to_csv(unfinished, index=False, float_format="%.4f")
    RESULTS.with_suffix(".md").write_text(markdown([chapter(rows)]))


def cosines(folder: Path, texts: str) -> list[dict[str, Any]]:
    """The cosine of each two criteria's masks, at each sparsity and pattern of AT."""
    found = []
    for sparsity, m in AT:
        own = one_shot.masks_of(folder, texts, METHODS, sparsity, m)
        groups = "" if m is None else f"{pattern(sparsity, m)}:{m}"
        for one, other in itertools.combinations(METHODS, 2):
            cosine = masks.cosine_similarity(own[one], own[other])
            row = {"sparsity": sparsity, "pattern": groups, "one": one, "other": other}
            found.append({**row, "cosine": cosine})
    return found


def chapter(rows: pd.DataFrame) -> Chapter:
    """A table of all pairs for each model, sparsity and pattern."""
    tables = []
    for (model, weights, texts, sparsity, groups), own in rows.groupby(PLACE):
        known = {(r["one"], r["other"]): r["cosine"] for r in own.to_dict("records")}
        lines = [(one, [Cell(cosine(known, one, other)) for other in METHODS]) for one in METHODS]
        title = f"{model} ({weights}) · {texts}, {groups or f'{100 * sparsity:g} %'}"
        tables.append(Table(title, [("", name) for name in METHODS], lines, ""))
    return Chapter("How alike masks of a language model are", TEXT, tables)


def cosine(known: dict[tuple, float], one: str, other: str) -> str:
    """A pair's cosine in words."""
    value = 1.0 if one == other else known.get((one, other), known.get((other, one)))
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    run_stage(main)
