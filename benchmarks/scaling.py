"""Time against model size, batch size and number of denoisers; report.py draws it.

Random weights but for the packaged model; about five minutes on two cores.

    python benchmarks/scaling.py
"""

import contextlib
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import shapes
import yaml
from common import prepare, recipe_of, record, run_stage, step_times

from instant_soup.config.sections import Recipe
from instant_soup.pipeline.workspace import START, load_start
from instant_soup.sparsity import masks

NETWORKS = ((2, 128), (4, 256), (6, 384), (8, 512), (12, 768))  # layers, width
BATCH_SIZES = (8, 16, 32, 64, 128)
DENOISERS = 4
TOKENS, ROWS = 64, 1024  # of every text, so that batches are alike; trained on for a batch size


def prepared(folder: Path, model: str) -> Recipe:
    """A folder with texts of one length; its settings of training."""
    texts = shapes.long_texts(folder / "texts", 4096)
    return recipe_of(prepare(folder, model=model, dataset=f"local:{texts}", data={
        "max_length": TOKENS, "train_rows": 3500, "validation_rows": 64, "test_rows": 64,
    }))  # fmt: skip


def step_seconds(recipe: Recipe, steps: int) -> tuple[int, float]:
    """Number of prunable weights, and mean wall seconds of a training step, here."""
    state, mask = load_start(START)
    return masks.count(mask)[1], statistics.mean(step_times(recipe, state, mask, steps))


def round_seconds(folder: Path, denoisers: int) -> float:
    """Wall seconds of all denoisers of round 0, of which none is known, and of their soup."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["isp"]["denoisers"] = denoisers
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    run_stage(folder, "plan")
    shutil.rmtree(folder / ".dvc", ignore_errors=True)  # the store keeps weak masks
    return sum(run_stage(folder, stage, "--round", 0) for stage in ("weak_mask", "mask_soup"))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel for each kind of row."""
    from matplotlib.figure import Figure

    panels = {
        "model size": (
            f"prunable weights (M), 32 × {TOKENS} tokens",
            "seconds a step",
            "log",
            "log",
        ),
        "batch size": (
            f"texts of {TOKENS} tokens a batch, MiniLM",
            "texts a second",
            "log",
            "linear",
        ),
        "denoisers": (
            "denoisers N of the first round, MiniLM",
            "seconds of the round",
            "linear",
            "linear",
        ),
    }
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels_drawn = zip(figure.subplots(1, 3), panels.items(), strict=True)
    for axis, (what, (x_label, y_label, x_scale, y_scale)) in panels_drawn:
        own = [row for row in rows if row["what"] == what]
        x, y = [row["x"] for row in own], [row["y"] for row in own]
        axis.plot(x, y, marker="o", color="#b04a00")
        axis.set(xlabel=x_label, ylabel=y_label, xscale=x_scale, yscale=y_scale)
        if y_scale == "linear":
            axis.set_ylim(0, 1.1 * max(y))
        axis.set_xticks(x, [f"{value:.3g}" for value in x])
        axis.set_xticks([], minor=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main() -> None:
    rows: list[dict[str, Any]] = []
    for layers, width in NETWORKS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = shapes.bert_folder(folder / "model", layers, width)
            recipe = prepared(folder, f"local:{model}")
            with contextlib.chdir(folder):
                weights, own = step_seconds(recipe, 8)
        rows.append({"what": "model size", "x": weights / 1e6, "y": own})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = prepared(folder, "minilm")
        with contextlib.chdir(folder):
            for batch_size in BATCH_SIZES:
                own_recipe = replace(recipe, batch_size=batch_size)
                _, own = step_seconds(own_recipe, ROWS // batch_size)
                rows.append({"what": "batch size", "x": batch_size, "y": batch_size / own})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        training = run_stage(folder, "calibrate", "--round", 0)
        for n in range(1, DENOISERS + 1):
            rows.append({"what": "denoisers", "x": n, "y": training + round_seconds(folder, n)})
    record("scaling", rows)


if __name__ == "__main__":
    main()
