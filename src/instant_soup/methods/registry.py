"""All methods by name: every file of this folder is read, and what it registers is known."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from instant_soup.config.fields import as_text, check_names, default_of, make, settings_of
from instant_soup.errors import UserError
from instant_soup.methods.base import REGISTRY, Method, keys_of

DENSE, ISP = "dense", "isp"  # rows of every run
FOLDER = Path(__file__).parent
# Files of this folder that hold no method.
SHARED = (
    *("base", "registry", "rounds", "moving", "custom"),
    *("budgets", "draws", "local_scores", "on_batches"),
)


@cache
def _read_all() -> None:
    for module in pkgutil.iter_modules([str(FOLDER)]):
        if module.name not in SHARED:
            importlib.import_module(f"instant_soup.methods.{module.name}")


def methods() -> dict[str, type[Method]]:
    """Name → method, in the order of table rows."""
    _read_all()
    return dict(sorted(REGISTRY.items(), key=lambda item: (item[1].order, item[0])))


def method_named(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        UserError: If there is none; it lists those that there are.
    """
    found = methods()
    if name not in found:
        try:
            check_names([name], found)
        except UserError as error:
            raise UserError(f"method: {error}".replace("unknown key", "unknown")) from None
    return found[name]


def file_of(name: str) -> Path:
    """The file that a method is written in."""
    module = importlib.import_module(method_named(name).__module__)
    return Path(str(module.__file__))


def selectable() -> tuple[str, ...]:
    """The names that `methods:` of params.yaml may list: all but the rows of every run."""
    return tuple(name for name in methods() if name not in (DENSE, ISP))


def dense_rows() -> tuple[str, ...]:
    """Rows in which nothing is pruned."""
    return tuple(name for name, method in methods().items() if method.dense)


def sections() -> dict[str, dict[str, tuple[type[Method], str]]]:
    """Section of params.yaml → key → a method that has this setting, and its name there."""
    found: dict[str, dict[str, tuple[type[Method], str]]] = {}
    for method in methods().values():
        for name, key in keys_of(method).items():
            section, _, short = key.partition(".")
            found.setdefault(section, {}).setdefault(short, (method, name))
    return found


def create(name: str, family: str, preset: str, given: dict[str, dict[str, Any]]) -> Method:
    """A method with its settings: `given` of params.yaml's sections, the preset's for the rest."""
    method = method_named(name)
    own = {}
    for setting, key in keys_of(method).items():
        section, _, short = key.partition(".")
        own[setting] = (given.get(section) or {}).get(short)
    return make(method, own, family, preset, "params.yaml")


def settings_in(method: Method) -> dict[str, Any]:
    """The settings of a method, as a stage's file holds them."""
    return {name: getattr(method, name) for name in settings_of(type(method))}


def rebuild(name: str, settings: dict[str, Any]) -> Method:
    """A method out of the settings that a stage's file holds of it."""
    return method_named(name)(**settings)


def variant_parts(method: Method, family: str, preset: str) -> list[str]:
    """What a method's settings change from the preset: ["isp.combine=vote", …].

    Those that the others make it not read change nothing.
    """
    fields, idle, parts = settings_of(type(method)), method.idle(), []
    for name, key in keys_of(type(method)).items():
        value = getattr(method, name)
        changed = value is not None and value != default_of(fields[name], family, preset)
        if changed and name not in idle:
            parts.append(f"{key}={as_text(value)}")
    return parts
