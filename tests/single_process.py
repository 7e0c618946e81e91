"""ISP in one process without any stage, for the comparison with the pipeline's chain of stages.

Run in a project whose data, base model and start are there; prints the file of final weights.
The network and its optimiser state stay in memory from the first step to the last.
"""

import sys
import tempfile
from pathlib import Path

import torch
from instant_soup.methods.protocols import draw_protocol

from instant_soup.data.batches import load_split
from instant_soup.files import read_yaml
from instant_soup.methods import criteria
from instant_soup.pipeline import main_network
from instant_soup.sparsity import mask_soup, masks
from instant_soup.training import loop
from instant_soup.training.cost import Cost
from instant_soup.training.schedule import steps_of
from instant_soup.training.state import State


def main() -> None:
    plan = read_yaml("models/plan/retrain_isp.yaml")
    steps_per_epoch, total = main_network.budget(plan)
    data = load_split("data/encoded/train.safetensors", torch.device("cpu"))
    state, mask = main_network.load_start("models/start")
    for i in range(plan["rounds"]):
        t = steps_of(read_yaml("models/plan/calibrate_0.yaml")["calibration"],
                               steps_per_epoch)  # fmt: skip
        last = state.step + t * (i + 1)
        state = train(state, mask, data, plan, last=last, total=total)
        weak_masks = []
        for n in range(plan["denoisers"]):
            look_ahead = read_yaml(f"models/plan/weak_mask_{i}_{n}.yaml")
            protocol = draw_protocol(look_ahead, len(data), key=(plan["seed"], i, n))
            settings = {**look_ahead, **protocol}
            copy = State({name: w.clone() for name, w in state.weights.items()})
            copy = train(copy, mask, data.subset(protocol["rows"]), settings,
                         last=look_ahead["look_ahead"], total=None)  # fmt: skip
            weights = {name: copy.weights[name] for name in mask}
            weak_masks.append(criteria.magnitude(weights, look_ahead["sparsity"]))
        settings = read_yaml(f"models/plan/soup_{i}.yaml")
        prunable = {name: state.weights[name] for name in mask}
        k = masks.number_kept(masks.count(mask)[1], settings["sparsity"])
        mask = mask_soup.adjust(mask_soup.combine(weak_masks, settings["combine"]), prunable, k)
        state.prune(mask)
    state = train(state, mask, data, plan, last=total, total=total)
    path = Path(tempfile.mkdtemp()) / "weights.pt"
    torch.save(state.weights, path)
    sys.stdout.write(f"{path}\n")


def train(state, mask, data, settings, last, total):
    model = main_network.build(state, settings)
    cost = Cost()
    return loop.train(
        model, state, mask, data, settings, cost, last=last, total=total, label="single"
    )


if __name__ == "__main__":
    main()
