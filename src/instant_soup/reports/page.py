"""The ledger as one page to read in a browser: the verdict, a chart to choose in, all tables.

It needs nothing from a network: figures, scripts and data are in the file. The scripts are page.js
and the Vega libraries of plots.html, DVC's template of plots.
"""

import base64
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from PIL import Image

from instant_soup.files import new_file
from instant_soup.reports import figures, paper, verdict_figures
from instant_soup.reports.chart import chart_data
from instant_soup.reports.claim import claim
from instant_soup.reports.render import Chapter, html, shown
from instant_soup.reports.results import heading, label, percent

INTRODUCTION = (
    "Instant Soup Pruning (ISP; Jaiswal, Liu, Chen, Ding, Wang; ICML 2023, arXiv:2306.10460) looks "
    "for a sparse network in a pre-trained transformer for about the price of one fine-tuning. "
    "ISP+ is our variant of it: Fisher scores, and no denoisers. This page shows what this "
    "repository measured of both and of other pruning methods, beside what the paper printed. A "
    "task's name is its model, its dataset and its preset; `quick` is the preset for two CPU "
    "cores. Cost is in fine-tunings of the dense network, search included. `make tables` makes "
    "this page from `reports/results.csv`, which has one row for each of {rows} runs."
)
RANKS, KNEES = "critical_difference.png", "essential_sparsity.png"
OF_MASKS = ("cost_vs_sparsity.png", "mask_similarity.png")
CAPTIONS = {**figures.OF_LEDGER, **figures.OF_RUN, **verdict_figures.CAPTIONS}
COLOURS = 128  # of an inlined figure: a third of its bytes


@dataclass(frozen=True)
class Section:
    """A part of the page; a folded one shows its title until it is opened."""

    title: str
    content: str
    folded: bool = False


def write_page(
    path: str | Path,
    runs: pd.DataFrame,
    results: list[dict[str, Any]],
    pictures: str | Path,
    chapters: dict[str, list[Chapter]],
) -> Path:
    """Write the page; the same ledger, results and figures give the same bytes.

    Args:
        path: The HTML file.
        runs: The whole ledger, `apart_by_origin`.
        results: Those of this workspace's run.
        pictures: The folder with the figures.
        chapters: `tables.all_chapters` of the ledger.

    Returns:
        The path.
    """
    sections = _sections(runs, chapters, pictures)
    if results:
        sections.append(Section("The latest run", _latest_run(results, pictures), folded=True))
    page = Template(_resource("page.html")).substitute(
        style=_resource("page.css"),
        introduction=f"<p>{_with_code(INTRODUCTION.format(rows=len(runs)))}</p>",
        navigation="\n".join(
            f'<a href="#{_anchor(one.title)}">{escape(one.title)}</a>' for one in sections
        ),
        sections="\n".join(map(_section_html, sections)),
        data=_json(chart_data(runs)),
        vega=_vega(),
        script=_resource("page.js"),
    )
    with new_file(path) as unfinished:
        unfinished.write_text(page)
    return Path(path)


def _sections(
    runs: pd.DataFrame, chapters: dict[str, list[Chapter]], pictures: str | Path
) -> list[Section]:
    """What all want to see, open; then what few look up, folded."""
    at_a_glance, in_full, against, ranks = chapters["verdict"]
    comparison, *of_trials_and_axes = chapters["methods"]
    knees, *untrained = chapters["essential_sparsity"]
    looked_up = [
        *(own for name in ("isp_against", "cost", "equal_cost") for own in chapters[name]),
        *(own for name in paper.read_paper() for own in chapters[name]),
        *of_trials_and_axes,
        *chapters["ablations"],
        *chapters["dense_soups"],
    ]
    return [
        Section(at_a_glance.title, _verdict(runs, at_a_glance, in_full, pictures)),
        Section("Compare methods", _resource("compare.html")),
        *(Section(own.title, _tables_first(own)) for own in chapters["results"]),
        Section(against.title, _tables_first(against, tables=1)),
        *(
            [Section(comparison.title, _tables_first(comparison, tables=2))]
            if shown(comparison)
            else []
        ),
        *(Section(own.title, html(own), folded=True) for own in looked_up if shown(own)),
        Section(ranks.title, html(ranks) + _gallery([RANKS], pictures), folded=True),
        Section(knees.title, html(knees) + _gallery([KNEES], pictures), folded=True),
        *(Section(own.title, html(own), folded=True) for own in untrained),
        Section("Cost and masks", _gallery(OF_MASKS, pictures), folded=True),
    ]


