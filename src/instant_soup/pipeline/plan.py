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
from typing import Any

from instant_soup.config.presets import PRESETS
from instant_soup.data.local import READS, is_texts, resolve_data
from instant_soup.errors import UserError
from instant_soup.methods.registry import BASELINES, CONTROLS, LOTTERY, SOUPS
from instant_soup.methods.rounds import mask_finding_share, pattern, round_sparsities
from instant_soup.models.known import family_of, resolve_model

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


def _some_of(*allowed: str) -> Check:
    def test(value: Any) -> bool:
        return (
            isinstance(value, list)
            and all(v in allowed for v in value)
            and len(set(value)) == len(value)
        )

    return test, f"a list of {' | '.join(allowed)}, each at most once"


_BOOLEAN: Check = (lambda value: isinstance(value, bool), "true | false")
_TEXT: Check = (lambda value: isinstance(value, str) and value != "", "a text")
_SHARES: Check = (
    lambda v: isinstance(v, list) and v != [] and all(_number(0, 1)[0](x) for x in v),
    "a list of numbers from 0 to 1",
)
_ROWS: Check = (lambda v: v == "all" or _integer(2)[0](v), "all | a whole number from 2")

TOP: dict[str, Check] = {
    "sparsity": _number(0, 1, low_too=False, high_too=False),
    "dataset": _TEXT,
    "model": _TEXT,
    "seed": _integer(0, 2**31 - 1),
    "preset": _one_of(*PRESETS["bert"]),
    "baselines": _some_of(*BASELINES),
    "lottery": _some_of(*LOTTERY),
    "controls": _some_of(*CONTROLS),
    "soups": _some_of(*SOUPS),
    "exports": _some_of("dense", "isp", *BASELINES, *LOTTERY, *CONTROLS, *SOUPS),
    "export_dtype": _one_of("fp32", "bf16"),
    "rounds": (
        lambda value: isinstance(value, list) and len(value) > 0,
        "a list of {id, start, previous}",
    ),
    "weak_seeds": (
        lambda value: isinstance(value, list) and value == list(range(len(value))) and value != [],
        "the list [0, 1, …] of denoisers",
    ),
    "soup_members": (
        lambda value: isinstance(value, list) and value == list(range(len(value))),
        "the list [0, 1, …] of networks; [] without soups",
    ),
}
SECTIONS: dict[str, dict[str, Check]] = {
    "data": {
        "path": _TEXT,
        "kind": _one_of("classification", "regression"),
        "text": (lambda v: is_texts(v) and len(v) <= 2, "a list of one or two column names"),
        "image": _TEXT,
        "label": _TEXT,
        "flip": _BOOLEAN,
        "prompts": _TEXT,
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
        "crop": _number(0, 0.5),
        "precision": _one_of("auto", "fp32", "bf16"),
        "processes": _integer(1),
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
        "adjust": _one_of("every_round", "last_round"),
        "growing": _BOOLEAN,
        "own_mask": _BOOLEAN,
    },
    "criteria": {
        "batches": _integer(1),
        "min_density": _number(0, 1, high_too=False),
        "m": _integer(2),
    },
    "early_bird": {
        "every": _number(0, math.inf, low_too=False),
        "window": _integer(1),
        "threshold": _number(0, 1, low_too=False),
    },
    "imp": {
        "compression_rate": _number(0.01, 1, high_too=False),
        "rate_of": _one_of("total", "remaining"),
        "rewind": _number(0, 1, low_too=False, high_too=False),
        "coefficients": _SHARES,
    },
    "model_soup": {
        "networks": _integer(1),
        "denoisers": _integer(1),
        "steps": _integer(1),
        "learning_rate_range": _range(0, low_too=False),
        "weight_decay_range": _range(0, low_too=True),
        "sparsity_range": (
            lambda v: _range(0, low_too=True)[0](v) and v[1] < 1,
            "[low, high] with numbers from 0, low ≤ high < 1",
        ),
        "subset": _number(0, 1, low_too=False),
        "coefficients": _SHARES,
    },
    "pretraining": {
        "objective": _one_of("contrastive", "supervised"),
        "steps": _integer(1),
        "batch_size": (
            lambda v: _integer(32)[0](v) and v % 32 == 0,
            "a multiple of 32, the rows of a group (glyphs.py)",
        ),
        "learning_rate": _number(0, 1, low_too=False),
        "weight_decay": _number(0, 1),
        "warmup": _number(0, 1, high_too=False),
        "seed": _integer(0, 2**31 - 1),
        "precision": _one_of("auto", "fp32", "bf16"),
    },
}
# Keys that mean something to one family only.
FAMILY_KEYS = {
    "bert": [
        *("data.kind", "data.text", "data.max_length"),
        *("training.dropout", "training.freeze_embeddings"),
    ],
    "clip": [
        *("data.image", "data.flip", "data.prompts", "training.crop"),
        *(f"pretraining.{key}" for key in SECTIONS["pretraining"]),
    ],
}
# What the networks of a soup depend on: those trained in full, and the denoisers.
_PROTOCOL = ("model_soup.learning_rate_range", "model_soup.weight_decay_range")
FULL_MEMBER = ("model_soup.networks", *_PROTOCOL)
SPARSE_MEMBER = (
    *("model_soup.denoisers", "model_soup.steps", "model_soup.sparsity_range"),
    *("model_soup.subset", *_PROTOCOL),
)
ROUNDS = ("isp.compression_rate", "isp.rate_of", "isp.calibration", "isp.growing")
# What a row depends on beside data, training and pre-training: sections, or keys of them.
METHOD_SETTINGS: dict[str, tuple[str, ...]] = {
    "isp": ("isp",),
    "random_init": ("isp",),
    "progressive": ROUNDS,
    "isp_plus": ROUNDS,
    "min_density": ("criteria.min_density",),
    "n_of_m": ("criteria.m",),
    "snip": ("criteria.batches",),
    "grasp": ("criteria.batches",),
    "early_bird": ("early_bird",),
    "lth": ("imp.compression_rate", "imp.rate_of"),
    "lth_rewind": ("imp.compression_rate", "imp.rate_of", "imp.rewind"),
    "lottery_pool": ("imp.compression_rate", "imp.rate_of", "imp.coefficients"),
    **dict.fromkeys(("uniform_soup", "greedy_soup"), FULL_MEMBER),
    "instant_model_soup": (*SPARSE_MEMBER, "model_soup.coefficients"),
}
# Number of networks, by its key in model_soup → the soups that are made of them.
MEMBERS = {"networks": ("uniform_soup", "greedy_soup"), "denoisers": ("instant_model_soup",)}
LOOK_AHEAD_ISP = ("look_ahead", "subset", "learning_rate_range", "weight_decay_range")
LOOK_AHEAD_TRAINING = (
    *("learning_rate", "batch_size", "clip_norm", "dropout"),
    *("freeze_embeddings", "crop", "flip", "precision", "processes", "seed"),
)
_EXPONENT = re.compile(r"\d+(\.\d*)?[eE][+-]?\d+")


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
        raise UserError(f"{key}: {value!r} is not allowed; allowed: {allowed}")


