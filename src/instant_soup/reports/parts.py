"""Numbers in README.md and the docs, rendered from the ledger: none of them can go stale.

A part stands between the lines `<!-- ledger: NAME -->` and `<!-- end -->`. `make numbers` renders
all parts anew. `make tables` does not: a user's own runs must not change these files.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from instant_soup.files import new_file
from instant_soup.methods.registry import DENSE
from instant_soup.reports.axes import axes
from instant_soup.reports.claim import claim
from instant_soup.reports.essential_sparsity import curves_of, in_percent, knee_of
from instant_soup.reports.glance import glance
from instant_soup.reports.ledger import SECTION, read_ledger
from instant_soup.reports.methods import REFERENCE, SPARSITY_OF_TRIALS, comparison, difference
from instant_soup.reports.origins import apart_by_origin, plain
from instant_soup.reports.render import MISSING, NOTHING, Cell, Table, markdown_table
from instant_soup.reports.results import (
    CELL,
    UNPRUNED,
    ZERO_SHOT,
    as_shown,
    costs,
    has_presets_settings,
    in_units,
    label,
    number,
    over_seeds,
    percent,
    row_order,
    short,
    spread,
    summary,
)
from instant_soup.reports.verdict import (
    between,
    comparable,
    own_setting,
    verdict,
    with_interval,
)
from instant_soup.training.metrics import merit

FILES = ("README.md", "docs/results.md", "docs/findings.md")
PART = re.compile(r"(<!-- ledger: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TEXTS = ("minilm", "reviews-sentiment", "quick", "accuracy")
IMAGES = ("clip-glyph", "mnist-sample", "quick", "accuracy")
LANGUAGE = ("llama-snippets", "reviews-text", "quick", "perplexity")
LOCAL = {  # from local copies: name → section, sparsity
    "SST-2": (("minilm", "sst2@local", "quick", "accuracy"), 0.6),
    "MRPC": (("minilm", "mrpc@local", "quick", "accuracy"), 0.5),
    "STS-B": (("minilm", "stsb@local", "quick", "pearson"), 0.5),
    "CIFAR-10": (("clip-glyph", "cifar10@local", "quick", "accuracy"), 0.7),
}
PAPERS = (  # the paper's rows, and ISP+
    *(ZERO_SHOT, DENSE, "random", "one_shot", "progressive", "early_bird", "snip", "grasp"),
    *("lth", "lth_rewind", "lottery_pool", "isp", "isp_plus"),
)
OF_LANGUAGE = (DENSE, "random", "one_shot", "n_of_m", "wanda", "sparsegpt", "isp", "isp_plus")
PAIRS = (  # the findings tell the first row's score minus the second's
    ("isp", "one_shot"), ("isp", "progressive"), ("isp", "early_bird"), ("isp", "lth"),
    ("isp_plus", "isp"), ("isp_plus", "lth"),
)  # fmt: skip
BLOCKS = {
    "training.retrain=mask_lora": "MaskLoRA",
    "training.retrain=norms_and_biases": "norms and biases",
    "training.teacher=dense": "a teacher",
}
FROM = 0.5  # below this sparsity all rows are alike

Column: TypeAlias = tuple[str, tuple, float]  # heading, section, sparsity


def render(text: str, runs: pd.DataFrame) -> str:
    """A file's text with each of its parts rendered from the ledger, `apart_by_origin`."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part[2]](runs)}\n{part[3]}", text)


def write(runs: pd.DataFrame) -> None:
    """Render the parts of FILES, those that exist here."""
    for path in filter(Path.exists, map(Path, FILES)):
        old = path.read_text()
        if (text := render(old, runs)) != old:
            with new_file(path) as unfinished:
                unfinished.write_text(text)


def _verdict(runs: pd.DataFrame, rivals: bool = False) -> str:
    """The verdict at a glance for the quick preset, from FROM on."""
    lines = verdict(runs)
    lines = lines[(lines["preset"] == "quick") & (lines["sparsity"] >= FROM)]
    return markdown_table(glance("quick", lines, rivals)) if len(lines) else NOTHING


