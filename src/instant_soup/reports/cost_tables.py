"""What each method cost: steps, FLOPs, time and memory, means over seeds."""

import pandas as pd

from instant_soup.reports.ledger import NOT_SETTLED
from instant_soup.reports.render import Cell, Chapter, Table
from instant_soup.reports.results import (
    apart_words,
    blocks,
    by_section,
    common_settings,
    costs,
    drawn_in,
    heading,
    label,
    number,
    percent,
    preset_rows,
    row_order,
    unsettled_words,
)

TEXT = (
    "Means over n seeds. Training FLOPs are dense-equivalent. Sparsity-aware FLOPs leave out the "
    "multiply-adds of pruned weights. Search steps are those outside the main training of T "
    "steps: ISP's look-ahead, EarlyBird's search, and the earlier rounds of iterative pruning. "
    "FLOPs, wall time and both ratios include them. Ratios are to a dense fine-tuning with the "
    "same data, preset and seed. Peak memory is that of a method's most demanding stage, and of "
    "the GPU if there is one. Wall time and memory depend on the machine. –: not recorded, or no "
    "dense run to compare with."
)


def chapter(ledger: pd.DataFrame) -> Chapter:
    """Per section, what each method cost at each sparsity, with the preset's own settings."""
    tables = [
        _table(section, block, rows)
        for block, own in blocks(ledger)
        for section, rows in by_section(preset_rows(own))
    ]
    return Chapter("Cost", TEXT, [table for table in tables if table is not None])


def _table(section: tuple, block: str, ledger: pd.DataFrame) -> Table | None:
    cells = costs(ledger)
    if not len(cells):
        return None
    per_unit, flop = _flop_unit(cells[["flops", "sparse_flops"]].max(axis=None))
    columns = ["sparsity", "training steps", "search steps", f"training FLOPs ({flop})"]
    columns += [f"sparsity-aware FLOPs ({flop})", "wall time (s)", "peak memory (GiB)"]
    columns += ["steps ÷ dense", "FLOPs ÷ dense", "n"]
    variant, cells = common_settings(cells)
    order = [row_order(m, v) for m, v in zip(cells["method"], cells["variant"], strict=True)]
    cells = cells.assign(order=order).sort_values(["order", "target_sparsity"])
    rows = []
    for cell in cells.to_dict("records"):
        texts = [
            percent(cell["target_sparsity"]),
            number(cell["steps"], ".0f"),
            number(cell["search_steps"], ".0f"),
            number(cell["flops"] / per_unit, "#.3g"),
            number(cell["sparse_flops"] / per_unit, "#.3g"),
            number(cell["seconds"], ".1f"),
            number(cell["peak_memory"] / 2**30, ".2f"),
            number(cell["steps_vs_dense"], ".2f"),
            number(cell["flops_vs_dense"], ".2f"),
            str(cell["n"]),
        ]
        rows.append((label(cell["method"], cell["variant"]), list(map(Cell, texts))))
    drawn = drawn_in(ledger, section)
    caption = _drawing_words(drawn) + unsettled_words(drawn) + apart_words(block)
    header = [("", name) for name in columns]
    title = heading(section, block, variant)
    return Table(title, header, rows, caption.strip(), task=heading(section))


def _drawing_words(runs: pd.DataFrame) -> str:
    """When searches took their masks, run by run; one number where all seeds are alike."""
    words = []
    for (method, variant), own in runs.groupby(["method", "variant"]):
        listed = [
            f"at {percent(sparsity)} sparse {', '.join(_epochs_of(drawn))}"
            for sparsity, drawn in own.groupby("target_sparsity")["drawn"]
        ]
        name = label(method, variant)
        words.append(f"{name} took its masks after these epochs, by seed: {'; '.join(listed)}.")
    return " ".join(words)


def _epochs_of(drawn: pd.Series) -> list[str]:
    epochs = [f"{float(text.removesuffix(NOT_SETTLED)):.2g}" for text in drawn]
    return epochs if len(set(epochs)) > 1 else epochs[:1]


def _flop_unit(largest: float) -> tuple[float, str]:
    """Divisor and name of the unit in which a table's largest number of FLOPs reads well."""
    units = [(1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")]
    return next((u for u in units if largest >= u[0]), units[-1])
