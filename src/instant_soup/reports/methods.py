"""The field's methods side by side, each with the settings that validation chose for it.

A view of `apart_by_origin`. A *trial* is a run of a row with settings of its own: rows have up to
three, at one place (…_OF_TRIALS), and what scores best on validation data there is the row's
setting everywhere. grids/trials.yaml runs the trials, grids/methods.yaml the comparison.
"""

import pandas as pd

from instant_soup.config.sections import OF_RETRAINING, OF_TEACHER
from instant_soup.methods.registry import DENSE, ISP
from instant_soup.reports.ledger import KEY, SECTION, remembered
from instant_soup.reports.marks import seeds_cell
from instant_soup.reports.origins import plain
from instant_soup.reports.render import MISSING, Cell, Chapter, Table
from instant_soup.reports.results import (
    UNPRUNED,
    heading,
    label,
    number,
    percent,
    row_order,
    scale,
    shared_settings,
    signed,
    unit,
)
from instant_soup.training.metrics import merit

REFERENCE = "isp_plus"
# Where the trials are: with the first seed, at one sparsity, on the packaged texts.
SECTION_OF_TRIALS = ("minilm", "reviews-sentiment", "quick", "accuracy")
SPARSITY_OF_TRIALS, SEED_OF_TRIALS = 0.8, 0
LEAST = 10  # methods with trials that make a comparison

TEXT_OF_TRIALS = (
    "Validation score of each method with its default settings and with others, one run each. The "
    "best one (bold) is the method's setting in the comparison. If two are equal, the default is "
    "taken."
)
TEXT = (
    "Test metric of each method with the settings that validation chose, mean ± sample standard "
    "deviation over seeds. ▲ and ▼: better and worse than ISP+, with p < 0.05 in a two-sided "
    "t-test paired over common seeds. The p is not corrected for the number of tests. Cost: "
    "training FLOPs, search included, in dense fine-tunings. Overlap: cosine with the mask of "
    "one-shot magnitude. Settings in brackets are the chosen ones. A method without them has its "
    "defaults: they were chosen, or the chosen ones were not run there. All runs of a table are "
    "from the same weights on one kind of processor. –: not measured."
)


def chapters(ledger: pd.DataFrame) -> list[Chapter]:
    """The comparison, and the trials that chose its settings."""
    return [_comparison_chapter(comparison(ledger)), _trials_chapter(ledger)]


def trials(ledger: pd.DataFrame) -> pd.DataFrame:
    """The runs at the trials' place whose own row's settings alone differ from the preset.

    They are of one origin: that with most of them.
    """
    places = ledger[SECTION].assign(model=ledger["model"].map(plain))
    at_place = (places == list(SECTION_OF_TRIALS)).all(axis=1)
    at_place &= ledger["target_sparsity"] == SPARSITY_OF_TRIALS
    at_place &= ledger["seed"] == SEED_OF_TRIALS
    own = ledger["variant"].map(shared_settings) == ""
    scored = ledger["validation"].notna() & ~ledger["method"].isin([*UNPRUNED, ISP])
    found = ledger[at_place & own & scored]
    return found[found["model"].isin(found["model"].mode()[:1])]


def chosen(ledger: pd.DataFrame) -> dict[str, str]:
    """Method → the variant whose trial scored best on validation data."""
    found = trials(ledger)
    ranked = found.sort_values(["validation", "variant"], ascending=[False, True], kind="stable")
    return dict(ranked.groupby("method", sort=False)[["method", "variant"]].first().to_numpy())


@remembered
def comparison(ledger: pd.DataFrame) -> pd.DataFrame:
    """The runs of the comparison: a row each, with `own` and `shared` settings, and `cost`.

    `cost` is in fine-tunings. Each method is there with its chosen settings, or with its default
    where these were not run, in every column (task, shared settings and sparsity) where LEAST of
    the methods that have trials were run, ISP+ among them.
    """
    settings, runs = chosen(ledger), by_settings(ledger)
    kept = [runs[:0]]
    for _, column in runs.groupby([*SECTION, "shared", "target_sparsity"]):
        rows = {
            method: one[one["own"] == own_of(one, settings.get(method, ""))]
            for method, one in column.groupby("method")
        }
        there = [method for method, one in rows.items() if len(one) and method in settings]
        if REFERENCE in there and len(there) >= LEAST:
            kept += rows.values()
    return pd.concat(kept).sort_values(KEY, ignore_index=True)


