"""A table as data, and its Markdown, LaTeX, CSV and HTML: one set of rows behind all of them."""

import csv as csv_files
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from html import escape
from itertools import accumulate, groupby
from typing import Any

MISSING = "–"
MARKS = {"better": ("▲", r"$^{\uparrow}$"), "worse": ("▼", r"$^{\downarrow}$")}
NOTHING = "No results yet."
LONG = 45  # rows; on the page longer tables open on demand

# What Markdown reads as a mark; an underscore within a word is none.
MARKDOWN = re.compile(r"[\\`*|<~$]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|\](?=[(\[])")

# What LaTeX reads as a command, and what its old fonts lack.
TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "_": r"\_",
    "#": r"\#", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": r"\textbar{}", "±": r"$\pm$", "·": r"$\cdot$", "÷": r"$\div$",
    "≤": r"$\leq$", "≥": r"$\geq$", "ε": r"$\varepsilon$", "η": r"$\eta$", "×": r"$\times$",
    "–": "--", "−": "$-$", "▲": MARKS["better"][1], "▼": MARKS["worse"][1],
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A table's cell; `mark` is one of MARKS or nothing."""

    text: str
    bold: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of (name, cells). A column is (group, name); neighbours of a group share a header.

    `corner`: the header of the rows' names. `unpruned`: rows above the others that have one value
    for each group of columns, since sparsity is nothing to them. `task`: the task that the table is
    of, if it is of one; the page shows those of the chosen task.
    """

    heading: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[Cell]]]
    caption: str
    corner: str = "method"
    unpruned: list[tuple[str, list[Cell]]] = field(default_factory=list)
    task: str = ""


@dataclass(frozen=True)
class Chapter:
    """A title, how to read the tables that follow, and these."""

    title: str
    text: str
    tables: list[Table]


def shown(chapter: Chapter) -> list[Table]:
    """A chapter's tables without the rows and columns that have no value."""
    tables = []
    for table in chapter.tables:
        kept = [
            column
            for column, _ in enumerate(table.columns)
            if not table.rows or _any_value(row[column] for _, row in table.rows)
        ]
        widths = [width for _, width in _groups(table)] or [len(table.columns)]
        ends = list(accumulate(widths))
        groups = [
            group
            for group, end in enumerate(ends)
            if any(end - widths[group] <= column < end for column in kept)
        ]
        rows = [(name, [row[column] for column in kept]) for name, row in table.rows]
        unpruned = [(name, [row[group] for group in groups]) for name, row in table.unpruned]
        whole = replace(
            table,
            columns=[table.columns[column] for column in kept],
            rows=[(name, row) for name, row in rows if _any_value(row)],
            unpruned=[(name, row) for name, row in unpruned if _any_value(row)],
        )
        if whole.rows or whole.unpruned:
            tables.append(whole)
    return tables


def _any_value(cells: Iterable[Cell]) -> bool:
    return any(cell.text != MISSING for cell in cells)


