"""ISP with one setting changed at a time: the paper's Tables 4, 5 and 7, and further variants.

Everything is a view of the ledger. A row whose `variant` names exactly one setting is compared with
the preset's own row of the same model, data, sparsity and seeds. grids/ablations.yaml runs them.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from instant_soup.config.fields import FAMILIES, default_of, settings_of
from instant_soup.methods.registry import sections
from instant_soup.reports.ledger import SECTION
from instant_soup.reports.marks import seeds_cell
from instant_soup.reports.render import MISSING, Cell, Chapter, Table
from instant_soup.reports.results import (
    UNPRUNED,
    blocks,
    by_section,
    column_of,
    heading,
    in_units,
    methods_of,
    number,
    one_count,
    percent,
    preset_rows,
    rows_of,
    sparse_columns,
    spread_words,
    summary,
    unit,
    unpruned_rows,
)

# Title, setting, what its values mean, the paper's numbers (value → text) and what they are of.
ABLATIONS: list[tuple[str, str, str, dict[Any, str], str]] = [
    (
        "Number of denoisers N (Table 5)",
        "isp.denoisers",
        "0: progressive magnitude pruning, without look-ahead",
        {0: "70.32", 2: "70.95", 4: "71.15", 6: "71.16", 8: "71.07", 16: "71.16"},
        "CLIP ViT-B/32, CIFAR, 80 % sparse",
    ),
    (
        "Look-ahead steps C (Table 7)",
        "isp.look_ahead",
        "",
        {10: "84.71", 30: "84.92", 50: "85.18", 100: "85.19", 150: "84.41", 200: "85.41"},
        "CLIP ViT-B/32, CIFAR-100, 60 % sparse",
    ),
    ("Combination of the weak masks", "isp.combine", "", {}, ""),
    ("When the soup is adjusted", "isp.adjust", "", {}, ""),
    (
        "The network's own mask in the soup",
        "isp.own_mask",
        "True: Algorithm 2 to the letter",
        {},
        "",
    ),
]
# Other schedules: a variant as the ledger names it → what it means.
SCHEDULES = {
    "isp.growing=false": "each round calibrates for the same time, as in the released code",
    "isp.calibration=0.05 isp.growing=false": "the same time each round, and as many steps in all",
    "isp.rate_of=remaining": "each prune takes 20 % of what remains, as in iterative pruning",
    "isp.learning_rate_range=[0.1,10]": "denoisers' rates from a tenth to ten times the main one",
}
# Denoisers off → on (Table 4).
PAPER_ON_OFF = {
    "CLIP SVHN": ("96.11", "96.46"),
    "CLIP CIFAR-100": ("70.32", "71.09"),
    "BERT QQP": ("89.96", "90.59"),
    "BERT QNLI": ("89.28", "90.06"),
}
TEXT = (
    "ISP with one setting changed at a time, and everything else as in the preset. Test metric, "
    "mean ± sample standard deviation over seeds. ▲ and ▼: better and worse than the preset's own "
    "value, with p < 0.05 in a two-sided t-test paired over common seeds. The p is not corrected "
    "for the number of tests. FLOPs: all training, divided by that of the preset's own value. –: "
    "not measured. Paper: as printed, with other models and data."
)
Column = tuple[Any, ...]  # a section and a sparsity
Runs: TypeAlias = pd.DataFrame  # ledger rows of one setting in one column, by seed


def chapter(ledger: pd.DataFrame) -> Chapter:
    """All ablations that something was measured for."""
    tables = [_on_off(ledger), *(_one_setting(ledger, *ablation) for ablation in ABLATIONS)]
    tables.append(_schedules(ledger))
    tables += [
        _others(section, block, rows)
        for block, own in blocks(ledger)
        for section, rows in by_section(own)
    ]
    return Chapter("Ablations", TEXT, [table for table in tables if table is not None])


def values_of(ledger: pd.DataFrame, setting: str) -> dict[Column, tuple[Any, dict[Any, Runs]]]:
    """The measured values of a setting, and their runs.

    Only columns with two values or more count. The preset's own value is the row without a variant;
    no denoisers means progressive pruning.

    Args:
        ledger: The ledger.
        setting: The setting's key.

    Returns:
        Column → the preset's value, and value → runs.
    """
    found: dict[Column, tuple[Any, dict[Any, Runs]]] = {}
    of_preset = cache(partial(preset_value, setting))
    columns = ["family", *SECTION, "target_sparsity", "method", "variant", "seed", "value", "flops"]
    plain = ledger["variant"] == ""
    named = ledger["variant"].str.startswith(f"{setting}=")
    wanted = (ledger["method"] == "isp") & (plain | named)
    wanted |= (ledger["method"] == "progressive") & plain
    wanted &= ledger["family"].isin(FAMILIES)  # old ledgers have none
    known = ledger.loc[wanted, columns]
    for (family, *column), rows in known.groupby(["family", *SECTION, "target_sparsity"]):
        preset = of_preset(family, column[2])
        values: dict[Any, Runs] = {}
        for (method, variant), of_variant in rows.groupby(["method", "variant"]):
            runs = of_variant.set_index("seed")
            if method == "isp" and not variant:
                values[preset] = runs
            elif method == "isp" and variant.startswith(f"{setting}=") and " " not in variant:
                values[_parsed(variant.partition("=")[2])] = runs
            elif method == "progressive" and not variant and setting == "isp.denoisers":
                values[0] = runs
        if len(values) > 1:
            found[tuple(column)] = preset, values
    return found


def preset_value(setting: str, family: str, preset: str) -> Any:
    """What a setting (section.key) is in a preset."""
    section, _, key = setting.partition(".")
    method, name = sections()[section][key]
    return default_of(settings_of(method)[name], family, preset)


def _parsed(text: str) -> Any:
    """A setting's value as it stands in a variant."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdigit() else text


