"""A language model pruned without training: perplexity by criterion, sparsity and N:M pattern.

    make repro FAMILY=lm                # which pre-trains the model, if it is not there yet
    python studies/language_one_shot.py
    python studies/language_one_shot.py --model hub:openai-community/gpt2 --texts wikitext2

The sweep of `instant-soup oneshot`, with its sparsities and patterns. A model counts by
its weights. A method's rows are kept when it is done, and the same command goes on from there.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from common import ROOT

from instant_soup.errors import UserError
from instant_soup.files import new_file
from instant_soup.library import one_shot
from instant_soup.models import base, causal
from instant_soup.models.hugging_face import downloaded
from instant_soup.models.matrices import prunable
from instant_soup.pipeline.processes import run_stage
from instant_soup.reports.render import markdown
from instant_soup.reports.without_training import (
    NAMES,
    OF_PERPLEXITIES,
    PERPLEXITIES,
    PLACE,
    perplexities,
    read,
)

RESULTS = ROOT / "reports/studies" / PERPLEXITIES
PRETRAINED = Path("models/pretrained_lm")
OURS = "llama-snippets"


def main() -> None:
    folder, place = asked(__doc__ or "")
    for method in NAMES:
        known = read(RESULTS, OF_PERPLEXITIES)
        own = known[(known[PLACE] == list(place.values())).all(axis=1)]
        if method not in set(own["method"]):
            add(known, place, measured(folder, place["texts"], method))
    RESULTS.with_suffix(".md").write_text(markdown([perplexities(read(RESULTS, OF_PERPLEXITIES))]))


def asked(about: str) -> tuple[Path, dict[str, str]]:
    """The folder of the model that the command line names, and PLACE of it and its texts."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--model", default=OURS, help=f"folder or hub:ORG/NAME (default: {OURS})")
    parser.add_argument("--texts", default="reviews-text", help="dataset (default: reviews-text)")
    options = parser.parse_args()
    folder = folder_of(options.model)
    if not folder.is_dir():
        raise UserError(f"--model: {folder} is not there; for {OURS}: make repro FAMILY=lm")
    weights = base.digest(prunable(causal.load_pretrained(folder)))  # as in the ledger
    return folder, {"model": options.model, "weights": weights, "texts": options.texts}


def folder_of(model: str) -> Path:
    """Where a model's weights are."""
    if model.startswith("hub:"):
        return downloaded(model.removeprefix("hub:"))
    return PRETRAINED if model == OURS else Path(model)


def measured(folder: Path, texts: str, method: str) -> list[dict[str, Any]]:
    """The rows of a method over all sparsities and patterns."""
    sweep = one_shot.SPARSITIES, one_shot.PATTERNS
    return list(one_shot.perplexities(str(folder), texts, [method], *sweep))


def add(known: pd.DataFrame, place: dict[str, str], rows: list[dict[str, Any]]) -> None:
    """Keep a method's rows."""
    found = pd.DataFrame([place | row for row in rows], columns=OF_PERPLEXITIES)
    whole = pd.concat([known, found]) if len(known) else found
    with new_file(RESULTS) as unfinished:
        whole.to_csv(unfinished, index=False, quoting=csv.QUOTE_MINIMAL, float_format="%.6g")


if __name__ == "__main__":
    run_stage(main)
