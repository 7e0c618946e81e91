"""Tables of a dataset: the rows of its files or of the hub's, and the texts and numbers in them.

A cell of a CSV or TSV file is the text in it, whatever it looks like: NA, 007, 1e5.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instant_soup.data.datasets import Dataset
from instant_soup.errors import UserError
from instant_soup.files import new_file

if TYPE_CHECKING:
    import pandas as pd

SEPARATORS = {".csv": ",", ".tsv": "\t"}
QUOTED = re.compile(r'"[^"]*(""[^"]*)*"')
OTHER_NAMES = {
    "ndarray": "list",
    "timestamp": "date",
    "bytes": "byte string, not UTF-8",
}  # of types, for a message

Rows = Iterator[tuple[int, list[str]]]  # the number of a row's first line, and its fields


def check_class_names(names: list[str], labels: list[str]) -> None:
    """Check that the data has as many classes as the task, in the same order.

    The spelling may differ, as in the hub's "maple_tree" for "maple tree" in a prompt.

    Raises:
        UserError: If it has others, or another order.
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


# CSV and TSV


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, with their ends.

    Raises:
        UserError: If a line is not UTF-8; it names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"data.path: {path} cannot be read ({error.strerror})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"data.path: {path}: line {line} is not UTF-8; save the file in that encoding"
        ) from None
    return list(io.StringIO(text, newline=""))


def unquoted(lines: list[str], separator: str) -> Rows:
    """Rows of a file in which each line is a row, and a quote is a character as any other."""
    for number, line in enumerate(lines, 1):
        if bare := line.rstrip("\r\n"):
            yield number, bare.split(separator)


def quoted(lines: list[str], separator: str, path: Path) -> Rows:
    """Read rows whose fields may be in quotes, as in RFC 4180.

    Raises:
        UserError: If the quotes do not pair.
    """
    csv.field_size_limit(max(csv.field_size_limit(), sum(map(len, lines))))
    reader, line = csv.reader(lines, delimiter=separator, strict=True), 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"data.path: {path}: the quotes in the row from line {line} on do not pair ({error}); "
            'allowed: a field in quotes as a whole, each quote in it doubled ("")'
        ) from None


def even(rows: Rows, path: Path, alone: bool = False) -> list[list[str]]:
    """The fields of all rows, which must all have as many as the header.

    Raises:
        UserError: If a row has not; it names the first. If there is one column, and one is not
            enough (`alone`), as with another separator.
    """
    lines, found = [], []
    for line, fields in rows:
        lines.append(line)
        found.append(fields)
    if not found:
        raise UserError(f"data.path: {path} is empty; allowed: a header and rows")
    header = found[0]
    if len(header) == 1 and not alone:
        raise UserError(
            f"data.path: {path} has one column, {header[0]!r}; allowed: several, separated by "
            "commas in a .csv, by tabs in a .tsv"
        )
    if (odd := first([len(fields) != len(header) for fields in found])) is not None:
        raise UserError(
            f"data.path: {path}: the row in line {lines[odd]} has {len(found[odd])} fields, the "
            f"header has {len(header)}; allowed: as many"
        )
    return found


def read_quoted(lines: list[str], separator: str, path: Path, alone: bool) -> list[list[str]]:
    """The fields of all rows, read as quoted.

    Raises:
        UserError: If a quote swallows rows: each line of a row could be a row itself, with the
            header's number of fields and, in one column, only what other rows have there.
    """
    rows = list(quoted(lines, separator, path))
    fields = even(iter(rows), path, alone)
    starts = [line - 1 for line, _ in rows]
    for row, (start, end) in enumerate(itertools.pairwise([*starts, len(lines)])):
        if end - start == 1:
            continue
        parts = [line.rstrip("\r\n").split(separator) for line in lines[start:end]]
        parts = [part for part in parts if part != [""]]
        if len(parts) > 1 and all(len(part) == len(fields[0]) for part in parts):
            others = zip(*fields[1:row], *fields[row + 1 :], strict=True)
            columns = zip(*parts, strict=True)
            if any({*cells} <= {*known} for cells, known in zip(columns, others, strict=True)):
                raise UserError(
                    f"data.path: {path}: a quote in line {start + 1} makes one row of {len(parts)} "
                    'lines that look like rows; allowed: quotes doubled ("") in a field in quotes'
                )
    return fields