def by_settings(ledger: pd.DataFrame) -> pd.DataFrame:
    """The runs of sparse methods with `own` and `shared` settings, and `cost` in fine-tunings.

    A fine-tuning is that of the dense network with the same shared settings and seed; `cost` is NaN
    without it.
    """
    shared = ledger["variant"].map(shared_settings)
    own = [
        " ".join(part for part in variant.split(" ") if part not in common.split(" "))
        for variant, common in zip(ledger["variant"], shared, strict=True)
    ]
    runs = ledger.assign(shared=shared, own=pd.Series(own, ledger.index, dtype=object))
    # A teacher and retraining are no settings of the dense network that a cost is counted in.
    runs = runs.assign(unit=runs["shared"].map(_without_blocks))
    place = [*SECTION, "unit", "seed"]
    dense = runs[(runs["method"] == DENSE) & (runs["variant"] == runs["unit"])]
    runs = runs[~runs["method"].isin(UNPRUNED)]
    runs = runs.merge(dense[[*place, "flops"]], "left", on=place, suffixes=("", "_of_dense"))
    runs = runs.drop(columns="unit")
    return runs.assign(cost=runs["flops"] / runs.pop("flops_of_dense"))


def _without_blocks(shared: str) -> str:
    """Shared settings without those of a teacher and of retraining."""
    apart = tuple(f"training.{name}=" for name in (*OF_TEACHER, *OF_RETRAINING))
    return " ".join(part for part in shared.split(" ") if not part.startswith(apart))


def own_of(runs: pd.DataFrame, chosen: str) -> str:
    """The settings that a method's runs are taken with: the chosen ones, or its default."""
    return chosen if chosen in set(runs["own"]) else ""


def _comparison_chapter(found: pd.DataFrame) -> Chapter:
    """A table for each section and its shared settings, those with most runs first."""
    sections = sorted(found.groupby([*SECTION, "shared"]), key=lambda one: -len(one[1]))
    tables = [_comparison_table(section, runs) for section, runs in sections]
    return Chapter("The field's methods", TEXT, tables)


def _comparison_table(section: tuple, runs: pd.DataFrame) -> Table:
    """Methods by sparsities, the best at the trials' sparsity first."""
    metric, sparsities = section[3], sorted(set(runs["target_sparsity"]))
    cells_of = runs.groupby(["method", "own", "target_sparsity"])
    by_cell = {key: one.set_index("seed") for key, one in cells_of}
    reference = {s: by_cell[m, own, s]["value"] for m, own, s in by_cell if m == REFERENCE}
    at = SPARSITY_OF_TRIALS if SPARSITY_OF_TRIALS in sparsities else sparsities[-1]

    def rank(row: tuple[str, str]) -> tuple:
        found = by_cell.get((*row, at))
        worth = 0.0 if found is None else merit(metric, found["value"].mean())
        return (found is None, -worth, row_order(*row))

    rows = []
    for method, own in sorted({key[:2] for key in by_cell}, key=rank):
        cells: list[Cell] = []
        for sparsity in sparsities:
            found = by_cell.get((method, own, sparsity))
            if found is None:
                cells += [Cell(MISSING)] * 4
                continue
            other = None if method == REFERENCE else reference.get(sparsity)
            cells += [
                seeds_cell(found["value"], other, metric),
                Cell(difference(found["value"], other, metric)),
                Cell(number(found["cost"].mean(), ".2f")),
                Cell(number(found["overlap_one_shot"].mean(), ".3f")),
            ]
        rows.append((label(method, own), cells))
    names = (f"{metric}{unit(metric)}", "− ISP+", "cost", "overlap")
    columns = [(f"{percent(s)} sparse", name) for s in sparsities for name in names]
    caption = f"Processor: {', '.join(sorted(set(runs['processor']))) or 'not recorded'}."
    return Table(heading(section[:4], section[4]), columns, rows, caption)


def difference(own: pd.Series, others: pd.Series | None, metric: str) -> str:
    """The mean difference over common seeds, in the metric's unit."""
    if others is None:
        return MISSING
    gaps = (own - others).dropna()
    return signed(scale(metric) * gaps.mean()) if len(gaps) else MISSING


def _trials_chapter(ledger: pd.DataFrame) -> Chapter:
    """All trials, method by method."""
    found, best = trials(ledger), chosen(ledger)
    rows = []
    for method in sorted(set(found["method"]), key=row_order):
        own = found[found["method"] == method].sort_values("variant")
        for variant, score in zip(own["variant"], own["validation"], strict=True):
            name = label(method, variant or "default")
            rows.append((name, [Cell(f"{100 * score:.2f}", bold=best[method] == variant)]))
    if not rows:
        return Chapter("Trials", TEXT_OF_TRIALS, [])
    title = f"{heading(tuple(found[SECTION].iloc[0]))}, {percent(SPARSITY_OF_TRIALS)} sparse"
    columns = [("", "validation accuracy (%)")]
    return Chapter("Trials", TEXT_OF_TRIALS, [Table(title, columns, rows, "")])
