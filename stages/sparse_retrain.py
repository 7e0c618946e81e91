"""The rest of the budget on a ticket: its pruned weights stay zero (Algorithm 1, line 7).

A baseline's ticket starts at step 0 from the pre-trained weights, the control's from random ones.
ISP's, and those of progressive pruning and ISP+, go on from where the last round stopped: nothing
restarts, neither optimiser nor learning-rate schedule.
"""

import argparse

from instant_soup.files import read_yaml, run_stage
from instant_soup.pipeline import main_network
from instant_soup.pipeline.main_network import Cost
from instant_soup.pipeline.tracking import stage_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True)
    method = parser.parse_args().method
    settings = read_yaml(f"models/plan/retrain_{method}.yaml")
    with stage_run(f"retrain {method}", settings, {"method": method}) as run:
        cost, curve, more = Cost(), [], {}  # type: tuple[Cost, list, dict]
        if method == "isp":
            state, mask = main_network.load_start(settings["start"])
            cost, curve, more["rounds"] = main_network.mask_finding(
                settings["rounds"], settings["denoisers"]
            )
        elif method == "random_init":
            _, mask = main_network.load_start(settings["start"])
            cost, _, _ = main_network.mask_finding(settings["rounds"], settings["denoisers"])
            cost.search_steps, cost.steps = cost.search_steps + cost.steps, 0
            state = main_network.random_state(settings)
            state.prune(mask)
        else:
            state, ticket = main_network.load_ticket(settings["ticket"], settings["start"])
            mask, cost, curve = ticket.mask, ticket.cost, ticket.curve
            more |= {"drawn": ticket.drawn} if ticket.drawn else {}
        _, total = main_network.budget(settings)
        main_network.check_budget(state.step + 1, total)
        state, own_cost, own_curve = main_network.advance(
            state, mask, settings, last=total, label=f"retrain {method}", run=run
        )
        cost.add(vars(own_cost))
        folder = f"models/retrained/{method}"
        main_network.save_result(folder, state, mask, cost, curve + own_curve, **more)
        run.summary(**vars(cost))


if __name__ == "__main__":
    run_stage(main)