def in_quotes(rows: list[list[str]]) -> bool:
    """Whether quotes in a TSV enclose fields, or are plain characters.

    They enclose fields if each field that begins with one is enclosed as a whole, and either the
    header has a quote, or some field has a doubled quote inside.
    """
    begun = [field for row in rows for field in row if field.startswith('"')]
    told = any(f.startswith('"') for f in rows[0]) or any('""' in f[1:-1] for f in begun)
    return told and all(QUOTED.fullmatch(field) for field in begun)


def read_text_table(path: Path, alone: bool = False) -> "pd.DataFrame":
    """The rows of a CSV or TSV file, every cell a text; blank lines are no rows.

    `alone`: whether one column is enough.

    A CSV is quoted. A TSV is unquoted, as GLUE's files are. There are two exceptions: its quotes
    enclose fields (`in_quotes`), or its lines have too few or too many fields and are even once
    they are read as quoted.
    """
    import pandas as pd

    lines, separator = read_lines(path), SEPARATORS[path.suffix]
    if separator == ",":
        rows = read_quoted(lines, separator, path, alone)
    else:
        try:
            rows = even(unquoted(lines, separator), path, alone)
            if in_quotes(rows):
                rows = read_quoted(lines, separator, path, alone)
        except UserError as error:
            try:
                rows = read_quoted(lines, separator, path, alone)
            except UserError:
                raise error from None
    return pd.DataFrame(rows[1:], columns=rows[0], dtype="str")


# Files


