"""A table's Markdown, LaTeX and HTML: the same rows, nothing read as markup."""

import re
from html.parser import HTMLParser

import pytest

from helpers import ROOT
from instant_soup.reports.render import (
    LONG,
    Cell,
    Chapter,
    Table,
    csv,
    html,
    in_markdown,
    markdown,
    shown,
    tex,
)

NASTY = r"a_b & 50 % #1 {x} $y ~ ^ \z <b> | ± “é”"
TABLE = Table(
    "Grouped",
    [("Cars 30 %", "ours"), ("Cars 30 %", "paper"), ("MNIST 70 %", "ours")],
    [
        ("ISP", [Cell("1.00 ± 0.10", bold=True, mark="better"), Cell("2.0"), Cell("–")]),
        (NASTY, [Cell("3", mark="worse"), Cell(NASTY), Cell("5", bold=True)]),
    ],
    "Of cars & digits.",
)
PLAIN = Table("Plain", [("", "a"), ("", "b")], [("ISP", [Cell("1"), Cell("2")])], "")
CHAPTER = Chapter("Title & more", "Some <text>.", [TABLE, PLAIN])


class Reader(HTMLParser):
    """Checks that elements close in order; keeps tables as rows of (text, span) cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[tuple[str, int]]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(("", int(dict(attrs).get("colspan", 1))))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            text, span = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, span)


def test_markdown():
    lines = markdown([CHAPTER]).splitlines()
    assert lines[:3] == ["# Title & more", "", "Some <text>."]
    assert "| method | Cars 30 %: ours | Cars 30 %: paper | MNIST 70 %: ours |" in lines
    assert "| ISP | **1.00 ± 0.10 ▲** | 2.0 | – |" in lines
    rows = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|")]
    assert [len(row) - 2 for row in rows] == [4] * 4 + [3] * 3
    assert re.sub(r"\\([^\w\s])", r"\1", rows[3][1].strip()) == NASTY


def test_a_name_in_markdown_is_text_whatever_it_is_called():
    """A folder may be called anything; a line break in its name must not end a row."""
    names = {
        "<img src=x onerror=alert(1)>": r"\<img src=x onerror=alert(1)>",
        "two\nlines\r\u2028here": "two lines  here",
        "**bold** `code` a|b": r"\*\*bold\*\* \`code\` a\|b",
        "[text](http://x) &lt; \\": r"[text\](http://x) \&lt; \\",
        "lth_rewind __init__ ~~$x$": r"lth_rewind \__init_\_ \~\~\$x\$",
        "isp.rate=[0.1,10.0]": "isp.rate=[0.1,10.0]",
    }
    for name, text in names.items():
        assert in_markdown(name) == text
        table = Table(name, [(name, name)], [(name, [Cell(name, bold=True)])], name, corner=name)
        shown = markdown([Chapter(name, "", [table])]).splitlines()
        assert shown[:1] == [f"# {text}"] and f"## {text}" in shown and text in shown
        assert f"| {text} | {text}: {text} |" in shown and f"| {text} | **{text}** |" in shown
        assert len(shown) == 9
        assert "\n\n\n" not in tex([Chapter("T", "", [table])])
        assert "<img" not in html(Chapter("T", "", [table]))


def test_latex_knows_every_sign_of_the_tables():
    """What it needs a package for is written as a command; letters of names are its own matter."""
    text = "".join(file.read_text() for file in (ROOT / "reports/tables").glob("*.tex"))
    assert text
    assert set(re.findall(r"[^\x00-\xff–—‘’“”…]", text)) == set()


def test_tex_escapes_what_latex_would_read_as_commands():
    text = tex([CHAPTER])
    assert (
        r"a\_b \& 50 \% \#1 \{x\} \$y \textasciitilde{} \textasciicircum{} \textbackslash{}z "
        r"$<$b$>$ \textbar{} $\pm$ “é”" in text
    )
    assert r"\textbf{1.00 $\pm$ 0.10}$^{\uparrow}$" in text
    assert r"Title \& more" in text and "Of cars \\& digits." in text
    for line in text.replace("% Needs", "").splitlines():
        assert not re.search(r"(?<!\\)[%#]", line), line


def test_tex_rows_and_rules_have_the_table_s_width():
    text = tex([CHAPTER])
    specs = re.findall(r"\\begin\{tabular\}\{(l(r+))\}", text)
    bodies = re.findall(r"\\toprule\n(.*?)\\bottomrule", text, flags=re.S)
    assert [len(spec) for spec, _ in specs] == [4, 3] and len(bodies) == 2
    for (spec, _), body in zip(specs, bodies, strict=True):
        for row in re.findall(r"^(.*) \\\\$", body, flags=re.M):
            spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", row)]
            assert len(re.split(r"(?<!\\)&", row)) + sum(spans) == len(spec), row
    assert re.findall(r"\\cmidrule\(lr\)\{(\d+-\d+)\}", text) == ["2-3", "4-4"]
    assert text.count("{") == text.count("}") and "multicolumn" not in bodies[1]


def test_html_is_well_formed_and_shows_text_as_text():
    reader = Reader()
    reader.feed(html(CHAPTER))
    assert reader.open == [] and "b" not in reader.tags
    assert [sum(span for _, span in row) for row in reader.rows] == [4, 3, 4, 4, 3, 3]
    assert [text for text, _ in reader.rows[0]] == ["method", "Cars 30 %", "MNIST 70 %"]
    assert [text for text, _ in reader.rows[1]] == ["ours", "paper", "ours"]
    assert [text for text, _ in reader.rows[3]] == [NASTY, "3▼", NASTY, "5"]
    assert '<td><strong>1.00 ± 0.10</strong><sup class="better">▲</sup></td>' in html(CHAPTER)
    assert html(CHAPTER).count('<td class="missing">–</td>') == 1


@pytest.mark.parametrize("show", [lambda c: markdown([c]), lambda c: tex([c]), html])
def test_a_chapter_without_tables_says_so(show):
    assert "No results yet." in show(Chapter("T", "Text.", []))
    assert "No results yet." not in show(CHAPTER)


NONE = Cell("–")
WIDE = Table(
    "Wide",
    [("Cars", "ours"), ("Cars", "paper"), ("MNIST", "ours"), ("MNIST", "paper"), ("SVHN", "ours")],
    [
        ("SNIP", [NONE, Cell("1"), NONE, Cell("2"), NONE]),
        ("LTH", [NONE] * 5),
        ("ISP", [NONE, NONE, Cell("3", mark="better"), Cell("4"), NONE]),
    ],
    "",
    unpruned=[("Dense", [Cell("8"), Cell("9"), NONE]), ("Soup", [NONE, NONE, Cell("7")])],
    task="cars",
)


def test_rows_and_columns_without_values_are_not_shown():
    (table,) = shown(Chapter("T", "", [WIDE, Table("Empty", [("", "a")], [("x", [NONE])], "")]))
    assert table.columns == [("Cars", "paper"), ("MNIST", "ours"), ("MNIST", "paper")]
    assert [(name, [cell.text for cell in cells]) for name, cells in table.rows] == [
        ("SNIP", ["1", "–", "2"]),
        ("ISP", ["–", "3", "4"]),
    ]
    assert [(name, [cell.text for cell in cells]) for name, cells in table.unpruned] == [
        ("Dense", ["8", "9"])
    ]


def test_unpruned_rows_stand_once_for_each_group_of_columns():
    chapter = Chapter("T", "", [WIDE])
    assert "\n* Dense, unpruned: Cars: 8; MNIST: 9\n" in markdown([chapter])
    assert r"Dense & \multicolumn{1}{c}{8} & \multicolumn{2}{c}{9} \\" in tex([chapter])
    assert '<th scope="row">Dense</th><td>8</td><td colspan="2">9</td>' in html(chapter)
    assert '<figure data-task="cars">' in html(chapter)
    alone = Table("Alone", [("", "any")], [], "", unpruned=[("Dense", [Cell("8")])])
    assert "* Dense, unpruned: 8\n" in markdown([Chapter("T", "", [alone])])
    assert "|" not in markdown([Chapter("T", "", [alone])])


def test_csv_has_a_line_for_each_value():
    assert csv([Chapter("T", "", [WIDE])]).splitlines() == [
        "chapter,table,row,column,value,mark",
        "T,Wide,Dense,Cars,8,",
        "T,Wide,Dense,MNIST,9,",
        "T,Wide,SNIP,Cars: paper,1,",
        "T,Wide,SNIP,MNIST: paper,2,",
        "T,Wide,ISP,MNIST: ours,3,better",
        "T,Wide,ISP,MNIST: paper,4,",
    ]


def test_long_tables_open_on_demand_on_the_page():
    rows = [(f"row {number}", [Cell("1")]) for number in range(LONG + 1)]
    for count, details in ((LONG, 0), (LONG + 1, 1)):
        text = html(Chapter("T", "", [Table("Long", [("", "a")], rows[:count], "")]))
        assert text.count(f"<details><summary>{LONG + 1} rows</summary>") == details
        assert text.count("</details>") == details
