"""Results → ledger: one CSV row for each setting that was ever run.

A *result* is the dict that the evaluate stage writes for one method. The *ledger* holds one row of
it for each KEY, base and kind of processor; tables and figures are views of it. A *section* is one
(model, dataset, preset, metric).
"""

import csv
import fcntl
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import pandas as pd

from instant_soup.config.fields import short_numbers
from instant_soup.errors import UserError
from instant_soup.files import new_file, read_json

# Of tables of a few hundred rows each choice takes Arrow's strings twice as long as Python's.
pd.options.mode.string_storage = "python"

KEY = ["model", "dataset", "preset", "variant", "method", "target_sparsity", "seed"]
COST = ["steps", "search_steps", "flops", "sparse_flops", "seconds", "peak_memory"]
OF_BASE = ["pq_index"]  # numbers of the pre-trained weights
NUMBERS = ["target_sparsity", "seed", "value", "validation", "sparsity", *COST, "overlap_one_shot"]
NUMBERS += OF_BASE
RESULT = ["metric", "value", "sparsity", *COST, "overlap_one_shot", "drawn", "precision", "base"]
ORIGIN = ["family", "code_version", "finished", "processor", "validation", *OF_BASE]
COLUMNS = [*KEY, *RESULT, *ORIGIN]
SECTION = ["model", "dataset", "preset", "metric"]
NOT_SETTLED = " (not settled)"  # behind the epoch after which a search took its mask
FORMER_NAMES = {"look_ahead_steps": "search_steps"}  # in old ledgers and results

Row = dict[str, str]
View = Callable[[pd.DataFrame], pd.DataFrame]
EXPERIMENT_REF = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38,62}/\S+")  # DVC 3.67


# Reading results


def check_result(result: Any, source: str) -> dict[str, Any]:
    """Check a result, and give it today's names.

    Raises:
        UserError: If it lacks identity, cost or primary metric, or has a word for a number.
    """
    missing = ["everything"]
    if isinstance(result, dict):
        missing = [k for k in KEY if k not in result]
        missing += [k for k in ("cost", "test") if not isinstance(result.get(k), dict)]
        texts = (k for k in (*KEY[:5], "metric") if k not in missing)
        missing += [k for k in texts if not isinstance(result.get(k), str)]
    if not missing and result.get("metric") not in result["test"]:
        missing = ["test metric"]
    if missing:
        raise UserError(f"{source}: not a result file ({', '.join(missing)} missing)")
    cost = {FORMER_NAMES.get(name, name): value for name, value in result["cost"].items()}
    result = {**result, "cost": cost, "variant": short_numbers(result["variant"])}
    try:
        rows = [_row(one, "") for one in with_zero_shot([result])]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: not a result file ({error!r})") from None
    for row in rows:
        _check_row(row, source)
    return result


def read_results(folder: str | Path, methods: list[str]) -> list[dict[str, Any]]:
    """Read the results `folder`/METHOD.json, in the order of `methods`.

    Raises:
        UserError: If one is missing or damaged.
    """
    files = [Path(folder) / f"{method}.json" for method in methods]
    return [check_result(read_json(file), str(file)) for file in files]


# What a zero-shot result depends on beside model and dataset.
ZERO_SHOT_SETTINGS = ("data.", "pretraining.", "training.precision=")


def with_zero_shot(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results, and before each that knows how well its network did untrained, that as one.

    A zero-shot result costs nothing and depends neither on seed nor on how a network is trained.
    """
    found = []
    for result in results:
        if "zero_shot" in result:
            parts = result["variant"].split(" ")
            kept = [part for part in parts if part.startswith(ZERO_SHOT_SETTINGS)]
            same = {"method": "zero_shot", "seed": 0, "variant": " ".join(kept)}
            cost = {key: type(value)(0) for key, value in result["cost"].items()}
            told = {"test": result["zero_shot"], "cost": cost, "validation": None}
            found.append({**result, **same, **told})
        found.append(result)
    return found


def results_of_experiments(root: str | Path) -> list[dict[str, Any]]:
    """Results of every DVC experiment of the Git repository at `root`, oldest commit first.

    `code_version` of each says from which commit its experiment started. Without a repository or
    experiments the list is empty. A damaged file is skipped with a warning.
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
    """A Git command's output; nothing where there is no Git or no repository.

    A repository that Git does not read, as that of another user, is warned of.
    """
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True)
    except OSError:
        return b""
    if done.returncode and (Path(root) / ".git").exists():
        reason = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        print(f"warning: experiments are not read: git {arguments[0]}: {reason}", file=sys.stderr)
    return b"" if done.returncode else done.stdout


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
) -> pd.DataFrame:
    """Merge results into the ledger file, which is made if it is missing.

    A result replaces the row with the same KEY, unless that one finished later. Results that do not
    say when they finished are the oldest; of equally old ones the last wins. Rows are sorted by
    KEY, and old ones keep their text, so merging nothing changes no byte. Several processes may
    merge at once.

    Args:
        ledger_csv: The ledger file.
        results: The results.
        code_version: Stands for results that have none of their own.

    Returns:
        The whole ledger.

    Raises:
        UserError: If the file is no ledger.
    """
    path = Path(ledger_csv)
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with _locked(path):
        old = _read(path) if path.exists() else ""
        rows, more_columns = _parse(old, path)
        for result in with_zero_shot(results):
            row = _row(result, code_version)
            other = rows.get(_key(row), row)
            if row["finished"] >= other["finished"]:
                rows[_key(row)] = row
            elif other["finished"] > now:
                print(
                    f"warning: {path}: the row of {', '.join(row[c] for c in KEY)} finished at "
                    f"{other['finished']}, which is still to come, and stands before a result of "
                    f"{row['finished'] or 'unknown time'} (a clock that was ahead?); "
                    "delete the row",
                    file=sys.stderr,
                )
        new = _to_text([rows[key] for key in sorted(rows)], more_columns)
        if new != old:
            with new_file(path) as unfinished:
                unfinished.write_text(new)
    return _frame(new)


