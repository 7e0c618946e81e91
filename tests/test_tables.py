"""Ledger, tables and figures, on invented results."""

import json
import multiprocessing
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instant_soup import figures, tables
from instant_soup.files import UserError

LAYERS = [f"bert.encoder.layer.{i}" for i in range(6)]


def result(method: str = "isp", value: float = 0.8, **changes: Any) -> dict[str, Any]:
    """A result as the evaluate stage writes it, with `changes` to its top-level entries."""
    metric = changes.get("metric", "accuracy")
    dense = method == "dense"
    cost: dict[str, float] = {"steps": 220, "look_ahead_steps": 0 if method != "isp" else 110}
    cost |= {"flops": 1.2e13 if method != "isp" else 1.8e13, "sparse_flops": 9e12, "seconds": 88.2}
    return {
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
        "overlap_one_shot": None if dense else 0.97,
        "cost": cost,
        "precision": "bf16",
        **changes,
    }


def ledger_of(folder: Path, *results: dict[str, Any]) -> pd.DataFrame:
    return tables.merge_ledger(folder / "results.csv", list(results), "v1")


def cells_of(table: str, row: str) -> list[str]:
    """The cells of a Markdown table's row, without its name."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    return next(line[1:] for line in lines if line[0] == row)


# Ledger


RESULTS = st.lists(
    st.builds(
        lambda method, value, seed, sparsity, variant: result(
            method, value, seed=seed, target_sparsity=sparsity, variant=variant
        ),
        st.sampled_from(["dense", "random", "isp"]),
        st.floats(0, 1),
        st.integers(0, 2),
        st.sampled_from([0.5, 0.29, 0.7]),
        st.sampled_from(["", "isp.combine=vote", 'data.rows=[1,2] "a", b']),
    ),
    max_size=12,
)


def key_of(one: dict[str, Any]) -> tuple:
    return tuple(one[k] for k in tables.KEY)


@settings(max_examples=40, deadline=None)
@given(first=RESULTS, second=RESULTS)
def test_merging_loses_nothing_and_repeats_nothing(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("ledger") / "results.csv"
    tables.merge_ledger(path, first, "v1")
    ledger = tables.merge_ledger(path, second, "v2")
    wanted = {key_of(r): r["test"]["accuracy"] for r in first + second}
    found = {tuple(row[k] for k in tables.KEY): row["value"] for row in ledger.to_dict("records")}
    assert found == wanted and len(ledger) == len(wanted)  # every digit of the values, too
    before = path.read_bytes()
    again = tables.merge_ledger(path, [], "v3")
    pd.testing.assert_frame_equal(again, tables.read_ledger(path))
    tables.merge_ledger(path, second[::-1][:1], "v2")  # the last one is what is there already
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["results.csv"]


def test_ledger_order_does_not_depend_on_arrival(tmp_path):
    some = [result(m, seed=s) for m in ("isp", "dense", "random") for s in (10, 9, 1)]
    tables.merge_ledger(tmp_path / "a.csv", some, "v1")
    for one in reversed(some):
        tables.merge_ledger(tmp_path / "b.csv", [one], "v1")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_ledger_keeps_old_rows_on_request_and_columns_it_does_not_know(tmp_path):
    path = tmp_path / "results.csv"
    tables.merge_ledger(path, [result(value=0.5)], "v1")
    header, row = path.read_text().splitlines()
    path.write_text(f"{header},remark\n{row},by hand\n")
    kept = tables.merge_ledger(path, [result(value=0.6), result(seed=1)], "v2", replace=False)
    assert list(kept["value"]) == [0.5, 0.8]
    assert list(kept["remark"]) == ["by hand", ""]
    assert list(kept["code_version"]) == ["v1", "v2"]


def test_ledger_with_git_conflict_is_refused(tmp_path):
    path = tmp_path / "results.csv"
    ledger_of(tmp_path, result())
    path.write_text(path.read_text() + "<<<<<<< HEAD\n")
    with pytest.raises(UserError, match="not a ledger"):
        ledger_of(tmp_path, result(seed=1))
    assert path.read_text().endswith("<<<<<<< HEAD\n")


def merge_many(path: Path, seeds: range) -> None:
    for seed in seeds:
        tables.merge_ledger(path, [result(seed=seed)], "v1")


def test_four_processes_at_once_lose_nothing(tmp_path):
    path = tmp_path / "results.csv"
    context = multiprocessing.get_context("fork")
    starts = range(0, 100, 25)
    workers = [
        context.Process(target=merge_many, args=(path, range(s, s + 25))) for s in starts
    ]  # fmt: skip
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert list(tables.read_ledger(path)["seed"]) == list(range(100))
    assert os.listdir(tmp_path) == ["results.csv"]


# Results


def test_read_results_names_a_damaged_file(tmp_path):
    (tmp_path / "isp.json").write_text(json.dumps(result()))
    (tmp_path / "dense.json").write_text('{"method": "dense"}')
    assert tables.read_results(tmp_path, ["isp"])[0]["method"] == "isp"
    with pytest.raises(UserError, match=r"dense\.json: not a result file \(model"):
        tables.read_results(tmp_path, ["isp", "dense"])
    with pytest.raises(UserError, match=r"snip\.json"):
        tables.read_results(tmp_path, ["snip"])


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(root), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_results_of_experiments(tmp_path, capsys):
    assert tables.results_of_experiments(tmp_path / "nowhere") == []
    git(tmp_path, "init", "-q")
    assert tables.results_of_experiments(tmp_path) == []
    folder = tmp_path / "reports/results"
    folder.mkdir(parents=True)

    def commit(**files: str) -> str:
        for name, text in files.items():
            (folder / f"{name}.json").write_text(text)
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
        return git(tmp_path, "rev-parse", "HEAD")

    base = commit(dense=json.dumps(result("dense")))
    place = f"refs/exps/{base[:2]}/{base[2:]}"
    first = commit(isp=json.dumps(result(seed=1)), broken="{not json", other='{"a": 1}')
    git(tmp_path, "update-ref", f"{place}/brave-soup", first)
    second = commit(isp=json.dumps(result(seed=2)))
    git(tmp_path, "update-ref", f"{place}/calm-soup", second)
    stray = commit(isp=json.dumps(result(seed=3)))
    for ref in ("stash", "exec/EXEC_HEAD", "celery/stash", "apply/ORIG_HEAD"):
        git(tmp_path, "update-ref", f"refs/exps/{ref}", stray)

    found = tables.results_of_experiments(tmp_path)
    assert sorted((r["method"], r["seed"]) for r in found) == [
        ("dense", 0), ("isp", 1), ("isp", 2),
    ]  # fmt: skip
    assert {r["code_version"] for r in found} == {base[:12]}
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert any("calm-soup:reports/results/broken.json: skipped" in line for line in warnings)


# Tables


def test_mean_and_standard_deviation(tmp_path):
    values = [0.80, 0.82, 0.84]
    runs = [result(value=v, seed=s) for s, v in enumerate(values)]
    table = tables.results_table(ledger_of(tmp_path, *runs))
    assert cells_of(table, "ISP") == ["82.00 ± 2.00"]
    assert "(n = 3)" in table and "error bar" not in table


def test_missing_cells_dense_row_variants_and_order(tmp_path):
    table = tables.results_table(
        ledger_of(
            tmp_path,
            result("snip", 0.7),
            result("isp", 0.8, variant="isp.combine=vote"),
            result("isp", 0.81),
            result("isp", 0.83, target_sparsity=0.5),
            result("one_shot", 0.75),
            result("one_shot", 0.77, seed=1),
            result("dense", 0.9),
        )
    )
    assert "| method | 50 % sparse | 70 % sparse |" in table
    assert cells_of(table, "Dense") == ["90.00 (n = 1)"] * 2
    assert cells_of(table, "One-shot") == ["–", "76.00 ± 1.41 (n = 2)"]
    assert cells_of(table, "ISP") == ["83.00 (n = 1)", "**81.00 (n = 1)**"]
    assert cells_of(table, "ISP (isp.combine=vote)") == ["–", "80.00 (n = 1)"]
    rows = re.findall(r"^\| (\w[^|]*) \| [^-]", table, flags=re.M)[1:]
    assert rows == ["Dense", "One-shot", "ISP", "ISP (isp.combine=vote)", "snip"]
    assert "Single runs (n = 1) carry no error bar" in table


def test_bold_is_the_best_sparse_method_with_a_competitor(tmp_path):
    runs = [result("dense", 0.9), result("isp", 0.8)]
    alone = tables.results_table(ledger_of(tmp_path, *runs))
    assert "**" not in alone and "Bold" not in alone
    tie = tables.results_table(ledger_of(tmp_path, result("random", 0.8)))
    assert cells_of(tie, "ISP") == cells_of(tie, "Random") == ["**80.00**"]
    beaten = tables.results_table(ledger_of(tmp_path, result("one_shot", 0.81)))
    assert beaten.count("**") == 2 and cells_of(beaten, "One-shot") == ["**81.00**"]


def test_sections_units_and_a_diverged_run(tmp_path):
    ledger = ledger_of(
        tmp_path,
        result(value=0.7, dataset="rating", metric="pearson"),
        result(value=1.25, dataset="text", metric="perplexity"),
        result(value=float("nan"), dataset="x"),
        result(value=0.5, dataset="x", seed=1),
    )
    table = tables.results_table(ledger)
    assert table.count("\n## ") == 3
    assert "Test pearson (%)" in table and "| ISP | 70.00 |" in table
    assert "Test perplexity," in table and "| ISP | 1.25 |" in table
    assert "| ISP | nan ± nan |" in table


def test_cost_is_relative_to_dense_of_the_same_seed_and_training(tmp_path):
    longer = {"steps": 440, "look_ahead_steps": 0, "flops": 2.4e13}
    longer |= {"sparse_flops": 2.4e13, "seconds": 1.0}
    ledger = ledger_of(
        tmp_path,
        result("dense"),
        result("dense", variant="training.epochs=4", cost=longer),
        result("isp", variant="isp.combine=vote"),
        result("isp", variant="training.epochs=4 isp.combine=vote"),
        result("isp", seed=1),
    )
    table = tables.cost_table(ledger)
    assert "training FLOPs (TFLOP)" in table
    common = ["70 %", "220", "110", "18.0", "9.00", "88.2"]
    assert cells_of(table, "ISP (isp.combine=vote)") == [*common, "1.50", "1.50", "1"]
    both = cells_of(table, "ISP (training.epochs=4 isp.combine=vote)")
    assert both == [*common, "0.75", "0.75", "1"]
    assert cells_of(table, "ISP") == [*common, "–", "–", "1"]


def test_written_tables(tmp_path):
    written = tables.write_tables(tmp_path / "tables", ledger_of(tmp_path, result(value=1 / 3)))
    assert [p.name for p in written] == ["results.md", "results.csv", "cost.md", "cost.csv"]
    assert ",0.3333333333333333," in written[1].read_text()
    empty = tables.write_tables(tmp_path / "empty", tables.merge_ledger(tmp_path / "e", [], "v"))
    assert "No results yet" in empty[0].read_text()


def test_terminal_table_without_terminal(capsys):
    long_variant = "training.learning_rate=0.0001 isp.learning_rate_range=[0.00001,0.0005] " * 2
    tables.terminal_table([result("isp"), result("dense"), result("isp", variant=long_variant)])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100 and "\x1b" not in shown
    assert re.search(r"ISP +│ +70\.00 % │ +80\.00 │ +330 │ +1\.50 │ +88\.2", shown)
    assert shown.index("Dense") < shown.index("ISP") and "reports/tables/results.md" in shown


# Figures


def curve(steps: int, prunings: int) -> pd.DataFrame:
    """A curve that falls, with the validation metric at every tenth step."""
    step = np.arange(1, steps + 1)
    return pd.DataFrame(
        {
            "step": step,
            "train_loss": np.where(step == 3, np.nan, np.exp(-step / steps)),
            "validation": np.where(step % 10 == 0, step / steps, np.nan),
            "sparsity": np.minimum(step * 2 // 3, prunings) / 10,
        }
    )


def rounds(count: int) -> list[dict[str, Any]]:
    return [
        {"round": i, "sparsity": 0.1 * (i + 1), "steps": 6, "before": {"pearson": 0.8},
         "after": 0.7, "agreement": 0.9 if i else None}
        for i in range(count)
    ]  # fmt: skip


def assert_picture(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
        assert "Software" not in picture.info
    assert path.stat().st_size > 3000


@pytest.mark.parametrize("curves", [
    {"dense": curve(60, 0), "isp": curve(60, 4), "snip": curve(60, 0)},
    {"isp": curve(4, 9)},
])  # fmt: skip
def test_training_curves(tmp_path, curves):
    figures.training_curves(curves, "accuracy", tmp_path / "a.png")
    assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize("count", [1, 9])
def test_isp_rounds(tmp_path, count):
    figures.isp_rounds(rounds(count), "pearson", tmp_path / "a.png")
    assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize("methods", [["dense"], ["isp"], ["dense", "random", "isp", "new"]])
def test_layer_sparsity(tmp_path, methods):
    figures.layer_sparsity([result(m) for m in methods], tmp_path / "a.png")
    assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize("runs", [
    [],
    [result("dense")],
    [result(value=0.7, metric="pearson")],
    [result(m, dataset=f"d{i}", seed=s) for m in ("dense", "isp") for i in range(4) for s in (0, 1)]
    + [result("isp", variant="isp.combine=vote"), result("isp", target_sparsity=0.5)],
])  # fmt: skip
def test_accuracy_vs_sparsity(tmp_path, runs):
    ledger = ledger_of(tmp_path, *runs)
    for name in ("a.png", "b.png"):
        figures.accuracy_vs_sparsity(ledger, tmp_path / name)
    assert_picture(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
