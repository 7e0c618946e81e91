"""Where the dataset comes from: packaged, hub or local, resolved and checked for the plan.

Nothing is downloaded. What params.yaml names wrongly is refused in one line with the key and what
is allowed.
"""

import difflib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instant_soup.data import images, tables, texts
from instant_soup.data.datasets import DATASETS
from instant_soup.errors import UserError
from instant_soup.files import digest, project_root, read_yaml, resolve_path

Settings = dict[str, Any]

READS = {"bert": "texts", "clip": "images"}
ONLY_LOCAL = ("kind", "text", "image", "label", "flip")  # data keys for a dataset of one's own


def is_texts(value: Any) -> bool:
    """Whether a value is a list of one or more strings."""
    return isinstance(value, list) and len(value) > 0 and all(isinstance(v, str) for v in value)


def read_prompts(path: Path, key: str) -> Settings:
    """Class names and prompt templates of a YAML file; UserError naming what is wrong in it."""
    prompts = read_yaml(path)
    if not isinstance(prompts, dict) or set(prompts) != {"classes", "templates"}:
        raise UserError(f"params.yaml: {key}: {path} must have the keys classes and templates")
    for name, entries in prompts.items():
        if not is_texts(entries) or len(set(entries)) < len(entries):
            raise UserError(f"params.yaml: {key}: {path}: {name} must be a list of distinct texts")
    odd = [
        t for t in prompts["templates"] if "{}" not in t or set("{}") & set(t.replace("{}", "", 1))
    ]
    if odd:
        raise UserError(f"params.yaml: {key}: {path}: template {odd[0]!r} must have {{}} just once")
    return prompts


def resolve_prompts(settings: Settings, name: str) -> Settings:
    """Classes and templates of an image dataset: data.prompts, or those known for it; else none."""
    given = settings["data"].get("prompts")
    if given:
        path = (project_root() / Path(given).expanduser()).resolve()
        if not path.is_file():
            raise UserError(f"params.yaml: data.prompts: no file {given} (looked for {path})")
        return read_prompts(path, "data.prompts")
    known = Path(__file__).parent / "prompts" / f"{name}.yaml"
    return read_prompts(known, "dataset") if name else {}


def resolve_data(settings: Settings) -> Settings:
    """Where the dataset comes from, its columns, kind, labels, metric and row numbers.

    For images also `templates`, the prompts that class names go into, and `flip`.
    """
    name, data = settings["dataset"], settings["data"]
    numbers = {key: data[key] for key in ("train_rows", "validation_rows", "test_rows")}
    own = {key: data.get(key) for key in ONLY_LOCAL}
    if name in DATASETS:
        unused = [key for key, value in own.items() if value is not None]
        if unused:
            raise UserError(
                f"params.yaml: data.{unused[0]}: only for dataset: local:FOLDER; {name} has its own"
            )
        facts = asdict(DATASETS[name])
        _check_readable(settings, bool(facts["image"]))
        facts |= {key: list(facts[key]) for key in ("text", "labels", "hub")}
        if facts["image"]:
            prompts = resolve_prompts(settings, facts["prompts"])
            facts |= {"labels": prompts["classes"], "templates": prompts["templates"]}
        if data.get("path"):
            if facts["source"] == "packaged":
                raise UserError(f"params.yaml: data.path: {name} is packaged; leave it null")
            folder = resolve_path(data["path"], "data.path")
            facts |= {"source": "local", "path": str(folder), "digest": digest(folder)}
            _check_local_data(folder, facts)
            name = f"{name}@local"  # perhaps a sample, so its results are not the dataset's
        return {"name": name, **facts, **numbers}
    kind, _, rest = name.partition(":")
    if kind != "local" or not rest:
        known = [*DATASETS, "local:FOLDER"]
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"params.yaml: dataset: unknown {name!r}; {hint}allowed: {' | '.join(known)}"
        )
    if data.get("path"):
        raise UserError("params.yaml: data.path: the folder is already named in dataset: local:…")
    folder = resolve_path(rest, "dataset")
    facts = (_own_images if settings["family"] == "clip" else _own_texts)(folder, settings)
    facts |= {"test": "test", "source": "local", "path": str(folder)}
    facts |= {"metric": "pearson" if facts["kind"] == "regression" else "accuracy"}
    _check_local_data(folder, facts)
    return {"name": f"local:{folder.name}", **facts, "digest": digest(folder), **numbers}


def _check_readable(settings: Settings, images: bool) -> None:
    """UserError when the model's family does not read what the dataset holds."""
    if images != (settings["family"] == "clip"):
        fit = [name for name, task in DATASETS.items() if bool(task.image) != images]
        raise UserError(
            f"params.yaml: dataset: {settings['dataset']} holds {'images' if images else 'texts'}, "
            f"but model: {settings['model']} reads {READS[settings['family']]}; allowed for it: "
            f"{' | '.join([*fit, 'local:FOLDER'])}"
        )


def _own_texts(folder: Path, settings: Settings) -> Settings:
    """Columns, kind and class names of a folder of texts."""
    own = settings["data"]
    _check_readable(settings, images.holds_images(folder, "test"))
    table, _ = tables.read_local(folder, "test")
    label = own.get("label") or "label"
    facts = texts.guess_task(table, own.get("text"), label)
    if own.get("kind") and own["kind"] != facts["kind"]:
        numeric = table[label].dtype.kind in "iuf"
        if own["kind"] == "classification" or not numeric:
            raise UserError(
                f"params.yaml: data.kind: {own['kind']} does not fit the labels in column {label}"
            )
        facts |= {"kind": "regression", "labels": []}
    return {**facts, "label": label, "image": ""}


def _own_images(folder: Path, settings: Settings) -> Settings:
    """Columns, class names and prompts of a folder of images."""
    own, prompts = settings["data"], resolve_prompts(settings, "")
    classes = prompts.get("classes", own.get("classes"))  # a ticket's, when it is evaluated
    found = images.describe_local(folder, "test", own.get("image"), own.get("label"), classes)
    _check_readable(settings, found is not None)
    assert found is not None
    templates = prompts.get("templates", ["a photo of a {}."])
    facts = {"text": [], "kind": "classification", "flip": bool(own.get("flip"))}
    return {**found, **facts, "templates": templates}


def _check_local_data(folder: Path, facts: Settings) -> None:
    if facts["image"]:
        images.check_local(folder, facts)
    else:
        splits = zip(tables.read_local(folder, facts["test"]), ("train", "test"), strict=True)
        for table, split in splits:
            if table is not None:
                texts.normalise(table, facts, split)
    if facts["kind"] == "classification" and len(facts["labels"]) < 2:
        raise UserError(f"params.yaml: dataset: {folder} has fewer than two classes")