def terminal() -> Any:
    """Where tables are printed: rich's console, or plain text of 100 columns."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=100, color_system=None)


def markdown(chapters: list[Chapter]) -> str:
    """A Markdown file of chapters. Groups of columns become part of the columns' names."""
    parts = []
    for chapter in chapters:
        parts += [f"# {in_markdown(chapter.title)}", chapter.text]
        tables = shown(chapter)
        parts += ["" if tables else NOTHING]
        for table in tables:
            rows = markdown_table(table) if table.rows else ""
            unpruned = "\n".join(f"* {_unpruned_line(table, *row)}" for row in table.unpruned)
            heading = f"## {in_markdown(table.heading)}"
            parts += [heading, unpruned, rows, in_markdown(table.caption)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(table: Table) -> str:
    """The table's rows alone, in Markdown."""
    header = [f"{group}: {name}" if group else name for group, name in table.columns]
    lines = [list(map(in_markdown, [table.corner, *header]))]
    lines += [["---", *["---:"] * len(header)]]
    lines += [[in_markdown(name), *map(_markdown_cell, own)] for name, own in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _unpruned_line(table: Table, name: str, cells: list[Cell]) -> str:
    """A row that has one value for each group of columns, as a line above a Markdown table."""
    groups = [group for group, _ in _groups(table)] or [""]
    values = [
        f"{in_markdown(group)}: {_markdown_cell(cell)}" if group else _markdown_cell(cell)
        for group, cell in zip(groups, cells, strict=True)
        if cell.text != MISSING
    ]
    return f"{in_markdown(name)}, unpruned: {'; '.join(values)}"


def csv(chapters: list[Chapter]) -> str:
    """The tables' cells as they are shown, one a line: chapter, table, row, column, value, mark."""
    stream = io.StringIO(newline="")
    writer = csv_files.writer(stream, lineterminator="\n")
    writer.writerow(["chapter", "table", "row", "column", "value", "mark"])
    for chapter in chapters:
        for table in shown(chapter):
            groups = [group for group, _ in _groups(table)] or [""]
            names = [f"{group}: {name}" if group else name for group, name in table.columns]
            lines = [(row, groups) for row in table.unpruned]
            lines += [(row, names) for row in table.rows]
            for (name, cells), columns in lines:
                for column, cell in zip(columns, cells, strict=True):
                    if cell.text != MISSING:
                        place = [chapter.title, table.heading, name, column]
                        writer.writerow([*place, cell.text, cell.mark])
    return stream.getvalue()


def in_all_forms(name: str, chapters: list[Chapter]) -> dict[str, str]:
    """Chapters as the files NAME.md, NAME.tex and NAME.csv: file name → text."""
    return {
        f"{name}.md": markdown(chapters),
        f"{name}.tex": tex(chapters),
        f"{name}.csv": csv(chapters),
    }


def one_line(text: str) -> str:
    """A text without line breaks and control characters, each of them a blank."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text)


def in_markdown(text: str) -> str:
    """A text that Markdown shows as it is, in a line of its own or in a table's cell.

    A name may be anything that a folder is called: its tags, marks and line breaks are text.
    """
    return MARKDOWN.sub(r"\\\g<0>", one_line(text))


def tex(chapters: list[Chapter]) -> str:
    r"""LaTeX to \input, a floating table for each table; it needs \usepackage{booktabs}."""
    parts = ["% Needs \\usepackage{booktabs}."]
    for chapter in chapters:
        tables = shown(chapter)
        text = chapter.text if tables else f"{chapter.text} {NOTHING}"
        parts += [f"\\paragraph{{{_tex(chapter.title)}.}} {_tex(text)}"]
        parts += [_tex_table(table) for table in tables]
    return "\n\n".join(parts) + "\n"


def html(chapter: Chapter) -> str:
    """A chapter's text and tables as HTML, its title left to the page; wide tables scroll."""
    text = f"<p>{escape(chapter.text)}</p>\n" if chapter.text else ""
    tables = "\n".join(_html_table(table, chapter.title) for table in shown(chapter))
    return f'{text}<div class="tables">\n{tables or f"<p>{NOTHING}</p>"}\n</div>'


def _groups(table: Table) -> list[tuple[str, int]]:
    """The groups of a table's columns and how many columns each spans; none if all are unnamed."""
    groups = [(group, len(list(own))) for group, own in groupby(g for g, _ in table.columns)]
    return groups if any(group for group, _ in groups) else []


def _markdown_cell(cell: Cell) -> str:
    text = in_markdown(f"{cell.text} {MARKS[cell.mark][0]}" if cell.mark else cell.text)
    return f"**{text}**" if cell.bold else text


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in one_line(text))


def _tex_cell(cell: Cell) -> str:
    text = f"\\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text)
    return text + (MARKS[cell.mark][1] if cell.mark else "")


def _tex_table(table: Table) -> str:
    lines = [[_tex(table.corner), *(_tex(name) for _, name in table.columns)]]
    lines += [[_tex(name), *map(_tex_cell, cells)] for name, cells in table.rows]
    header, *rows = [f"{' & '.join(line)} \\\\" for line in lines]
    spans, rules, first = [""], [], 2
    for group, width in _groups(table):
        spans.append(f"\\multicolumn{{{width}}}{{c}}{{{_tex(group)}}}")
        rules.append(f"\\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    groups = [f"{' & '.join(spans)} \\\\", "".join(rules)] if rules else []
    widths = [width for _, width in _groups(table)] or [len(table.columns)]
    unpruned = []
    for name, cells in table.unpruned:
        wide = [
            f"\\multicolumn{{{width}}}{{c}}{{{_tex_cell(cell)}}}"
            for width, cell in zip(widths, cells, strict=True)
        ]
        unpruned.append(f"{' & '.join([_tex(name), *wide])} \\\\")
    body = [*unpruned, *(["\\midrule"] if unpruned and rows else []), *rows]
    return "\n".join(
        [
            "\\begin{table}[htbp]\n\\centering\\small",
            f"\\caption{{{_tex(table.heading)}. {_tex(table.caption)}}}",
            f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            *["\\toprule", *groups, header, "\\midrule", *body, "\\bottomrule"],
            "\\end{tabular}\n\\end{table}",
        ]
    )


def _html_cell(cell: Cell, width: int = 1) -> str:
    text = f"<strong>{escape(cell.text)}</strong>" if cell.bold else escape(cell.text)
    mark = f'<sup class="{cell.mark}">{MARKS[cell.mark][0]}</sup>' if cell.mark else ""
    kind = ' class="missing"' if cell.text == MISSING else ""
    span = f' colspan="{width}"' if width > 1 else ""
    return f"<td{kind}{span}>{text}{mark}</td>"


def _html_table(table: Table, chapter: str) -> str:
    groups = _groups(table)
    names = "".join(f'<th scope="col">{escape(name)}</th>' for _, name in table.columns)
    spans = [
        f'<th scope="colgroup" colspan="{n}">{escape(g)}</th>' if g else f'<td colspan="{n}"></td>'
        for g, n in groups
    ]
    corner = f'<th scope="col" rowspan="{2 if groups else 1}">{escape(table.corner)}</th>'
    head = [corner + "".join(spans), names] if groups else [corner + names]
    widths = [width for _, width in groups] or [len(table.columns)]
    unpruned = [
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(_html_cell(cell, width) for cell, width in zip(cells, widths, strict=True))
        + "</tr>"
        for name, cells in table.unpruned
    ]
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_html_cell, cells))}</tr>'
        for name, cells in table.rows
    ]
    task = f' data-task="{escape(table.task)}"' if table.task else ""
    title = escape(f"{chapter}: {table.heading}")
    details = (f"<details><summary>{len(rows)} rows</summary>", "</details>")
    before, after = details if len(rows) > LONG else ("", "")
    caption = f"<figcaption>{escape(table.caption)}</figcaption>\n" if table.caption else ""
    return "\n".join(
        [
            f"<figure{task}>\n<h3>{escape(table.heading)}</h3>",
            f'{before}<div class="scroll" role="region" aria-label="{title}"><table>\n<thead>',
            *[f"<tr>{row}</tr>" for row in head],
            "</thead>",
            *(['<tbody class="unpruned">', *unpruned, "</tbody>"] if unpruned else []),
            *(["<tbody>", *rows, "</tbody>"] if rows else []),
            f"</table></div>{after}\n{caption}</figure>",
        ]
    )
