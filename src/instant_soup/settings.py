"""params.yaml, checked and resolved: one settings file for each stage that reads one.

Everything a user can get wrong is refused here, before any work, in one line that names the key
and what is allowed. Each stage depends on its own resolved file only, so a changed parameter
reruns what it affects and nothing else.
"""

import difflib
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instant_soup.files import UserError, project_root, sha256
from instant_soup.presets import PRESETS
from instant_soup.schedules import mask_finding_share, round_sparsities
from instant_soup.tasks import BASELINES, DATASETS, MODELS

Settings = dict[str, Any]
Check = tuple[Callable[[Any], bool], str]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(low: int, high: float = math.inf) -> Check:
    def test(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return test, f"a whole number from {low}" + ("" if high == math.inf else f" to {high}")


def _number(low: float, high: float, low_too: bool = True, high_too: bool = True) -> Check:
    def test(value: Any) -> bool:
        return (
            _is_number(value)
            and (low <= value if low_too else low < value)
            and (value <= high if high_too else value < high)
        )

    above = f"at least {low:g}" if low_too else f"more than {low:g}"
    below = f" and at most {high:g}" if high_too else f" and less than {high:g}"
    return test, f"a number {above}" + ("" if high == math.inf else below)


def _one_of(*allowed: str) -> Check:
    return lambda value: value in allowed, " | ".join(allowed)


def _range(low: float, low_too: bool) -> Check:
    one, _ = _number(low, math.inf, low_too)

    def test(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) == 2
            and all(one(v) for v in value)
            and value[0] <= value[1]
        )

    return test, f"[low, high] with numbers {'from' if low_too else 'above'} {low:g}, low ≤ high"


def _strings(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(v, str) for v in value)


_BOOLEAN: Check = (lambda value: isinstance(value, bool), "true | false")
_TEXT: Check = (lambda value: isinstance(value, str) and value != "", "a text")
_ROWS: Check = (lambda v: v == "all" or _integer(2)[0](v), "all | a whole number from 2")

TOP: dict[str, Check] = {
    "sparsity": _number(0, 1, low_too=False, high_too=False),
    "dataset": _TEXT,
    "model": _TEXT,
    "seed": _integer(0, 2**31 - 1),
    "preset": _one_of(*PRESETS),
    "baselines": (
        lambda value: (
            isinstance(value, list)
            and all(v in BASELINES for v in value)
            and len(set(value)) == len(value)
        ),
        f"a list of {' | '.join(BASELINES)}, each at most once",
    ),
    "rounds": (lambda value: isinstance(value, list) and len(value) > 0, "a list of {id, start}"),
    "weak_seeds": (
        lambda value: isinstance(value, list) and value == list(range(len(value))) and value != [],
        "the list [0, 1, …] of denoisers",
    ),
}
SECTIONS: dict[str, dict[str, Check]] = {
    "data": {
        "path": _TEXT,
        "kind": _one_of("classification", "regression"),
        "text": (lambda v: _strings(v) and len(v) <= 2, "a list of one or two column names"),
        "label": _TEXT,
        "train_rows": _ROWS,
        "validation_rows": _integer(1),
        "test_rows": _integer(1),
        "max_length": _integer(8),
    },
    "training": {
        "epochs": _number(0, math.inf, low_too=False),
        "learning_rate": _number(0, 1, low_too=False),
        "weight_decay": _number(0, 1),
        "batch_size": _integer(1),
        "warmup": _number(0, 1, high_too=False),
        "clip_norm": _number(0, math.inf, low_too=False),
        "dropout": (
            lambda v: v == "model" or _number(0, 1, high_too=False)[0](v),
            "model | a number at least 0 and less than 1",
        ),
        "freeze_embeddings": _BOOLEAN,
        "precision": _one_of("auto", "fp32", "bf16"),
        "evaluations": _integer(1),
    },
    "isp": {
        "compression_rate": _number(0.01, 1, high_too=False),
        "rate_of": _one_of("total", "remaining"),
        "calibration": _number(0, math.inf, low_too=False),
        "look_ahead": _integer(1),
        "denoisers": _integer(0),
        "subset": _number(0, 1, low_too=False),
        "learning_rate_range": _range(0, low_too=False),
        "weight_decay_range": _range(0, low_too=True),
        "combine": _one_of("union", "intersection", "vote"),
        "own_mask": _BOOLEAN,
    },
}
LOOK_AHEAD_ISP = ("look_ahead", "subset", "learning_rate_range", "weight_decay_range")
LOOK_AHEAD_TRAINING = (
    *("learning_rate", "batch_size", "clip_norm", "dropout"),
    *("freeze_embeddings", "precision", "seed"),
)
_EXPONENT = re.compile(r"\d+(\.\d*)?[eE][+-]?\d+")
ONLY_LOCAL = ("kind", "text", "label")  # data keys that describe a dataset of the user's own


