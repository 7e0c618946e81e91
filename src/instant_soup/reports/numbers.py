"""The numbers of a run that DVC shows: `dvc exp show`, `dvc metrics show`, `dvc plots show`."""

from pathlib import Path

import pandas as pd

from instant_soup.files import write_json
from instant_soup.reports import ledger
from instant_soup.reports.results import write_texts


def write(reports: Path, results: list[dict]) -> dict[str, pd.DataFrame]:
    """Write metrics and the data of plots.

    Args:
        reports: The folder of reports, with the results' curves.
        results: The results that count.

    Returns:
        Method → curve.
    """
    write_json(reports / "metrics.json", metrics_of_run(results))
    curves = {r["method"]: pd.read_csv(reports / "curves" / f"{r['method']}.csv") for r in results}
    if curves:
        labelled = [curve.assign(method=method) for method, curve in curves.items()]
        numbers = {"curves": pd.concat(labelled), "isp_rounds": pd.DataFrame(rounds_of(results))}
        texts = {f"{name}.csv": table.to_csv(index=False) for name, table in numbers.items()}
        write_texts(reports, texts)
    return curves


def metrics_of_run(results: list[dict]) -> dict[str, dict[str, float]]:
    """Method → what metrics.json and MLflow say of it."""
    return {result["method"]: metrics_of(result) for result in ledger.with_zero_shot(results)}


def metrics_of(result: dict) -> dict[str, float]:
    """Test scores and cost of a method."""
    cost = result["cost"]
    return {
        **result["test"],
        "sparsity": result["sparsity"],
        "steps": cost["steps"] + cost["search_steps"],
        "tera_flops": cost["flops"] / 1e12,
        "seconds": cost["seconds"],
    }


def rounds_of(results: list[dict]) -> list[dict]:
    """The records of ISP's rounds; none in a run without them."""
    return next((r["rounds"] for r in results if r["method"] == "isp"), [])
