"""ISP in one process without any stage, for the comparison with the pipeline's chain of stages.

Run in a project whose data, base model and start are there; prints the file of final weights.
The network and its optimiser state stay in memory from the first step to the last.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from instant_soup.config.sections import Recipe
from instant_soup.data.batches import Split, load_split
from instant_soup.files import read_yaml
from instant_soup.pipeline.run import budget, build
from instant_soup.pipeline.workspace import ENCODED, START, load_start
from instant_soup.sparsity import mask_soup, masks, scores
from instant_soup.sparsity.masks import Mask
from instant_soup.training import loop
from instant_soup.training.cost import Cost
from instant_soup.training.protocols import draw_protocol
from instant_soup.training.schedule import steps_of
from instant_soup.training.state import State


def main() -> None:
    retrain = read_yaml("models/plan/retrain_isp.yaml")
    recipe = Recipe(**retrain["recipe"])
    steps_per_epoch, total = budget(recipe).steps_per_epoch, budget(recipe).total
    data = load_split(ENCODED / "train.safetensors", torch.device("cpu"))
    state, mask = load_start(START)
    for i in range(retrain["isp_rounds"]):
        schedule = read_yaml(f"models/plan/calibrate_{i}.yaml")["schedule"]
        t = steps_of(schedule["calibration"], steps_per_epoch)
        last = state.step + t * (i + 1)
        state = train(state, mask, data, recipe, last=last, total=total)
        weak = read_yaml(f"models/plan/weak_masks_{i}.yaml")
        isp, weak_masks = weak["isp"], []
        for n in range(retrain["isp_denoisers"]):
            ranges = isp["learning_rate_range"], isp["weight_decay_range"]
            key = (recipe.seed, i, n)
            protocol = draw_protocol(recipe, *ranges, isp["subset"], len(data), key)
            own = replace(
                recipe,
                learning_rate=protocol.learning_rate,
                weight_decay=protocol.weight_decay,
                seed=protocol.seed,
            )
            copy = State({name: w.clone() for name, w in state.weights.items()})
            rows = data.subset(protocol.rows)
            copy = train(copy, mask, rows, own, last=isp["look_ahead"], total=None)
            weights = {name: copy.weights[name] for name in mask}
            weak_masks.append(scores.magnitude(weights, weak["sparsity"]))
        soup = read_yaml(f"models/plan/soup_{i}.yaml")
        prunable = {name: state.weights[name] for name in mask}
        k = masks.number_kept(masks.count(mask)[1], soup["sparsity"])
        standing = mask_soup.combine(weak_masks, soup["isp"]["combine"])
        mask = mask_soup.adjust(standing, scores.magnitude_scores(prunable), k)
        state.prune(mask)
    state = train(state, mask, data, recipe, last=total, total=total)
    path = Path(tempfile.mkdtemp()) / "weights.pt"
    torch.save(state.weights, path)
    sys.stdout.write(f"{path}\n")


def train(state: State, mask: Mask, data: Split, recipe: Recipe, **until: Any) -> State:
    """Train a state in place."""
    network = build(state, recipe)
    return loop.train(network, state, mask, data, recipe, Cost(), label="single", **until)


if __name__ == "__main__":
    main()
