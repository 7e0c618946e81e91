"""A grid: the runs that fill a table, as a short YAML file. Tasks × sparsities × seeds.

A *cell* is one task, sparsity and seed with all methods of the grid: one DVC experiment. The cells
of one task and seed share their dense run and their rounds and form a *lane*, from low to high
sparsity. Lanes share data and base model, and where only ISP's or a baseline's settings differ the
dense run. docs/grids.md tells how to run them.
"""

import copy
import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instant_soup.errors import UserError
from instant_soup.files import read_yaml
from instant_soup.methods.registry import DENSE, ISP, selectable
from instant_soup.pipeline.plan import check, plan
from instant_soup.reports.ledger import KEY, read_ledger, results_of_experiments

Params = dict[str, Any]  # the contents of params.yaml
Changes = dict[str, Any]  # of params.yaml: key or section.key → value
Identity = tuple[Any, ...]  # a result's values of KEY

OF_GRID, OF_TASK = ("preset", "methods", "tasks", "seeds"), ("model", "dataset", "sparsities")
OWN = ("sparsity", "dataset", "model", "seed", "preset", "methods", "exports")


@dataclass(frozen=True)
class Task:
    """A model on a dataset; the values are as the file has them, for `plan` to judge."""

    model: Any
    dataset: Any
    sparsities: list[Any]
    methods: list[Any]
    settings: Changes


@dataclass(frozen=True)
class Grid:
    """A grid file; values as in Task."""

    name: str
    preset: Any
    tasks: list[Task]
    seeds: list[Any]
    settings: Changes


@dataclass(frozen=True)
class Cell:
    """One experiment of a grid."""

    name: str  # the experiment's
    lane: str
    dense: Identity  # of its dense run, which lanes may share
    changes: Changes
    rows: dict[str, Identity]  # method → its result in the ledger; dense and isp included
    to_run: tuple[str, ...]  # those of them that are to run

    @property
    def methods(self) -> list[str]:
        """The methods of its rows."""
        return list(self.rows)

    @property
    def results(self) -> frozenset[Identity]:
        """What the whole cell has in the ledger."""
        return frozenset(self.rows.values())

    @property
    def targets(self) -> list[str]:
        """The entries of dvc.yaml that make the rows to run; none where that is all of them."""
        if len(self.to_run) == len(self.rows):
            return []
        return [entry_of(method) for method in self.to_run]

    def without(self, known: Collection[Identity]) -> "Cell":
        """The cell with only those rows to run that are not known: another experiment."""
        left = tuple(method for method, row in self.rows.items() if row not in known)
        if len(left) in (0, len(self.rows)):
            return replace(self, to_run=left)
        return replace(self, name=f"{self.name}-rows-{_digits(left)}", to_run=left)


def read_cells(path: Path, params: Params) -> list[Cell]:
    """Read the cells of a grid file: all tasks of the first seed, then of the next.

    Args:
        path: The grid file.
        params: params.yaml, for what the grid leaves open.

    Returns:
        The cells.

    Raises:
        UserError: If anything is wrong with a cell; in one line, before any work.
    """
    check(params)
    grid = _read_grid(path)
    cells: list[Cell] = []
    for seed in grid.seeds:
        for task in grid.tasks:
            for sparsity in task.sparsities:
                try:
                    cells.append(_cell(grid, task, sparsity, seed, params))
                except UserError as error:
                    where = f"{task.model} on {task.dataset}, sparsity {sparsity}"
                    reason = str(error).removeprefix("params.yaml: ")
                    raise UserError(f"{path}: {where}, seed {seed}: {reason}") from None
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: {name} is there twice; allowed: once")
    return cells


def lanes_of(cells: list[Cell]) -> list[list[Cell]]:
    """Group the cells by lane, each from low to high sparsity, as later cells reuse earlier rounds.

    Lanes of different dense runs come first, as those that start together do not wait for each
    other.
    """
    lanes: dict[str, list[Cell]] = {}
    for cell in cells:
        lanes.setdefault(cell.lane, []).append(cell)
    before: Counter[Identity] = Counter()  # lanes with the same dense run that come earlier
    rank: dict[str, int] = {}
    for name, lane in lanes.items():
        rank[name] = before[lane[0].dense]
        before[lane[0].dense] += 1
    ordered = sorted(lanes, key=rank.__getitem__)
    return [sorted(lanes[name], key=lambda cell: cell.changes["sparsity"]) for name in ordered]


def known_results(root: Path) -> dict[Identity, set[str]]:
    """What experiments and ledger have results of, and the processors that they come from."""
    found = results_of_experiments(root)
    ledger = root / "reports/results.csv"
    rows = read_ledger(ledger).to_dict("records") if ledger.exists() else []
    known: dict[Identity, set[str]] = {}
    for result in [*found, *rows]:
        known.setdefault(identity(result), set()).add(result.get("processor", ""))
    return known