def check_values(section: str, values: dict[str, Any]) -> None:
    """UserError naming the first of a section's values that is not allowed."""
    for key, value in values.items():
        _check_value(key, value, SECTIONS[section][key])


def check(params: Settings) -> Settings:
    """Check params.yaml and fill every null from the preset; returns the complete settings."""
    if not isinstance(params, dict):
        raise UserError("params.yaml: must be a mapping of keys to values")
    _check_names(params, [*TOP, *SECTIONS])
    for key, top_check in TOP.items():
        if key not in params:
            raise UserError(f"params.yaml: {key} is missing; allowed: {top_check[1]}")
        _check_value(f"params.yaml: {key}", params[key], top_check)
    settings = {key: params[key] for key in TOP}
    settings["family"] = family = family_of(params["model"])
    foreign = [key for name, keys in FAMILY_KEYS.items() if name != family for key in keys]
    preset = PRESETS[family][params["preset"]]
    for section, checks in SECTIONS.items():
        given = {} if params.get(section) is None else params[section]
        if not isinstance(given, dict):
            raise UserError(f"params.yaml: {section}: must be a mapping of keys to values")
        _check_names(given, list(checks), f"{section}.")
        chosen = {key: _exponent(value) for key, value in given.items() if value is not None}
        for key, value in chosen.items():
            if f"{section}.{key}" in foreign:
                raise UserError(
                    f"params.yaml: {section}.{key}: means nothing to {params['model']}, which "
                    f"reads {READS[family]}; leave it null"
                )
            if section == "pretraining" and params["model"] != "clip-glyph":
                raise UserError(f"params.yaml: pretraining.{key}: only for model: clip-glyph")
            _check_value(f"params.yaml: {section}.{key}", value, checks[key])
        settings[section] = {**preset.get(section, {}), **chosen}
    return settings