def read_schema(path: Path) -> Any:
    """Columns and types of a parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"data.path: {path} cannot be read as parquet ({error})") from None


def image_columns(schema: Any) -> list[str]:
    """Columns of bytes, or of {bytes, path} as the Hugging Face hub has them."""
    from pyarrow import types

    def holds_bytes(kind: Any) -> bool:
        tests = (types.is_binary, types.is_large_binary, types.is_binary_view)
        return any(test(kind) for test in (*tests, types.is_fixed_size_binary))

    return [
        field.name
        for field in schema
        if holds_bytes(field.type)
        or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]


def check_columns(names: list[str], wanted: list[str], key: str, where: str) -> None:
    """Check that a file, called `where`, has each of the columns that a key names, once.

    Raises:
        UserError: If it has not.
    """
    for column in wanted:
        if column not in names:
            labelled = key != "label" or where.startswith("train")
            raise UserError(
                f"data.{key}: no column {column!r}; the data has {names} ({where})"
                + ("" if labelled else "; a split without labels is no test split: move it away")
            )
        if names.count(column) > 1:
            raise UserError(f"data.{key}: several columns {column!r} in {where}; allowed: one")


def read_parquet(path: Path, columns: list[str]) -> "pd.DataFrame":
    """Some columns of a parquet file; whole numbers stay whole beside gaps."""
    import pyarrow
    import pyarrow.parquet
    from pyarrow import types

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = file.read(columns)
        rows.validate(full=True)  # texts that are no UTF-8
        plain = {name: rows[name] for name in columns}
        for name, cells in plain.items():
            if types.is_dictionary(cells.type):
                plain[name] = cells.cast(cells.type.value_type)
        return pyarrow.table(plain).to_pandas(integer_object_nulls=True)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"data.path: {path} cannot be read as parquet ({error})") from None


def column_names(path: Path, alone: bool = False) -> list[str]:
    """The columns of a parquet, CSV or TSV file; `alone`: whether one is enough."""
    if path.suffix == ".parquet":
        return list(read_schema(path).names)
    rows = quoted(read_lines(path), SEPARATORS[path.suffix], path)
    return even(itertools.islice(rows, 1), path, alone)[0]


def read_files(paths: list[Path], **wanted: list[str]) -> "pd.DataFrame":
    """Read parquet, CSV or TSV files as one table.

    Args:
        paths: The files.
        **wanted: Columns by the key of `data` that names them: `text=["sentence"],
            label=["label"]`.

    Returns:
        The rows, with these columns.

    Raises:
        UserError: If a file lacks a column, or there are no rows.
    """
    import pandas as pd

    tables, columns = [], list(dict.fromkeys(itertools.chain(*wanted.values())))
    for path in paths:
        alone = len(columns) == 1
        whole = None if path.suffix == ".parquet" else read_text_table(path, alone)
        names = read_schema(path).names if whole is None else list(whole.columns)
        for key, some in wanted.items():
            check_columns(names, some, key, path.name)
        tables.append(read_parquet(path, columns) if whole is None else whole[columns])
    found = pd.concat(tables, ignore_index=True)
    if not len(found):
        raise UserError(f"data.path: {paths[0]} has no rows")
    return found


def read_hub(dataset: Dataset) -> list["pd.DataFrame"]:
    """Training and test rows of a dataset on the Hugging Face hub (or in its local cache).

    Raises:
        UserError: If they cannot be downloaded, or the hub has another number of classes.
    """
    import datasets

    name, configuration = dataset.hub
    datasets.disable_progress_bars()
    try:
        splits = [
            # So named, a folder here that is called like the dataset does not stand in for it.
            datasets.load_dataset(f"hf://datasets/{name}", configuration or None, split=s)
            for s in ("train", dataset.test)
        ]
    except Exception as error:  # the hub client raises a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"dataset: {'/'.join(filter(None, dataset.hub))} cannot be loaded from the Hugging "
            f"Face hub (is there a network? For a local copy set data.path): {reason}"
        ) from None
    for split, where in zip(splits, ("train", dataset.test), strict=True):
        wanted = {"image": [dataset.image]} if dataset.image else {"text": dataset.text}
        labels = {"label": [dataset.label]} if dataset.label else {}
        for key, columns in {**wanted, **labels}.items():
            check_columns(split.column_names, columns, key, where)
        names = getattr(split.features.get(dataset.label), "names", None)
        if names:
            check_class_names(names, dataset.labels)
    return [split.to_pandas() for split in splits]


def save_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a split as parquet, atomically."""
    with new_file(path) as unfinished:
        table.to_parquet(unfinished, index=False)


# Cells


def first(bad: Any) -> int | None:
    """The number of the first row that is bad (rows of bool); None where none is."""
    rows = np.flatnonzero(np.asarray(bad, dtype=bool))
    return int(rows[0]) if len(rows) else None


def spelt(values: "pd.Series", where: str) -> "pd.Series":
    """A column's texts as they are, and its numbers in their own spelling.

    Args:
        values: The column.
        where: What an error calls it, such as "text (column sentence of train)".

    Returns:
        A column of texts.

    Raises:
        UserError: If a cell is empty (null) or holds anything else; it names the row.
    """
    import pandas as pd

    if (row := first(values.isna())) is not None:
        raise UserError(f"dataset: no {where} in row {row}; allowed: one in each row")
    if values.dtype == "str":
        return values
    if values.dtype.kind in "iuf":
        return values.astype("str")
    found = []
    for row, cell in enumerate(values):
        try:
            text = cell.decode() if isinstance(cell, bytes) else cell
        except UnicodeDecodeError:
            text = None
        if isinstance(text, bool) or not isinstance(text, str | int | Decimal):
            kind = type(cell).__name__.lower()
            shown = repr(cell.tolist() if isinstance(cell, np.ndarray) else cell)[:60]
            raise UserError(
                f"dataset: the {where} in row {row} is a {OTHER_NAMES.get(kind, kind)}, {shown}; "
                "allowed: one text or number"
            )
        found.append(str(text))
    return pd.Series(found, values.index, dtype="str")