def _exponent(value: Any) -> Any:
    """1e-4 as a number: PyYAML takes it for a text, as it misses the dot of 1.0e-4."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _check_names(given: Settings, known: list[str], prefix: str = "") -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"params.yaml: unknown key {prefix}{key}; {hint}")


def _check_value(key: str, value: Any, check: Check) -> None:
    test, allowed = check
    if not test(value):
        raise UserError(f"params.yaml: {key}: {value!r} is not allowed; allowed: {allowed}")


def check(params: Settings) -> Settings:
    """Check params.yaml and fill every null from the preset; returns the complete settings."""
    if not isinstance(params, dict):
        raise UserError("params.yaml: must be a mapping of keys to values")
    _check_names(params, [*TOP, *SECTIONS])
    for key, top_check in TOP.items():
        if key not in params:
            raise UserError(f"params.yaml: {key} is missing; allowed: {top_check[1]}")
        _check_value(key, params[key], top_check)
    settings = {key: params[key] for key in TOP}
    preset: dict[str, Settings] = PRESETS[params["preset"]]
    for section, checks in SECTIONS.items():
        given = {} if params.get(section) is None else params[section]
        if not isinstance(given, dict):
            raise UserError(f"params.yaml: {section}: must be a mapping of keys to values")
        _check_names(given, list(checks), f"{section}.")
        chosen = {key: _exponent(value) for key, value in given.items() if value is not None}
        for key, value in chosen.items():
            _check_value(f"{section}.{key}", value, checks[key])
        settings[section] = {**preset[section], **chosen}
    return settings


def resolve_path(text: str, key: str) -> Path:
    """A path of params.yaml, relative to the main repository; UserError if it is not there."""
    path = (project_root() / Path(text).expanduser()).resolve()
    if not path.is_dir():
        raise UserError(f"params.yaml: {key}: no folder {text} (looked for {path})")
    return path


def digest(folder: Path) -> str:
    """Hash of a local folder's files, so that a changed file reruns what reads it."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    return " ".join(f"{p.name}:{sha256(p)[:12]}" for p in files)