def _section_html(section: Section) -> str:
    title = f"<h2>{escape(section.title)}</h2>"
    content = (
        f"<details>\n<summary>{title}</summary>\n{section.content}\n</details>"
        if section.folded
        else f"{title}\n{section.content}"
    )
    return f'<section id="{_anchor(section.title)}">\n{content}\n</section>'


def _fold(title: str, content: str) -> str:
    return f"<details>\n<summary>{escape(title)}</summary>\n{content}\n</details>"


def _verdict(
    runs: pd.DataFrame, at_a_glance: Chapter, in_full: Chapter, pictures: str | Path
) -> str:
    """The paper's claim and the small table; what they rest on is folded."""
    folded = [
        _fold("How to read this", f"<p>{escape(at_a_glance.text)}</p>"),
        _fold(in_full.title, html(in_full)),
        _fold("The verdict as a figure", _gallery(["verdict.png"], pictures)),
    ]
    table = html(replace(at_a_glance, text=""))
    return "\n".join([f'<p class="verdict">{escape(claim(runs))}</p>', table, *folded])


def _tables_first(chapter: Chapter, tables: int | None = None) -> str:
    """A chapter's first tables, or all; how to read them and the others are folded."""
    first = replace(chapter, text="", tables=chapter.tables[:tables])
    others = replace(chapter, text="", tables=chapter.tables[len(first.tables) :])
    folded = [_fold("How to read this", f"<p>{escape(chapter.text)}</p>")]
    if others.tables:
        folded.append(_fold(f"{len(others.tables)} more tables", html(others)))
    return "\n".join([html(first), *folded])


def _latest_run(results: list[dict[str, Any]], pictures: str | Path) -> str:
    return f"<p>{escape(_about_run(results))}</p>\n{_gallery(figures.OF_RUN, pictures)}"


def _resource(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as script elements, with their licence."""
    template = _resource("plots.html")
    licence = template[template.index("Licence of all three") : template.index("-->")]
    scripts = re.findall(r"<script>/\* vega.*?</script>", template, flags=re.DOTALL)
    return "\n".join([f"<!--\n{licence}-->", *scripts])


def _json(data: Any) -> str:
    """Data within a script element: nothing in it ends the element."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _with_code(text: str) -> str:
    """A text as HTML, what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def _gallery(names: Iterable[str], folder: str | Path) -> str:
    """Pictures of a folder, inlined, each with its caption."""
    parts = []
    for name in names:
        picture = Image.open(Path(folder) / name).convert("RGB")
        stream = io.BytesIO()
        picture = picture.quantize(COLOURS, Image.Quantize.FASTOCTREE).convert("RGB")
        picture.save(stream, "WEBP", lossless=True, method=2)  # a third less than as PNG
        source = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
        size = f'width="{100 * picture.width // figures.DPI}"'
        caption = escape(CAPTIONS[name])
        parts.append(
            f'<figure><img alt="{caption}" {size} src="{source}">\n'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return "\n".join(['<div class="pictures">', *parts, "</div>"])


def _section(result: dict[str, Any]) -> tuple:
    return result["model"], result["dataset"], result["preset"]


def _about_run(results: list[dict[str, Any]]) -> str:
    """What this workspace ran, and when EarlyBird took its mask, if it ran."""
    sparsity = max(result["target_sparsity"] for result in results)
    text = (
        f"{heading(_section(results[0]))}, {percent(sparsity)} sparse, seed {results[0]['seed']}."
    )
    for result in results:
        if drawn := result.get("drawn"):
            text += (
                f" {label(result['method'])} took its mask after {drawn['epoch']:g} "
                f"epochs (step {drawn['step']}, mask distance {drawn['distance']:.3g}"
                f"{'' if drawn['settled'] else ', not settled'})."
            )
    return text
