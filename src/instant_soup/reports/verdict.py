"""The verdict: which row is best at a sparsity and a budget, over tasks and seeds together.

A view of `apart_by_origin`. A *task* is a model on a dataset with its metric; rows enter with the
preset's own settings (what the task itself changes in training or data is the same for all of its
rows), without a teacher and trained in full. Distances are in points from the dense network of the
same task, seed and origin; a network that came out as NaN counts as 0, and beside a dense one that
did there is no distance.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from instant_soup.methods.registry import DENSE
from instant_soup.reports.ledger import SECTION, remembered
from instant_soup.reports.origins import plain
from instant_soup.reports.render import MISSING, Cell, Chapter, Table
from instant_soup.reports.results import (
    BUDGETS,
    PERCENT,
    UNPRUNED,
    ZERO_SHOT,
    block_of,
    has_presets_settings,
    label,
    number,
    percent,
    ranks_nothing,
    row_order,
    short,
    signed,
)
from instant_soup.reports.statistics import (
    SIGNIFICANT,
    bootstrap_interval,
    critical_difference,
    friedman_p,
    holm,
    mean_ranks,
    nemenyi,
    paired_p,
    without_gaps,
)

LIMITS = (*BUDGETS, np.inf)  # inf: any cost
REFERENCES = ("isp_plus", "isp")  # the rows that all others are compared with
TASK = ["model", "dataset", "metric"]
SEEDS = 3  # fewer tell little
RIVALS = {  # of a best row: those that may be as good
    "within": "within noise", "untested": "not tested", "ahead": "ahead where both ran",
}  # fmt: skip


# Numbers


@remembered
def comparable(ledger: pd.DataFrame) -> pd.DataFrame:
    """The runs that the verdict is about, one a line.

    Columns: preset, task, sparsity, origin (the model's name with it), method, seed, distance
    (points from dense) and cost (training FLOPs, search included, in fine-tunings of the dense
    network). Tasks on which the dense network is no better than guessing are left out, and those
    whose metric has no points (perplexity).
    """
    own = ledger[has_presets_settings(ledger)]
    own = own[own["metric"].isin(PERCENT)]
    own = own[(own["method"] != ZERO_SHOT) & (own["variant"].map(block_of) == "")]
    own = own.assign(origin=own["model"], model=own["model"].map(plain))
    same = [*SECTION, "origin", "variant", "seed"]
    dense = own.loc[own["method"] == DENSE, [*same, "value", "flops"]]
    runs = own[~own["method"].isin(UNPRUNED)]
    columns = [column for _, column in runs.groupby([*SECTION, "target_sparsity"])]
    runs = pd.concat([runs[:0], *(one[one["variant"] == own_setting(one)] for one in columns)])
    runs = runs.merge(dense[dense["value"].notna()], on=same, suffixes=("", "_of_dense"))
    unranked = [
        section
        for section, of_one in runs.groupby(SECTION)
        if ranks_nothing(section[1], section[3], of_one["value_of_dense"])
    ]
    runs = runs[~pd.MultiIndex.from_frame(runs[SECTION]).isin(unranked)]
    value = runs["value"].fillna(0.0)
    found = runs.assign(
        task=[" ".join(names) for names in zip(*map(runs.get, TASK), strict=True)],
        distance=100 * value - 100 * runs["value_of_dense"],
        cost=runs["flops"] / runs["flops_of_dense"],
        sparsity=runs["target_sparsity"],
    )
    names = ["preset", "task", "sparsity", "origin", "method", "seed"]
    return found[[*names, "distance", "cost"]].sort_values(names, ignore_index=True)


def own_setting(column: pd.DataFrame) -> str | None:
    """The variant that a task's rows are compared in; None without rows.

    `column`: the ledger's rows of one task and sparsity with no setting of their own. The empty
    variant is it where there is one; else what has most runs, and the last.
    """
    settings = [
        (not variant, len(own), own["finished"].max(), variant)
        for variant, own in column.groupby("variant")
    ]
    return max(settings)[-1] if settings else None


def against(runs: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    """Every row's mean distance from dense, or its difference from a reference row.

    `runs`: of `comparable`, one preset; what is of several sparsities is averaged over them first,
    over those that all seeds have (of an uneven grid the largest part without gaps counts).
    By method: the mean over tasks of means over seeds, `low` and `high` of its interval, `p` and
    `p_holm` (corrected for the number of rows), and how many tasks, seeds (the fewest of a task)
    and runs it is of. Only what both rows have, task by task and seed by seed, counts. `differs`:
    beyond noise, which is p_holm under SIGNIFICANT and an interval that leaves zero out.
    """
    keys = ["method", "task", "sparsity", "seed", "origin"]
    codes, names = zip(*(pd.factorize(runs[key], sort=True) for key in keys), strict=True)
    distances = np.full([len(own) for own in names], np.nan)  # NaN: not run
    distances[codes] = runs["distance"]
    methods = list(names[0])
    if reference is not None and reference not in methods:
        methods = []
    base = distances[methods.index(reference)] if reference in methods else np.zeros(1)
    lines = {
        method: _summary(gaps)
        for method, gaps in zip(methods, distances - base, strict=False)
        if method != reference and not np.isnan(gaps).all()
    }
    columns = ["tasks", "seeds", "runs", "mean", "low", "high", "p"]
    table = pd.DataFrame.from_dict(lines, orient="index", columns=columns)
    return _beyond_noise(table)


def between(runs: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """`against` for pairs that were chosen beforehand, by (first, second): the first's difference.

    p is corrected for the number of these pairs. So a further method in the ledger changes nothing.
    """
    tables = {pair: against(runs[runs["method"].isin(pair)], pair[1]) for pair in pairs}
    return _beyond_noise(pd.concat(tables).droplevel(2))


def _mean(values: np.ndarray) -> np.ndarray:
    """Means over the last axis of what is not NaN; NaN where all is."""
    counts = (~np.isnan(values)).sum(axis=-1)
    return np.where(counts > 0, np.nansum(values, axis=-1) / np.maximum(counts, 1), np.nan)


def _beyond_noise(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `p_holm` and `differs`; NaN for rows without seeds enough, or without p."""
    p = table["p"].to_numpy(dtype=float)
    tested = _has_seeds(table) & ~np.isnan(p)
    corrected = np.where(tested, p, np.nan)
    corrected[tested] = holm(p[tested])
    off_zero = table["low"] * table["high"] > 0
    return table.assign(p_holm=corrected, differs=(corrected < SIGNIFICANT) & off_zero)


def _summary(gaps: np.ndarray) -> dict[str, float]:
    """Differences [task, sparsity, seed, origin], NaN where not run, over tasks and seeds.

    They are within origins, and the mean over those comes first. Those of a task and seed are
    then averaged over sparsities, the same ones for all of the task's seeds: else their spread
    would be the sparsities'.
    """
    means = _mean(gaps)
    used = [np.ix_(*without_gaps(own)) for own in means]
    by_task = [
        own[part].mean(axis=0) for own, part in zip(means, used, strict=True) if own[part].size
    ]
    low, high = bootstrap_interval(by_task)
    mean = float(np.mean([own.mean() for own in by_task]))
    counted = {"tasks": len(by_task), "seeds": min(map(len, by_task))}
    of_all_origins = (~np.isnan(own[part]) for own, part in zip(gaps, used, strict=True))
    counted["runs"] = sum(int(known.sum()) for known in of_all_origins)
    return {**counted, "mean": mean, "low": low, "high": high, "p": paired_p(by_task)}


def competing(distances: pd.DataFrame, tasks: int) -> pd.DataFrame:
    """Of `against` dense the rows that were run on all of so many tasks.

    With fewer than SEEDS a row competes only where none has more: the best of many would be chance.
    """
    whole = distances[distances["tasks"] == tasks]
    return whole[_has_seeds(whole)]


def _has_seeds(table: pd.DataFrame) -> np.ndarray:
    """Which rows have SEEDS seeds, or as many as any has where none has so many."""
    seeds = table["seeds"].to_numpy(dtype=float)
    return seeds >= min(SEEDS, seeds.max(initial=0))


def verdict(ledger: pd.DataFrame) -> pd.DataFrame:
    """The best row of each preset, sparsity and budget, and how sure that is.

    Columns: preset, sparsity, budget (fine-tunings; inf: any), method; cost, its mean over tasks;
    distance, low and high (points from dense, with the interval); within, the rows that differ from
    it by no more than noise (see `against`); untested, those with too few tasks or seeds in common
    with it for a test; ahead, rows that are above it beyond noise on the tasks and origins that
    both ran on, whether they compete or not; rows, how many competed; tasks and runs, how many the
    best row's numbers are of. The rows of `competing` compete. A row fits a budget if its cost, to
    one decimal, does.
    """
    return best_rows(comparable(ledger))


@remembered
def best_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """`verdict`, of runs of `comparable`."""
    lines = [
        {"preset": preset, "sparsity": sparsity, **line}
        for (preset, sparsity), own in runs.groupby(["preset", "sparsity"])
        for line in _best_by_budget(own)
    ]
    columns = ["preset", "sparsity", "budget", "method", "cost", "distance", "low", "high"]
    return pd.DataFrame(lines, columns=[*columns, *RIVALS, "rows", "tasks", "runs"])


def _best_by_budget(runs: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The verdict's lines of one preset and sparsity."""
    tasks = runs["task"].nunique()
    cost = costs_of(runs)
    distances = against(runs, None)
    full = competing(distances, tasks)
    others: dict[str, pd.DataFrame] = {}  # by the row that they are compared with
    for budget in LIMITS:
        affordable = cost[cost.round(1) <= budget].index
        fitting = full[full.index.isin(affordable)]
        if len(fitting) < 2:
            continue
        best = max(fitting.index, key=lambda m: (round(fitting["mean"][m], 9), m))
        if best not in others:
            others[best] = against(runs, best)
        rivals = others[best][others[best].index.isin(affordable)]
        rivals = _beyond_noise(rivals).reindex(affordable.drop(best))
        differs, tested = rivals["differs"].eq(True), rivals["p_holm"].notna()
        competes = rivals.index.isin(fitting.index)
        tested &= rivals["tasks"].eq(tasks)
        above = differs & (rivals["mean"] > 0)
        yield {
            "budget": budget,
            "method": best,
            "cost": cost[best],
            "distance": full["mean"][best],
            "low": full["low"][best],
            "high": full["high"][best],
            "within": _nearest_first(rivals[competes & tested & ~differs]),
            "untested": _nearest_first(rivals[competes & ~tested & ~above]),
            "ahead": _nearest_first(rivals[above]),
            "rows": len(fitting),
            "tasks": tasks,
            "runs": full["runs"][best],
        }


def costs_of(runs: pd.DataFrame) -> pd.Series:
    """By method, the mean over tasks of what its runs cost, in fine-tunings."""
    return runs.groupby(["method", "task"])["cost"].mean().groupby("method").mean()


def _nearest_first(rivals: pd.DataFrame) -> tuple[str, ...]:
    """Methods by how near to the best one they are; those that have no difference from it last."""
    distances = rivals["mean"].abs().fillna(np.inf)
    return tuple(sorted(rivals.index, key=lambda method: (distances[method], row_order(method))))


def rank_tables(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Complete tables to rank rows in: (preset, distances of task and sparsity × methods).

    `runs`: of `comparable`. An entry is of the origins and seeds that all of a table's methods
    have. Of each preset the table with the most entries, the one with the most rows that were run
    on the same columns, and the largest one that has the paper's claim, ISP beside LTH; each has
    three or more of both.
    """
    found = []
    for preset, own in runs.groupby("preset"):
        keys = ["task", "sparsity", "origin", "seed", "method"]
        cells = own.groupby(keys)["distance"].mean().unstack()
        measured = in_common({frozenset(cell.dropna().index) for _, cell in cells.iterrows()})
        seeds = min(SEEDS, own["seed"].nunique())
        tables = [_complete(cells[sorted(rows, key=row_order)], seeds) for rows in measured]
        tables = [table for table in tables if min(table.shape) > 2]
        claim = [table for table in tables if {"isp", "lth"} <= set(table.columns)]
        largest = [_first(tables, lambda t: t.size), _first(tables, lambda t: t.shape[1])]
        largest.append(_first(claim, lambda t: t.size))
        unique = {tuple(table.columns): table for table in largest if table is not None}
        found += [(preset, table) for table in unique.values()]
    return found


def in_common(sets: Iterable[frozenset[str]]) -> set[frozenset[str]]:
    """Some sets, and all that any of them have in common."""
    found: set[frozenset[str]] = set()
    for one in sets:
        found |= {one, *(one & other for other in found)}
    return found


def _complete(cells: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """Means of task and sparsity, over the origins on which all rows have so many seeds."""
    by_origin = cells.dropna().groupby(["task", "sparsity", "origin"])
    means = by_origin.mean()[by_origin.size() >= seeds]
    return means.groupby(["task", "sparsity"]).mean()


def _first(tables: list[pd.DataFrame], size: Callable[[pd.DataFrame], int]) -> pd.DataFrame | None:
    """The largest of some tables; of equally large ones the one with more columns to rank over."""
    return max(tables, key=lambda t: (size(t), len(t), tuple(t.columns)), default=None)


# Tables

VERDICT_TEXT = (
    "At each sparsity this is the best method within a budget, over all tasks and seeds. Methods "
    "have the preset's own settings (reports/tables/methods.md has those that validation chose, on "
    "one kind of processor each, so its differences may be others). Points from dense: the "
    "method's test metric minus that of the dense network with the same task and seed, run from "
    "the same weights on the same kind of processor. Means over seeds come first, then the mean "
    "over tasks. In brackets is the 95 % bootstrap interval, which resamples tasks and then their "
    "seeds. Cost: training FLOPs in dense fine-tunings, search included. A method fits a budget if "
    "its cost does, to one decimal. A budget that lets no further method in is left out. Only "
    "methods that were run on all of the tasks compete. Those with fewer than three seeds compete "
    "only where none has more. A difference is beyond noise if two things hold. Its p is under "
    "0.05: this asks whether other seeds would say the same on these tasks (two-sided Welch's "
    "t-test, paired by seed within tasks, corrected for the number of methods by Holm's "
    "procedure). And its interval leaves zero out: this asks whether other tasks would say the "
    "same. Within noise: methods whose difference from the best is less than that. Not tested: "
    "methods that share too few tasks or seeds with the best, on the same kind of processor, to "
    "say so. Ahead where both ran: methods that are above the best beyond noise on the tasks, "
    "seeds and kinds of processor that both have, but were not run on all tasks, or have a lower "
    "mean over all that they were run on. An interval over two tasks says little. Tasks are left "
    "out if the dense network is no better than guessing."
)
AGAINST_TEXT = (
    "Each method's distance from the dense network, and its difference from ISP+ and from ISP. A "
    "difference is over the tasks and seeds that both methods have on the same kind of processor, "
    "from the same weights, with its 95 % bootstrap interval. p is the verdict's, corrected for "
    "all methods of that sparsity. So a planned comparison, corrected for its own number alone "
    "(the claim, findings.md), has a smaller p and may be beyond noise where it is not here. It is "
    "– where seeds are too few for a test. ▲ and ▼: above and below, beyond noise. Methods that "
    "have fewer seeds than that are last. Points from dense are over all that a method was run on: "
    "other seeds, other kinds of processor. So compare the differences. Runs: those behind the "
    "points. In the table over all sparsities, each task and seed counts once, with its mean over "
    "the sparsities that both methods have with all of these seeds."
)
RANKS_TEXT = (
    "Mean ranks over columns; 1 is best. A column is a task at a sparsity. It has the mean over "
    "the seeds that all of these methods have from the same weights on the same kind of processor: "
    "at least three, where any method has so many. Only methods that were run on all of these "
    "columns are ranked. p: Nemenyi's test against the method with the best rank, which corrects "
    "for all pairs. The sparsities of one task are not independent, so take p as a guide."
)


def chapters(runs: pd.DataFrame, lines: pd.DataFrame) -> list[Chapter]:
    """The verdict in full, the differences behind it, and the ranks.

    Args:
        runs: Of `comparable`.
        lines: Their `best_rows`.
    """
    best = [_verdict_table(*one) for one in lines.groupby("preset")]
    compared = [
        table for preset, own in runs.groupby("preset") for table in _against_tables(preset, own)
    ]
    ranked = [_ranks_table(*one) for one in rank_tables(runs)]
    return [
        Chapter("The verdict in full", VERDICT_TEXT, best),
        Chapter("Every method against ISP+ and ISP", AGAINST_TEXT, compared),
        Chapter("Ranks", RANKS_TEXT, ranked),
    ]


def numbers(ledger: pd.DataFrame) -> pd.DataFrame:
    """`verdict` with rows' names as text, for a CSV file."""
    lines = verdict(ledger)
    return lines.assign(**{name: lines[name].map(" ".join) for name in RIVALS})


def budget_words(budget: float) -> str:
    """1.0 → "≤ 1 fine-tuning"."""
    if np.isinf(budget):
        return "any cost"
    return f"≤ {budget:g} fine-tuning{'' if budget == 1 else 's'}"


def with_interval(mean: float, low: float, high: float, digits: int = 2) -> str:
    """A mean in points with its interval, "+1.20 [+0.40, +2.00]"."""
    ends = [signed(value, digits) for value in (mean, low, high)]
    return ends[0] if np.isnan(low) else f"{ends[0]} [{ends[1]}, {ends[2]}]"


def _verdict_table(preset: str, lines: pd.DataFrame) -> Table:
    names = ["best method", "points from dense", "cost", *RIVALS.values()]
    rows = []
    admits_more = lines["rows"] > lines.groupby("sparsity")["rows"].shift(fill_value=0)
    for line in lines[admits_more].to_dict("records"):
        texts = [
            short(line["method"]),
            with_interval(line["distance"], line["low"], line["high"]),
            number(line["cost"], ".2f"),
            *(", ".join(map(short, line[kind])) or MISSING for kind in RIVALS),
            *(str(line[name]) for name in ("rows", "tasks", "runs")),
        ]
        name = f"{percent(line['sparsity'])} sparse, {budget_words(line['budget'])}"
        rows.append((name, [Cell(text, bold=not i) for i, text in enumerate(texts)]))
    caption = "Methods: how many competed. Runs: of the best method; as many of the dense network."
    header = [("", name) for name in [*names, "methods", "tasks", "runs"]]
    return Table(f"Preset {preset}", header, rows, caption, corner="sparsity and budget")


def _against_tables(preset: str, runs: pd.DataFrame) -> list[Table]:
    """A table over all sparsities, and one for each."""
    by_sparsity = [(f"{percent(s)} sparse", own) for s, own in runs.groupby("sparsity")]
    if len(by_sparsity) > 1:
        by_sparsity.insert(0, ("over all sparsities", runs))
    return [_against_table(f"Preset {preset}, {place}", own) for place, own in by_sparsity]


def _against_table(title: str, runs: pd.DataFrame) -> Table:
    cost, distances = costs_of(runs), against(runs, None)
    differences = [against(runs, name) for name in REFERENCES]
    rows = []
    distances = distances.assign(enough=_has_seeds(distances))
    order = distances.sort_values(["enough", "mean"], ascending=False, kind="stable")
    for method, line in order.iterrows():
        texts = [number(cost[method], ".2f"), f"{line['tasks']:.0f}", f"{line['runs']:.0f}"]
        texts.append(with_interval(line["mean"], line["low"], line["high"]))
        cells = [Cell(text) for text in texts]
        for others in differences:
            cells += _difference_cells(others, method)
        rows.append((label(method), cells))
    header = [("", name) for name in ("cost", "tasks", "runs", "points from dense")]
    header += [
        (f"minus {short(name)}", column) for name in REFERENCES for column in ("points", "p")
    ]
    return Table(title, header, rows, f"Tasks: {', '.join(sorted(set(runs['task'])))}.")


def _difference_cells(differences: pd.DataFrame, method: str) -> list[Cell]:
    """A row's difference from a reference, marked beyond noise, and its corrected p."""
    if method not in differences.index:
        return [Cell(MISSING), Cell(MISSING)]
    line = differences.loc[method]
    mark = ("better" if line["mean"] > 0 else "worse") if line["differs"] else ""
    text = with_interval(line["mean"], line["low"], line["high"])
    return [Cell(text, mark=mark), Cell(number(line["p_holm"], ".2g"))]


def _ranks_table(preset: str, scores: pd.DataFrame) -> Table:
    ranks = mean_ranks(scores).sort_values(kind="stable")
    p = nemenyi(scores, ranks.index[0])
    rows = [
        (label(method), [Cell(f"{rank:.2f}"), Cell(number(p[method], ".2g"))])
        for method, rank in ranks.items()
    ]
    caption = (
        f"Friedman's test that all methods rank alike: p = {friedman_p(scores):.2g}. Critical "
        f"difference of mean ranks: {critical_difference(scores):.2f}."
    )
    title = f"Preset {preset}, {len(scores)} columns, {len(rows)} methods"
    return Table(title, [("", "mean rank"), ("", "p against the first")], rows, caption)
