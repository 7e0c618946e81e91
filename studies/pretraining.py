"""Pre-training and sparsity: near-zero weights on the way, and essential sparsity after it.

Pre-trains clip-glyph's architecture on glyphs with captions (self-supervised) and with classes
(supervised), anew for each seed; follows the share of near-zero weights in the image tower; and
fine-tunes each on MNIST digits at one-shot sparsities from 0 to 90 % (paper, section 9). Finished
parts are in the CSV files, and the same command goes on from there. About an hour on two cores.

    python studies/pretraining.py
"""

import argparse
import contextlib
import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from common import ROOT, prepare

from instant_soup import contrastive, criteria, main_network, masks, metrics, training
from instant_soup.batches import load_split
from instant_soup.essential_sparsity import knee_over_seeds
from instant_soup.files import new_file, read_json, read_yaml
from instant_soup.models import NEAR_ZERO
from instant_soup.presets import PRESETS
from instant_soup.tracking import stage_run

FOLDER = ROOT / "reports/studies"
WEIGHTS, CURVES = FOLDER / "pretraining_weights.csv", FOLDER / "pretraining_curves.csv"
MODELS = ROOT / "models/studies"
SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
OBJECTIVES = ("contrastive", "supervised")


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
    settings = {**PRESETS["clip"]["quick"]["pretraining"], "objective": objective}
    settings |= {"steps": steps, "seed": seed}
    model_config = read_json(contrastive.MODEL_CONFIG)
    with stage_run(f"study: {objective} {steps} {seed}", settings, {}) as run:
        state, curve = contrastive.pretrain(model_config, settings, run)
    contrastive.save_model(folder, model_config, state, curve)
    if rows_of(WEIGHTS, where).empty:
        append(WEIGHTS, [{**where, **row} for row in curve])
    return folder


def fine_tuned(sparsity: float) -> dict[str, float]:
    """One-shot pruning and fine-tuning in the prepared folder here; validation and test score."""
    plan = read_yaml("models/plan/dense.yaml")
    _, total = main_network.budget(plan)
    state, mask = main_network.load_start("models/start")
    if sparsity:
        mask = criteria.magnitude({name: state.weights[name] for name in mask}, sparsity)
        state.prune(mask)
    data = load_split(main_network.ENCODED / "train.safetensors", training.device())
    model = main_network.build(state, plan)
    label = f"{100 * masks.sparsity(mask):.0f} % sparse"
    state = training.train(
        model, state, mask, data, plan, training.Cost(), last=total, total=total, label=label
    )
    model = main_network.build(state, plan).to(data.labels.device)
    precision = training.resolve_precision(plan["precision"])
    scores = {}
    for name in ("validation", "test"):
        split = load_split(main_network.ENCODED / f"{name}.safetensors", data.labels.device)
        scores[name] = metrics.score(plan["metric"], *training.predict(model, split, precision))
    return scores


def plot(path: Path) -> None:
    """Left: near-zero weights over pre-training. Right: fine-tuned accuracy over sparsity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (objective, steps), own in pd.read_csv(WEIGHTS).groupby(["objective", "steps_of_run"]):
        wide = 100 * own.pivot(index="seed", columns="step", values="near_zero")
        label = f"{objective}, {steps} steps"
        left.errorbar(wide.columns, wide.mean(), yerr=wide.std(), capsize=2, label=label)
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
    parser = argparse.ArgumentParser(description=__doc__)
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
                    prepare(Path(folder), model=f"local:{model}", dataset="mnist-sample", seed=seed)
                    with contextlib.chdir(folder):
                        for sparsity in left:
                            append(
                                CURVES, [{**where, "sparsity": sparsity, **fine_tuned(sparsity)}]
                            )
    for (objective, steps), own in pd.read_csv(CURVES).groupby(["objective", "steps_of_run"]):
        wide = own.pivot(index="seed", columns="sparsity", values="test")
        sparsities = [s for s in wide.columns if s > 0]
        values, dense = wide[sparsities].to_numpy(), wide[0.0].to_numpy()
        middle, low, high = knee_over_seeds(sparsities, values, dense)
        print(
            f"{objective}, {steps} steps: dense {100 * dense.mean():.2f} %, essential sparsity "
            f"{100 * middle:.0f} % (single seeds {100 * low:.0f} … {100 * high:.0f})"
        )
    plot(FOLDER / "pretraining.png")


if __name__ == "__main__":
    main()