def _differences(runs: pd.DataFrame) -> str:
    """PAIRS at each sparsity and over all of them, in the quick preset."""
    own = comparable(runs)
    own = own[own["preset"] == "quick"]
    places = [(percent(s), of_one) for s, of_one in own.groupby("sparsity")]
    if not places:
        return NOTHING
    rows = [(name, _difference_cells(of_one)) for name, of_one in [*places, ("all", own)]]
    columns = [("", f"{short(one)} − {short(other)}") for one, other in PAIRS]
    return markdown_table(Table("", columns, rows, "", corner="sparsity"))


def _difference_cells(runs: pd.DataFrame) -> list[Cell]:
    """The differences of PAIRS in some runs, bold beyond noise."""
    cells, lines = [], between(runs, PAIRS)
    for pair in PAIRS:
        if pair not in lines.index:
            cells.append(Cell(MISSING))
            continue
        line = lines.loc[pair]
        text = with_interval(line["mean"], line["low"], line["high"], digits=1)
        cells.append(Cell(text, bold=bool(line["differs"])))
    return cells


def _example(runs: pd.DataFrame) -> str:
    """ISP+ beside ISP, LTH and dense at 80 % on the packaged texts."""
    methods = ("isp_plus", "isp", "lth", DENSE)
    cells = _cells(runs, TEXTS, [0.8], methods)
    means = {method: cell["mean"] for (method, _), cell in cells.items()}
    if not set(methods) <= set(means):
        return NOTHING
    plus, isp, lth, dense = (f"{means[method]:.1f} %" for method in methods)
    return (
        f"On movie reviews at 80 % sparsity ISP+ keeps {plus} accuracy. ISP has {isp}, LTH {lth}, "
        f"and the dense network {dense}."
    )


def _results(
    runs: pd.DataFrame, columns: list[Column], methods: tuple[str, ...] = PAPERS, whole: bool = True
) -> str:
    """A table of methods by columns, the best sparse row of each bold, and what rows cost.

    Args:
        runs: The ledger, `apart_by_origin`.
        columns: Each of one origin, that with most of these methods' runs.
        methods: The rows.
        whole: Whether only rows that were run in all columns are there.
    """
    sections = {
        section: [s for _, own, s in columns if own == section] for _, section, _ in columns
    }
    known = {
        (section, *place): cell
        for section, sparsities in sections.items()
        for place, cell in _cells(runs, section, sparsities, methods).items()
    }
    places = [(section, sparsity) for _, section, sparsity in columns]
    found = {
        method: [known.get((s, method, 0.0 if method in UNPRUNED else at)) for s, at in places]
        for method in sorted(methods, key=row_order)
    }
    enough = all if whole else any
    found = {name: own for name, own in found.items() if enough(cell is not None for cell in own)}
    if not found:
        return NOTHING
    sparse = [own for name, own in found.items() if name not in UNPRUNED]
    best = [max(map(_shown, column), default=None) for column in zip(*sparse, strict=True)]
    trained = [own for name, own in found.items() if name != ZERO_SHOT]  # that draws nothing
    plain = len({cell["n"] for own in trained for cell in own if cell is not None}) == 1
    rows = []
    for method, own in found.items():
        cells = [
            Cell(
                _value(cell, plain or method == ZERO_SHOT),
                bold=method not in UNPRUNED and _shown(cell) == top,
            )
            for cell, top in zip(own, best, strict=False)
        ]
        ratios = sorted(cell["flops_vs_dense"] for cell in own if cell is not None)
        name = label(method) if method in UNPRUNED else short(method)
        rows.append((name, [*cells, Cell(_range([number(ratio, ".1f") for ratio in ratios]))]))
    headings = [heading for heading, _, _ in columns]
    return markdown_table(Table("", [("", name) for name in (*headings, "cost")], rows, ""))


def _range(ordered: list[Any]) -> str:
    """The first and the last of some values in order, "1 to 3"; one where they are alike."""
    return " to ".join(dict.fromkeys(str(end) for end in (ordered[0], ordered[-1])))