def round_entry(index: int) -> Settings:
    """What params.yaml lists for a round: its number, and where ISP's and IMP's begin."""
    before = f"round_{index - 1}"
    start = f"models/isp/{before}" if index else "models/start"
    return {"id": index, "start": start, "previous": before if index else "start"}


def check_rounds(settings: Settings) -> list[float]:
    """The sparsity after each round; UserError when the listed rounds or the budget fall short."""
    for index, entry in enumerate(settings["rounds"]):
        if entry != round_entry(index):
            shown = ", ".join(f"{key}: {value}" for key, value in round_entry(index).items())
            raise UserError(f"params.yaml: rounds: entry {index} must be {{{shown}}}")
    isp, target = settings["isp"], settings["sparsity"]
    sparsities = round_sparsities(target, isp["compression_rate"], isp["rate_of"])
    listed, needed = len(settings["rounds"]), len(sparsities)
    if needed > listed:
        raise UserError(
            f"params.yaml: rounds: {listed} listed, but sparsity {target} at "
            f"isp.compression_rate {isp['compression_rate']} takes {needed}: add entries from "
            f"{{id: {listed}, start: models/isp/round_{listed - 1}, previous: "
            f"round_{listed - 1}}} to id {needed - 1}, or raise the rate"
        )
    epochs, growing = settings["training"]["epochs"], isp["growing"]
    share = mask_finding_share(needed, isp["calibration"], epochs, growing)
    if share >= 1:
        raise UserError(
            f"params.yaml: isp.calibration: {needed} rounds of mask finding would take "
            f"{share:.0%} of training.epochs {epochs}; allowed: less than "
            f"{1 / mask_finding_share(needed, 1, epochs, growing):.3g}"
        )
    if isp["denoisers"] > len(settings["weak_seeds"]):
        raise UserError(
            f"params.yaml: isp.denoisers: {isp['denoisers']}, but weak_seeds lists "
            f"{len(settings['weak_seeds'])}: extend it to [0, …, {isp['denoisers'] - 1}]"
        )
    return sparsities


def methods_of(settings: Settings) -> list[str]:
    """The rows of a run."""
    rows = (settings[key] for key in ("baselines", "lottery", "controls", "soups"))
    return ["dense", "isp", *(method for methods in rows for method in methods)]


def check_rows(settings: Settings) -> list[float]:
    """IMP's sparsity after each round; UserError when a chosen row cannot be had."""
    target, imp, lottery = settings["sparsity"], settings["imp"], settings["lottery"]
    if "lottery_pool" in lottery and "lth" not in lottery:
        raise UserError(
            "params.yaml: lottery: lottery_pool is mixed from the rounds of lth: add lth"
        )
    for method in settings["exports"]:
        if method not in methods_of(settings):
            raise UserError(
                f"params.yaml: exports: {method} is no row of this run; allowed: "
                f"{' | '.join(methods_of(settings))}"
            )
    if "n_of_m" in settings["baselines"]:
        pattern(target, settings["criteria"]["m"])
    every, epochs = settings["early_bird"]["every"], settings["training"]["epochs"]
    if "early_bird" in settings["baselines"] and every * 2 > epochs:
        raise UserError(
            f"params.yaml: early_bird.every: {every} epochs between two masks, of a budget of "
            f"{epochs}; allowed: at most half of it"
        )
    least = settings["criteria"]["min_density"]
    if "min_density" in settings["baselines"] and least >= 1 - target - 1e-9:
        raise UserError(
            f"params.yaml: criteria.min_density: {least} leaves no room at sparsity {target}; "
            f"allowed: less than {1 - target:.3g}"
        )
    if soup_size(settings) > len(settings["soup_members"]):
        raise UserError(
            f"params.yaml: soup_members: {len(settings['soup_members'])} listed, but model_soup "
            f"takes {soup_size(settings)}: extend it to [0, …, {soup_size(settings) - 1}]"
        )
    sparsities = round_sparsities(target, imp["compression_rate"], imp["rate_of"])
    listed = len(settings["rounds"])
    if lottery and len(sparsities) > listed:
        raise UserError(
            f"params.yaml: rounds: {listed} listed, but sparsity {target} at "
            f"imp.compression_rate {imp['compression_rate']} takes {len(sparsities)}: add entries "
            f"to id {len(sparsities) - 1}, or raise the rate"
        )
    training = settings["training"]
    if training["batch_size"] % training["processes"]:
        raise UserError(
            f"params.yaml: training.processes: {training['processes']} do not share "
            f"training.batch_size {training['batch_size']} equally; allowed: a divisor of it"
        )
    return sparsities


