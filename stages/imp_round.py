"""A round of iterative magnitude pruning (Frankle & Carbin 2019): prune, reset, train it all again.

The network that the round before has trained is pruned by magnitude to this round's sparsity;
the weights that are left go back to the chain's reset state and train to the end of the budget.
The last round's network is the lottery ticket, trained.
"""

import argparse
from pathlib import Path

from instant_soup.files import pass_by, read_yaml, run_stage
from instant_soup.pipeline.tracking import stage_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chain", required=True)
    parser.add_argument("--round", type=int, required=True)
    arguments = parser.parse_args()
    chain, i = arguments.chain, arguments.round
    settings = read_yaml(f"models/plan/imp_{chain}_{i}.yaml")
    folder = Path(f"models/imp/{chain}")
    if settings.get("idle"):
        return pass_by(folder / f"round_{i}")

    from instant_soup.methods import criteria
    from instant_soup.pipeline import main_network
    from instant_soup.training.state import load_state  # late: see calibrate.py

    with stage_run(f"imp {chain} {i}", settings, {"method": chain, "round": i}) as run:
        trained = load_state(folder / settings["previous"] / "state", moments=False)
        names = main_network.prunable_shapes()
        mask = criteria.magnitude({n: trained.weights[n] for n in names}, settings["sparsity"])
        state = load_state(folder / "reset/state")
        state.prune(mask)
        _, total = main_network.budget(settings)
        state, cost, curve = main_network.advance(
            state, mask, settings, last=total, label=f"{chain} round {i}", run=run
        )
        main_network.save_result(folder / f"round_{i}", state, mask, cost, curve)
        run.summary(**vars(cost))


if __name__ == "__main__":
    run_stage(main)
