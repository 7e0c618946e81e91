"""Ledger → tables: numbers over seeds, and the cells, names and words that tables share."""

import math
from collections.abc import Callable, Hashable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from instant_soup.data.class_prompts import resolve_prompts
from instant_soup.data.datasets import DATASETS
from instant_soup.files import new_file
from instant_soup.methods import registry
from instant_soup.methods.base import keys_of
from instant_soup.reports.ledger import COST, NOT_SETTLED, SECTION, with_zero_shot
from instant_soup.reports.origins import model_and_origin
from instant_soup.reports.render import MISSING, Cell, terminal
from instant_soup.training.metrics import LOWER_IS_BETTER, merit

ZERO_SHOT = "zero_shot"  # the row of an untrained image classifier; no method makes it
# Display names, in the order of table rows. Methods not named here follow, as they are.
METHOD_NAMES = {
    ZERO_SHOT: "Zero-shot",
    **{name: method.title for name, method in registry.methods().items()},
}
UNPRUNED = (ZERO_SHOT, *registry.dense_rows())  # one value for all sparsities
SOUPS = tuple(name for name in registry.dense_rows() if name != registry.DENSE)
BUDGETS = (1.0, 2.0, 5.0)  # fine-tunings, search included
PERCENT = {"accuracy", "f1", "matthews", "pearson", "spearman"}  # fractions, shown times 100

CELL = [*SECTION, "method", "variant", "target_sparsity"]


# Numbers behind the tables


def scale(metric: str) -> float:
    """What a metric is multiplied with to be shown: 100 (percent) or 1."""
    return 100.0 if metric in PERCENT else 1.0


def unit(metric: str) -> str:
    """A metric's unit as words end: " (%)" or nothing."""
    return " (%)" if metric in PERCENT else ""


def direction(metric: str) -> str:
    """What a caption says of a metric that is better the lower it is."""
    return " Lower is better." if metric in LOWER_IS_BETTER else ""


def on_test(metric: str) -> str:
    """What an axis shows: "test accuracy (%)", "test perplexity, lower is better"."""
    lower = ", lower is better" if metric in LOWER_IS_BETTER else ""
    return f"test {metric}{unit(metric)}{lower}"


def label(method: str, variant: str = "") -> str:
    """A method's display name; with what its settings change from the preset, its short one.

    The method's own settings lose their section, those of all rows keep it: "ISP+ (cycles=2)",
    "ISP (training.epochs=4, combine=vote)". So two rows are never called alike.
    """
    if not variant:
        return METHOD_NAMES.get(method, method)
    known = registry.methods().get(method)
    own = {} if known is None else {key: name for name, key in keys_of(known).items()}
    parts = [part.partition("=") for part in variant.split(" ")]
    said = [f"{own.get(key, key)}{equals}{value}" for key, equals, value in parts]
    return f"{short(method)} ({', '.join(said)})"


def short(method: str) -> str:
    """A method's display name without what it says in parentheses."""
    return label(method).partition(" (")[0]


def row_order(method: str, variant: str = "") -> tuple:
    """Sort key of table rows: METHOD_NAMES in order, then other methods; variants beneath."""
    known = list(METHOD_NAMES)
    return (known.index(method) if method in known else len(known), method, variant)


@cache
def chance(dataset: str, metric: str) -> float:
    """What guessing gets: one of the classes at random, or no correlation; NaN where unknown."""
    if metric in ("matthews", "pearson", "spearman"):
        return 0.0
    task = DATASETS.get(dataset.removesuffix("@local"))
    if metric != "accuracy" or task is None:
        return np.nan
    prompts = resolve_prompts(None, task.prompts)
    return 1 / len(prompts.classes if prompts else task.labels)


def ranks_nothing(dataset: str, metric: str, dense: pd.Series) -> bool:
    """Whether dense networks, by their values, are no better than guessing.

    Then a row that is above another has learnt no more than it, so no row is called best or better.
    """
    return bool(dense.mean() <= chance(dataset, metric) + 1e-9)