def soup_size(settings: Settings) -> int:
    """The most networks that one of the chosen dense soups is made of."""
    chosen = [key for key, soups in MEMBERS.items() if set(soups) & set(settings["soups"])]
    return max((settings["model_soup"][key] for key in chosen), default=0)


def variant(settings: Settings, method: str) -> str:
    """What a method's settings change from the preset, readable: "isp.combine=vote …"."""
    preset = PRESETS[settings["family"]][settings["preset"]]
    concerned = ["data", "training", "pretraining", *METHOD_SETTINGS.get(method, ())]
    parts = []
    for section in dict.fromkeys(name.partition(".")[0] for name in concerned):
        own = settings[section]
        for key in [key for key in SECTIONS[section] if key in own]:  # in params.yaml's order
            # These say where a dataset lies and what its columns are called, not what is in it; its
            # name says that it is local.
            described = section == "data" and key in ("path", "text", "image", "label")
            matters = {section, f"{section}.{key}"} & set(concerned) and not described
            if matters and own[key] != preset[section].get(key):
                value = json.dumps(own[key], separators=(",", ":")).replace('"', "")
                parts.append(f"{section}.{key}={value}")
    return " ".join(parts)


def plan(params: Settings) -> dict[str, Settings]:
    """Resolve params.yaml into the settings of each stage: file name → contents."""
    settings = check(params)
    data, model = resolve_data(settings), resolve_model(settings)
    sparsities, imp_sparsities = check_rounds(settings), check_rows(settings)
    isp, seed = settings["isp"], settings["seed"]
    identity = {"model": model["name"], "dataset": data["name"], "seed": seed}
    training = {**settings["training"], "seed": seed, "metric": data["metric"]}
    images = settings["family"] == "clip"
    if images:
        training["flip"] = data["flip"]
        # No seed: the head is the text tower's, so all seeds start from the same network.
        start = {"classes": data["labels"], "templates": data.pop("templates")}
    else:
        start = identity
    files: dict[str, Settings] = {
        "data": data,
        "pretrain": {"idle": True},
        "base": model,
        "encode": {"max_length": settings["data"].get("max_length")},
        "start": start,
        "dense": {**training, "start": "models/start", "ticket": None},
    }
    if settings["model"] == "clip-glyph":
        files["pretrain"] = settings["pretraining"]
    for entry, sparsity in zip(
        settings["rounds"], [*sparsities, *[None] * len(settings["rounds"])], strict=False
    ):
        index, round_start = entry["id"], entry["start"]
        idle = sparsity is None
        files[f"calibrate_{index}"] = (
            {"idle": True}
            if idle
            else {
                **{**training, "start": round_start},
                **{key: isp[key] for key in ("calibration", "growing")},
            }
        )
        look_ahead = {"start": round_start, "sparsity": sparsity}
        look_ahead |= {key: training[key] for key in LOOK_AHEAD_TRAINING if key in training}
        look_ahead |= {key: isp[key] for key in LOOK_AHEAD_ISP}
        for denoiser in settings["weak_seeds"]:
            files[f"weak_mask_{index}_{denoiser}"] = (
                {"idle": True} if idle or denoiser >= isp["denoisers"] else look_ahead
            )
        soup = {"start": round_start, "sparsity": sparsity, "denoisers": isp["denoisers"]}
        soup |= {"combine": isp["combine"], "own_mask": isp["own_mask"], "seed": seed}
        # The last round is adjusted in any case: the target's sparsity is exact.
        soup["adjust"] = isp["adjust"] == "every_round" or index == len(sparsities) - 1
        files[f"soup_{index}"] = {"idle": True} if idle else soup
    last_round = f"models/isp/round_{len(sparsities) - 1}"
    files["retrain_isp"] = {**training, "start": last_round, "rounds": len(sparsities)}
    files["retrain_isp"]["denoisers"] = isp["denoisers"]
    for method in settings["baselines"]:
        files[f"ticket_{method}"] = ticket_settings(method, settings, training, sparsities)
        ticket = f"models/tickets/{method}"
        files[f"retrain_{method}"] = {**training, "start": "models/start", "ticket": ticket}
    for method in settings["controls"]:
        # Embeddings drawn at random must be able to train.
        thawed = {} if images else {"freeze_embeddings": False}
        found = {key: files["retrain_isp"][key] for key in ("start", "rounds", "denoisers")}
        files[f"retrain_{method}"] = {**training, **thawed, **start, **found}
    for method in settings["lottery"]:
        chain = "lth" if method == "lottery_pool" else method
        rounds = {"chain": chain, "rounds": len(imp_sparsities), "sparsity": settings["sparsity"]}
        mixing = {**training, "coefficients": settings["imp"]["coefficients"]}
        files[f"lottery_{method}"] = {**rounds, **(mixing if method == "lottery_pool" else {})}
        # The pool has no rounds of its own.
        idle, rewind = method != chain, settings["imp"]["rewind"] if chain == "lth_rewind" else 0.0
        files[f"imp_{method}_start"] = (
            {"idle": True} if idle else {**training, "start": "models/start", "rewind": rewind}
        )
        for entry in settings["rounds"]:
            index, previous = entry["id"], entry["previous"]
            beyond = idle or index >= len(imp_sparsities)
            files[f"imp_{method}_{index}"] = (
                {"idle": True}
                if beyond
                else {**training, "previous": previous, "sparsity": imp_sparsities[index]}
            )
    files |= soup_settings(settings, training)
    methods = methods_of(settings)
    for method in methods:
        files[f"evaluate_{method}"] = {
            **identity,
            "family": settings["family"],
            "method": method,
            "target_sparsity": 0.0 if method in ("dense", *SOUPS) else settings["sparsity"],
            "preset": settings["preset"],
            "variant": variant(settings, method),
            "metric": data["metric"],
            "precision": training["precision"],
            "zero_shot": images and method == "dense",
        }
    files["tables"] = {"methods": methods, "metric": data["metric"]}
    files["export"] = {"dtype": settings["export_dtype"]}
    return files


