"""Results → reports: ledger, tables, figures, page; then everything recorded goes to MLflow."""

import argparse
import os
import sys
from pathlib import Path

import pandas as pd

from instant_soup.files import project_root, read_yaml
from instant_soup.pipeline import tracking
from instant_soup.pipeline.processes import run_stage
from instant_soup.reports import (
    figures,
    ledger,
    numbers,
    origins,
    page,
    pareto,
    tables,
    verdict_figures,
)
from instant_soup.reports.results import row_order, terminal_table

REPORTS = Path("reports")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", action="store_true", help="only print this run's table")
    show_only = parser.parse_args().show
    results = ledger.read_results(REPORTS / "results", methods_of_this_run())
    if show_only:
        return terminal_table(results)
    if "DVC_STAGE" not in os.environ:  # `make tables`: nothing has run that MLflow could tell of
        write_reports(results)
        return terminal_table(results)

    with tracking.stage_run("tables", {}, {}, closes_parent=True) as run:
        for path in write_reports(results):
            run.artifact(path, folder="" if path.parent == REPORTS else path.parent.name)
        for method, own in numbers.metrics_of_run(results).items():
            # MLflow's charts put side by side what has the same first part.
            run.summary(**{f"{name}/{method}": value for name, value in own.items()})
    terminal_table(results)
    try:
        tracking.flush()
    except Exception as error:  # MLflow mirrors results, it does not own them
        print(f"warning: MLflow is behind (`make ui` tries again): {error}", file=sys.stderr)


def write_reports(results: list[dict]) -> list[Path]:
    """Write ledger, tables, figures, page and metrics; the files for a reader."""
    ledger_csv = REPORTS / "results.csv"
    experiments = ledger.results_of_experiments(project_root())
    every = ledger.merge_ledger(ledger_csv, [*experiments, *results], "unknown")
    runs = origins.apart_by_origin(every)
    if len(set(runs["model"])) > len(set(every["model"])):
        print(f"{ledger_csv}: runs of other processors or weights have tables of their own")
    chapters = tables.all_chapters(runs, REPORTS / "studies")
    pictures = REPORTS / "figures"
    written = tables.write_tables(REPORTS / "tables", runs, chapters)
    written += draw_figures(results, runs, numbers.write(REPORTS, results))
    written += verdict_figures.draw(runs, pictures)
    written += pareto.draw(runs, pictures)
    written.append(page.write_page(REPORTS / "index.html", runs, results, pictures, chapters))
    return [*written, ledger_csv]


def methods_of_this_run() -> list[str]:
    """The plan's methods; in a clone that has run nothing, those of the committed results.

    In the order of table rows, so that equal results make equal files wherever.
    """
    plan = Path("models/plan/tables.yaml")
    finished = [path.stem for path in (REPORTS / "results").glob("*.json")]
    finished.sort(key=row_order)
    if not plan.exists():
        return finished
    planned = set(read_yaml(plan)["methods"])
    for method in sorted(planned - set(finished), key=row_order):
        print(f"warning: no result of {method} yet: `dvc repro`", file=sys.stderr)
    return [method for method in finished if method in planned]


def draw_figures(
    results: list[dict], runs: pd.DataFrame, curves: dict[str, pd.DataFrame]
) -> list[Path]:
    """All figures of this run and of the ledger."""
    folder = REPORTS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in figures.OF_LEDGER:
        getattr(figures, name.removesuffix(".png"))(runs, folder / name)
    if not results:  # a grid's repository may have run nothing itself
        return [folder / name for name in figures.OF_LEDGER]
    metric = results[0]["metric"]
    figures.training_curves(curves, metric, folder / "training_curves.png")
    figures.isp_rounds(numbers.rounds_of(results), metric, folder / "isp_rounds.png")
    figures.layer_sparsity(results, folder / "layer_sparsity.png")
    figures.matrix_density(results, folder / "matrix_density.png")
    return [folder / name for name in (*figures.OF_LEDGER, *figures.OF_RUN)]


if __name__ == "__main__":
    run_stage(main)
