"""Pre-training and sparsity: near-zero weights on the way, and essential sparsity after it.

Pre-trains clip-glyph's architecture on glyphs with captions (self-supervised) and with classes
(supervised), anew for each seed; follows the share of near-zero weights in the image tower; and
fine-tunes each on MNIST digits at one-shot sparsities from 0 to 90 % (arXiv 2306.03805). Finished
parts are in the CSV files, and the same command goes on from there. All of it is in fp32, so that
the kind of machine matters less. Some 25 minutes for each objective and seed on one slow core.

    python studies/pretraining.py
"""

import argparse
import contextlib
import csv
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from common import ROOT, Bare, prepare

from instant_soup.config.fields import make
from instant_soup.config.sections import Pretraining
from instant_soup.files import new_file, read_json
from instant_soup.methods.base import Method
from instant_soup.methods.dense import Dense
from instant_soup.methods.one_shot import OneShot
from instant_soup.models.matrices import NEAR_ZERO
from instant_soup.pipeline.stage_files import TrainStage
from instant_soup.pipeline.tracking import stage_run
from instant_soup.pretraining import clip_glyph
from instant_soup.reports.essential_sparsity import knee_over_seeds
from instant_soup.reports.marks import seeds_cell
from instant_soup.reports.render import Cell, Chapter, Table, markdown
from instant_soup.training.checkpoints import pipeline_store

FOLDER = ROOT / "reports/studies"
WEIGHTS, CURVES = FOLDER / "pretraining_weights.csv", FOLDER / "pretraining_curves.csv"
MODELS = ROOT / "models/studies"
SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
OBJECTIVES = ("contrastive", "supervised")
FP32 = {"precision": "fp32"}
TEXT = (
    "clip-glyph's architecture pre-trained on glyphs with captions (contrastive) and with classes "
    "(supervised), anew for each seed, then pruned at once by magnitude and fine-tuned on MNIST "
    "digits: test accuracy (%), mean ± sample standard deviation over seeds. Essential sparsity: "
    "up to which the mean stays within one point of dense; in brackets, the seeds' own range. "
    f"Near zero: the share of the image tower's prunable weights with |w| < {NEAR_ZERO}, after the "
    "first and the last steps of pre-training. All in fp32, by `python studies/pretraining.py`."
)


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a CSV file, which appears with the first."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def rows_of(path: Path, where: dict[str, Any]) -> pd.DataFrame:
    """The rows of a CSV file with these values."""
    if not path.exists():
        return pd.DataFrame(columns=[*where, "sparsity"])
    known = pd.read_csv(path)
    return known[(known[list(where)] == pd.Series(where)).all(axis=1)]


def pretrained(where: dict[str, Any]) -> Path:
    """A folder with the pre-trained model; made if it is not there, its curve added to WEIGHTS."""
    objective, steps, seed = where.values()
    folder = MODELS / f"{objective}_{steps}_{seed}"
    if folder.exists():
        return folder
    given = {"objective": objective, "steps": steps, "seed": seed, **FP32}
    settings = make(Pretraining, given, "clip", "quick")
    model_config, store = read_json(clip_glyph.MODEL_CONFIG), pipeline_store()
    with stage_run(f"study: {objective} {steps} {seed}", asdict(settings), {}) as run:
        state, curve = clip_glyph.pretrain(model_config, settings, run, store)
    clip_glyph.save_model(folder, model_config, state, curve)
    store.forget()
    if rows_of(WEIGHTS, where).empty:
        append(WEIGHTS, [{**where, **row} for row in curve])
    return folder


def fine_tuned(sparsity: float) -> dict[str, float]:
    """One-shot pruning and fine-tuning in the prepared folder here; validation and test score."""
    run = Bare(TrainStage.read("models/plan/dense.yaml").recipe)
    method: Method = OneShot() if sparsity else Dense()
    method.run(run, sparsity)
    return {split: run.score_on(split) for split in ("validation", "test")}


