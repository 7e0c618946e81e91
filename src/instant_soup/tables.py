"""Results → ledger and tables, all from DVC's outputs: a laptop rebuilds them without training.

A *result* is the dict that the evaluate stage writes for one method. The *ledger* is a CSV with
one row for each setting that was ever run; tables and figures are views of it. A *section* of a
table is one (model, dataset, preset, metric).
"""

import csv
import fcntl
import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from instant_soup.files import UserError, new_file, read_json

# Display names, in the order of table rows; methods not named here follow, as they are.
METHOD_NAMES = {
    "zero_shot": "Zero-shot",
    "dense": "Dense",
    "random": "Random",
    "one_shot": "One-shot",
    "isp": "ISP",
}
UNPRUNED = ("zero_shot", "dense")  # one value for all sparsities
PERCENT = {"accuracy", "f1", "matthews", "pearson", "spearman"}  # fractions, shown times 100

KEY = ["model", "dataset", "preset", "variant", "method", "target_sparsity", "seed"]
COST = ["steps", "look_ahead_steps", "flops", "sparse_flops", "seconds"]
NUMBERS = ["target_sparsity", "seed", "value", "sparsity", *COST, "overlap_one_shot"]
RESULT = ["metric", "value", "sparsity", *COST, "overlap_one_shot", "precision", "code_version"]
COLUMNS = [*KEY, *RESULT]
SECTION = ["model", "dataset", "preset", "metric"]
CELL = [*SECTION, "method", "variant", "target_sparsity"]

Row = dict[str, str]
EXPERIMENT_REF = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38,62}/\S+")  # DVC 3.67


# Reading results


def check_result(result: Any, source: str) -> dict[str, Any]:
    """Return `result`; UserError when it lacks what identifies it or its primary test metric."""
    missing = [k for k in KEY if k not in result] if isinstance(result, dict) else ["everything"]
    if not missing and result.get("metric") not in result.get("test", {}):
        missing = ["test metric"]
    if missing:
        raise UserError(f"{source}: not a result file ({', '.join(missing)} missing)")
    return result


def read_results(folder: str | Path, methods: list[str]) -> list[dict[str, Any]]:
    """The results `folder`/METHOD.json, in the order of `methods`; UserError if one is missing."""
    files = [Path(folder) / f"{method}.json" for method in methods]
    return [check_result(read_json(file), str(file)) for file in files]