def _one_setting(
    ledger: pd.DataFrame,
    title: str,
    setting: str,
    meaning: str,
    paper: dict[Any, str],
    paper_of: str,
) -> Table | None:
    measured = values_of(ledger, setting)
    # Progressive pruning beside the preset's own is the table before.
    found = {c: (preset, v) for c, (preset, v) in measured.items() if set(v) - {preset, 0}}
    if not found:
        return None
    every = {value for _, values in found.values() for value in values} | set(paper)
    rows = []
    for value in sorted(every, key=lambda v: (str(type(v)), v)):
        cells = [
            cell
            for column, (preset, values) in found.items()
            for cell in _cells(values.get(value), values.get(preset), column)
        ]
        rows.append((str(value), [*cells, *([Cell(paper.get(value, MISSING))] if paper else [])]))
    columns = [*_pairs(found), *([("paper", paper_of)] if paper else [])]
    named = ", ".join(sorted({str(preset) for preset, _ in found.values()}))
    caption = f"The preset has {named}." + (f" {meaning}." if meaning else "")
    return Table(title, columns, rows, caption, corner=setting)


def _schedules(ledger: pd.DataFrame) -> Table | None:
    """The preset's schedule and others, in every column where another was measured."""
    rows = ledger[(ledger["method"] == "isp") & ledger["variant"].isin(["", *SCHEDULES])]
    found: dict[Column, dict[str, Runs]] = {}
    for column, runs in rows.groupby([*SECTION, "target_sparsity"]):
        by_variant = {variant: own.set_index("seed") for variant, own in runs.groupby("variant")}
        if set(by_variant) - {""}:
            found[column] = by_variant
    if not found:
        return None
    lines = []
    for variant in ("", *SCHEDULES):
        cells = [
            cell
            for column, values in found.items()
            for cell in _cells(values.get(variant), values.get(""), column)
        ]
        name = f"{variant}: {SCHEDULES[variant]}" if variant else "the preset's"
        lines.append((name, cells))
    return Table("Schedules", _pairs(found), lines, "", corner="schedule")


