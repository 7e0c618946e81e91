"""params.yaml and docs/settings.md, rendered from the settings' own fields.

    python -m instant_soup.pipeline.params_text

This writes both; params.yaml keeps its values. A test compares them with what is in the repository.
"""

import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from instant_soup.config.fields import (
    FAMILIES,
    LIBRARY,
    PRESETS,
    as_text,
    default_of,
    settings_of,
)
from instant_soup.config.sections import Data, Pretraining, Training
from instant_soup.data.datasets import DATASETS
from instant_soup.data.local import READS
from instant_soup.files import new_file, read_yaml
from instant_soup.methods import registry
from instant_soup.models.known import MODELS
from instant_soup.pipeline.plan import Top

PARAMS, PAGE = Path("params.yaml"), Path("docs/settings.md")
COLUMN, WIDTH = 28, 100  # where comments begin, where lines end
HEADER = """\
# The only file to edit. `dvc repro` runs what a change affects; `dvc exp run -S key=value` tries
# one without editing. A null takes the preset's value; docs/settings.md has all of them.
"""
ABOVE_METHODS = """\
# Rows beside dense and isp (comments stand above lists, since DVC's way of writing an emptied list
# back would break on one behind it):
"""
OF_SECTIONS = {
    "isp": "Instant Soup's rounds; every row that prunes on the way has its schedule",
    "budgets": "layer budgets: of rows with a setting `budget`",
    "criteria": "criteria that look at the pre-trained network",
    "imp": "iterative magnitude pruning: the lottery tickets",
    "model_soup": "dense soups",
}


def sections() -> dict[str, tuple[str, dict[str, dataclasses.Field]]]:
    """Section of params.yaml → what it is for, and its fields by key."""
    found: dict[str, tuple[str, dict[str, dataclasses.Field]]] = {}
    for kind in (Data, Training):
        found[kind.section] = (_first_line(kind), settings_of(kind))
    for section, keys in sorted(registry.sections().items(), key=lambda s: s[0] != registry.ISP):
        fields = {key: settings_of(method)[name] for key, (method, name) in keys.items()}
        first = next(method for method, _ in keys.values())
        title = f"{first.title} ({first.source})" if first.source else first.title
        found[section] = (OF_SECTIONS.get(section, title), fields)
    found[Pretraining.section] = (_first_line(Pretraining), settings_of(Pretraining))
    return found


def params_yaml(values: dict[str, Any]) -> str:
    """The text of params.yaml, with the values given and null for all others."""
    lines = [HEADER]
    for key, field in settings_of(Top).items():
        comment = {"dataset": _datasets(), "model": _models()}.get(key, [field.metadata["doc"]])
        if isinstance(values[key], list):
            above = f"{ABOVE_METHODS}{_listed()}" if key == "methods" else ""
            own = "" if above else f"# {_capital(comment[0])}\n"
            lines.append(f"{above}{own}{key}: {_value(values[key])}\n")
        else:
            lines += _commented(f"{key}: {_value(values[key])}", comment)
    for section, (doc, fields) in sections().items():
        lines += ["\n", *_commented(f"{section}:", [doc])]
        given = values.get(section) or {}
        for key, field in fields.items():
            lines += _commented(f"  {key}: {_value(given.get(key))}", [_doc(field)])
    return "".join(lines)


def settings_page() -> str:
    """docs/settings.md: every setting with what is allowed and its value in each preset."""
    parts = [
        "# Settings\n",
        "Every key of [params.yaml](../params.yaml), what is allowed, and what a `null` stands for "
        "in each preset, for texts / images / plain text. `library` are the defaults of "
        "`instant_soup.prune`, where a method's settings are keyword arguments. Made by "
        "`python -m instant_soup.pipeline.params_text` from the settings' own fields.\n",
    ]
    for section, (doc, fields) in sections().items():
        used = ", ".join(f"`{name}`" for name in _methods_of(section))
        parts.append(f"## {section}\n")
        parts.append(f"{_capital(doc)}.{f' Rows: {used}.' if used else ''}\n")
        method = bool(used)
        presets = [*PRESETS, LIBRARY] if method else [*PRESETS]
        head = ["key", "what it is", "allowed", *presets]
        rows = [head, ["---"] * len(head)]
        for key, field in fields.items():
            allowed = field.metadata["rule"].allowed
            defaults = [_defaults(field, preset) for preset in presets]
            rows.append([f"`{key}`", _doc(field) or "–", allowed, *defaults])
        cells = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
        parts.append("".join(f"| {row} |\n" for row in cells))
    return "\n".join(parts)


def _methods_of(section: str) -> Iterator[str]:
    for name, method in registry.methods().items():
        if any(key.startswith(f"{section}.") for key in registry.keys_of(method).values()):
            yield name


def _defaults(field: dataclasses.Field, preset: str) -> str:
    families = field.metadata["families"] if preset != LIBRARY else ("bert",)
    found = [default_of(field, family, preset) for family in families if family in FAMILIES]
    texts = ["–" if value is None else as_text(value) for value in found]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def _doc(field: dataclasses.Field) -> str:
    doc, families = field.metadata["doc"], field.metadata["families"]
    return f"{READS[families[0]]}: {doc}" if doc and len(families) == 1 else doc


def _datasets() -> list[str]:
    known = {
        kind: " | ".join(name for name, task in DATASETS.items() if task.holds == kind)
        for kind in READS.values()
    }
    return [
        f"texts: {known['texts']}",
        f"images: {known['images']}",
        f"plain text: {known['plain text']}; of all kinds: local:FOLDER",
    ]


def _models() -> list[str]:
    known = {
        family: [name for name, model in MODELS.items() if model.family == family]
        for family in FAMILIES
    }
    return [
        f"texts: {' | '.join(known['bert'])} | hub:ORG/NAME",
        f"images: {' | '.join(known['clip'])} | open_clip:ARCHITECTURE/TAG; either: local:FOLDER",
        f"plain text: {' | '.join(known['causal'])} | causal:ORG/NAME | causal:local:FOLDER",
    ]


def _listed() -> str:
    text = " | ".join(registry.selectable())
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, WIDTH - 2, break_on_hyphens=False))


def _commented(entry: str, comments: list[str]) -> list[str]:
    """An entry with its comment behind it, and on lines of its own where that is long."""
    lines: list[str] = []
    for comment in comments:
        lines += textwrap.wrap(comment, WIDTH - COLUMN - 2, break_on_hyphens=False)
    if not lines:
        return [f"{entry}\n"]
    first = f"{entry.ljust(COLUMN - 1)} # {lines[0]}\n"
    return [first, *(f"{'':{COLUMN}}# {line}\n" for line in lines[1:])]


def _value(value: Any) -> str:
    if value is None:
        return "null"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
    return text.removesuffix("\n...").removesuffix("...").strip()


def _first_line(kind: type) -> str:
    return str(kind.__doc__).splitlines()[0].rstrip(".")


def _capital(text: str) -> str:
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]  # oBERT


def main() -> None:
    """Write both files."""
    values = read_yaml(PARAMS)
    for path, text in ((PARAMS, params_yaml(values)), (PAGE, settings_page())):
        with new_file(path) as unfinished:
            unfinished.write_text(text)


if __name__ == "__main__":
    main()
