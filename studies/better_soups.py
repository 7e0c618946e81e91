"""Is there a better soup? ISP with other ways to cook the same weak networks, at equal cost.

Every variant takes ISP's very steps: the same rounds, denoisers, look-ahead and budget. They differ
in what is made of a round's denoisers. One process runs all of them, so that no stage start-ups
come between; finished runs are in the CSV file, and the same command goes on from there.

    python studies/better_soups.py --task reviews sst2=../shared/data/glue/sst2 --seeds 3

A task NAME=FOLDER is a dataset of docs/data.md in a local copy. The variant is chosen by its
validation score over all runs; the test score beside it is what is reported.
"""

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import torch
from common import ROOT, prepare

from instant_soup import criteria, main_network, masks, metrics, soup, training
from instant_soup.batches import load_split
from instant_soup.denoisers import draw_protocol
from instant_soup.files import read_yaml
from instant_soup.masks import Mask
from instant_soup.schedules import calibration_steps, round_sparsities, steps_of
from instant_soup.settings import check
from instant_soup.training import Cost, State, Weights

RESULTS = ROOT / "reports/studies/better_soups.csv"
COLUMNS = ("task", "sparsity", "seed", "variant", "validation", "test", "flops", "overlap")
AHEAD = 3.0  # `extrapolated`: so many times as far as the look-ahead went

# What a variant makes of the main network's prunable weights, its denoisers, and their weak masks:
# the next mask, with exactly k weights.
Cook = Callable[[Weights, list[State], list[Mask], int], Mask]


def progressive(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """The network's own magnitudes; the denoisers are left out (and their cost would be, too)."""
    return masks.keep_largest({n: w.abs() for n, w in weights.items()}, k)


def union(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """The paper: the union of the weak masks, adjusted by the network's magnitudes."""
    return soup.adjust(soup.combine(weak, "union"), weights, k)


def vote(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """The number of masks that keep a weight, then its magnitude."""
    return soup.adjust(soup.combine(weak, "vote"), weights, k)


def mean_magnitude(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """|w| averaged over the denoisers: by how much they agree, not only how many."""
    scores = {n: sum(d.weights[n].abs() for d in denoisers) for n in weights}
    return masks.keep_largest(scores, k)  # type: ignore[arg-type]


def extrapolated(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """|w| as it will be when training goes on the way that the denoisers went."""
    scores = {}
    for name, w in weights.items():
        mean = sum(d.weights[name] for d in denoisers) / len(denoisers)
        scores[name] = (w + AHEAD * (mean - w)).abs()
    return masks.keep_largest(scores, k)


def fisher(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """w² times the mean squared gradient, which the denoisers' AdamW has already measured."""
    scores = {
        n: w.square() * sum(d.second_moments[n] for d in denoisers) for n, w in weights.items()
    }
    return masks.keep_largest(scores, k)


VARIANTS: dict[str, Cook] = {
    "progressive": progressive,
    "union": union,
    "vote": vote,
    "mean_magnitude": mean_magnitude,
    "extrapolated": extrapolated,
    "fisher": fisher,
    "souped_weights": union,  # and the weights become the denoisers' mean
    "souped_both": mean_magnitude,
}
SOUPED_WEIGHTS = ("souped_weights", "souped_both")


def run(settings: dict, variant: str) -> dict[str, Any]:
    """One ISP run with a variant's soup, here; its scores, FLOPs, and overlap with one-shot."""
    isp, seed, plan = settings["isp"], settings["seed"], read_yaml("models/plan/dense.yaml")
    steps_per_epoch, total = main_network.budget(plan)
    t = steps_of(isp["calibration"], steps_per_epoch)
    data = load_split(main_network.ENCODED / "train.safetensors", training.device())
    state, mask = main_network.load_start("models/start")
    own = criteria.magnitude({n: state.weights[n] for n in mask}, settings["sparsity"])
    cost = Cost()

    def train_to(last: int) -> State:
        model = main_network.build(state, plan)
        return training.train(
            model, state, mask, data, plan, cost, last=last, total=total, label=variant
        )

    sparsities = round_sparsities(settings["sparsity"], isp["compression_rate"], isp["rate_of"])
    for i, sparsity in enumerate(sparsities):
        state = train_to(state.step + calibration_steps(i, t))
        denoisers: list[State] = []
        for n in range(isp["denoisers"] if variant != "progressive" else 0):
            protocol = draw_protocol({**plan, **isp}, len(data), key=(seed, i, n))
            rows = protocol.pop("rows")
            copy = State({name: w.clone() for name, w in state.weights.items()})
            look_ahead, part = main_network.look_ahead(
                copy, mask, {**plan, **protocol}, rows, isp["look_ahead"], label=f"{i}/{n}"
            )
            denoisers.append(look_ahead)
            cost.add(vars(part))
        weak = [criteria.magnitude({m: d.weights[m] for m in mask}, sparsity) for d in denoisers]
        if variant in SOUPED_WEIGHTS:
            for name, w in state.weights.items():
                if w.is_floating_point():
                    w.copy_(torch.stack([d.weights[name] for d in denoisers]).mean(0))
        prunable = {name: state.weights[name] for name in mask}
        k = masks.keep_count(prunable, sparsity)
        mask = VARIANTS[variant](prunable, denoisers, weak, k)
        state.prune(mask)
    state = train_to(total)
    model = main_network.build(state, plan).to(data.labels.device)
    scores = {}
    for name in ("validation", "test"):
        split = load_split(main_network.ENCODED / f"{name}.safetensors", data.labels.device)
        precision = training.resolve_precision(plan["precision"])
        scores[name] = metrics.score(plan["metric"], *training.predict(model, split, precision))
    return {**scores, "flops": cost.flops, "overlap": masks.cosine_similarity(mask, own)}


def read_done() -> list[dict[str, str]]:
    """The finished runs."""
    if not RESULTS.exists():
        return []
    with open(RESULTS, newline="") as file:
        return list(csv.DictReader(file))


def add(row: dict[str, Any]) -> None:
    """Add a finished run to the file."""
    new = not RESULTS.exists()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with open(RESULTS, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def changes_of(task: str) -> dict[str, Any]:
    """What a task changes in params.yaml: dataset, model, rows."""
    name, _, folder = task.partition("=")
    images = name in ("mnist-sample", "cifar10")
    data: dict[str, Any] = {"train_rows": 8000, "validation_rows": 500, "test_rows": 2000}
    if folder:
        data["path"] = str(Path(folder).resolve())
    # The pre-trained model of a pipeline run (make repro FAMILY=clip).
    model = f"local:{ROOT}/models/pretrained" if images else "minilm"
    if name == "mnist-sample":
        data["train_rows"] = "all"
    return {"dataset": name, "model": model, "data": data}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", required=True, help="NAME or NAME=FOLDER")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.7, 0.9])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    for task in options.task:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                changes = changes_of(task)
                wanted = [(s, v) for s in options.sparsities for v in options.variants]
                done = {(r["task"], r["sparsity"], r["seed"], r["variant"]) for r in read_done()}
                name = task.partition("=")[0]
                wanted = [(s, v) for s, v in wanted if (name, str(s), str(seed), v) not in done]
                if not wanted:
                    continue
                params = prepare(Path(folder), seed=seed, **changes)
                os.chdir(folder)
                for sparsity, variant in wanted:
                    settings = check({**params, "sparsity": sparsity})
                    found = run(settings, variant)
                    where = {"task": name, "sparsity": sparsity, "seed": seed, "variant": variant}
                    add({**where, **found})
                    print(f"{where} {found}", flush=True)
                os.chdir(ROOT)


if __name__ == "__main__":
    main()
