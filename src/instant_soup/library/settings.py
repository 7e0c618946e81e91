"""What the three doors take: a method with its settings, and the settings of training, checked."""

import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from instant_soup.config.fields import LIBRARY, check_value, integer, make, number, settings_of
from instant_soup.config.sections import SEED, Recipe
from instant_soup.errors import UserError
from instant_soup.methods.base import Method, keys_of
from instant_soup.methods.custom import Criterion, Custom
from instant_soup.methods.registry import method_named, methods

# A name, a settings object (or its class), or the scores of one's own.
AMethod = str | Method | type[Method] | Criterion


def method_of(method: AMethod, given: Mapping[str, Any]) -> Method:
    """A method with its settings: what is given, and the library's defaults for the rest.

    None stands for the default, but for `mask_finding`, where it means that rounds last as
    `calibration` says; so does a calibration that comes alone. UserError for a name that is not
    known, a method that needs another row, or a setting that it does not take or allow.
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
    chosen = {name: as_list(value) for name, value in {**own, **given}.items()}
    made = make(kind, chosen, "bert", LIBRARY)
    if chosen.get("calibration") is not None:
        chosen.setdefault("mask_finding", None)
    for name, use in made.idle().items():
        if given.get(name) is not None:
            raise UserError(f"{name}: {given[name]} is for {use}; allowed without it: None")
    nothing = {n: None for n, v in chosen.items() if v is None and _may_be_none(known[n].type)}
    made = replace(made, **nothing)
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
        values = {name: getattr(method, name) for name in settings_of(type(method))}
        return type(method), {name: value for name, value in values.items() if value is not None}
    if callable(method):
        return Custom, {}
    raise UserError(
        f"method: {method!r} is not allowed; allowed: a name, a method with its settings, or a "
        "function (weights, gradients, state) -> scores"
    )


def as_list(value: Any) -> Any:
    """A tuple as the list that files have."""
    return list(value) if isinstance(value, tuple) else value


def _may_be_none(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def check_sparsity(sparsity: Any) -> None:
    """UserError unless some weights go and some stay."""
    check_value("sparsity", sparsity, number(0, 1, low_too=False, high_too=False))


def check_steps(steps: Any) -> None:
    """UserError unless it is a number of steps."""
    check_value("steps", steps, integer(1))


def check_carried(method: Method) -> None:
    """UserError for a method that a foreign loop cannot carry: it trains once, by its own rate."""
    if type(method).pruner is Method.pruner:
        Method.pruner(method, typing.cast(Any, None), 0.0)  # which says so
    if (cycles := method.recipe(recipe_of(0)).cycles) > 1:
        raise UserError(
            f"cycles: {cycles}, but the learning rate is the loop's own, which may restart by "
            "itself; allowed: 1, or instant_soup.prune"
        )


def recipe_of(seed: int, **training: Any) -> Recipe:
    """The settings of training that the engine looks at; UserError for one that cannot be."""
    check_value("seed", seed, SEED)
    given = {"dropout": None, "freeze_embeddings": None, "batch_size": 1, **training}
    made = make(Recipe, given, "bert", LIBRARY)
    return replace(made, seed=seed, **{n: None for n, value in given.items() if value is None})


@contextmanager
def own_words(method: Method) -> Iterator[None]:
    """Within this, an error names a setting as the library does, not as params.yaml does."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for name, key in keys_of(type(method)).items():
            text = text.replace(key, name)
        raise UserError(text.replace("training.", "")) from None