def _shown(cell: pd.Series | None) -> float:
    """How good a cell is, as printed; what was not measured is the worst."""
    return -float("inf") if cell is None else float(merit(cell["metric"], as_shown(cell["mean"])))


def _value(cell: pd.Series | None, plain: bool) -> str:
    """A cell's mean and deviation; with its number of seeds, unless `plain`."""
    if cell is None:
        return MISSING
    seeds = "" if plain else f" (n = {cell['n']})"
    return f"{cell['mean']:.2f}{spread(cell['std'], cell['n'])}{seeds}"


def _cells(
    runs: pd.DataFrame, section: tuple, sparsities: list[float], methods: tuple[str, ...] = PAPERS
) -> dict[tuple[str, float], pd.Series]:
    """(method, sparsity) → its summary and cost, of the origin that has most of them."""
    own = _of_section(runs, section)
    own = own[own["method"].isin(methods)]
    unpruned = own["method"].isin(UNPRUNED)
    plain_rows = has_presets_settings(own)
    sparse = own[~unpruned & plain_rows & own["target_sparsity"].isin(sparsities)]
    setting = own_setting(sparse)
    sparse = _of_main_origin(sparse[sparse["variant"] == setting])
    dense = own[unpruned & (own["variant"] == setting) & own["model"].isin(sparse["model"])]
    own = pd.concat([dense, sparse])
    cost = costs(own)[[*CELL, "flops_vs_dense"]]
    cells = in_units(summary(own)).merge(cost, on=CELL, how="left")
    return {(cell["method"], cell["target_sparsity"]): cell for _, cell in cells.iterrows()}


def _methods(runs: pd.DataFrame) -> str:
    """The field's methods at the trials' sparsity, on texts and images, best on texts first.

    Each task is of one origin, that with most runs. `n`: seeds.
    """
    found = comparison(runs)
    found = found[(found["target_sparsity"] == SPARSITY_OF_TRIALS) & (found["shared"] == "")]
    columns = []
    for section in (TEXTS, IMAGES):
        own = _of_main_origin(_of_section(found, section))
        columns.append({method: one.set_index("seed") for method, one in own.groupby("method")})
    on_texts, on_images = columns
    common = on_texts.keys() & on_images.keys()
    if REFERENCE not in common:
        return NOTHING
    ranked = sorted(common, key=lambda method: (-on_texts[method]["value"].mean(), method))
    rows = [
        (
            short(method),
            [*_beside_reference(on_texts, method), *_beside_reference(on_images, method)],
        )
        for method in ranked
    ]
    names = [name for kind in ("texts", "images") for name in (kind, "− ISP+", "cost", "n")]
    return markdown_table(Table("", [("", name) for name in names], rows, ""))


def _methods_by_sparsity(runs: pd.DataFrame) -> str:
    """How far each method is from ISP+ at each sparsity, in points over the seeds in common.

    In brackets the seeds of a column's methods.
    """
    found = comparison(runs)
    columns, cells = [], {}
    for kind, section in (("texts", TEXTS), ("images", IMAGES)):
        own = _of_main_origin(_of_section(found[found["shared"] == ""], section))
        for sparsity, at in own.groupby("target_sparsity"):
            values = {name: one.set_index("seed")["value"] for name, one in at.groupby("method")}
            seeds = sorted({len(one) for one in values.values()})
            columns.append(f"{kind}, {percent(float(sparsity))} ({_range(seeds)})")
            reference = values.pop(REFERENCE)
            for name, one in values.items():
                cells[name, columns[-1]] = Cell(difference(one, reference, "accuracy"))
    return _of_methods(columns, cells)


def _of_section(runs: pd.DataFrame, section: tuple) -> pd.DataFrame:
    """The runs of a section, of all origins."""
    places = runs[SECTION].assign(model=runs["model"].map(plain))
    return runs[(places == list(section)).all(axis=1)]


