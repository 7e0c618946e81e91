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
from instant_soup.reports.render import markdown
from instant_soup.reports.without_training import COSINES, NAMES, OF_COSINES, cosines, read
from instant_soup.sparsity import masks

RESULTS = ROOT / "reports/studies" / COSINES
AT: list[tuple[float, int | None]] = [(0.5, None), (0.7, None), (0.5, 4)]


def main() -> None:
    folder, place = asked(__doc__ or "")
    rows = read(RESULTS, OF_COSINES)
    measured = [place | row for row in pairs(folder, place["texts"])]
    found = pd.DataFrame(measured, columns=OF_COSINES)
    rows = pd.concat([rows, found]) if len(rows) else found
    with new_file(RESULTS) as unfinished:
        rows = rows.drop_duplicates(OF_COSINES[:-1], keep="last")
        rows.to_csv(unfinished, index=False, float_format="%.4f")
    RESULTS.with_suffix(".md").write_text(markdown([cosines(rows)]))


def pairs(folder: Path, texts: str) -> list[dict[str, Any]]:
    """The cosine of each two criteria's masks, at each sparsity and pattern of AT."""
    found = []
    for sparsity, m in AT:
        own = one_shot.masks_of(folder, texts, [*NAMES], sparsity, m)
        groups = "" if m is None else f"{pattern(sparsity, m)}:{m}"
        for one, other in itertools.combinations(NAMES, 2):
            cosine = masks.cosine_similarity(own[one], own[other])
            row = {"sparsity": sparsity, "pattern": groups, "one": one, "other": other}
            found.append({**row, "cosine": cosine})
    return found


if __name__ == "__main__":
    run_stage(main)
