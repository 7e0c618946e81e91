"""The ledger as one page to read in a browser: the verdict, a chart to choose in, all tables.

It needs nothing from a network: figures, scripts and data are in the file. The scripts are page.js
and the Vega libraries of plots.html, DVC's template of plots.
"""

import base64
import io
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from PIL import Image

from instant_soup.files import new_file
from instant_soup.reports import (
    ablations,
    accuracy_tables,
    cost_tables,
    dense_soups,
    equal_cost,
    essential_sparsity,
    figures,
    head_to_head,
    methods,
    paper,
    verdict,
    verdict_figures,
)
from instant_soup.reports.chart import chart_data
from instant_soup.reports.claim import claim
from instant_soup.reports.ledger import apart_by_origin
from instant_soup.reports.render import Chapter, html, shown
from instant_soup.reports.results import heading, label, percent

INTRODUCTION = (
    "Instant Soup Pruning (Jaiswal, Liu, Chen, Ding, Wang; ICML 2023, arXiv:2306.10460) finds a "
    "sparse ticket in a pre-trained transformer within one fine-tuning run. Here is what this "
    "repository measured of it and of the methods it is compared with, and beside it what the "
    "paper printed. `make tables` makes all of it from the ledger, `reports/results.csv`, which "
    "has a row for each of {rows} runs."
)
OF_MASKS = ("cost_vs_sparsity.png", "mask_similarity.png")
CAPTIONS = {**figures.OF_LEDGER, **figures.OF_RUN, **verdict_figures.CAPTIONS}
COLOURS = 64  # of an inlined figure: a third of its bytes


def write_page(
    path: str | Path, every: pd.DataFrame, results: list[dict[str, Any]], pictures: str | Path
) -> Path:
    """Write the page and return its path; `pictures` is the folder with the figures.

    `every`: the whole ledger. `results` are those of this workspace's run; the chart shows their
    task at first. The same ledger, results and figures give the same bytes.
    """
    ledger = apart_by_origin(every)
    best, against, ranks = verdict.chapters(every)
    sections = [
        (best.title, _verdict(every, best) + _gallery(["verdict.png"], pictures)),
        ("Compare methods", _resource("compare.html")),
    ]
    sections += [
        (chapter.title, html(chapter))
        for chapter in (
            *accuracy_tables.chapters(ledger),
            against,
            head_to_head.chapter(ledger),
            cost_tables.chapter(ledger),
            equal_cost.chapter(every),
            *paper.chapters_of(ledger),
            *methods.chapters(every),
            ablations.chapter(ledger),
            dense_soups.chapter(ledger),
        )
        if shown(chapter)
    ]
    knees = essential_sparsity.chapter(ledger)
    sections += [
        (ranks.title, html(ranks) + _gallery(["critical_difference.png"], pictures)),
        (knees.title, html(knees) + _gallery(["essential_sparsity.png"], pictures)),
        ("Cost and masks", _gallery(OF_MASKS, pictures)),
    ]
    if results:
        about = f"<p>{escape(_about_run(results))}</p>"
        sections.append(("The latest run", f"{about}\n{_gallery(figures.OF_RUN, pictures)}"))
    page = Template(_resource("page.html")).substitute(
        style=_resource("page.css"),
        introduction=f"<p>{_with_code(INTRODUCTION.format(rows=len(every)))}</p>",
        navigation="\n".join(
            f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title, _ in sections
        ),
        sections="\n".join(
            f'<section id="{_anchor(title)}">\n<h2>{escape(title)}</h2>\n{content}\n</section>'
            for title, content in sections
        ),
        data=_json(chart_data(ledger, _task_of(results, every, ledger))),
        vega=_vega(),
        script=_resource("page.js"),
    )
    with new_file(path) as unfinished:
        unfinished.write_text(page)
    return Path(path)


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
        picture.quantize(COLOURS).save(stream, "PNG", optimize=True)
        source = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
        size = f'width="{100 * picture.width // figures.DPI}"'
        caption = escape(CAPTIONS[name])
        parts.append(
            f'<figure><img alt="{caption}" {size} src="{source}">\n'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return "\n".join(['<div class="pictures">', *parts, "</div>"])


def _verdict(ledger: pd.DataFrame, best: Chapter) -> str:
    """The paper's claim and the table; how to read it comes after them."""
    table = html(replace(best, text=""))
    return f'<p class="verdict">{escape(claim(ledger))}</p>\n{table}\n<p>{escape(best.text)}</p>\n'


def _task_of(results: list[dict[str, Any]], every: pd.DataFrame, apart: pd.DataFrame) -> str:
    """The heading of the task that this workspace ran, as `apart_by_origin` names its model."""
    if not results:
        return ""
    row = results[0]
    places = (every[["model", "dataset", "preset"]] == list(_section(row))).all(axis=1)
    for name in ("base", "processor"):
        places &= every[name] == str(row.get(name) or "")
    models = apart.loc[places, "model"].mode()  # the most frequent: dense rows may stand elsewhere
    return heading((*models[:1], row["dataset"], row["preset"]))


def _section(result: dict[str, Any]) -> tuple:
    return result["model"], result["dataset"], result["preset"]


def _about_run(results: list[dict[str, Any]]) -> str:
    """What this workspace ran, and when EarlyBird drew its ticket if it is part of it."""
    sparsity = max(result["target_sparsity"] for result in results)
    text = (
        f"{heading(_section(results[0]))}, {percent(sparsity)} sparse, seed {results[0]['seed']}."
    )
    for result in results:
        if drawn := result.get("drawn"):
            text += (
                f" {label(result['method'])} drew its ticket after {drawn['epoch']:g} "
                f"epochs (step {drawn['step']}, mask distance {drawn['distance']:.3g}"
                f"{'' if drawn['settled'] else ', not settled'})."
            )
    return text
