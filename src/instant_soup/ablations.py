"""ISP with one setting changed at a time: the paper's Tables 4, 5 and 7, and further variants.

Everything is a view of the ledger: a row whose `variant` names exactly one setting stands beside
the preset's own row of the same model, data, sparsity and seeds. grids/ablations.yaml runs them.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from instant_soup.layout import MISSING, Cell, Chapter, Table, markdown
from instant_soup.ledger import SECTION
from instant_soup.paper_tables import seeds_cell
from instant_soup.presets import PRESETS
from instant_soup.tables import heading, percent, unit, write_texts

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
    "isp.growing=false": "calibration of the same length in all rounds, as in the released code",
    "isp.calibration=0.05 isp.growing=false": "the same length, and as many steps in all",
    "isp.rate_of=remaining": "20 % of what remains at each prune, as in iterative pruning",
    "isp.learning_rate_range=[0.1,10.0]": "denoisers' rates from a tenth to ten times the main one",
}
# Denoisers off → on (Table 4).
PAPER_ON_OFF = {
    "CLIP SVHN": ("96.11", "96.46"),
    "CLIP CIFAR-100": ("70.32", "71.09"),
    "BERT QQP": ("89.96", "90.59"),
    "BERT QNLI": ("89.28", "90.06"),
}
TEXT = (
    "ISP with one setting changed at a time, everything else as in the preset; test metric, mean ± "
    "sample standard deviation over seeds. ▲ and ▼: better and worse than the preset's own value, "
    "p < 0.05 in a two-sided t-test paired over common seeds, not corrected for the number of "
    "tests. –: not measured. Paper: as printed, of other models and data."
)
Column = tuple[Any, ...]  # a section and a sparsity


def write_tables(folder: str | Path, ledger: pd.DataFrame) -> list[Path]:
    """Write ablations.md; its path."""
    return write_texts(folder, {"ablations.md": markdown([chapter(ledger)])})


def chapter(ledger: pd.DataFrame) -> Chapter:
    """All ablations that something was measured for."""
    tables = [_on_off(ledger), *(_one_setting(ledger, *ablation) for ablation in ABLATIONS)]
    tables.append(_schedules(ledger))
    return Chapter("Ablations", TEXT, [table for table in tables if table is not None])


def values_of(ledger: pd.DataFrame, setting: str) -> dict[Column, tuple[Any, dict[Any, pd.Series]]]:
    """Column → the preset's value of a setting, and each measured value's metric by seed.

    Only columns with two values or more. The preset's own is the row without a variant; no
    denoisers are progressive pruning.
    """
    section, key = setting.split(".")
    found: dict[Column, tuple[Any, dict[Any, pd.Series]]] = {}
    known = ledger[ledger["family"].isin(PRESETS)]  # a ledger of before has none
    for (family, *column), runs in known.groupby(["family", *SECTION, "target_sparsity"]):
        preset = PRESETS[family][column[2]][section][key]
        values: dict[Any, pd.Series] = {}
        for (method, variant), own in runs.groupby(["method", "variant"]):
            series = own.set_index("seed")["value"]
            if method == "isp" and not variant:
                values[preset] = series
            elif method == "isp" and variant.startswith(f"{setting}=") and " " not in variant:
                values[_parsed(variant.partition("=")[2])] = series
            elif method == "progressive" and not variant and setting == "isp.denoisers":
                values[0] = series
        if len(values) > 1:
            found[tuple(column)] = preset, values
    return found


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
    found = values_of(ledger, setting)
    if not found:
        return None
    every = {value for _, values in found.values() for value in values} | set(paper)
    rows = []
    for value in sorted(every, key=lambda v: (str(type(v)), v)):
        cells = [
            seeds_cell(values.get(value), values.get(preset), column[3])
            for column, (preset, values) in found.items()
        ]
        rows.append((str(value), [*cells, *([Cell(paper.get(value, MISSING))] if paper else [])]))
    columns = [("", _column_name(column)) for column in found]
    columns += [("", f"paper: {paper_of}")] if paper else []
    named = ", ".join(sorted({str(preset) for preset, _ in found.values()}))
    caption = f"{setting}; the preset has {named}." + (f" {meaning}." if meaning else "")
    return Table(title, columns, rows, caption)


def _schedules(ledger: pd.DataFrame) -> Table | None:
    """The preset's schedule and others, in every column where another was measured."""
    rows = ledger[(ledger["method"] == "isp") & ledger["variant"].isin(["", *SCHEDULES])]
    found: dict[Column, dict[str, pd.Series]] = {}
    for column, runs in rows.groupby([*SECTION, "target_sparsity"]):
        by_variant = {v: own.set_index("seed")["value"] for v, own in runs.groupby("variant")}
        if set(by_variant) - {""}:
            found[column] = by_variant
    if not found:
        return None
    lines = []
    for variant in ("", *SCHEDULES):
        cells = [
            seeds_cell(values.get(variant), values.get(""), column[3])
            for column, values in found.items()
        ]
        name = f"{variant}: {SCHEDULES[variant]}" if variant else "the preset's"
        lines.append((name, cells))
    return Table("Schedules", [("", _column_name(column)) for column in found], lines, "")


def _on_off(ledger: pd.DataFrame) -> Table | None:
    """Denoisers off and on, for whatever was measured."""
    found = values_of(ledger[ledger["variant"] == ""], "isp.denoisers")
    if not found:
        return None
    rows = []
    for column, (preset, values) in found.items():
        off, on = values[0], values[preset]
        rows.append(
            (
                _column_name(column),
                [seeds_cell(off, None, column[3]), seeds_cell(on, off, column[3])],
            )
        )
    rows += [(f"paper: {name}", [Cell(off), Cell(on)]) for name, (off, on) in PAPER_ON_OFF.items()]
    columns = [("", "off (progressive)"), ("", "on (ISP)")]
    caption = "▲ and ▼ here: against progressive pruning, which costs no look-ahead."
    return Table("Denoisers off and on (Table 4)", columns, rows, caption)


def _column_name(column: Column) -> str:
    metric = "" if column[3] == "accuracy" else f", {column[3]}"
    return f"{heading(column)}, {percent(column[4])} sparse{metric}{unit(column[3])}"