def read_ledger(ledger_csv: str | Path) -> pd.DataFrame:
    """Read the ledger as a table with COLUMNS.

    Raises:
        UserError: If it is missing or no ledger.
    """
    rows, more_columns = _parse(_read(Path(ledger_csv)), Path(ledger_csv))
    return _frame(_to_text(list(rows.values()), more_columns))


def remembered(view: View) -> View:
    """A view of a ledger that keeps its last table: tables, figures and page ask for the same one.

    Neither the ledger nor the table may be changed in place.
    """
    last: list[tuple[pd.DataFrame, pd.DataFrame]] = []

    @wraps(view)
    def kept(ledger: pd.DataFrame) -> pd.DataFrame:
        if not last or last[0][0] is not ledger:
            last[:] = [(ledger, view(ledger))]
        return last[0][1]

    return kept


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
    target = result["target_sparsity"]
    values = {
        **result,
        **result.get("cost", {}),
        "value": result["test"][result["metric"]],
        "target_sparsity": float(target) if isinstance(target, int) else target,
        "code_version": result.get("code_version", code_version),
    }
    if drawn := result.get("drawn"):
        values["drawn"] = f"{drawn['epoch']:g}" + ("" if drawn["settled"] else NOT_SETTLED)
    return {c: "" if values.get(c) is None else str(values[c]) for c in COLUMNS}


def _read(path: Path) -> str:
    """A ledger's text; UserError if it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8-sig")  # a spreadsheet begins with a mark
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8; allowed: a ledger in UTF-8") from None


def _check_row(row: Row, where: str) -> None:
    """UserError, naming the column, where a row has a word for a number or a time."""
    for column in (*NUMBERS, "finished"):
        allowed, may_be = EXPECTED.get(column, ("a number, or nothing", _is_number))
        if not may_be(row[column]):
            raise UserError(
                f"{where}: {column}: {row[column]!r} is not allowed; allowed: {allowed}"
            )


def _is_number(text: str) -> bool:
    try:
        return text == "" or float(text) is not None
    except ValueError:
        return False


def _is_time(text: str) -> bool:
    try:
        return text == "" or datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False


# Of columns that are not just any number: what is allowed, and whether a text is that.
EXPECTED: dict[str, tuple[str, Callable[[str], bool]]] = {
    "seed": ("a whole number", lambda text: text.isdecimal()),
    "target_sparsity": (
        "a number from 0 to 1",
        lambda text: text != "" and _is_number(text) and 0 <= float(text) <= 1,
    ),
    "finished": ("a time in UTC, as 2026-11-28T10:00:00+00:00, or nothing", _is_time),
}


def _key(row: Row) -> tuple:
    texts = tuple(row[c] for c in KEY[:5])
    return (*texts, float(row["target_sparsity"]), int(row["seed"]), row["base"], row["processor"])


def _parse(text: str, path: Path) -> tuple[dict[tuple, Row], list[str]]:
    """The ledger's rows by key, and names of columns that are not ours (they are kept).

    Of several rows with one key the one that finished last stays, with a warning.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""))
    odd = UserError(f"{path}: not a ledger of results (an unfinished Git merge?)")
    rows: dict[tuple, Row] = {}
    try:
        columns = [FORMER_NAMES.get(name, name) for name in reader.fieldnames or KEY]
        reader.fieldnames = columns
        if not set(KEY) <= set(columns) or len(set(columns)) < len(columns):
            raise odd
        for given in reader:
            if None in given or None in given.values():
                raise odd
            row = {**dict.fromkeys(COLUMNS, ""), **given}
            row["variant"] = short_numbers(row["variant"])
            _check_row(row, f"{path}: line {reader.line_num}")
            other = rows.setdefault(_key(row), row)
            if other != row:
                rows[_key(row)] = row if row["finished"] >= other["finished"] else other
                print(
                    f"warning: {path}: line {reader.line_num}: a second row of "
                    f"{', '.join(row[c] for c in KEY)}; the one that finished later is kept",
                    file=sys.stderr,
                )
    except csv.Error as error:
        raise UserError(f"{path}: not a ledger of results ({error})") from None
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
