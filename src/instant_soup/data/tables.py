"""Tables of a dataset: the files of its splits, or the hub's; their rows, and labels as numbers."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from instant_soup.data.datasets import Dataset
from instant_soup.errors import UserError
from instant_soup.files import new_file

if TYPE_CHECKING:
    import pandas as pd

# The hub's names for a split in several files: train-00000-of-00002.parquet, …
SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})(-\w+)?")


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


def read_hub(dataset: Dataset) -> list["pd.DataFrame"]:
    """Training and test rows of a dataset on the Hugging Face hub (or in its local cache).

    UserError when they cannot be had, or when the hub knows another number of classes.
    """
    import datasets

    name, configuration = dataset.hub
    datasets.disable_progress_bars()
    try:
        splits = [
            datasets.load_dataset(name, configuration or None, split=s)
            for s in ("train", dataset.test)
        ]
    except Exception as error:  # the hub client raises a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"dataset: {'/'.join(filter(None, dataset.hub))} cannot be loaded from the Hugging "
            f"Face hub (is there a network? For a local copy set data.path): {reason}"
        ) from None
    for split in splits:
        names = getattr(split.features.get(dataset.label), "names", None)
        if names:
            check_class_names(names, dataset.labels)
    return [split.to_pandas() for split in splits]


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


def label_numbers(table: "pd.DataFrame", dataset: Dataset, split: str) -> "pd.Series":
    """The label column as class numbers or floats; checked."""
    kind, labels, label = dataset.kind, dataset.labels, dataset.label
    check_labels(table, kind, labels, label, split)
    values = table[label]
    if kind == "regression":
        return values.astype("float32")
    if values.dtype.kind in "iuf":
        return values.astype("int64")
    return values.astype(str).map({n: i for i, n in enumerate(labels)})


def save_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a split as parquet, atomically."""
    with new_file(path) as unfinished:
        table.to_parquet(unfinished, index=False)
