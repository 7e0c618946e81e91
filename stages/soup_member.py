"""One of the networks that a dense soup is made of, trained under a protocol of its own.

`networks`: fine-tuned in full, for uniform and greedy soups (Wortsman et al. 2022). `denoisers`: a
sparse subnetwork of the pre-trained network, trained briefly (Algorithm 3).
"""

import argparse
from pathlib import Path

from instant_soup.files import pass_by, read_yaml, run_stage
from instant_soup.pipeline.tracking import stage_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["networks", "denoisers"], required=True)
    parser.add_argument("--member", type=int, required=True)
    arguments = parser.parse_args()
    kind, n = arguments.kind, arguments.member
    settings = read_yaml(f"models/plan/soup_member_{kind}_{n}.yaml")
    out = Path(f"models/members/{kind}_{n}")
    if settings.get("idle"):
        return pass_by(out)

    from instant_soup.methods import criteria
    from instant_soup.methods.protocols import draw_protocol
    from instant_soup.pipeline import main_network  # late: see calibrate.py

    with stage_run(f"soup member {kind} {n}", settings, {"member": n}) as run:
        state, mask = main_network.load_start(settings["start"])
        rows = main_network.training_rows()
        # The third number keeps the two kinds, and the rounds of ISP, apart.
        key = (settings["seed"], n, 1000 + len(kind))
        protocol = draw_protocol(settings, rows, key)
        drawn = {key: protocol[key] for key in ("learning_rate", "weight_decay", "seed")}
        if kind == "networks":
            _, total = main_network.budget(settings)
            state, cost, curve = main_network.advance(
                state, mask, {**settings, **drawn}, last=total, label=f"network {n}", run=run
            )
        else:
            low, high = settings["sparsity_range"]
            drawn["sparsity"] = low + (high - low) * n / max(1, settings["of"] - 1)
            mask = criteria.magnitude({m: state.weights[m] for m in mask}, drawn["sparsity"])
            state.prune(mask)
            state, cost = main_network.look_ahead(
                state, mask, {**settings, **drawn}, protocol["rows"], settings["steps"],
                label=f"denoiser {n}",
            )  # fmt: skip
            curve = []
        main_network.save_result(out, state, mask, cost, curve, protocol=drawn)
        run.summary(**vars(cost))


if __name__ == "__main__":
    run_stage(main)