def with_zero_shot(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results, and before each that knows how well its network did untrained, that as one.

    A zero-shot result costs nothing and depends neither on seed nor on training settings.
    """
    found = []
    for result in results:
        if "zero_shot" in result:
            parts = result["variant"].split(" ")
            kept = [part for part in parts if part.startswith(("data.", "pretraining."))]
            same = {"method": "zero_shot", "seed": 0, "variant": " ".join(kept)}
            cost = {key: type(value)(0) for key, value in result["cost"].items()}
            found.append({**result, **same, "test": result["zero_shot"], "cost": cost})
        found.append(result)
    return found


def results_of_experiments(root: str | Path) -> list[dict[str, Any]]:
    """Results of every DVC experiment of the Git repository at `root`, oldest commit first.

    Each also says under `code_version` which commit its experiment started from. Without a
    repository or experiments the list is empty; a damaged file is skipped with a warning.
    """
    baselines: dict[str, str] = {}  # blob → commit; a blob that several experiments share
    paths: dict[str, str] = {}  # counts once, as part of the newest
    for commit, ref in _experiments(root):
        _, _, start, rest, _ = ref.split("/", 4)
        for blob, path in _result_files(root, commit):
            baselines.pop(blob, None)
            baselines[blob] = (start + rest)[:12]
            paths[blob] = f"{ref}:{path}"
    results = []
    for blob, text in _read_blobs(root, list(baselines)):
        try:
            result = check_result(json.loads(text), paths[blob])
        except ValueError as error:
            print(f"warning: {paths[blob]}: skipped, not JSON ({error})", file=sys.stderr)
        except UserError as error:
            print(f"warning: {error}: skipped", file=sys.stderr)
        else:
            results.append({"code_version": baselines[blob], **result})
    return results


def _git(root: str | Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """A Git command's output; nothing when Git, the repository or the object is missing."""
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


def _experiments(root: str | Path) -> list[tuple[str, str]]:
    """(commit, ref) of each experiment, oldest first; DVC's stashes and marks left out."""
    form = "--format=%(objectname) %(refname)"
    order = ("--sort=refname", "--sort=committerdate")
    lines = _git(root, "for-each-ref", *order, form, "refs/exps").decode().splitlines()
    pairs = [line.split(" ", 1) for line in lines]
    return [(commit, ref) for commit, ref in pairs if EXPERIMENT_REF.fullmatch(ref)]


def _result_files(root: str | Path, commit: str) -> list[tuple[str, str]]:
    """(blob, path) of the result files in a commit."""
    entries = _git(root, "ls-tree", "-z", commit, "reports/results/").decode().split("\0")
    found = [(entry.split("\t")[0].split()[2], entry.split("\t")[1]) for entry in entries if entry]
    return [(blob, path) for blob, path in found if path.endswith(".json")]


def _read_blobs(root: str | Path, blobs: list[str]) -> Iterator[tuple[str, bytes]]:
    """(blob, contents) for each blob, by one Git process."""
    stream = io.BytesIO(_git(root, "cat-file", "--batch", stdin="\n".join(blobs).encode() + b"\n"))
    while header := stream.readline().split():
        if len(header) == 3:  # otherwise "NAME missing"
            yield header[0].decode(), stream.read(int(header[2]))
            stream.readline()


# The ledger


def merge_ledger(
    ledger_csv: str | Path,
    results: list[dict[str, Any]],
    code_version: str,
    replace: bool = True,
) -> pd.DataFrame:
    """Merge results into the ledger file (made if missing) and return the whole ledger.

    A result takes the place of the row with the same KEY, unless `replace` is off; later results
    win over earlier ones. `code_version` stands for results that bring none of their own. Rows
    are sorted by KEY and old ones keep their text, so that merging nothing changes no byte.
    Several processes may merge at once. UserError if the file is no ledger.
    """
    path = Path(ledger_csv)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        old = path.read_text() if path.exists() else ""
        rows, more_columns = _parse(old, path)
        for result in with_zero_shot(results):
            row = _row(result, code_version)
            if replace or _key(row) not in rows:
                rows[_key(row)] = row
        new = _to_text([rows[key] for key in sorted(rows)], more_columns)
        if new != old:
            with new_file(path) as unfinished:
                unfinished.write_text(new)
    return _frame(new)


def read_ledger(ledger_csv: str | Path) -> pd.DataFrame:
    """The ledger as a table with COLUMNS; UserError if it is missing or no ledger."""
    try:
        text = Path(ledger_csv).read_text()
    except OSError as error:
        raise UserError(f"{ledger_csv}: cannot be read ({error.strerror})") from None
    rows, more_columns = _parse(text, Path(ledger_csv))
    return _frame(_to_text(list(rows.values()), more_columns))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on `path`, by a file beside it that is gone afterwards."""
    lock = path.with_name(f".{path.name}.lock")
    while True:
        file = open(lock, "a")  # noqa: SIM115 - closed at the end of this function
        fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever held the lock before us removed the file; then ours locks nothing: once more.
        if _same_file(lock, file.fileno()):
            break
        file.close()
    try:
        yield
    finally:
        lock.unlink()
        file.close()


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _row(result: dict[str, Any], code_version: str) -> Row:
    """A result as a ledger row of text; floats with all their digits, unknown values empty."""
    values = {
        **result,
        **result.get("cost", {}),
        "value": result["test"][result["metric"]],
        "target_sparsity": float(result["target_sparsity"]),
        "code_version": result.get("code_version", code_version),
    }
    return {c: "" if values.get(c) is None else str(values[c]) for c in COLUMNS}


def _key(row: Row) -> tuple:
    texts = tuple(row[c] for c in KEY[:5])
    return (*texts, float(row["target_sparsity"]), int(row["seed"]))


def _parse(text: str, path: Path) -> tuple[dict[tuple, Row], list[str]]:
    """The ledger's rows by key, and names of columns that are not ours (they are kept)."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = list(reader.fieldnames or KEY)
    try:
        rows = {_key(row): row for row in reader}
        whole = all(None not in row and None not in row.values() for row in rows.values())
    except (KeyError, ValueError, TypeError):
        whole = False
    if not whole or not set(KEY) <= set(columns):
        raise UserError(f"{path}: not a ledger of results (an unfinished Git merge?)")
    return rows, [c for c in columns if c not in COLUMNS]


def _to_text(rows: list[Row], more_columns: list[str]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, [*COLUMNS, *more_columns], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _frame(text: str) -> pd.DataFrame:
    """A ledger's text as a table: NUMBERS as numbers (unknown: NaN), all else as text."""
    ledger = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    for column in NUMBERS:
        # Python's float() reads every digit back; pandas' faster parsers may miss the last.
        ledger[column] = [float(text or "nan") for text in ledger[column]]
    return ledger.astype({"seed": int})


# Numbers behind the tables


def scale(metric: str) -> float:
    """What a metric is multiplied with to be shown: 100 (percent) or 1."""
    return 100.0 if metric in PERCENT else 1.0


def unit(metric: str) -> str:
    """A metric's unit as words end: " (%)" or nothing."""
    return " (%)" if metric in PERCENT else ""


def label(method: str, variant: str = "") -> str:
    """A method's display name, with what its settings change from the preset."""
    name = METHOD_NAMES.get(method, method)
    return f"{name} ({variant})" if variant else name


def row_order(method: str, variant: str = "") -> tuple:
    """Sort key of table rows: METHOD_NAMES in order, then other methods; variants beneath."""
    known = list(METHOD_NAMES)
    return (known.index(method) if method in known else len(known), method, variant)


def summary(ledger: pd.DataFrame) -> pd.DataFrame:
    """Over seeds: n, mean and sample standard deviation (NaN for n = 1) of `value`, per CELL."""
    groups = ledger.groupby(CELL, sort=True)["value"]
    # A run that came out as NaN must show, not be left out of a mean.
    table = groups.agg(
        n="size",
        mean=lambda values: values.mean(skipna=False),
        std=lambda values: values.std(ddof=1, skipna=False),
    )
    return table.reset_index()


def costs(ledger: pd.DataFrame) -> pd.DataFrame:
    """Mean cost over seeds, per CELL: steps, FLOPs, wall seconds, and relative to dense.

    `steps_vs_dense` (look-ahead steps included) and `flops_vs_dense` compare with dense
    fine-tuning of the same model, data, preset, training settings and seed; NaN without it.
    """
    # What changes only the ISP part of the settings has the unchanged dense run as its equal.
    trained = ledger[ledger["method"] != "zero_shot"]
    table = trained.assign(shared=trained["variant"].map(_without_isp_part))
    same = ["model", "dataset", "preset", "shared", "seed"]
    dense = table[table["method"] == "dense"].drop_duplicates(same)
    dense = dense[[*same, "steps", "flops"]]
    table = table.merge(dense, on=same, how="left", suffixes=("", "_of_dense"))
    all_steps = table["steps"] + table["look_ahead_steps"]
    table["steps_vs_dense"] = all_steps / table["steps_of_dense"]
    table["flops_vs_dense"] = table["flops"] / table["flops_of_dense"]
    columns = [*COST, "steps_vs_dense", "flops_vs_dense"]
    groups = table.groupby(CELL, sort=True)
    return groups[columns].mean().assign(n=groups.size()).reset_index()


def _without_isp_part(variant: str) -> str:
    return " ".join(part for part in variant.split(" ") if not part.startswith("isp."))


# Tables


def results_table(ledger: pd.DataFrame) -> str:
    """Markdown: per section, methods by sparsities, mean ± std over seeds."""
    sections = summary(ledger).groupby(SECTION, sort=True) if len(ledger) else []
    parts = [_results_section(name, cells, ledger) for name, cells in sections]
    return "\n\n".join(["# Results", *(parts or ["No results yet."])]) + "\n"


def cost_table(ledger: pd.DataFrame) -> str:
    """Markdown: per section, what each method cost at each sparsity, means over seeds."""
    sections = costs(ledger).groupby(SECTION, sort=True) if len(ledger) else []
    parts = [_cost_section(name, cells) for name, cells in sections]
    return "\n\n".join(["# Cost", *(parts or ["No results yet."])]) + "\n"


def write_tables(folder: str | Path, ledger: pd.DataFrame) -> list[Path]:
    """Write results.md, results.csv, cost.md and cost.csv (full precision); their paths."""
    texts = {
        "results.md": results_table(ledger),
        "results.csv": summary(ledger).to_csv(index=False, lineterminator="\n"),
        "cost.md": cost_table(ledger),
        "cost.csv": costs(ledger).to_csv(index=False, lineterminator="\n"),
    }
    for name, text in texts.items():
        with new_file(Path(folder) / name) as unfinished:
            unfinished.write_text(text)
    return [Path(folder) / name for name in texts]


def _results_section(section: tuple, cells: pd.DataFrame, ledger: pd.DataFrame) -> str:
    factor = scale(section[3])
    sparse = cells[~cells["method"].isin(UNPRUNED)]
    columns = sorted(set(sparse["target_sparsity"])) or [0.0]
    trained = cells[cells["method"] != "zero_shot"]  # always one run: nothing is drawn
    one_n = trained["n"].nunique() == 1
    best = {column: _best(sparse, column, factor) for column in columns}
    rows = []
    for method, variant in _methods(cells):
        own = cells[(cells["method"] == method) & (cells["variant"] == variant)]
        texts = []
        for column in columns:
            found = own if method in UNPRUNED else own[own["target_sparsity"] == column]
            plain = one_n or method == "zero_shot"
            text = _value(found.iloc[0], factor, plain) if len(found) else "–"
            texts.append(f"**{text}**" if (method, variant) in best[column] else text)
        rows.append([label(method, variant), *texts])
    table = _markdown(["method", *(f"{percent(c)} sparse" for c in columns)], rows)
    caption = _caption(section, trained, ledger, bold=any(best.values()))
    return f"{_heading(section)}\n\n{table}\n\n{caption}"


def _methods(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """(method, variant) of the rows of a section's table, in their order."""
    pairs = set(zip(cells["method"], cells["variant"], strict=True))
    return sorted(pairs, key=lambda pair: row_order(*pair))


def _best(sparse: pd.DataFrame, column: float, factor: float) -> set[tuple[str, str]]:
    """(method, variant) with the best mean of a column, as shown; none without a competitor."""
    cells = sparse[(sparse["target_sparsity"] == column) & sparse["mean"].notna()]
    if cells["method"].nunique() < 2:
        return set()
    shown = (cells["mean"] * factor).round(2)  # equal as printed is equal
    top = cells[shown == shown.max()]
    return set(zip(top["method"], top["variant"], strict=True))


def _value(cell: pd.Series, factor: float, one_n: bool) -> str:
    """ "81.00 ± 0.35", without ± for a single run, with n where the cells of a table differ."""
    text = f"{factor * cell['mean']:.2f}"
    if cell["n"] > 1:
        text += f" ± {factor * cell['std']:.2f}"
    return text if one_n else f"{text} (n = {cell['n']})"


def _caption(section: tuple, cells: pd.DataFrame, ledger: pd.DataFrame, bold: bool) -> str:
    model, dataset, preset, metric = section
    mine = (ledger[SECTION] == list(section)).all(axis=1)
    precision = ", ".join(sorted(set(ledger.loc[mine, "precision"]) - {""})) or "not recorded"
    counts = f" (n = {cells['n'].iloc[0]})" if cells["n"].nunique() == 1 else ""
    single = " Single runs (n = 1) carry no error bar." if (cells["n"] == 1).any() else ""
    best = " Bold: the best sparse method at that sparsity." if bold else ""
    return (
        f"Test {metric}{unit(metric)}, mean ± sample standard deviation over seeds{counts}.{single}"
        f"{best} Model {model}, data {dataset}, preset {preset}, precision {precision}."
    )


def _cost_section(section: tuple, cells: pd.DataFrame) -> str:
    per_unit, flop = _flop_unit(cells[["flops", "sparse_flops"]].max(axis=None))
    header = ["method", "sparsity", "training steps", "look-ahead steps"]
    header += [f"training FLOPs ({flop})", f"sparsity-aware FLOPs ({flop})", "wall time (s)"]
    header += ["steps ÷ dense", "FLOPs ÷ dense", "n"]
    order = [row_order(m, v) for m, v in zip(cells["method"], cells["variant"], strict=True)]
    cells = cells.assign(order=order).sort_values(["order", "target_sparsity"])
    rows = [
        [
            label(cell["method"], cell["variant"]),
            percent(cell["target_sparsity"]),
            number(cell["steps"], ".0f"),
            number(cell["look_ahead_steps"], ".0f"),
            number(cell["flops"] / per_unit, "#.3g"),
            number(cell["sparse_flops"] / per_unit, "#.3g"),
            number(cell["seconds"], ".1f"),
            number(cell["steps_vs_dense"], ".2f"),
            number(cell["flops_vs_dense"], ".2f"),
            str(cell["n"]),
        ]
        for cell in cells.to_dict("records")
    ]
    caption = (
        "Means over n seeds. Training FLOPs are dense-equivalent and include look-ahead training; "
        "sparsity-aware FLOPs leave out the pruned weights' multiply-adds. Relative to dense "
        "fine-tuning with the same data, preset and seed; steps include look-ahead steps. "
        "Wall time depends on the machine."
    )
    return f"{_heading(section)}\n\n{_markdown(header, rows)}\n\n{caption}"


def _flop_unit(largest: float) -> tuple[float, str]:
    """Divisor and name of the unit in which a table's largest number of FLOPs reads well."""
    units = [(1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")]
    return next((u for u in units if largest >= u[0]), units[-1])


def percent(fraction: float) -> str:
    """0.7 → "70 %"."""
    return f"{100 * fraction:g} %"


def number(value: float | None, form: str) -> str:
    """A formatted number, "–" where there is none."""
    return "–" if value is None or math.isnan(value) else format(value, form)


def _heading(section: tuple) -> str:
    return f"## {section[0]} · {section[1]} · {section[2]}"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# The end of a run


def terminal_table(results: list[dict[str, Any]], folder: str | Path = "reports/tables") -> None:
    """Print one line per method of this workspace's run, and where the tables are.

    Steps include look-ahead steps; FLOPs are relative to this run's dense fine-tuning. Plain text
    of 100 columns when the output is no terminal.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=100, color_system=None)
    metric = results[0]["metric"] if results else "metric"
    dense = next((r["cost"]["flops"] for r in results if r["method"] == "dense"), None)
    table = Table(title=_run_title(results), title_justify="left")
    headers = ["sparsity", f"test {metric}{unit(metric)}", "steps", "FLOPs ÷ dense", "seconds"]
    table.add_column("method", overflow="fold")
    for header in headers:
        table.add_column(header, justify="right")
    rows = with_zero_shot(results)
    for result in sorted(rows, key=lambda r: row_order(r["method"], r["variant"])):
        cost = result["cost"]
        table.add_row(
            label(result["method"], result["variant"]),
            f"{100 * result['sparsity']:.2f} %",
            f"{scale(metric) * result['test'][result['metric']]:.2f}",
            str(cost["steps"] + cost["look_ahead_steps"]),
            number(cost["flops"] / dense if dense else np.nan, ".2f"),
            f"{cost['seconds']:.1f}",
        )
    console.print(table, markup=False)
    console.print(f"Tables: {folder}/results.md, {folder}/cost.md", highlight=False)


def _run_title(results: list[dict[str, Any]]) -> str:
    if not results:
        return "No results"
    first = results[0]
    return f"{first['model']} · {first['dataset']} · {first['preset']} · seed {first['seed']}"
