"""A setting is a field of a dataclass: its rule, its defaults by preset, a line of documentation.

    @dataclass(frozen=True, kw_only=True)
    class Snip:
        batches: int = setting("batches that gradients are taken of", integer(1), paper=8, quick=4)

The checks with their one-line messages, params.yaml, docs/settings.md, a row's `variant` and the
keyword arguments of `instant_soup.prune` are all made from these fields.
"""

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from instant_soup.errors import UserError
from instant_soup.files import read_yaml

FAMILIES = ("bert", "clip", "causal")
PRESETS = ("quick", "paper")
# Bounds far above whatever trains: what lies beyond is a slip, and would never end.
MOST_EPOCHS, MOST_ROWS, MOST_STEPS, MOST_NETWORKS = 10_000, 65_536, 100_000, 1000
LIBRARY = "library"  # the defaults of instant_soup.prune: those of `paper` where none are given


class Rule(NamedTuple):
    """Which values a setting may have, and how a message describes them."""

    test: Callable[[Any], bool]
    allowed: str


class ByFamily(NamedTuple):
    """A default that differs by family; none given for plain text: that of texts."""

    bert: Any
    clip: Any
    causal: Any = None

    def of(self, family: str) -> Any:
        """The default of a family."""
        own = getattr(self, family)
        return self.bert if own is None else own