def _others(section: tuple, block: str, ledger: pd.DataFrame) -> Table | None:
    """Rows with settings of their own that no other table has, beneath the preset's own rows."""
    preset = preset_rows(ledger)
    changed = ledger.drop(preset.index)
    single = {setting for _, setting, *_ in ABLATIONS}
    named = [
        method == "isp" and (v in SCHEDULES or (v.partition("=")[0] in single and " " not in v))
        for method, v in zip(changed["method"], changed["variant"], strict=True)
    ]
    changed = changed if block else changed[~np.array(named, dtype=bool)]
    if not len(changed):
        return None
    cells = in_units(summary(pd.concat([preset[_same_place(preset, changed)], changed])))
    count = one_count(cells)
    methods = [pair for pair in methods_of(cells) if pair[0] not in UNPRUNED]
    sparsities = sparse_columns(cells) if methods else []
    columns = [column_of(cells, methods, sparsity, count) for sparsity in sparsities]
    # The best of many variants is so by chance: nothing is bold.
    rows = [
        (name, [replace(cell, bold=False) for cell in row])
        for name, row in rows_of(methods, columns)
    ]
    header = [("", f"{percent(sparsity)} sparse") for sparsity in sparsities]
    return Table(
        f"Other changed settings: {heading(section, block)}",
        header or [("", "any sparsity")],
        rows,
        f"Test {section[3]}{unit(section[3])}, {spread_words(cells)}",
        unpruned=unpruned_rows(cells, count),
    )


def _same_place(rows: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """Which rows have a method and a sparsity that others have, too."""
    places = set(zip(others["method"], others["target_sparsity"], strict=True))
    own = zip(rows["method"], rows["target_sparsity"], strict=True)
    return pd.Series([place in places for place in own], index=rows.index, dtype=bool)


def _on_off(ledger: pd.DataFrame) -> Table | None:
    """Denoisers off and on, for whatever was measured."""
    found = values_of(ledger[ledger["variant"] == ""], "isp.denoisers")
    if not found:
        return None
    rows = []
    for column, (preset, values) in found.items():
        on, ratio = _cells(values[preset], values[0], column)
        off = _cells(values[0], None, column)[0]
        rows.append((f"{_name(column)}, {_metric(column)}", [off, on, ratio]))
    rows += [
        (f"paper: {name}", [Cell(off), Cell(on), Cell(MISSING)])
        for name, (off, on) in PAPER_ON_OFF.items()
    ]
    columns = [("", "off (progressive)"), ("", "on (ISP)"), ("", "FLOPs, on ÷ off")]
    caption = "Here ▲ and ▼ compare with progressive pruning, which costs no look-ahead."
    return Table("Denoisers off and on (Table 4)", columns, rows, caption, corner="run")


def _cells(runs: Runs | None, others: Runs | None, column: Column) -> list[Cell]:
    """The metric of runs, marked against others, and the ratio of their FLOPs over common seeds."""
    if runs is None:
        return [Cell(MISSING), Cell(MISSING)]
    if others is None:
        return [seeds_cell(runs["value"], None, column[3]), Cell(MISSING)]
    ratio = (runs["flops"] / others["flops"]).mean()
    other = None if others is runs else others["value"]
    return [seeds_cell(runs["value"], other, column[3]), Cell(number(ratio, ".2f"))]


def _pairs(columns: Iterable[Column]) -> list[tuple[str, str]]:
    """The columns of `_cells`, with what was measured as their common header."""
    return [(_name(column), name) for column in columns for name in (_metric(column), "FLOPs")]


def _name(column: Column) -> str:
    return f"{heading(column)}, {percent(column[4])} sparse"


def _metric(column: Column) -> str:
    return f"{column[3]}{unit(column[3])}"
