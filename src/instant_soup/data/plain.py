"""Plain text: paragraphs of text files, rows of tables, or packaged snippets, in their order.

A split is a table with one column of texts. Blank lines stand between them where they are packed
(batches.pack), so that a text file is read as it is.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from instant_soup.data import folders, tables
from instant_soup.data.datasets import Dataset
from instant_soup.data.reviews import MOVIES, read_snippets
from instant_soup.data.texts import usual_columns
from instant_soup.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

TEXT_FILES = (".txt", *folders.TABLES)
COLUMN = "text"  # that the paragraphs of a text file are in


def describe_local(folder: Path, text: list[str] | None = None) -> Dataset:
    """The column of texts of a local folder; UserError where there is no text."""
    table = first_table(folder)
    if table is None:
        if text and text != [COLUMN]:  # as which an exported folder knows them
            raise UserError(f"data.text: {text[0]}: text files have no columns; name none")
        return Dataset(kind="language", text=[COLUMN], metric="perplexity", label="")
    columns = tables.column_names(table, alone=True)
    text = text or usual_columns(columns)
    if len(text) != 1:
        raise UserError(f"data.text: name the column of texts; the data has {columns}")
    tables.check_columns(columns, text, "text", table.name)
    return Dataset(kind="language", text=text, metric="perplexity", label="")


def first_table(folder: Path) -> Path | None:
    """The first training file that has columns; None where all are text files."""
    train, _ = split_files(folder, "test")
    return next((path for path in train if path.suffix != ".txt"), None)


def split_files(folder: Path, test: str) -> tuple[list[Path], list[Path] | None]:
    """The files of the training and of the test split; None where that has to be cut.

    Files called after splits are those, as train.txt and test.txt; where none is called train, all
    files are for training.

    Raises:
        UserError: If files of one name are not one, nor all that the hub makes of one; or a file or
            folder is called nearly like a split.
    """
    found: dict[str, list[Path]] = {}
    for path in folders.visible(folder):
        if path.suffix in TEXT_FILES and path.is_file():
            shard = folders.SHARD.fullmatch(path.stem)
            found.setdefault(shard[1] if shard else path.stem, []).append(path)
    if not found:
        raise UserError(f"data.path: {folder} has no text: allowed: files {', '.join(TEXT_FILES)}")
    if "train" not in found:
        if odd := folders.alike(folder, "train"):
            raise UserError(
                f"data.path: {odd} is no training split; allowed: train{', train'.join(TEXT_FILES)}"
                "; or nothing called train, and all files are for training"
            )
        folders.check_whole(folder, found, found)
        return [path for paths in found.values() for path in paths], None
    names = (test, *folders.HELD_OUT)
    held_out = next((name for name in names if name in found), None)
    folders.check_whole(folder, found, ("train", *([held_out] if held_out else [])))
    if held_out is None and (odd := folders.alike(folder, *names)):
        raise UserError(
            f"data.path: {odd} is no test split; allowed: test{', test'.join(TEXT_FILES)}; or none,"
            " and the test rows are cut from the training rows"
        )
    return found["train"], found[held_out] if held_out else None


def read_plain(dataset: Dataset) -> tuple["pd.DataFrame", "pd.DataFrame | None"]:
    """Training and test texts of a dataset; None for a test split that has to be cut."""
    (column,) = dataset.text
    if dataset.source == "packaged":
        import pandas as pd

        snippets = read_snippets(MOVIES)
        return pd.DataFrame({column: snippets}).drop_duplicates(ignore_index=True), None
    if dataset.source == "hub":
        train, test = tables.read_hub(dataset)
        return train[[column]], test[[column]]
    train_files, test_files = split_files(Path(dataset.path), dataset.test)
    return read_files(train_files, column), test_files and read_files(test_files, column)


def read_files(paths: list[Path], column: str) -> "pd.DataFrame":
    """The texts of some files, in one column."""
    import pandas as pd

    parts = [
        pd.DataFrame({column: paragraphs(path)})
        if path.suffix == ".txt"
        else tables.read_files([path], text=[column])
        for path in paths
    ]
    whole = pd.concat(parts, ignore_index=True)
    if not len(whole):
        raise UserError(f"data.path: {paths[0]} has no text")
    return pd.DataFrame({column: tables.spelt(whole[column], f"text (column {column})")})


def paragraphs(path: Path) -> list[str]:
    """What stands between the blank lines of a text file; UserError where it is not UTF-8."""
    whole = "".join(tables.read_lines(path)).replace("\r\n", "\n")
    return [part for part in re.split(r"\n\s*\n", whole) if part.strip()]