def soup_settings(settings: Settings, training: Settings) -> dict[str, Settings]:
    """The settings of the networks that dense soups are made of, and of the soups."""
    mixing, soups = settings["model_soup"], settings["soups"]
    files: dict[str, Settings] = {}
    for key, methods in MEMBERS.items():
        wanted = mixing[key] if set(soups) & set(methods) else 0
        own = ["learning_rate_range", "weight_decay_range", "subset"]
        own += ["steps", "sparsity_range"] if key == "denoisers" else []
        for n in settings["soup_members"]:
            files[f"soup_member_{key}_{n}"] = (
                {**training, "start": "models/start", **{k: mixing[k] for k in own}, "of": wanted}
                if n < wanted
                else {"idle": True}
            )
    for method in soups:
        key = next(key for key, methods in MEMBERS.items() if method in methods)
        members = [f"models/members/{key}_{n}" for n in range(mixing[key])]
        files[f"model_soup_{method}"] = {**training, "start": "models/start", "members": members}
        if method == "instant_model_soup":
            files[f"model_soup_{method}"]["coefficients"] = mixing["coefficients"]
    return files


def ticket_settings(
    method: str, settings: Settings, training: Settings, sparsities: list[float]
) -> Settings:
    """What a baseline's ticket depends on: seed and training only where they enter."""
    target, start = {"sparsity": settings["sparsity"]}, {"start": "models/start"}
    if method in ("progressive", "isp_plus"):
        schedule = {key: settings["isp"][key] for key in ("calibration", "growing")}
        score = "fisher" if method == "isp_plus" else "magnitude"
        return {**training, **start, "sparsities": sparsities, **schedule, "score": score}
    if method == "early_bird":
        return {**training, **start, **target, **settings["early_bird"]}
    criteria = settings["criteria"]
    if method in ("snip", "grasp"):
        return {**training, **start, **target, "batches": criteria["batches"]}
    own_seed = settings["seed"] if method in ("random", "erdos_renyi") else 0
    own = {"min_density": ("min_density",), "n_of_m": ("m",)}.get(method, ())
    return {**target, "seed": own_seed, **{key: criteria[key] for key in own}}
