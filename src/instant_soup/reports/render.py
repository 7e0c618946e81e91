"""A table as data, and its Markdown, LaTeX and HTML: one set of rows behind all three."""

import re
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

MISSING = "–"
MARKS = {"better": ("▲", r"$^{\uparrow}$"), "worse": ("▼", r"$^{\downarrow}$")}
NOTHING = "No results yet."

# What Markdown reads as a mark; an underscore within a word is none.
MARKDOWN = re.compile(r"[\\`*|<~$]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|\](?=[(\[])")

# What LaTeX reads as a command, and what its old fonts lack.
TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "_": r"\_",
    "#": r"\#", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": r"\textbar{}", "±": r"$\pm$", "·": r"$\cdot$", "÷": r"$\div$",
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

    `corner` is the header of the rows' names.
    """

    heading: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[Cell]]]
    caption: str
    corner: str = "method"


@dataclass(frozen=True)
class Chapter:
    """A title, how to read the tables that follow, and these."""

    title: str
    text: str
    tables: list[Table]


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
        parts += ["" if chapter.tables else NOTHING]
        for table in chapter.tables:
            header = [f"{group}: {name}" if group else name for group, name in table.columns]
            lines = [list(map(in_markdown, [table.corner, *header]))]
            lines += [["---", *["---:"] * len(header)]]
            lines += [[in_markdown(name), *map(_markdown_cell, own)] for name, own in table.rows]
            rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            parts += [f"## {in_markdown(table.heading)}", rows, in_markdown(table.caption)]
    return "\n\n".join(part for part in parts if part) + "\n"


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
    parts = ["% Wants \\usepackage{booktabs}."]
    for chapter in chapters:
        text = chapter.text if chapter.tables else f"{chapter.text} {NOTHING}"
        parts += [f"\\paragraph{{{_tex(chapter.title)}.}} {_tex(text)}"]
        parts += [_tex_table(table) for table in chapter.tables]
    return "\n\n".join(parts) + "\n"


def html(chapter: Chapter) -> str:
    """A chapter's text and tables as HTML, its title left to the page; wide tables scroll."""
    text = f"<p>{escape(chapter.text)}</p>\n" if chapter.text else ""
    tables = "\n".join(map(_html_table, chapter.tables)) or f"<p>{NOTHING}</p>"
    return f'{text}<div class="tables">\n{tables}\n</div>'


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
    return "\n".join(
        [
            "\\begin{table}[htbp]\n\\centering\\small",
            f"\\caption{{{_tex(table.heading)}. {_tex(table.caption)}}}",
            f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            *["\\toprule", *groups, header, "\\midrule", *rows, "\\bottomrule"],
            "\\end{tabular}\n\\end{table}",
        ]
    )


def _html_cell(cell: Cell) -> str:
    text = f"<strong>{escape(cell.text)}</strong>" if cell.bold else escape(cell.text)
    mark = f'<sup class="{cell.mark}">{MARKS[cell.mark][0]}</sup>' if cell.mark else ""
    kind = ' class="missing"' if cell.text == MISSING else ""
    return f"<td{kind}>{text}{mark}</td>"


def _html_table(table: Table) -> str:
    groups = _groups(table)
    names = "".join(f'<th scope="col">{escape(name)}</th>' for _, name in table.columns)
    spans = [f'<th scope="colgroup" colspan="{n}">{escape(g)}</th>' for g, n in groups]
    corner = f'<th scope="col" rowspan="{2 if groups else 1}">{escape(table.corner)}</th>'
    head = [corner + "".join(spans), names] if groups else [corner + names]
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_html_cell, cells))}</tr>'
        for name, cells in table.rows
    ]
    return "\n".join(
        [
            f"<figure>\n<h3>{escape(table.heading)}</h3>",
            '<div class="scroll"><table>\n<thead>',
            *[f"<tr>{row}</tr>" for row in head],
            "</thead>\n<tbody>",
            *rows,
            f"</tbody>\n</table></div>\n<figcaption>{escape(table.caption)}</figcaption>\n</figure>",
        ]
    )