def preset_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the preset's own settings; all rows of a section that has trained none such."""
    names = (*SECTION, "variant", "method")
    told = [(one[:-2], *one[-2:]) for one in zip(*(rows[n] for n in names), strict=True)]
    # Of trained rows, as most variants share zero-shot.
    have_own = {section for section, variant, method in told if not variant and method != ZERO_SHOT}
    kept = [not variant or section not in have_own for section, variant, _ in told]
    return rows[np.array(kept, dtype=bool)]


def is_own(section: tuple) -> bool:
    """Whether a section's model or data is one's own or chosen freely: local:, hub:, open_clip:."""
    return ":" in section[0] or ":" in section[1]


def by_section(rows: pd.DataFrame) -> list[tuple[tuple, pd.DataFrame]]:
    """(section, its rows), in reading order: one's own first, then those with the most runs."""
    found = [(section, own) for section, own in rows.groupby(SECTION, sort=True)]
    return sorted(found, key=lambda one: (not is_own(one[0]), -len(one[1])))


def common_settings(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The changed settings that all trained rows share, and the rows without them.

    What all share belongs in a heading, so that a row's name has what is its own.
    """
    trained = rows.loc[rows["method"] != ZERO_SHOT, "variant"].map(str.split)
    shared = [part for part in next(iter(trained), []) if all(part in own for own in trained)]
    left = [" ".join(part for part in v.split() if part not in shared) for v in rows["variant"]]
    return " ".join(shared), rows.assign(variant=left)


def blocks(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows with and without a teacher, and by what of them is retrained: never in one table.

    Each with what their variants say of these, as "training.teacher=dense", and leave out from here
    on.
    """
    found, how = [], rows["variant"].map(block_of)
    for block in sorted(set(how)):
        own = rows[how == block]
        left = [" ".join(p for p in v.split() if p not in block.split()) for v in own["variant"]]
        found.append((block, own.assign(variant=left)))
    return found


def block_of(variant: str) -> str:
    """What a variant says of a teacher and of what is retrained: "" where it says nothing."""
    return " ".join(part for part in variant.split() if part.startswith(tuple(APART)))


def summary(ledger: pd.DataFrame) -> pd.DataFrame:
    """Over seeds: n, mean and sample standard deviation (NaN for n = 1) of `value`, per CELL."""
    values = ledger["value"].to_numpy()
    cells = sorted(ledger.groupby(CELL).indices.items())
    # A run that came out as NaN must show, not be left out of a mean.
    numbers = [
        (len(rows), values[rows].mean(), values[rows].std(ddof=1) if len(rows) > 1 else np.nan)
        for _, rows in cells
    ]
    table = pd.DataFrame([cell for cell, _ in cells], columns=CELL)
    types = {**dict.fromkeys(CELL, str), "target_sparsity": float}  # also where there is no row
    return table.astype(types).join(pd.DataFrame(numbers, columns=["n", "mean", "std"]))


def costs(ledger: pd.DataFrame) -> pd.DataFrame:
    """Mean cost over seeds, for each CELL: COST (FLOPs, seconds, bytes), and relative to dense.

    `steps_vs_dense` (search steps included) and `flops_vs_dense` compare with dense fine-tuning of
    the same model, data, preset, training settings and seed; NaN without it.
    """
    # What changes only a method's own settings has the unchanged dense run as its equal.
    trained = ledger[ledger["method"] != ZERO_SHOT]
    table = trained.assign(shared=trained["variant"].map(shared_settings))
    same = ["model", "dataset", "preset", "shared", "seed"]
    dense = table[table["method"] == "dense"].drop_duplicates(same)
    dense = dense[[*same, "steps", "flops"]]
    table = table.merge(dense, on=same, how="left", suffixes=("", "_of_dense"))
    all_steps = table["steps"] + table["search_steps"]
    table["steps_vs_dense"] = all_steps / table["steps_of_dense"]
    table["flops_vs_dense"] = table["flops"] / table["flops_of_dense"]
    columns = [*COST, "steps_vs_dense", "flops_vs_dense"]
    groups = table.groupby(CELL, sort=True)
    return groups[columns].mean().assign(n=groups.size()).reset_index()


def shared_settings(variant: str) -> str:
    """The part of a variant that all methods share: data, training, pre-training."""
    shared = ("data.", "training.", "pretraining.")
    return " ".join(part for part in variant.split(" ") if part.startswith(shared))


def has_presets_settings(ledger: pd.DataFrame) -> pd.Series:
    """Which rows change nothing of their method, only what all rows of their run share."""
    return ledger["variant"] == ledger["variant"].map(shared_settings)


# Tables


def write_texts(folder: str | Path, texts: dict[str, str]) -> list[Path]:
    """Write files of a folder, each atomically; their paths."""
    for name, text in texts.items():
        with new_file(Path(folder) / name) as unfinished:
            unfinished.write_text(text)
    return [Path(folder) / name for name in texts]


def in_units(cells: pd.DataFrame) -> pd.DataFrame:
    """A summary with means and deviations as they are shown: percent where the metric is one."""
    factors = cells["metric"].map(scale).astype(float)
    return cells.assign(mean=cells["mean"] * factors, std=cells["std"] * factors)


def methods_of(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """(method, variant) of a summary, in the order of table rows."""
    pairs = set(zip(cells["method"], cells["variant"], strict=True))
    return sorted(pairs, key=lambda pair: row_order(*pair))


def one_count(cells: pd.DataFrame) -> int | None:
    """How many seeds each cell of a summary has; None where they differ."""
    trained = cells[cells["method"] != ZERO_SHOT]  # always one run: nothing is drawn
    return int(trained["n"].iloc[0]) if trained["n"].nunique() == 1 else None


def column_of(
    cells: pd.DataFrame, methods: list[tuple[str, str]], sparsity: float, count: int | None
) -> list[Cell]:
    """One column of a table: each method's value at a sparsity, the best sparse one bold.

    `cells` are a section's, in_units; a column `mark` may come with them. Where the table has no
    one `count` of seeds, each value says its own.
    """
    ranked = not _unranked(cells)
    best = _best(cells, sparsity) if ranked else set()
    found: dict[tuple[str, str], dict[Hashable, Any]] = {}
    for cell in cells.to_dict("records"):  # a mask of the frame for every cell takes seconds
        if cell["method"] in UNPRUNED or cell["target_sparsity"] == sparsity:
            found.setdefault((cell["method"], cell["variant"]), cell)
    column = []
    for method in methods:
        if cell := found.get(method):
            text = _value(cell, plain=count is not None or method[0] == ZERO_SHOT)
            mark = cell.get("mark", "") if ranked else ""
            column.append(Cell(text, bold=method in best, mark=mark))
        else:
            column.append(Cell(MISSING))
    return column


def unpruned_rows(cells: pd.DataFrame, count: int | None) -> list[tuple[str, list[Cell]]]:
    """The rows of a section's summary, in_units, that have one value whatever the sparsity."""
    known = {(cell["method"], cell["variant"]): cell for cell in cells.to_dict("records")}
    return [
        (label(*pair), [Cell(_value(known[pair], plain=count is not None or pair[0] == ZERO_SHOT))])
        for pair in methods_of(cells)
        if pair[0] in UNPRUNED
    ]


def sparse_columns(cells: pd.DataFrame) -> list[float]:
    """The sparsities that a summary's table has columns of; [0.0] if nothing in it is sparse."""
    sparse = cells[~cells["method"].isin(UNPRUNED)]
    return sorted(set(sparse["target_sparsity"])) or [0.0]


def rows_of(
    methods: list[tuple[str, str]], columns: list[list[Cell]]
) -> list[tuple[str, list[Cell]]]:
    """A table's rows out of its columns."""
    cells = zip(*columns, strict=True)
    return [(label(*method), list(own)) for method, own in zip(methods, cells, strict=True)]


def _unranked(cells: pd.DataFrame) -> bool:
    """Whether a section's summary, in_units, `ranks_nothing`."""
    own = preset_rows(cells)
    dense = own.loc[(own["method"] == registry.DENSE) & own["mean"].notna()]
    return any(
        ranks_nothing(dataset, metric, rows["mean"] / scale(metric))
        for (dataset, metric), rows in dense.groupby(["dataset", "metric"])
    )


def _best(cells: pd.DataFrame, sparsity: float) -> set[tuple[str, str]]:
    """(method, variant) with the best mean of a column, as shown; none without a competitor."""
    competing = preset_rows(cells)  # the best of many variants would be so by chance
    sparse = competing[~competing["method"].isin(UNPRUNED) & competing["mean"].notna()]
    sparse = sparse[sparse["target_sparsity"] == sparsity]
    if sparse["method"].nunique() < 2:
        return set()
    shown = pd.Series(
        [
            merit(metric, as_shown(mean))
            for metric, mean in zip(sparse["metric"], sparse["mean"], strict=True)
        ],
        sparse.index,
        dtype=float,
    )
    top = sparse[shown == shown.max()]
    return set(zip(top["method"], top["variant"], strict=True))


def _value(cell: dict[Hashable, Any], plain: bool) -> str:
    """Write 81.00 ± 0.35, without ± for a single run, with n unless `plain`."""
    text = f"{cell['mean']:.2f}{spread(cell['std'], cell['n'])}"
    return text if plain else f"{text} (n = {cell['n']})"


def plainly(value: float) -> str:
    """Write a mean: 81.00."""
    return f"{value:.2f}"


def as_shown(value: float) -> float:
    """A mean as it is printed: what is equal there is equal."""
    return float(plainly(value))


def mean_of_all(values: pd.Series) -> float:
    """The mean, NaN where one is: what came out as NaN is not left out."""
    return float(values.mean(skipna=False))


def over_seeds(values: np.ndarray | pd.Series, write: Callable[[float], str] = plainly) -> str:
    """Write the mean of values as 81.00 ± 0.35, without ± for a single one."""
    own = np.asarray(values, dtype=float)  # a run that came out as NaN shows
    return write(own.mean()) + spread(own.std(ddof=1) if len(own) > 1 else np.nan, len(own))


def spread(deviation: float, n: int) -> str:
    """What follows the mean of n values: their sample standard deviation; nothing after one."""
    return f" ± {deviation:.2f}" if n > 1 else ""


def spread_words(cells: pd.DataFrame) -> str:
    """What a caption says of means, deviations and seeds."""
    count = one_count(cells)
    counts = f" (n = {count})" if count is not None else ""
    trained = cells[cells["method"] != ZERO_SHOT]
    single = " Single runs (n = 1) have no deviation." if (trained["n"] == 1).any() else ""
    return f"mean ± sample standard deviation over seeds{counts}.{single}"


APART = {  # what sets rows apart, and what to say of those that have it
    "training.teacher=": (
        f" All rows except {METHOD_NAMES[registry.DENSE]} learnt from the network of that row. Its "
        "fine-tuning is part of their cost."
    ),
    "training.retrain=": (
        " After the last mask, all rows except dense ones trained only what the heading names."
    ),
}


def apart_words(block: str) -> str:
    """What a block's rows have in common, for a caption."""
    return "".join(words for sign, words in APART.items() if sign in block)


UNRANKED = " The dense network is no better than guessing here, so no row is called best or better."
UNRANKED_IN = " On {} the dense network is no better than guessing, so no row is called best there."


def bold_words(cells: pd.DataFrame, columns: list[list[Cell]]) -> str:
    """What a caption says of bold cells, if there are any, or of why there are none."""
    sections = [(section[1], _unranked(own)) for section, own in cells.groupby(SECTION)]
    unranked = [dataset for dataset, none in sections if none]
    if unranked and len(unranked) == len(sections):
        return UNRANKED
    bold = any(cell.bold for column in columns for cell in column)
    words = " Bold: the best sparse method at that sparsity." if bold else ""
    return words + (UNRANKED_IN.format(", ".join(unranked)) if unranked else "")


def drawn_in(ledger: pd.DataFrame, section: tuple) -> pd.DataFrame:
    """A section's runs that searched, in the order of sparsities and seeds."""
    _, own = common_settings(ledger[(ledger[SECTION] == list(section)).all(axis=1)])
    return own[own["drawn"] != ""].sort_values(["target_sparsity", "seed"])


def unsettled_words(runs: pd.DataFrame) -> str:
    """Which searches ended with the budget, before their masks had settled."""
    words = []
    for (method, variant), own in runs.groupby(["method", "variant"]):
        listed = [
            f"at {percent(sparsity)} sparse in {late} of {len(drawn)} runs"
            for sparsity, drawn in own.groupby("target_sparsity")["drawn"]
            if (late := sum(text.endswith(NOT_SETTLED) for text in drawn))
        ]
        if listed:
            words.append(
                f" The masks of {label(method, variant)} did not settle {', '.join(listed)}: there "
                "the last one within the budget was taken."
            )
    return "".join(words)


def percent(fraction: float) -> str:
    """0.7 → "70 %"."""
    return f"{100 * fraction:g} %"


def number(value: float | None, form: str) -> str:
    """A formatted number, "–" where there is none."""
    return MISSING if value is None or math.isnan(value) else format(value, form)


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, "+1.20" or "−1.20"."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−" if float(text) else "+")


def heading(section: tuple, *variants: str) -> str:
    """A section's model, data and preset, what all of its rows change in that, and its origin."""
    model, origin = model_and_origin(section[0])
    parts = [model, *section[1:3], *variants, f"run {origin}" if origin else ""]
    return " · ".join(filter(None, parts))


# The end of a run


def terminal_table(results: list[dict[str, Any]]) -> None:
    """Print one line per method of this workspace's run, and where the tables are.

    Steps include search steps; FLOPs are relative to this run's dense fine-tuning. Plain text
    of 100 columns when the output is no terminal.
    """
    from rich.table import Table

    console = terminal()
    metric = results[0]["metric"] if results else "metric"
    dense = next((r["cost"]["flops"] for r in results if r["method"] == "dense"), None)
    rows = sorted(with_zero_shot(results), key=lambda r: row_order(r["method"], r["variant"]))
    shared, named = common_settings(pd.DataFrame(rows, columns=["method", "variant"]))
    table = Table(title=_run_title(results, shared), title_justify="left")
    headers = ["sparsity", on_test(metric), "steps", "FLOPs ÷ dense", "seconds"]
    table.add_column("method", overflow="fold")
    for header in headers:
        table.add_column(header, justify="right")
    for result, own in zip(rows, named["variant"], strict=True):
        cost = result["cost"]
        table.add_row(
            label(result["method"], own),
            f"{100 * result['sparsity']:.2f} %",
            f"{scale(metric) * result['test'][result['metric']]:.2f}",
            str(cost["steps"] + cost["search_steps"]),
            number(cost["flops"] / dense if dense else np.nan, ".2f"),
            f"{cost['seconds']:.1f}",
        )
    console.print(table, markup=False)
    files = "reports/tables/results.md, reports/tables/cost.md; as a page: reports/index.html"
    console.print(f"Tables: {files}", highlight=False)


def _run_title(results: list[dict[str, Any]], shared: str) -> str:
    if not results:
        return "No results"
    run = results[0]
    parts = (run["model"], run["dataset"], run["preset"], f"seed {run['seed']}", shared)
    return " · ".join(filter(None, parts))
