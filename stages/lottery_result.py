"""LTH, LTH-Rewind: the last IMP round's network. Lottery Pool: mixed with those of other rounds."""

import argparse
from pathlib import Path
from typing import Any

from instant_soup.files import read_json, read_yaml, run_stage
from instant_soup.methods import criteria
from instant_soup.methods.lottery_pool import lottery_pool
from instant_soup.pipeline import main_network
from instant_soup.pipeline.tracking import stage_run
from instant_soup.sparsity import masks
from instant_soup.training.cost import Cost
from instant_soup.training.state import load_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True)
    method = parser.parse_args().method
    settings = read_yaml(f"models/plan/lottery_{method}.yaml")
    chain, rounds = Path(f"models/imp/{settings['chain']}"), settings["rounds"]
    last = chain / f"round_{rounds - 1}"
    with stage_run(f"lottery {method}", settings, {"method": method}) as run:
        state = load_state(last / "state", moments=False)
        mask = masks.load(last / "mask.safetensors", main_network.prunable_shapes())
        cost = cost_of(chain, rounds)
        curve = main_network.load_curve(last / "curve.csv")
        more: dict[str, Any] = {}
        if method == "lottery_pool":
            earlier = [chain / f"round_{i}" for i in reversed(range(rounds - 1))]
            others = [load_state(f / "state", False).weights for f in earlier]
            score = main_network.validation_score(settings, mask, cost)
            state.weights, more["coefficients"] = lottery_pool(
                state.weights,
                others,
                list(mask),
                settings["sparsity"],
                settings["coefficients"],
                score,
            )
            mask = criteria.magnitude({n: state.weights[n] for n in mask}, settings["sparsity"])
            uncounted = main_network.validation_score(settings, mask, Cost())
            found = {"train_loss": None, "validation": uncounted(state.weights)}
            curve.append({**curve[-1], **found})
        folder = f"models/retrained/{method}"
        main_network.save_result(folder, state, mask, cost, curve, **more)
        run.summary(**vars(cost))


def cost_of(chain: Path, rounds: int) -> Cost:
    """The last round's cost, with all that came before it as search: dense and earlier rounds.

    The steps up to the state that is rewound to are the dense run's first ones: once is enough.
    """
    cost = Cost()
    for folder in [chain / "start", *(chain / f"round_{i}" for i in range(rounds - 1))]:
        cost.add(read_json(folder / "run.json")["cost"])
    rewound = read_json(chain / "reset/cost.json")
    cost.add({name: -value for name, value in rewound.items()})
    cost.search_steps, cost.steps = cost.search_steps + cost.steps, 0
    cost.add(rewound)
    cost.add(read_json(chain / f"round_{rounds - 1}/run.json")["cost"])
    return cost


if __name__ == "__main__":
    run_stage(main)
