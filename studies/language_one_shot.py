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
from instant_soup.models.bert import downloaded
from instant_soup.models.matrices import prunable
from instant_soup.pipeline.processes import run_stage
from instant_soup.reports.render import Cell, Chapter, Table, markdown
from instant_soup.reports.results import percent

RESULTS = ROOT / "reports/studies/language_one_shot.csv"
PRETRAINED = Path("models/pretrained_lm")
OURS = "llama-snippets"
PLACE = ["model", "weights", "texts"]
COLUMNS = [*PLACE, "method", "pattern", "sparsity", "perplexity"]
NAMES = {
    "magnitude-rows": "Magnitude, each row",
    "magnitude": "Magnitude, each matrix",
    "magnitude-global": "Magnitude, all matrices",
    "wanda": "Wanda, each row",
    "sparsegpt": "SparseGPT, each block of 128 columns",
    "fisher": "Fisher, all matrices",
    "fisher-rows": "Fisher, each row",
}
TEXT = (
    "Test perplexity (lower is better) of a language model that is pruned once and not trained "
    "after it. Wanda, SparseGPT and Fisher look at 128 blocks of the training texts, magnitude at "
    "none; SparseGPT also moves the weights that stay. The lowest of a column is bold. By `python "
    "studies/language_one_shot.py`, in fp32."
)


def main() -> None:
    folder, place = asked(__doc__ or "")
    for method in NAMES:
        known = read_rows()
        own = known[(known[PLACE] == list(place.values())).all(axis=1)]
        if method not in set(own["method"]):
            add(known, place, measured(folder, place["texts"], method))
    RESULTS.with_suffix(".md").write_text(markdown([chapter(read_rows())]))


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


def read_rows() -> pd.DataFrame:
    """What is measured."""
    text = dict.fromkeys([*PLACE, "method", "pattern"], str)
    if not RESULTS.exists():
        return pd.DataFrame(columns=COLUMNS)
    return pd.read_csv(RESULTS, dtype=text, keep_default_na=False)


def add(known: pd.DataFrame, place: dict[str, str], rows: list[dict[str, Any]]) -> None:
    """Keep a method's rows."""
    found = pd.DataFrame([place | row for row in rows], columns=COLUMNS)
    whole = pd.concat([known, found]) if len(known) else found
    with new_file(RESULTS) as unfinished:
        whole.to_csv(unfinished, index=False, quoting=csv.QUOTE_MINIMAL, float_format="%.6g")


def chapter(rows: pd.DataFrame) -> Chapter:
    """A table for each model and texts."""
    tables = []
    for (model, weights, texts), own in rows.groupby(PLACE):
        own = own.assign(at=[*map(column_of, own["pattern"], own["sparsity"])])
        wide = own.pivot(index="method", columns="at", values="perplexity")
        wide = wide.loc[[m for m in NAMES if m in wide.index], list(dict.fromkeys(own["at"]))]
        best = {at: lowest(wide[at]) for at in wide}
        lines = [
            (NAMES[method], [Cell(text, bold=text in best[at]) for at, text in line.items()])
            for method, line in wide.map(written).iterrows()
        ]
        columns = [("", at) for at in wide.columns]
        tables.append(Table(f"{model} ({weights}) · {texts}", columns, lines, ""))
    return Chapter("A language model without training", TEXT, tables)


def column_of(pattern: str, sparsity: float) -> str:
    """What a column is called: a pattern, or a sparsity without the rounding of whole weights."""
    return pattern or percent(round(sparsity, 3))


def lowest(column: pd.Series) -> set[str]:
    """The lowest perplexity of a column as written; none where all are equal."""
    return {written(column.min())} if written(column.min()) != written(column.max()) else set()


def written(perplexity: float) -> str:
    """A perplexity with the digits that matter."""
    return f"{perplexity:.1f}" if perplexity < 1000 else f"{perplexity:,.0f}"


if __name__ == "__main__":
    run_stage(main)
