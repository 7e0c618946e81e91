"""Results → reports: ledger, tables, figures, page; then everything recorded goes to MLflow."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from instant_soup.files import project_root, read_yaml, write_json
from instant_soup.pipeline import tracking
from instant_soup.pipeline.processes import run_stage
from instant_soup.reports import (
    ablations,
    dense_soups,
    equal_cost,
    essential_sparsity,
    figures,
    head_to_head,
    ledger,
    methods,
    page,
    paper,
    pareto,
    verdict,
    verdict_figures,
)
from instant_soup.reports.results import terminal_table, write_tables

REPORTS = Path("reports")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", action="store_true", help="only print this run's table")
    show_only = parser.parse_args().show
    results = ledger.read_results(REPORTS / "results", methods_of_this_run())
    if show_only:
        return terminal_table(results)

    with tracking.stage_run("tables", {}, {}, closes_parent=True) as run:
        experiments = ledger.results_of_experiments(project_root())
        ledger_csv = REPORTS / "results.csv"
        every = ledger.merge_ledger(ledger_csv, [*experiments, *results], "unknown")
        runs = ledger.of_newest_base(every)
        for model, rows in every.drop(runs.index).groupby("model"):
            print(
                f"{ledger_csv}: {len(rows)} rows of {model} began at other pre-trained weights and "
                "are in no table (docs/design.md, Known limits)"
            )
        written = write_tables(REPORTS / "tables", runs)
        written += paper.write_tables(REPORTS / "tables", runs)
        written += head_to_head.write_tables(REPORTS / "tables", runs)
        written += methods.write_tables(REPORTS / "tables", runs)
        written += ablations.write_tables(REPORTS / "tables", runs)
        written += dense_soups.write_tables(REPORTS / "tables", runs)
        written += essential_sparsity.write_tables(REPORTS / "tables", runs)
        written += verdict.write_tables(REPORTS / "tables", every)
        written += equal_cost.write_tables(REPORTS / "tables", every)
        written += draw_figures(results, runs)
        written += verdict_figures.draw(every, REPORTS / "figures")
        written += pareto.draw(every, REPORTS / "figures")
        for path in written:
            run.artifact(path, folder=path.parent.name)
        run.artifact(page.write_page(REPORTS / "index.html", runs, results, REPORTS / "figures"))
        run.artifact(ledger_csv)
        reported = ledger.with_zero_shot(results)
        metrics = {result["method"]: metrics_of(result) for result in reported}
        write_json(REPORTS / "metrics.json", metrics)
        run.summary(**{f"{m}/{k}": v for m, values in metrics.items() for k, v in values.items()})
    terminal_table(results)
    try:
        tracking.flush()
    except Exception as error:  # MLflow mirrors results, it does not own them
        print(f"warning: MLflow is behind (`make ui` tries again): {error}", file=sys.stderr)


def methods_of_this_run() -> list[str]:
    """The plan's methods; in a clone that has run nothing, those of the committed results."""
    plan = Path("models/plan/tables.yaml")
    finished = sorted(path.stem for path in (REPORTS / "results").glob("*.json"))
    if not plan.exists():
        return finished
    methods = read_yaml(plan)["methods"]
    for method in set(methods) - set(finished):
        print(f"warning: no result of {method} yet: `dvc repro`", file=sys.stderr)
    return [method for method in methods if method in finished]


def metrics_of(result: dict) -> dict[str, float]:
    """What `dvc metrics show` and `dvc exp show` tell of a method: test scores and cost."""
    cost = result["cost"]
    return {
        **result["test"],
        "sparsity": result["sparsity"],
        "steps": cost["steps"] + cost["search_steps"],
        "tera_flops": cost["flops"] / 1e12,
        "seconds": cost["seconds"],
    }


def draw_figures(results: list[dict], runs: pd.DataFrame) -> list[Path]:
    """All figures of this run and of the ledger, and the data of DVC's own plots."""
    folder = REPORTS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in figures.OF_LEDGER:
        getattr(figures, name.removesuffix(".png"))(runs, folder / name)
    if not results:  # a grid's repository may have run nothing itself
        return [folder / name for name in figures.OF_LEDGER]
    metric = results[0]["metric"]
    curves = {r["method"]: pd.read_csv(REPORTS / "curves" / f"{r['method']}.csv") for r in results}
    rounds: list[dict] = next((r["rounds"] for r in results if r["method"] == "isp"), [])
    labelled = [curve.assign(method=method) for method, curve in curves.items()]
    pd.concat(labelled).to_csv(REPORTS / "curves.csv", index=False)
    pd.DataFrame(rounds).to_csv(REPORTS / "isp_rounds.csv", index=False)
    figures.training_curves(curves, metric, folder / "training_curves.png")
    figures.isp_rounds(rounds, metric, folder / "isp_rounds.png")
    figures.layer_sparsity(results, folder / "layer_sparsity.png")
    figures.matrix_density(results, folder / "matrix_density.png")
    return [folder / name for name in (*figures.OF_LEDGER, *figures.OF_RUN)]


if __name__ == "__main__":
    run_stage(main)
