"""A language model pruned without training: perplexity, essential sparsity, how alike masks are.

Two studies measure it by model, weights and texts, and keep their rows in reports/studies/:
studies/language_one_shot.py and studies/language_masks.py. Both tables stand in the chapter on
essential sparsity, too.
"""

from pathlib import Path

import pandas as pd

from instant_soup.reports.essential_sparsity import LEAST, TOLERANCE, heights, knee
from instant_soup.reports.render import MISSING, Cell, Chapter, Table
from instant_soup.reports.results import percent

PLACE = ["model", "weights", "texts"]
OF_PERPLEXITIES = [*PLACE, "method", "pattern", "sparsity", "perplexity"]
OF_COSINES = [*PLACE, "sparsity", "pattern", "one", "other", "cosine"]
PERPLEXITIES, COSINES = "language_one_shot.csv", "language_masks.csv"
NAMES = {
    "magnitude-global": "Magnitude, all matrices",
    "magnitude": "Magnitude, each matrix",
    "magnitude-rows": "Magnitude, each row",
    "wanda": "Wanda, each row",
    "sparsegpt": "SparseGPT, each block of 128 columns",
    "fisher": "Fisher, all matrices",
    "fisher-rows": "Fisher, each row",
}
KNEE = "essential sparsity"

PERPLEXITY_TEXT = (
    "Test perplexity (lower is better) of a language model that is pruned once and not trained "
    "after it. Wanda, SparseGPT and Fisher look at 128 blocks of the training texts, magnitude at "
    "none; SparseGPT also moves the weights that stay. The lowest of a column is bold. N:M "
    f"patterns have the density of 50 %. The {KNEE} is where perplexity has risen by one percent, "
    "interpolated. Nothing is drawn, so there are no seeds to differ. By `python "
    "studies/language_one_shot.py`, in fp32."
)
COSINE_TEXT = (
    "Cosine of two masks of a language model that is pruned once, without training; calibration "
    "text as in `instant-soup oneshot`. Two random masks have the density as theirs (0.5 and "
    "0.3). By `python studies/language_masks.py`."
)


def chapters(studies: Path) -> list[Chapter]:
    """What the studies' folder has rows of."""
    kinds = ((PERPLEXITIES, OF_PERPLEXITIES, perplexities), (COSINES, OF_COSINES, cosines))
    found = [chapter(read(studies / name, columns)) for name, columns, chapter in kinds]
    return [chapter for chapter in found if chapter.tables]


def read(path: Path, columns: list[str]) -> pd.DataFrame:
    """A study's rows; none where it has not run."""
    if not path.exists():
        return pd.DataFrame(columns=columns)
    texts = dict.fromkeys([*PLACE, "method", "pattern", "one", "other"], str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False)


def perplexities(rows: pd.DataFrame) -> Chapter:
    """A table for each model and texts: criteria by sparsities and patterns, and their knees."""
    tables = []
    for (model, weights, texts), own in rows.groupby(PLACE):
        own = own.assign(at=[*map(_column, own["pattern"], own["sparsity"])])
        wide = own.pivot(index="method", columns="at", values="perplexity")
        wide = wide.loc[[m for m in NAMES if m in wide.index], list(dict.fromkeys(own["at"]))]
        best = {at: _lowest(wide[at]) for at in wide}
        lines = []
        for method, line in wide.map(_written).iterrows():
            cells = [Cell(text, bold=text in best[at]) for at, text in line.items()]
            lines.append((NAMES[method], [*cells, Cell(_knee(own[own["method"] == method]))]))
        columns = [("", at) for at in (*wide.columns, f"{KNEE} (%)")]
        tables.append(Table(f"{model} ({weights}) · {texts}", columns, lines, ""))
    return Chapter("A language model without training", PERPLEXITY_TEXT, tables)


def _column(pattern: str, sparsity: float) -> str:
    """What a column is called: a pattern, or a sparsity without the rounding of whole weights."""
    return pattern or percent(round(sparsity, 3))


def _lowest(column: pd.Series) -> set[str]:
    """The lowest perplexity of a column as written; none where all are equal."""
    low, high = _written(column.min()), _written(column.max())
    return {low} if low != high else set()


def _written(perplexity: float) -> str:
    """A perplexity with the digits that matter."""
    return f"{perplexity:.1f}" if perplexity < 1000 else f"{perplexity:,.0f}"


def _knee(rows: pd.DataFrame) -> str:
    """The essential sparsity of a criterion's curve, in percent; MISSING of too short a one."""
    curve = rows[rows["pattern"] == ""].sort_values("sparsity")
    dense, pruned = curve[curve["sparsity"] == 0], curve[curve["sparsity"] > 0]
    if dense.empty or len(pruned) < LEAST:
        return MISSING
    logarithms = heights("perplexity", curve["perplexity"].to_numpy())
    found = knee([*pruned["sparsity"]], [*logarithms[1:]], logarithms[0], TOLERANCE)
    return f"{100 * found:.0f}"


def cosines(rows: pd.DataFrame) -> Chapter:
    """A table of all pairs of criteria for each model, sparsity and pattern."""
    tables = []
    for place, own in rows.groupby([*PLACE, "sparsity", "pattern"]):
        model, weights, texts, sparsity, groups = place
        known = {(r["one"], r["other"]): r["cosine"] for r in own.to_dict("records")}
        lines = [(one, [Cell(_cosine(known, one, other)) for other in NAMES]) for one in NAMES]
        title = f"{model} ({weights}) · {texts}, {groups or f'{100 * sparsity:g} %'}"
        tables.append(Table(title, [("", name) for name in NAMES], lines, ""))
    return Chapter("How alike masks of a language model are", COSINE_TEXT, tables)


def _cosine(known: dict[tuple, float], one: str, other: str) -> str:
    """A pair's cosine in words."""
    value = 1.0 if one == other else known.get((one, other), known.get((other, one)))
    return MISSING if value is None else f"{value:.3f}"
