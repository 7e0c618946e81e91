"""The ledger as one page to read in a browser: all tables and figures, nothing from a network."""

import base64
import re
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from instant_soup.files import new_file
from instant_soup.reports import (
    ablations,
    dense_soups,
    essential_sparsity,
    figures,
    head_to_head,
    paper,
)
from instant_soup.reports.render import html
from instant_soup.reports.results import cost_chapter, heading, label, percent, results_chapter

INTRODUCTION = (
    "Instant Soup Pruning (Jaiswal, Liu, Chen, Ding, Wang; ICML 2023, arXiv:2306.10460) finds a "
    "sparse ticket in a pre-trained transformer within one fine-tuning run. Here is what this "
    "repository measured of it and of the methods it is compared with, and beside it what the "
    "paper printed."
)
LEDGER_TEXT = (
    "Everything is made by `make tables` from the ledger, `reports/results.csv`, which has a row "
    "for each of {rows} runs; the last figures are of the latest run of this workspace."
)


def write_page(
    path: str | Path, ledger: pd.DataFrame, results: list[dict[str, Any]], pictures: str | Path
) -> Path:
    """Write the page and return its path; `pictures` is the folder with the figures.

    The same ledger, results and figures give the same bytes.
    """
    about = [INTRODUCTION, LEDGER_TEXT.format(rows=len(ledger))]
    first, *others = [
        (chapter.title, html(chapter))
        for chapter in (
            results_chapter(ledger),
            head_to_head.chapter(ledger),
            *paper.chapters_of(ledger),
            ablations.chapter(ledger),
            dense_soups.chapter(ledger),
            essential_sparsity.chapter(ledger),
            cost_chapter(ledger),
        )
    ]
    over_all = ("Accuracy against sparsity and cost", _gallery("", figures.OF_LEDGER, pictures))
    sections = [first, over_all, *others]
    if results:
        of_run = _gallery(_about_run(results), figures.OF_RUN, pictures)
        sections.append(("The latest run", of_run))
    template = Template(Path(__file__).with_name("page.html").read_text())
    page = template.substitute(
        introduction="\n".join(f"<p>{_with_code(text)}</p>" for text in about),
        navigation="\n".join(
            f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title, _ in sections
        ),
        sections="\n".join(
            f'<section id="{_anchor(title)}">\n<h2>{escape(title)}</h2>\n{content}\n</section>'
            for title, content in sections
        ),
    )
    with new_file(path) as unfinished:
        unfinished.write_text(page)
    return Path(path)


def _with_code(text: str) -> str:
    """A text as HTML, what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def _gallery(text: str, captions: dict[str, str], folder: str | Path) -> str:
    """Pictures of a folder, inlined, each with its caption (file name → caption)."""
    parts = [f"<p>{escape(text)}</p>"] if text else []
    for name, caption in captions.items():
        png = (Path(folder) / name).read_bytes()
        pixels = int.from_bytes(png[16:20], "big")  # the width, in a PNG's header
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        size = f'width="{100 * pixels // figures.DPI}"'
        parts.append(
            f'<figure><img alt="{escape(caption)}" {size} src="{source}">\n'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return "\n".join(['<div class="pictures">', *parts, "</div>"])


def _about_run(results: list[dict[str, Any]]) -> str:
    """What this workspace ran, and when EarlyBird drew its ticket if it is part of it."""
    first = results[0]
    section = (first["model"], first["dataset"], first["preset"])
    sparsity = max(result["target_sparsity"] for result in results)
    text = f"{heading(section)}, {percent(sparsity)} sparse, seed {first['seed']}."
    for result in results:
        if drawn := result.get("drawn"):
            text += (
                f" {label(result['method'])} drew its ticket after {drawn['epoch']:g} "
                f"epochs (step {drawn['step']}, mask distance {drawn['distance']:.3g}"
                f"{'' if drawn['settled'] else ', not settled'})."
            )
    return text
