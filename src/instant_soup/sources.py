"""Where model and dataset come from: packaged, hub or local, resolved and checked for the plan.

Nothing here imports torch, and nothing is downloaded. What params.yaml names wrongly is refused in
one line with the key and what is allowed.
"""

import difflib
import hashlib
import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instant_soup.files import UserError, project_root, read_json, read_yaml, sha256
from instant_soup.names import in_block
from instant_soup.tasks import DATASETS, MODELS

Settings = dict[str, Any]

READS = {"bert": "texts", "clip": "images"}
LOCAL = ("local", "local-dir")  # of a model: the second is open_clip's own word
ONLY_LOCAL = ("kind", "text", "image", "label", "flip")  # data keys for a dataset of one's own


def is_texts(value: Any) -> bool:
    """Whether a value is a list of one or more strings."""
    return isinstance(value, list) and len(value) > 0 and all(isinstance(v, str) for v in value)


def resolve_path(text: str, key: str) -> Path:
    """A path of params.yaml, relative to the main repository; UserError if it is not there."""
    path = (project_root() / Path(text).expanduser()).resolve()
    if not path.is_dir():
        raise UserError(f"params.yaml: {key}: no folder {text} (looked for {path})")
    return path


def digest(folder: Path) -> str:
    """What a local folder holds, so that a changed file reruns what reads it.

    The files in it by their contents; those in folders below, thousands of images, by their names,
    sizes and times.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    own = [f"{p.name}:{sha256(p)[:12]}" for p in files if p.parent == folder]
    below = [p for p in files if p.parent != folder]
    if below:
        listed = [(str(p.relative_to(folder)), p.stat()) for p in below]
        lines = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in listed]
        whole = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        own.append(f"{len(below)} files below:{whole[:12]}")
    return " ".join(own)


def family_of(model: str) -> str:
    """The family of a model of params.yaml: bert or clip. UserError for an unknown one."""
    kind, _, rest = model.partition(":")
    if model in MODELS:
        return MODELS[model]["family"]
    if rest and kind == "hub":
        return "bert"
    if rest and kind == "open_clip":
        return "clip"
    if rest and kind in LOCAL:
        folder = resolve_path(rest, "model")
        return "clip" if (folder / "open_clip_config.json").exists() else "bert"
    known = [*MODELS, "hub:ORG/NAME", "open_clip:ARCHITECTURE/TAG", "local:FOLDER"]
    near = difflib.get_close_matches(model, MODELS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"params.yaml: model: unknown {model!r}; {hint}allowed: {' | '.join(known)}")


def resolve_model(settings: Settings) -> Settings:
    """Where the base model comes from: name, family, source and what locates it."""
    name, family = settings["model"], family_of(settings["model"])
    if name in MODELS:
        return {"name": name, **MODELS[name]}
    kind, _, rest = name.partition(":")
    if kind == "hub":
        return {"name": rest, "family": family, "source": "hub", "repo": rest}
    if kind == "open_clip":
        architecture, tag = _check_open_clip(rest)
        located = {"architecture": architecture, "tag": tag}
        return {"name": name, "family": family, "source": kind, **located}
    folder = resolve_path(rest, "model")
    needed = ("open_clip_config.json",) if family == "clip" else ("config.json", "tokenizer.json")
    for file in needed:
        if not (folder / file).exists():
            raise UserError(f"params.yaml: model: {rest} has no {file}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"params.yaml: model: {rest} has no .safetensors weights")
    _check_prunable(rest, weights)
    if family == "clip":
        _check_clip_config(rest, folder / "open_clip_config.json")
    located = {"source": "local", "path": str(folder), "digest": digest(folder)}
    # A folder may be called anything, also bert-base: what is local says so in every table.
    return {"name": f"local:{folder.name}", "family": family, **located}


def _check_open_clip(text: str) -> tuple[str, str]:
    """Architecture and tag of open_clip:ARCHITECTURE/TAG; the tag is checked on loading."""
    architecture, _, tag = text.partition("/")
    spec = importlib.util.find_spec("open_clip")  # found, not imported: that would import torch
    folders = list(spec.submodule_search_locations or []) if spec else []
    known = [path.stem for folder in folders for path in Path(folder).glob("model_configs/*.json")]
    if not tag or architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"did you mean {' | '.join(near)}? " if near and architecture not in known else ""
        raise UserError(
            f"params.yaml: model: open_clip:{text}: {hint}allowed: open_clip:ARCHITECTURE/TAG with "
            "one of open_clip.list_pretrained(), as open_clip:ViT-B-16/openai"
        )
    return architecture, tag


def _check_prunable(name: str, files: list[Path]) -> None:
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                keys = opened.keys()
                if any(in_block(key, opened.get_slice(key).get_shape()) for key in keys):
                    return
        except (OSError, SafetensorError) as error:
            raise UserError(f"params.yaml: model: {file} cannot be read ({error})") from None
    raise UserError(f"params.yaml: model: {name} has nothing prunable (no layers' weight matrices)")


def _check_clip_config(name: str, path: Path) -> None:
    config = read_json(path)
    try:
        vision, preprocess = config["model_cfg"]["vision_cfg"], config["preprocess_cfg"]
        size = preprocess.get("size", vision.get("image_size"))
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f"params.yaml: model: {name}: {path.name} must have model_cfg, with vision_cfg, and "
            "preprocess_cfg, as open_clip writes it"
        ) from None
    if isinstance(size, list) and len(set(size)) > 1:
        shape = " × ".join(str(length) for length in size)
        raise UserError(f"params.yaml: model: {name} takes images of {shape}; allowed: squares")


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
    from instant_soup import data as data_module
    from instant_soup import images

    own = settings["data"]
    _check_readable(settings, images.holds_images(folder, "test"))
    table, _ = data_module.read_local(folder, "test")
    label = own.get("label") or "label"
    facts = data_module.guess_task(table, own.get("text"), label)
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
    from instant_soup import images

    own, prompts = settings["data"], resolve_prompts(settings, "")
    classes = prompts.get("classes", own.get("classes"))  # a ticket's, when it is evaluated
    found = images.describe_local(folder, "test", own.get("image"), own.get("label"), classes)
    _check_readable(settings, found is not None)
    assert found is not None
    templates = prompts.get("templates", ["a photo of a {}."])
    facts = {"text": [], "kind": "classification", "flip": bool(own.get("flip"))}
    return {**found, **facts, "templates": templates}


def _check_local_data(folder: Path, facts: Settings) -> None:
    from instant_soup import data as data_module
    from instant_soup import images

    if facts["image"]:
        images.check_local(folder, facts)
    else:
        splits = zip(data_module.read_local(folder, facts["test"]), ("train", "test"), strict=True)
        for table, split in splits:
            if table is not None:
                data_module.normalise(table, facts, split)
    if facts["kind"] == "classification" and len(facts["labels"]) < 2:
        raise UserError(f"params.yaml: dataset: {folder} has fewer than two classes")
