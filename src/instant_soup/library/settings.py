"""Checks of what `prune`, `Pruner` and the callback take: a method, its settings, training."""

import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from instant_soup.config.fields import LIBRARY, check_value, integer, make, number, settings_of
from instant_soup.config.sections import ALL, MASK_LORA, NORMS_AND_BIASES, SEED, Recipe
from instant_soup.errors import UserError
from instant_soup.methods.base import Method, keys_of
from instant_soup.methods.custom import Criterion, Custom
from instant_soup.methods.registry import method_named, methods, settings_in
from instant_soup.training import exchange
from instant_soup.training.checkpoints import Store

# A name, a settings object (or its class), or the scores of one's own.
AMethod = str | Method | type[Method] | Criterion


def method_of(method: AMethod, given: Mapping[str, Any]) -> Method:
    """Make a method with its settings; the library's defaults fill in the rest.

    None means the default, except for `mask_finding`. There it means that `calibration` gives each
    round's length, and so does a calibration that is given alone.

    Args:
        method: A name, a method's class or object, or a function that returns scores.
        given: Settings by keyword.

    Returns:
        The method.

    Raises:
        UserError: If the name is not known, the method needs another row, or a setting is not
            allowed.
    """
    kind, own = _kind_of(method)
    if kind.needs:
        fit = " | ".join(name for name, one in methods().items() if not one.needs)
        raise UserError(
            f"method: {kind.name} needs the row of {kind.needs[0]}, which only the pipeline has; "
            f"allowed: {fit}"
        )
    known = settings_of(kind)
    for name in given:
        if name not in known:
            takes = ", ".join(known) or "none"
            raise UserError(f"{name}: no setting of {kind.name}; it takes: {takes}")
    chosen = {name: as_plain(value) for name, value in {**own, **given}.items()}
    made = make(kind, chosen, "bert", LIBRARY)
    if chosen.get("calibration") is not None:
        chosen.setdefault("mask_finding", None)
    nothing = {n: None for n, v in chosen.items() if v is None and _may_be_none(known[n].type)}
    made = replace(made, **nothing)
    for name, use in made.idle().items():
        if given.get(name) is not None:
            raise UserError(f"{name}: {given[name]} is for {use}; allowed without it: None")
    if isinstance(method, Method):  # which may have fields that are no settings
        return replace(method, **{name: getattr(made, name) for name in known})
    return replace(made, criterion=method) if kind is Custom and method is not Custom else made


def _kind_of(method: AMethod) -> tuple[type[Method], dict[str, Any]]:
    """A method's class, and the settings that an object of it has."""
    if isinstance(method, str):
        return method_named(method), {}
    if isinstance(method, type) and issubclass(method, Method):
        return method, {}
    if isinstance(method, Method):
        given = {name: value for name, value in settings_in(method).items() if value is not None}
        return type(method), given
    if callable(method):
        return Custom, {}
    raise UserError(
        f"method: {method!r} is not allowed; allowed: a name, a method with its settings, or a "
        "function (weights, gradients, state) -> scores"
    )


