"""Class names and prompts of images: those known of a dataset, or from your own file."""

from pathlib import Path
from typing import NamedTuple

from instant_soup.config.sections import is_texts
from instant_soup.errors import UserError
from instant_soup.files import path_of, project_root, read_yaml


class Prompts(NamedTuple):
    """Class names, and the templates that they go into."""

    classes: list[str]
    templates: list[str]


def read_prompts(path: Path, key: str) -> Prompts:
    """Read class names and prompt templates from a YAML file.

    Raises:
        UserError: If something in it is wrong.
    """
    prompts = read_yaml(path)
    if not isinstance(prompts, dict) or set(prompts) != {*Prompts._fields}:
        raise UserError(f"params.yaml: {key}: {path} must have the keys classes and templates")
    for name, entries in prompts.items():
        if not is_texts(entries) or len(set(entries)) < len(entries):
            raise UserError(f"params.yaml: {key}: {path}: {name} must be a list of distinct texts")
    odd = [
        t for t in prompts["templates"] if "{}" not in t or set("{}") & set(t.replace("{}", "", 1))
    ]
    if odd:
        raise UserError(f"params.yaml: {key}: {path}: template {odd[0]!r} must have {{}} just once")
    return Prompts(**prompts)


def resolve_prompts(given: str | None, name: str) -> Prompts | None:
    """What `data.prompts` gives, or else the prompts known under a name; None without either."""
    if given:
        path = (project_root() / path_of(given, "params.yaml: data.prompts")).resolve()
        if not path.is_file():
            raise UserError(f"params.yaml: data.prompts: no file {given} (looked for {path})")
        return read_prompts(path, "data.prompts")
    known = Path(__file__).parent / "prompts" / f"{name}.yaml"
    return read_prompts(known, "dataset") if name else None
