"""Run a grid: every cell that has no results yet, as a DVC experiment of its own.

    python -m instant_soup.grids.command grids/quick.yaml --jobs 2

A cell is one combination of the grid's settings. Cells that share work make a lane, and come one
after another; lanes run side by side, here or on a Ray cluster. In the end all tables are made.
docs/grids.md explains lanes, and says what a grid costs.
"""

import argparse
import sys
from pathlib import Path

from instant_soup.errors import UserError
from instant_soup.files import project_root
from instant_soup.grids.cells import Cell, Identity, known_results, lanes_of, read_cells
from instant_soup.grids.commits import committed_values, uncommitted_values
from instant_soup.grids.runner import Runner, make_tables, only_grid, run_all
from instant_soup.pipeline.processes import run_stage, take_signals
from instant_soup.training.cost import processor


def other_processors(todo: list[Cell], known: dict[Identity, set[str]]) -> str:
    """A warning where rows to run would stand beside ones from another processor, or nothing."""
    beside = [known[row] for cell in todo for row in cell.rows.values() if row in known]
    others = set().union(*(ran_on for ran_on in beside if processor() not in ran_on))
    if not others:
        return ""
    return (
        "warning: these cells have rows from another processor "
        f"({'; '.join(sorted(name or 'unknown' for name in others))}) than this one "
        f"({processor()}), and tables compare rows of one: --here runs them on this one, too"
    )


def run_here(root: Path) -> dict[Identity, set[str]]:
    """The known results that this kind of processor has made."""
    known = known_results(root).items()
    return {row: {processor()} for row, ran_on in known if processor() in ran_on}


def from_elsewhere(cells: list[Cell], known: dict[Identity, set[str]]) -> list[tuple[Cell, str]]:
    """Of cells that were run those with rows that this processor has not made, and what to do."""
    left = [(cell, cell.without(known).to_run) for cell in cells]
    return [
        (
            cell,
            f"{', '.join(rows)}: DVC's cache had another processor's run; allowed with --here: a "
            "cache without it, such as a new folder (dvc cache dir --local FOLDER)",
        )
        for cell, rows in left
        if rows
    ]


def runner_of(root: Path, options: argparse.Namespace, lanes: int) -> tuple[Runner, int]:
    """What runs the cells, here or on a Ray cluster, and how many lanes at a time."""
    if not options.ray or not lanes:
        jobs = options.jobs or 1
        return Runner(root, jobs), jobs
    from instant_soup.grids.ray import RayRunner

    jobs = options.jobs or lanes
    return RayRunner(
        root, jobs, options.ray, options.remote, options.cpus or 1, options.gpus or 0
    ), jobs


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m instant_soup.grids.command",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grid", type=Path, help="YAML file, such as grids/quick.yaml")
    parser.add_argument("--jobs", type=int, help="lanes side by side (default 1; with --ray all)")
    parser.add_argument("--only", default="", help="run only cells with this text in their names")
    parser.add_argument("--again", action="store_true", help="also run cells that have results")
    parser.add_argument(
        "--here", action="store_true", help="also run rows that only another processor has run"
    )
    parser.add_argument("--dry-run", action="store_true", help="only list the cells")
    ray = parser.add_argument_group("on many machines (docs/grids.md)")
    ray.add_argument("--ray", metavar="ADDRESS", help="run cells on this Ray cluster (auto, …)")
    ray.add_argument("--remote", help="a folder that all nodes see, or a DVC remote's URL or name")
    ray.add_argument("--cpus", type=float, help="CPUs of a node that a cell takes (default 1)")
    ray.add_argument("--gpus", type=float, help="GPUs of a node that a cell takes (default 0)")
    options = parser.parse_args()
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs: {options.jobs} is not allowed; allowed: a whole number from 1")
    if options.ray and not options.remote:
        raise UserError(
            "--remote: missing; allowed with --ray: a folder, a DVC remote's URL or name"
        )
    for name in ("remote", "cpus", "gpus"):
        if getattr(options, name) is not None and not options.ray:
            raise UserError(f"--{name}: only with --ray")

    root = project_root().resolve()
    if uncommitted := uncommitted_values(root):
        print(uncommitted, file=sys.stderr)
    cells = read_cells(options.grid, committed_values(root))
    chosen = [cell for cell in cells if options.only in cell.name]
    if not chosen:
        raise UserError(f"--only: no cell has {options.only!r} in its name, as {cells[0].name} has")
    known = {} if options.again else run_here(root) if options.here else known_results(root)
    chosen = [cell.without(known) for cell in chosen]
    todo = [cell for cell in chosen if cell.to_run]
    if options.dry_run:
        for cell in chosen:
            print(
                f"to do  {cell.name}: {', '.join(cell.to_run)}"
                if cell.to_run
                else f"done   {cell.name}"
            )
    rows = sum(len(cell.to_run) for cell in todo)
    print(f"{options.grid}: {len(chosen)} cells, {len(todo)} to do with {rows} rows", flush=True)
    if todo and (warning := other_processors(todo, known)):
        print(warning, file=sys.stderr)
    if options.dry_run:
        return

    take_signals()
    failed: list[tuple[Cell, str]] = []
    try:
        with only_grid(root):
            runner, jobs = runner_of(root, options, len(lanes_of(todo)))
            take_signals()  # Ray has taken SIGTERM for itself
            failed = run_all(runner, todo, jobs) if todo else []
            if options.here:
                broken = [cell for cell, _ in failed]
                failed += from_elsewhere([c for c in todo if c not in broken], run_here(root))
            runner.logs.mkdir(parents=True, exist_ok=True)
            trouble = make_tables(root, runner.logs / "tables.log")
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    for cell, reason in failed:
        print(f"failed: {cell.name}: {reason} (log: {runner.log(cell)})", file=sys.stderr)
    if trouble:
        print(trouble, file=sys.stderr)
    if failed or trouble:
        sys.exit(1)
    print("all cells done; tables: reports/tables/results.md")


if __name__ == "__main__":
    run_stage(main)
