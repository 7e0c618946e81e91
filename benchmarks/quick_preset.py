"""How much of the quick budget should mask finding take? The measurement behind the preset.

Prunes progressively to the default sparsity (ISP without denoisers, which hardly differ from it in
the look-ahead of the quick preset) with growing shares of the budget spent on calibration, and
prints the validation accuracy at the end. Needs the data and base model of a pipeline run; the
test split is not touched. About a minute a run on two cores.

    python benchmarks/quick_preset.py --seeds 2
"""

import argparse

import torch
import yaml

from instant_soup.data.batches import load_split
from instant_soup.methods import criteria
from instant_soup.methods.rounds import calibration_steps
from instant_soup.pipeline import main_network
from instant_soup.pipeline.plan import check, check_rounds
from instant_soup.training import loop, metrics
from instant_soup.training.cost import Cost
from instant_soup.training.state import State

SHARES = (0.0, 0.15, 0.3, 0.6, 0.9)  # 0: one-shot, everything pruned at the start


def final_score(settings: dict, sparsities: list[float], share: float, seed: int) -> float:
    """Validation score of one run; `share` of its steps come before the last prune."""
    training_settings = {**settings["training"], "seed": seed}
    _, total = main_network.budget(training_settings)
    data = load_split(main_network.ENCODED / "train.safetensors", torch.device("cpu"))
    state, mask = main_network.load_start("models/start")
    count = len(sparsities)
    t = share * total / (count * (count + 1) / 2)

    def train_to(last: int) -> State:
        model = main_network.build(state, training_settings)
        return loop.train(
            model, state, mask, data, training_settings, Cost(),
            last=last, total=total, label=f"share {share}, seed {seed}",
        )  # fmt: skip

    for i, sparsity in enumerate(sparsities if share else sparsities[-1:]):
        state = train_to(state.step + round(calibration_steps(i, 1) * t))
        weights = {name: state.weights[name] for name in mask}
        mask = criteria.magnitude(weights, sparsity)
        state.prune(mask)
    state = train_to(total)
    model = main_network.build(state, training_settings)
    validation = load_split(main_network.ENCODED / "validation.safetensors", torch.device("cpu"))
    precision = loop.resolve_precision(training_settings["precision"])
    return metrics.score("accuracy", *loop.predict(model, validation, precision))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=None, help="budget, if not the preset's")
    arguments = parser.parse_args()
    with open("params.yaml") as file:
        settings = check(yaml.safe_load(file))
    if arguments.epochs:
        settings["training"]["epochs"] = arguments.epochs
    sparsities = check_rounds(settings)
    print(f"| share of the budget before the last prune to {sparsities[-1]:.0%} | validation (%) |")
    print("|---|---|")
    for share in SHARES:
        scores = [100 * final_score(settings, sparsities, share, s) for s in range(arguments.seeds)]
        listed = ", ".join(f"{score:.1f}" for score in scores)
        print(f"| {share:.0%} | {sum(scores) / len(scores):.1f} ({listed}) |", flush=True)


if __name__ == "__main__":
    main()