def resolve_model(settings: Settings) -> Settings:
    """Where the base model comes from: name, source and what locates it."""
    name = settings["model"]
    if name in MODELS:
        return {"name": name, **MODELS[name]}
    kind, _, rest = name.partition(":")
    if kind == "hub" and rest:
        return {"name": rest, "source": "hub", "repo": rest}
    if kind != "local" or not rest:
        known = [*MODELS, "hub:ORG/NAME", "local:FOLDER"]
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"params.yaml: model: unknown {name!r}; {hint}allowed: {' | '.join(known)}")
    folder = resolve_path(rest, "model")
    for file in ("config.json", "tokenizer.json"):
        if not (folder / file).exists():
            raise UserError(f"params.yaml: model: {rest} has no {file}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"params.yaml: model: {rest} has no .safetensors weights")
    _check_prunable(rest, weights)
    return {"name": folder.name, "source": "local", "path": str(folder), "digest": digest(folder)}


def _check_prunable(name: str, files: list[Path]) -> None:
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                for key in opened.keys():  # noqa: SIM118
                    in_block = any(part.isdigit() for part in key.split("."))
                    if in_block and len(opened.get_slice(key).get_shape()) == 2:
                        return
        except (OSError, SafetensorError) as error:
            raise UserError(f"params.yaml: model: {file} cannot be read ({error})") from None
    raise UserError(f"params.yaml: model: {name} has nothing prunable (no layers' weight matrices)")


def resolve_data(settings: Settings) -> Settings:
    """Where the dataset comes from, its columns, kind, labels, metric and row numbers."""
    name, data = settings["dataset"], settings["data"]
    numbers = {key: data[key] for key in ("train_rows", "validation_rows", "test_rows")}
    own = {key: data.get(key) for key in ONLY_LOCAL}
    if name in DATASETS:
        unused = [key for key, value in own.items() if value is not None]
        if unused:
            raise UserError(
                f"params.yaml: data.{unused[0]}: only for dataset: local:FOLDER; {name} has its own"
            )
        facts = {**asdict(DATASETS[name]), "label": "label"}
        facts |= {key: list(facts[key]) for key in ("text", "labels", "hub")}
        if data.get("path"):
            if facts["source"] == "packaged":
                raise UserError(f"params.yaml: data.path: {name} is packaged; leave it null")
            folder = resolve_path(data["path"], "data.path")
            facts |= {"source": "local", "path": str(folder), "digest": digest(folder)}
            _check_local_data(folder, facts)
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
    from instant_soup import data as data_module

    folder = resolve_path(rest, "dataset")
    table, _ = data_module.read_local(folder, "test")
    label = own["label"] or "label"
    facts = data_module.guess_task(table, own["text"], label)
    if own["kind"] and own["kind"] != facts["kind"]:
        numeric = table[label].dtype.kind in "iuf"
        if own["kind"] == "classification" or not numeric:
            raise UserError(
                f"params.yaml: data.kind: {own['kind']} does not fit the labels in column {label}"
            )
        facts |= {"kind": "regression", "labels": []}
    facts |= {"label": label, "test": "test", "source": "local", "path": str(folder)}
    facts |= {"metric": "pearson" if facts["kind"] == "regression" else "accuracy"}
    _check_local_data(folder, facts)
    return {"name": folder.name, **facts, "digest": digest(folder), **numbers}


def _check_local_data(folder: Path, facts: Settings) -> None:
    from instant_soup import data as data_module

    for table in data_module.read_local(folder, facts["test"]):
        if table is not None:
            data_module.normalise(table, facts)
    if facts["kind"] == "classification" and len(facts["labels"]) < 2:
        raise UserError(f"params.yaml: dataset: {folder} has fewer than two classes")


def check_rounds(settings: Settings) -> list[float]:
    """The sparsity after each round; UserError when the listed rounds or the budget fall short."""
    for index, entry in enumerate(settings["rounds"]):
        start = "models/start" if index == 0 else f"models/isp/round_{index - 1}"
        if entry != {"id": index, "start": start}:
            raise UserError(
                f"params.yaml: rounds: entry {index} must be {{id: {index}, start: {start}}}"
            )
    isp, target = settings["isp"], settings["sparsity"]
    sparsities = round_sparsities(target, isp["compression_rate"], isp["rate_of"])
    listed, needed = len(settings["rounds"]), len(sparsities)
    if needed > listed:
        raise UserError(
            f"params.yaml: rounds: {listed} listed, but sparsity {target} at "
            f"isp.compression_rate {isp['compression_rate']} takes {needed}: add entries from "
            f"{{id: {listed}, start: models/isp/round_{listed - 1}}} to id {needed - 1}, "
            "or raise the rate"
        )
    share = mask_finding_share(needed, isp["calibration"], settings["training"]["epochs"])
    if share >= 1:
        raise UserError(
            f"params.yaml: isp.calibration: {needed} rounds of mask finding would take "
            f"{share:.0%} of training.epochs {settings['training']['epochs']}; allowed: less than "
            f"{settings['training']['epochs'] * 2 / needed / (needed + 1):.3g}"
        )
    if isp["denoisers"] > len(settings["weak_seeds"]):
        raise UserError(
            f"params.yaml: isp.denoisers: {isp['denoisers']}, but weak_seeds lists "
            f"{len(settings['weak_seeds'])}: extend it to [0, …, {isp['denoisers'] - 1}]"
        )
    return sparsities


def variant(settings: Settings, method: str) -> str:
    """What a method's settings change from the preset, readable: "isp.combine=vote …"."""
    preset: dict[str, Settings] = PRESETS[settings["preset"]]
    sections = ["data", "training", *(["isp"] if method == "isp" else [])]
    # `path` says where a dataset lies, not what is in it; own datasets are named by their folder.
    return " ".join(
        f"{section}.{key}={json.dumps(value, separators=(',', ':'))}".replace('"', "")
        for section in sections
        for key, value in settings[section].items()
        if key != "path" and preset[section].get(key) != value
    )


def plan(params: Settings) -> dict[str, Settings]:
    """Resolve params.yaml into the settings of each stage: file name → contents."""
    settings = check(params)
    data, model = resolve_data(settings), resolve_model(settings)
    sparsities = check_rounds(settings)
    isp, seed = settings["isp"], settings["seed"]
    identity = {"model": model["name"], "dataset": data["name"], "seed": seed}
    training = {**settings["training"], "seed": seed, "metric": data["metric"]}
    files: dict[str, Settings] = {
        "data": data,
        "base": model,
        "encode": {"max_length": settings["data"]["max_length"]},
        "start": identity,
        "dense": {**training, "start": "models/start", "ticket": None},
    }
    for entry, sparsity in zip(
        settings["rounds"], [*sparsities, *[None] * len(settings["rounds"])], strict=False
    ):
        index, start = entry["id"], entry["start"]
        idle = sparsity is None
        files[f"calibrate_{index}"] = (
            {"idle": True}
            if idle
            else {**training, "start": start, "calibration": isp["calibration"]}
        )
        look_ahead = {"start": start, "sparsity": sparsity}
        look_ahead |= {key: training[key] for key in LOOK_AHEAD_TRAINING}
        look_ahead |= {key: isp[key] for key in LOOK_AHEAD_ISP}
        for denoiser in settings["weak_seeds"]:
            files[f"weak_mask_{index}_{denoiser}"] = (
                {"idle": True} if idle or denoiser >= isp["denoisers"] else look_ahead
            )
        soup = {"start": start, "sparsity": sparsity, "denoisers": isp["denoisers"]}
        soup |= {"combine": isp["combine"], "own_mask": isp["own_mask"], "seed": seed}
        files[f"soup_{index}"] = {"idle": True} if idle else soup
    last_round = f"models/isp/round_{len(sparsities) - 1}"
    files["retrain_isp"] = {**training, "start": last_round, "rounds": len(sparsities)}
    files["retrain_isp"]["denoisers"] = isp["denoisers"]
    for method in settings["baselines"]:
        # A mask that no seed enters stays cached when the seed changes.
        own_seed = seed if method == "random" else 0
        files[f"ticket_{method}"] = {"sparsity": settings["sparsity"], "seed": own_seed}
        files[f"retrain_{method}"] = {
            **training,
            "start": "models/start",
            "ticket": f"models/tickets/{method}",
        }
    methods = ["dense", "isp", *settings["baselines"]]
    for method in methods:
        files[f"evaluate_{method}"] = {
            **identity,
            "method": method,
            "target_sparsity": 0.0 if method == "dense" else settings["sparsity"],
            "preset": settings["preset"],
            "variant": variant(settings, method),
            "metric": data["metric"],
            "precision": training["precision"],
        }
    files["tables"] = {"methods": methods, "metric": data["metric"]}
    return files