def entry_of(method: str) -> str:
    """The entry of dvc.yaml that evaluates a row."""
    return f"evaluate@{method}" if method in (DENSE, ISP) else f"evaluate_method@{method}"


def identity(result: dict[str, Any]) -> Identity:
    """What tells a result from others: its values of KEY."""
    return tuple(result[key] for key in KEY)


def change(params: Params, changes: Changes) -> None:
    """Write changes into the contents of params.yaml, in place."""
    for name, value in changes.items():
        section, _, key = name.partition(".")
        if not key:
            params[section] = value
        elif params.get(section) is None:
            params[section] = {key: value}
        else:
            params[section][key] = value


def _cell(grid: Grid, task: Task, sparsity: Any, seed: Any, params: Params) -> Cell:
    changes = {
        **{"model": task.model, "dataset": task.dataset},
        **{"sparsity": sparsity, "seed": seed, "preset": grid.preset},
        **{"methods": task.methods, "exports": []},
        **grid.settings,
        **task.settings,
    }
    changed = copy.deepcopy(params)
    change(changed, changes)
    files = plan(changed)
    methods = files["tables"]["methods"]
    results = [files[f"evaluate_{method}"] for method in methods]
    model, dataset = results[0]["model"], results[0]["dataset"]
    variants = sorted({result["variant"] for result in results} - {""})
    front = [grid.name, model, dataset]
    back = [f"seed{seed}", *([_digits(variants)] if variants else [])]
    return Cell(
        name=_plain([*front, f"s{100 * sparsity:g}", *back]),
        lane=_plain([*front, *back]),
        dense=identity(files["evaluate_dense"]),
        changes=changes,
        rows={method: identity(files[f"evaluate_{method}"]) for method in methods},
        to_run=tuple(methods),
    )


def _digits(words: Collection[str]) -> str:
    """Six digits that stand for some words."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:6]


def _plain(words: list[str]) -> str:
    """Words joined to a name that Git takes."""
    return re.sub(r"[^A-Za-z0-9.]+|\.{2,}", "-", "-".join(words)).strip("-.")


def _read_grid(path: Path) -> Grid:
    """A grid file, its form checked; the values within are for `plan` to judge."""
    grid = _with_settings(path, "", read_yaml(path), OF_GRID)
    for key in ("tasks", "seeds"):
        _check_list(path, key, grid[key])
    methods = grid.pop("methods")
    _check_methods(path, "methods", methods)
    tasks = []
    for index, given in enumerate(grid["tasks"]):
        task = _with_settings(path, f"tasks[{index}]", given, OF_TASK, ("methods",))
        _check_list(path, f"tasks[{index}].sparsities", task["sparsities"])
        _check_methods(path, f"tasks[{index}].methods", task.setdefault("methods", methods))
        tasks.append(Task(**task))
    return Grid(path.stem, **{**grid, "tasks": tasks})


def _check_methods(path: Path, where: str, methods: Any) -> None:
    _check_list(path, where, methods)
    known = selectable()
    for method in methods:
        if method not in known or methods.count(method) > 1:
            raise UserError(
                f"{path}: {where}: {method!r} is not allowed; allowed: {' | '.join(known)}, each "
                "at most once (dense and isp are always there)"
            )


def _with_settings(
    path: Path, where: str, given: Any, needed: tuple[str, ...], may_be: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A mapping with the keys `needed`, and perhaps `may_be` and `settings`: {} if not given."""
    known, place = [*needed, *may_be, "settings"], f"{path}: {where}: " if where else f"{path}: "
    if not isinstance(given, dict):
        raise UserError(f"{place}must be a mapping with the keys {', '.join(needed)}")
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{place}unknown key {key}; {hint}")
    for key in needed:
        if given.get(key) is None:
            raise UserError(f"{place}{key} is missing; needed: {', '.join(needed)}")
    settings = given.get("settings") or {}
    if not isinstance(settings, dict):
        raise UserError(f"{place}settings: must be a mapping, as {{training.epochs: 0.3}}")
    for key in settings:
        if key in OWN:
            raise UserError(f"{place}settings: {key} is the grid's own; leave it out")
        if not re.fullmatch(r"\w+\.\w+", str(key)):
            raise UserError(
                f"{place}settings: {key!r} is not allowed; allowed: section.key of params.yaml"
            )
    return {**given, "settings": settings}


def _check_list(path: Path, key: str, value: Any) -> None:
    if not isinstance(value, list) or (not value and not key.endswith("methods")):
        raise UserError(f"{path}: {key}: {value!r} is not allowed; allowed: a list of at least one")