def as_plain(value: Any) -> Any:
    """A setting as files have it: a tuple as a list, a number of NumPy's as one of Python's."""
    if isinstance(value, tuple | list):
        return [as_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _may_be_none(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def check_sparsity(sparsity: Any) -> None:
    """Check a sparsity, before the model is known (`check_some_stay` is for then).

    Raises:
        UserError: If the sparsity is not between 0 and 1.
    """
    check_value("sparsity", sparsity, number(0, 1, low_too=False, high_too=False))


def check_steps(steps: Any) -> None:
    """Check a number of steps.

    Raises:
        UserError: If it is not a whole number from 1.
    """
    check_value("steps", steps, integer(1))


def check_batches(batches: Any) -> None:
    """Check that batches can be iterated again and again.

    Raises:
        UserError: If they cannot.
    """
    again = isinstance(batches, Iterable) or hasattr(batches, "__getitem__")
    if not again or isinstance(batches, Iterator):
        kind = f"{type(batches).__name__} is not allowed"
        if again:
            kind += ", as an iterator can be iterated only once"
        raise UserError(
            f"batches: {kind}; allowed: what can be iterated again, as a DataLoader or a list"
        )


def length_of(batches: Any) -> int | None:
    """The number of batches; None if it is not known."""
    try:
        return len(batches)
    except TypeError:
        return None


def check_function(name: str, given: Any, signature: str, needed: bool = True) -> None:
    """Check a function that is given, or left out if it is not needed.

    Raises:
        UserError: If it cannot be called.
    """
    if not callable(given) and (needed or given is not None):
        raise UserError(f"{name}: {given!r} is not allowed; allowed: a function {signature}")


def store_of(folder: Any) -> Store | None:
    """The store in a folder; None for no folder.

    Raises:
        UserError: If the folder cannot be written.
    """
    if folder is None:
        return None
    try:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except (TypeError, OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"checkpoint: {str(folder)!r} cannot be written ({why}); allowed: a folder"
        ) from None
    return Store(folder)


def check_carried(method: Method) -> None:
    """Refuse a method that your own loop cannot carry.

    Raises:
        UserError: If the method has no pruner, or more than one cycle.
    """
    if type(method).pruner is Method.pruner:
        Method.pruner(method, typing.cast(Any, None), 0.0)  # which says so
    if (cycles := method.recipe(recipe_of(0)).cycles) > 1:
        raise UserError(
            f"cycles: {cycles}, but the learning rate is the loop's own; allowed: 1 (the loop's "
            "schedule may restart), or instant_soup.prune"
        )


def check_retraining_carried(method: Method, retrain: str) -> None:
    """Raise UserError if a foreign loop cannot retrain in this way."""
    retraining_of(method, retrain)
    if retrain == MASK_LORA:
        raise UserError(
            f"retrain: {MASK_LORA} trains matrices that the loop's optimizer and clipping do not "
            f"know; allowed: {ALL} | {NORMS_AND_BIASES}, or instant_soup.prune"
        )


def recipe_of(seed: int, **training: Any) -> Recipe:
    """Make the settings of training that the engine looks at.

    Args:
        seed: The run's seed.
        **training: Settings of the section `training`. A `clip_norm` of None clips nothing.

    Returns:
        The settings.

    Raises:
        UserError: If one is not allowed.
    """
    check_value("seed", seed, SEED)
    training = {name: as_plain(value) for name, value in training.items()}
    if training.get("clip_norm", 0) is None:
        training["clip_norm"] = 1e30
    for name in training.keys() - {n for n, value in training.items() if value is not None}:
        check_value(name, None, settings_of(Recipe)[name].metadata["rule"])
    made = make(Recipe, {"batch_size": 1, **training}, "bert", LIBRARY)
    return replace(made, seed=seed, dropout=None, freeze_embeddings=None)


def retraining_of(method: Method, retrain: str, **given: Any) -> dict[str, Any]:
    """What trains after a method's last mask, and how: the settings that are given.

    Raises:
        UserError: If a setting would not be read, or the method trains nothing then.
    """
    check_value("retrain", retrain, settings_of(Recipe)["retrain"].metadata["rule"])
    if retrain != ALL and (method.finishes or method.dense):
        raise UserError(
            f"retrain: {retrain}: {method.name} trains nothing after its last mask; allowed: {ALL}"
        )
    chosen = {name: value for name, value in given.items() if value is not None}
    for name, value in chosen.items():
        if retrain == ALL or (retrain != MASK_LORA and name != "retrain_rate"):
            use = MASK_LORA if name != "retrain_rate" else f"{NORMS_AND_BIASES} | {MASK_LORA}"
            raise UserError(f"{name}: {value} is for retrain: {use}; allowed without it: None")
    return {"retrain": retrain, **chosen}


def check_same(
    method: Method,
    sparsity: float,
    steps: int,
    recipe: Recipe,
    prunable: Mapping[str, Any],
    batches: Any,
    **more: Any,
) -> None:
    """Check that all processes were called alike; their batches may differ, but not in number.

    Raises:
        UserError: If they were not, in all of them.
    """
    exchange.check_same({
        "method": method.name, "sparsity": sparsity, "steps": steps, **asdict(recipe), **more,
        "prunable": {name: list(w.shape) for name, w in prunable.items()},
        **settings_in(method),
        "len(batches)": length_of(batches),
    })  # fmt: skip


@contextmanager
def own_words(method: Method) -> Iterator[None]:
    """Let errors within this context name settings as the library does, not as params.yaml does."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for name, key in keys_of(type(method)).items():
            text = text.replace(key, name)
        raise UserError(text.replace(" (training.epochs)", "").replace("training.", "")) from None