def _of_main_origin(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the origin with most rows of the table, and of these with most seeds."""
    place = ["method", "target_sparsity"]
    origins = {model: (len(own.groupby(place)), len(own)) for model, own in runs.groupby("model")}
    return runs[runs["model"] == max(origins, key=lambda model: origins[model], default="")]


def _axes(runs: pd.DataFrame) -> str:
    """What a teacher, or retraining fewer weights, changes on texts and images: points and cost.

    At the trials' sparsity; each task is of one origin, that with most runs.
    """
    found = axes(runs)
    found = found[found["target_sparsity"] == SPARSITY_OF_TRIALS]
    columns, cells = [], {}
    for kind, section in (("texts", TEXTS), ("images", IMAGES)):
        own = _of_main_origin(_of_section(found, section))
        for block, name in BLOCKS.items():
            of_block = own[own["block"] == block]
            columns += [f"{kind}, {name}"] if len(of_block) else []
            for method, one in of_block.groupby("method"):
                gap = difference(one["value"], one["without"], "accuracy")
                cost = number(one["cost"].mean(), ".1f")
                cells[method, columns[-1]] = Cell(f"{gap} ({cost})")
    return _of_methods(columns, cells)


def _of_methods(columns: list[str], cells: dict[tuple[str, str], Cell]) -> str:
    """A table of methods by columns, from (method, column) → cell."""
    if not cells:
        return NOTHING
    rows = [
        (short(method), [cells.get((method, column), Cell(MISSING)) for column in columns])
        for method in sorted({method for method, _ in cells}, key=row_order)
    ]
    return markdown_table(Table("", [("", name) for name in columns], rows, ""))


def _beside_reference(column: dict[str, pd.DataFrame], method: str) -> list[Cell]:
    """A method's accuracy, how far it is from ISP+ over common seeds, its cost, and its seeds."""
    own = column[method]
    values = own["value"]
    other = None if method == REFERENCE else column[REFERENCE]["value"]
    return [
        Cell(over_seeds(100 * values)),
        Cell(difference(values, other, "accuracy")),
        Cell(number(own["cost"].mean(), ".1f")),
        Cell(str(len(values))),
    ]


def _knees(runs: pd.DataFrame) -> str:
    """How much one-shot pruning forgives: a line for each packaged task that has a curve.

    Of several origins, that with the most of a curve.
    """
    curves, rows = curves_of(runs), []
    for kind, section in (("texts", TEXTS), ("images", IMAGES), ("a language model", LANGUAGE)):
        own = [one for (model, *rest), one in curves.items() if (plain(model), *rest) == section]
        if own:
            curve = max(own, key=lambda one: one[1].size)
            found = in_percent(*knee_of(section, curve))
            rows.append((f"{kind} ({section[0]})", [*map(Cell, found), Cell(str(len(curve[2])))]))
    names = ("essential sparsity (%)", "single seeds (%)", "n")
    columns = [("", name) for name in names]
    return markdown_table(Table("", columns, rows, "", corner="task")) if rows else NOTHING


def _of_family(section: tuple) -> list[Column]:
    return [(f"{percent(s)} sparse", section, s) for s in (0.5, 0.7, 0.9)]


PARTS: dict[str, Callable[[pd.DataFrame], str]] = {
    "verdict": _verdict,
    "verdict_with_rivals": partial(_verdict, rivals=True),
    "claim": claim,
    "differences": _differences,
    "example": _example,
    "results": partial(
        _results,
        columns=[
            (f"{kind}, {percent(s)}", section, s)
            for kind, section in (("texts", TEXTS), ("images", IMAGES))
            for s in (0.7, 0.9)
        ],
    ),
    "texts": partial(_results, columns=_of_family(TEXTS)),
    "images": partial(_results, columns=_of_family(IMAGES)),
    "knees": _knees,
    "methods": _methods,
    "methods_by_sparsity": _methods_by_sparsity,
    "axes": _axes,
    "local_tasks": partial(
        _results, columns=[(f"{name}, {percent(s)}", own, s) for name, (own, s) in LOCAL.items()]
    ),
    "language": partial(
        _results,
        columns=[(percent(s), LANGUAGE, s) for s in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)],
        methods=OF_LANGUAGE,
        whole=False,
    ),
}


if __name__ == "__main__":
    write(apart_by_origin(read_ledger(Path("reports/results.csv"))))
