"""Invented results, as the evaluate stage writes them, and ledgers of them."""

from pathlib import Path
from typing import Any

import pandas as pd

from instant_soup.reports import ledger

LAYERS = [f"bert.encoder.layer.{i}" for i in range(6)]


def result(method: str = "isp", value: float = 0.8, **changes: Any) -> dict[str, Any]:
    """A result as the evaluate stage writes it, with `changes` to its top-level entries."""
    metric = changes.get("metric", "accuracy")
    dense = method == "dense"
    cost: dict[str, float] = {"steps": 220, "search_steps": 0 if method != "isp" else 110}
    cost |= {"flops": 1.2e13 if method != "isp" else 1.8e13, "sparse_flops": 9e12, "seconds": 88.2}
    cost |= {"peak_memory": 3 * 2**29}
    return {
        "family": "bert",
        "model": "minilm",
        "dataset": "reviews",
        "method": method,
        "target_sparsity": 0.0 if dense else 0.7,
        "seed": 0,
        "preset": "quick",
        "variant": "",
        "metric": metric,
        "test": {metric: value},
        "sparsity": 0.0 if dense else 0.7,
        "layer_sparsity": [{"name": n, "sparsity": 0.0 if dense else 0.7} for n in LAYERS],
        "matrix_sparsity": [
            {"name": f"{layer}.{kind}.weight", "sparsity": 0.0 if dense else 0.6 + 0.05 * i}
            for i, layer in enumerate(LAYERS)
            for kind in ("attention.self.query", "output.dense")
        ],
        "overlap_one_shot": None if dense else 0.97,
        "cost": cost,
        "precision": "bf16",
        **changes,
    }


def of_seeds(method: str, *values: float, **changes: Any) -> list[dict[str, Any]]:
    """A method's results with seeds 0, 1, …"""
    return [result(method, value, seed=seed, **changes) for seed, value in enumerate(values)]


def ledger_of(folder: Path, *results: dict[str, Any]) -> pd.DataFrame:
    return ledger.merge_ledger(folder / "results.csv", list(results), "v1")


def cells_of(table: str, row: str) -> list[str]:
    """The cells of a Markdown table's row, without its name."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    return next(line[1:] for line in lines if line[0] == row)
