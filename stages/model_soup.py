"""A dense soup of several networks: uniform, greedy, or Instant Model Soup (Algorithm 3).

Instant Model Soup begins with the pre-trained network and moves it towards each denoiser's sparse
network, by the coefficient that validation likes best; the result is fine-tuned as any other.
"""

import argparse
from pathlib import Path
from typing import Any

from instant_soup.files import read_json, read_yaml, run_stage
from instant_soup.methods import dense_soups
from instant_soup.pipeline import main_network
from instant_soup.pipeline.tracking import stage_run
from instant_soup.training.cost import Cost
from instant_soup.training.state import load_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True)
    method = parser.parse_args().method
    settings = read_yaml(f"models/plan/model_soup_{method}.yaml")
    members = [Path(folder) for folder in settings["members"]]
    with stage_run(f"soup {method}", settings, {"method": method}) as run:
        networks = [load_state(f / "state", moments=False).weights for f in members]
        cost = Cost()
        for folder in members:
            cost.add(read_json(folder / "run.json")["cost"])
        cost.search_steps, cost.steps = cost.search_steps + cost.steps, 0
        state, mask = main_network.load_start(settings["start"])
        _, total = main_network.budget(settings)
        score = main_network.validation_score(settings, mask, cost)
        more: dict[str, Any] = {}
        if method == "instant_model_soup":
            best, more["coefficients"] = score(state.weights), []
            for network in networks:
                state.weights, chosen, best = dense_soups.merge(
                    state.weights, network, settings["coefficients"], score, best
                )
                more["coefficients"].append(chosen)
            state, own_cost, curve = main_network.advance(
                state, mask, settings, last=total, label=method, run=run
            )
            cost.add(vars(own_cost))
        else:
            if method == "greedy_soup":
                state.weights, more["members"] = dense_soups.greedy_soup(networks, score)
            else:
                state.weights = dense_soups.uniform_soup(networks)
            found = {"step": total, "train_loss": None, "validation": score(state.weights)}
            curve = [{**found, "sparsity": 0.0}]
        main_network.save_result(f"models/retrained/{method}", state, mask, cost, curve, **more)
        run.summary(**vars(cost))


if __name__ == "__main__":
    run_stage(main)