# Rules


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def integer(low: int, high: float = math.inf) -> Rule:
    """A whole number from `low`, up to `high`."""

    def test(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Rule(test, f"a whole number from {low}" + ("" if high == math.inf else f" to {high}"))


def number(low: float, high: float, low_too: bool = True, high_too: bool = True) -> Rule:
    """A number between two bounds; each bound itself is allowed or not."""

    def test(value: Any) -> bool:
        return (
            is_number(value)
            and (low <= value if low_too else low < value)
            and (value <= high if high_too else value < high)
        )

    above = f"at least {low:g}" if low_too else f"more than {low:g}"
    below = f" and at most {high:g}" if high_too else f" and less than {high:g}"
    return Rule(test, f"a number {above}" + ("" if high == math.inf else below))


def one_of(*allowed: str) -> Rule:
    """One of some words."""
    return Rule(lambda value: value in allowed, " | ".join(allowed))


def span(low: float, low_too: bool, high: float = math.inf) -> Rule:
    """[low, high]: two numbers in order, between two bounds."""
    one, _ = number(low, math.inf, low_too)

    def test(value: Any) -> bool:
        return (
            isinstance(value, list | tuple)
            and len(value) == 2
            and all(one(v) for v in value)
            and value[0] <= value[1]
            and value[1] < high
        )

    below = "" if high == math.inf else f" < {high:g}"
    return Rule(
        test,
        f"[low, high] with numbers {'from' if low_too else 'above'} {low:g}, low ≤ high{below}",
    )


def some_of(*allowed: str) -> Rule:
    """A list of some words, each at most once."""

    def test(value: Any) -> bool:
        return (
            isinstance(value, list)
            and all(v in allowed for v in value)
            and len(set(value)) == len(value)
        )

    return Rule(test, f"a list of {' | '.join(allowed)}, each at most once")


def shares() -> Rule:
    """A list of numbers from 0 to 1, at least one."""
    one = number(0, 1).test
    return Rule(
        lambda v: isinstance(v, list) and v != [] and all(one(x) for x in v),
        "a list of numbers from 0 to 1",
    )


def or_word(word: str, rule: Rule) -> Rule:
    """A word, or a value that another rule allows."""
    return Rule(lambda v: v == word or rule.test(v), f"{word} | {rule.allowed}")


BOOLEAN = Rule(lambda value: isinstance(value, bool), "true | false")
TEXT = Rule(lambda value: isinstance(value, str) and value != "", "a text")


# Fields


def setting(
    doc: str,
    rule: Rule,
    *,
    default: Any = None,
    families: tuple[str, ...] = FAMILIES,
    section: str = "",
    **presets: Any,
) -> Any:
    """Make a field of a dataclass that is a setting.

    Args:
        doc: What it is for; the line in params.yaml and docs/settings.md.
        rule: Which values it may have.
        default: The default in all presets that are not named; may be `ByFamily`.
        families: The families to which the setting means something.
        section: Its section of params.yaml, if that is not the dataclass's.
        **presets: Defaults of the presets `paper`, `quick` and `library`.

    Returns:
        The field.
    """
    own: dict[str, Any] = {"doc": doc, "rule": rule, "families": families, "section": section}
    own["defaults"] = {"": default, **presets}
    plain = default.bert if isinstance(default, ByFamily) else default
    if isinstance(plain, list):
        return dataclasses.field(default_factory=lambda: list(plain), metadata=own)
    return dataclasses.field(default=plain, metadata=own)


def again(kind: type, name: str, **changes: Any) -> Any:
    """A setting of another class, but for what is said anew: defaults, `doc`, `rule`, `section`."""
    known = settings_of(kind)[name].metadata
    own = {key: known[key] for key in ("doc", "rule", "families", "section")}
    defaults = {preset or "default": value for preset, value in known["defaults"].items()}
    return setting(**{**own, **defaults, **changes})


def settings_of(kind: type) -> dict[str, dataclasses.Field]:
    """Name → field of a dataclass's settings, those of its bases first."""
    return {f.name: f for f in dataclasses.fields(kind) if "rule" in f.metadata}


def default_of(field: dataclasses.Field, family: str, preset: str) -> Any:
    """A setting's default; None if it means nothing to the family."""
    if family not in field.metadata["families"]:
        return None
    given = field.metadata["defaults"]
    preset = "paper" if preset == LIBRARY and LIBRARY not in given else preset
    value = given.get(preset, given[""])
    return value.of(family) if isinstance(value, ByFamily) else value


def defaults_of(kind: type, family: str, preset: str) -> dict[str, Any]:
    """A dataclass's settings in a preset."""
    return {name: default_of(f, family, preset) for name, f in settings_of(kind).items()}


# Checks


_EXPONENT = re.compile(r"\d+(\.\d*)?[eE][+-]?\d+")


def as_number(value: Any) -> Any:
    """Turn 1e-4 into a number. PyYAML takes it for text, as it wants the dot of 1.0e-4."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def check_value(key: str, value: Any, rule: Rule) -> None:
    """Check one value.

    Args:
        key: The setting's name, for the error.
        value: The value.
        rule: Which values are allowed.

    Raises:
        UserError: If the value is not allowed; it names the key and what is.
    """
    if not rule.test(value):
        raise UserError(f"{key}: {value!r} is not allowed; allowed: {rule.allowed}")


def check_names(given: Iterable[Any], known: Iterable[str], prefix: str = "") -> None:
    """Check that all names are known.

    Args:
        given: The names to check.
        known: The names that are known.
        prefix: What stands before a name in the error.

    Raises:
        UserError: If one is not; it names the first, and the nearest known name.
    """
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"unknown key {prefix}{key}; {hint}")


def make(kind: type, given: Mapping[str, Any], family: str, preset: str, where: str = "") -> Any:
    """Make a dataclass of settings.

    Args:
        kind: The dataclass.
        given: Settings by name; None stands for the default.
        family: `bert` or `clip`.
        preset: The preset whose defaults fill in the rest.
        where: What an error begins with.

    Returns:
        An object of the dataclass.

    Raises:
        UserError: If a setting is not known or not allowed.
    """
    fields = settings_of(kind)
    try:
        check_names(given, fields, f"{where}.".removeprefix("."))
        chosen = {key: as_number(value) for key, value in given.items() if value is not None}
        for key, value in chosen.items():
            check_value(f"{where}.{key}".removeprefix("."), value, fields[key].metadata["rule"])
    except UserError as error:
        raise UserError(str(error)) from None
    return kind(**{**defaults_of(kind, family, preset), **chosen})


def as_text(value: Any) -> str:
    """Write a value as it stands in a row's variant: [0.1,10], true, vote.

    Equal numbers are written alike, and blanks as %20: they stand between a variant's settings.
    """
    text = json.dumps(value, separators=(",", ":")).replace('"', "").replace(" ", "%20")
    return short_numbers(text)


def settings_of_variant(variant: str) -> list[str]:
    """A variant's settings as a command takes them, key=value: `as_text` undone."""
    return [part.replace("%20", " ") for part in variant.split()]


def short_numbers(variant: str) -> str:
    """A variant without zeros behind a point: training.epochs=2.0 is training.epochs=2."""
    return re.sub(r"(?<![^=\[,])(-?\d+)\.0(?![^,\] ])", r"\1", variant)


# Files


ADDED = ("code", "engine")  # digests of sources, in a stage's file


class Stored:
    """A dataclass that can be written into a file and read back, nested ones included."""

    def contents(self) -> dict[str, Any]:
        """Its fields as plain values."""
        return dataclasses.asdict(typing.cast(Any, self))

    @classmethod
    def of(cls, contents: Mapping[str, Any]) -> Self:
        """Rebuild the dataclass from its contents; keys that the plan adds need not be fields."""
        names = {field.name for field in dataclasses.fields(typing.cast(Any, cls))}
        own = {k: v for k, v in contents.items() if k not in ADDED or k in names}
        return rebuilt(cls, own)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the dataclass from a YAML file.

        Args:
            path: The file.

        Returns:
            An object of the dataclass.

        Raises:
            UserError: If the file is missing, damaged, or of another dataclass.
        """
        contents = read_yaml(path)
        try:
            return cls.of(contents)
        except (TypeError, AttributeError, KeyError) as error:
            raise UserError(f"{path}: not the settings of this stage ({error})") from None


def rebuilt(kind: Any, contents: Any) -> Any:
    """Rebuild a value of a dataclass (or of one in `X | None`) from plain values."""
    if isinstance(kind, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if contents is None else rebuilt(kinds[0], contents)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return contents
    hints = typing.get_type_hints(kind)
    named = {f.name for f in dataclasses.fields(kind)}
    check = contents.keys() - named
    if check:
        raise TypeError(f"unknown {sorted(check)[0]}")
    return kind(**{name: rebuilt(hints[name], value) for name, value in contents.items()})