def report() -> None:
    """Write reports/studies/pretraining.md and .png from the CSV files."""
    rows = []
    weights = pd.read_csv(WEIGHTS)
    for (objective, steps), own in pd.read_csv(CURVES).groupby(["objective", "steps_of_run"]):
        wide = own.pivot(index="seed", columns="sparsity", values="test")
        wide = wide.reindex(columns=SPARSITIES).dropna()  # the seeds that are through
        if wide.empty:
            continue
        dense, sparse = wide[0.0].to_numpy(), wide[list(SPARSITIES[1:])].to_numpy()
        middle, low, high = knee_over_seeds(list(SPARSITIES[1:]), sparse, dense)
        knee = f"{100 * middle:.0f}" + (f" ({100 * low:.0f} … {100 * high:.0f})" if low > 0 else "")
        curve = weights[(weights["objective"] == objective) & (weights["steps_of_run"] == steps)]
        shares = 100 * curve.groupby("step")["near_zero"].mean()
        cells = [seeds_cell(wide[sparsity], None, "accuracy") for sparsity in SPARSITIES]
        cells += [Cell(knee), Cell(f"{shares.iloc[0]:.1f} → {shares.iloc[-1]:.1f}")]
        rows.append((f"{objective}, {steps} steps", cells))
    columns = [("", f"{100 * sparsity:.0f} %") for sparsity in SPARSITIES]
    columns += [("", "essential sparsity (%)"), ("", "near zero (%)")]
    chapter = Chapter("Pre-training", TEXT, [Table("By objective", columns, rows, "", "objective")])
    picture = "![Near-zero weights over pre-training; accuracy over sparsity](pretraining.png)"
    with new_file(CURVES.with_name("pretraining.md")) as unfinished:
        unfinished.write_text(f"{markdown([chapter])}\n{picture}\n")
    plot(CURVES.with_name("pretraining.png"))


def plot(path: Path) -> None:
    """Left: near-zero weights over pre-training. Right: fine-tuned accuracy over sparsity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (objective, steps), own in pd.read_csv(WEIGHTS).groupby(["objective", "steps_of_run"]):
        wide = 100 * own.pivot(index="seed", columns="step", values="near_zero")
        label = f"{objective}, {steps} steps"
        mean, spread = wide.mean(), wide.std()
        left.plot(wide.columns, mean, label=label)
        left.fill_between(wide.columns, mean - spread, mean + spread, alpha=0.2)
    left.set(xlabel="pre-training step", ylabel=f"weights with |w| < {NEAR_ZERO} (%)")
    curves = pd.read_csv(CURVES)
    for (objective, steps), own in curves.groupby(["objective", "steps_of_run"]):
        wide = 100 * own.pivot(index="seed", columns="sparsity", values="test")
        x, mean = 100 * wide.columns.to_numpy(), wide.mean()
        right.errorbar(x, mean, yerr=wide.std(), capsize=2, label=f"{objective}, {steps} steps")
    right.set(xlabel="one-shot sparsity (%)", ylabel="test accuracy on MNIST digits (%)")
    for axes in (left, right):
        axes.legend(fontsize=8, frameon=False)
        axes.grid(color="#E5E5E5", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    with new_file(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="+", type=int, default=[1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    for seed in options.seeds:
        for steps in options.steps:
            for objective in OBJECTIVES:
                where = {"objective": objective, "steps_of_run": steps, "seed": seed}
                done = set(rows_of(CURVES, where)["sparsity"])
                left = [sparsity for sparsity in SPARSITIES if sparsity not in done]
                if not left:
                    continue
                model = pretrained(where)
                with tempfile.TemporaryDirectory() as folder:
                    changes = {"dataset": "mnist-sample", "seed": seed, "training": FP32}
                    prepare(Path(folder), model=f"local:{model}", **changes)
                    with contextlib.chdir(folder):
                        for sparsity in left:
                            append(
                                CURVES, [{**where, "sparsity": sparsity, **fine_tuned(sparsity)}]
                            )
    report()


if __name__ == "__main__":
    main()
