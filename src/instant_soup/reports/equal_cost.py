"""Equal cost: every row with as long a training as a budget allows, search included.

A view of `apart_by_origin`. A row may be trained for longer or shorter than in its task's own
setting: with other `training.epochs`, and rounds stretched with them (`isp.calibration`). Cost is
in fine-tunings of the dense network in the own setting. grids/equal_cost.yaml runs such rows.
"""

import pandas as pd

from instant_soup.methods.registry import DENSE
from instant_soup.reports.ledger import SECTION, remembered
from instant_soup.reports.render import MISSING, Cell, Chapter, Table
from instant_soup.reports.results import (
    BUDGETS,
    UNPRUNED,
    ZERO_SHOT,
    as_shown,
    block_of,
    has_presets_settings,
    heading,
    label,
    mean_of_all,
    number,
    percent,
    row_order,
    scale,
    spread,
    unit,
)
from instant_soup.reports.verdict import own_setting
from instant_soup.training.metrics import merit

OF_LENGTH = ("training.epochs=", "isp.calibration=")
SLACK = 1.05  # what a run may exceed its budget by: rounds end on whole steps

TEXT = (
    "Here every method trains as long as a budget allows, search included. Of the lengths that a "
    "method was run with, the table has the longest whose training FLOPs fit the budget, in "
    "fine-tunings of the dense network; 5 % over still fits. A shorter or longer training shrinks "
    "or stretches the whole schedule, rounds included. So a lottery ticket that takes five "
    "fine-tunings stands beside methods that train five times as long. With a budget of one, each "
    "of its rounds has a fifth of the steps. Test metric: mean ± sample standard deviation over "
    "seeds, and what it cost. Bold: the best sparse method of a budget. –: no such run."
)


@remembered
def runs_of_any_length(ledger: pd.DataFrame) -> pd.DataFrame:
    """Each task's runs in its own setting and in those that differ in length alone.

    The ledger's columns, with `cost`, in fine-tunings of the dense network in the task's own
    setting with the same seed, and `shared`, what the own setting changes in the preset. Dense rows
    have each sparsity that was measured.
    """
    plain = ledger[ledger["method"] != ZERO_SHOT]
    plain = plain[plain["variant"].map(block_of) == ""]
    other = plain["variant"].map(_without_length)
    lengths = plain["variant"].map(epochs_of)
    found = [plain.assign(cost=0.0, shared="")[:0]]
    for _, section in plain.groupby(SECTION):
        is_dense = section["method"] == DENSE
        sparse = section[~section["method"].isin(UNPRUNED)]
        for sparsity, column in sparse.groupby("target_sparsity"):
            own = own_setting(column[has_presets_settings(column)])
            if own is None:
                continue
            dense = section[is_dense].assign(target_sparsity=sparsity)
            rows = pd.concat([dense, column])
            rows = rows[other[rows.index] == _without_length(own)]
            own_length = lengths[rows.index] == epochs_of(own)
            rows = rows[~own_length | (rows["variant"] == own)]
            unit_cost = rows[(rows["method"] == DENSE) & (rows["variant"] == own)]
            of_seed = unit_cost.set_index("seed")["flops"]
            cost = rows["flops"] / rows["seed"].map(of_seed)
            found.append(rows.assign(cost=cost, shared=own)[cost.notna()])
    return pd.concat(found, ignore_index=True)


def _without_length(variant: str) -> str:
    """A variant without what it says of a training's length."""
    return " ".join(part for part in variant.split() if not part.startswith(OF_LENGTH))


def at_budget(runs: pd.DataFrame, budget: float) -> pd.DataFrame:
    """Of one task and sparsity each method's longest training that fits a budget.

    By method: variant, cost, n, mean and std of `value`.
    """
    groups = runs.groupby(["method", "variant"])
    cells = groups.agg(
        cost=("cost", "mean"), n=("value", "size"), mean=("value", mean_of_all),
        std=("value", lambda values: values.std(skipna=False)),
    )  # fmt: skip
    fitting = cells[cells["cost"] <= SLACK * budget].reset_index()
    fitting = fitting.sort_values(["cost", "variant"]).groupby("method").tail(1)
    return fitting.set_index("method")


def chapter(ledger: pd.DataFrame) -> Chapter:
    """A table for each task and sparsity that was run with trainings of several lengths."""
    runs = runs_of_any_length(ledger)
    tables = [
        _table(section, sparsity, own)
        for (*section, sparsity), own in runs.groupby([*SECTION, "target_sparsity"])
        if own.loc[~own["method"].isin(UNPRUNED), "variant"].map(epochs_of).nunique() > 1
    ]
    return Chapter("Equal cost", TEXT, tables)


def epochs_of(variant: str) -> str:
    """What a variant says of a training's length: training.epochs=…, or nothing."""
    return next((part for part in variant.split() if part.startswith(OF_LENGTH[0])), "")


def _table(section: list, sparsity: float, runs: pd.DataFrame) -> Table:
    factor = scale(section[3])
    methods = sorted(set(runs["method"]), key=row_order)
    rows: dict[str, list[Cell]] = {method: [] for method in methods}
    for budget in BUDGETS:
        cells = at_budget(runs, budget)
        shown = {m: merit(section[3], as_shown(factor * mean)) for m, mean in cells["mean"].items()}
        best = max((own for m, own in shown.items() if m != DENSE and own == own), default=None)
        for method in methods:
            if method not in cells.index:
                rows[method] += [Cell(MISSING), Cell(MISSING)]
                continue
            cell = cells.loc[method]
            deviation = spread(factor * cell["std"], cell["n"])
            text = f"{factor * cell['mean']:.2f}{deviation} (n = {cell['n']})"
            bold = method != DENSE and shown[method] == best
            rows[method] += [Cell(text, bold=bold), Cell(number(cell["cost"], ".2f"))]
    metric = f"{section[3]}{unit(section[3])}"
    header = [
        (f"{budget:g} fine-tuning{'' if budget == 1 else 's'}", name)
        for budget in BUDGETS
        for name in (metric, "cost")
    ]
    title = heading((*section[:3],), runs["shared"].iloc[0], f"{percent(sparsity)} sparse")
    return Table(title, header, [(label(method), cells) for method, cells in rows.items()], "")
