"""ISP round i, denoiser n: C look-ahead steps under a protocol of its own → one weak mask.

Algorithm 2, lines 3–6: the network is copied, trained briefly on a random subset of the data
with a random learning rate and weight decay, and its magnitude mask at this round's sparsity is
kept. The copy is thrown away.
"""

import argparse
import time
from pathlib import Path

from instant_soup.errors import UserError
from instant_soup.files import pass_by, read_yaml, run_stage
from instant_soup.pipeline.tracking import stage_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument("--denoiser", type=int, required=True)
    arguments = parser.parse_args()
    i, n = arguments.round, arguments.denoiser
    settings = read_yaml(f"models/plan/weak_mask_{i}_{n}.yaml")
    out = Path(f"models/isp/round_{i}/weak/{n}.safetensors")
    if settings.get("idle"):
        return pass_by(out)

    from instant_soup.methods import criteria
    from instant_soup.methods.protocols import draw_protocol
    from instant_soup.pipeline import main_network
    from instant_soup.sparsity import masks
    from instant_soup.training.state import load_state  # late: see calibrate.py

    tags = {"method": "isp", "round": i, "denoiser": n}
    with stage_run(f"weak mask {i}/{n}", settings, tags) as run:
        network = load_state(f"models/isp/round_{i}/state", moments=False)
        mask = masks.load(Path(settings["start"]) / "mask.safetensors")
        key = (settings["seed"], i, n)
        protocol = draw_protocol(settings, main_network.training_rows(), key)
        drawn = {name: protocol[name] for name in ("learning_rate", "weight_decay", "seed")}
        copy, cost = main_network.look_ahead(
            network, mask, {**settings, **drawn}, protocol["rows"], settings["look_ahead"],
            label=f"look-ahead {i}/{n}",
        )  # fmt: skip

        started = time.perf_counter()
        prunable = {name: copy.weights[name] for name in mask}
        weak_mask = criteria.magnitude(prunable, settings["sparsity"])
        cost.seconds += time.perf_counter() - started
        drawn["subset_rows"] = len(protocol["rows"])
        if any((weak_mask[name] & ~mask[name]).any() for name in mask):
            raise UserError("a pruned weight came back: the look-ahead lost its mask")
        masks.save(
            out, weak_mask, method="isp", round=i, denoiser=n, protocol=drawn, cost=vars(cost)
        )
        run.summary(**vars(cost), **drawn)


if __name__ == "__main__":
    run_stage(main)
