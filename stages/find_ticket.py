"""A baseline's ticket: its mask, found on the pre-trained weights or early in training."""

import argparse
import time

from instant_soup.data.batches import load_split, training_batches
from instant_soup.files import read_yaml, run_stage
from instant_soup.methods.criteria import CRITERIA, PASSES, Probe
from instant_soup.methods.early_bird import early_bird
from instant_soup.methods.progressive import progressive
from instant_soup.models import base as models
from instant_soup.pipeline import main_network
from instant_soup.pipeline.main_network import Ticket
from instant_soup.pipeline.tracking import stage_run
from instant_soup.training import loop
from instant_soup.training.cost import Cost, peak_memory

SEARCHES = {"early_bird": early_bird, "progressive": progressive, "isp_plus": progressive}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=[*CRITERIA, *SEARCHES], required=True)
    method = parser.parse_args().method
    settings = read_yaml(f"models/plan/ticket_{method}.yaml")
    with stage_run(f"ticket {method}", settings, {"method": method}) as run:
        if method in SEARCHES:
            ticket = SEARCHES[method](settings, run)
        else:
            ticket = untrained(method, settings)
        main_network.save_ticket(f"models/tickets/{method}", ticket, method=method)
        run.summary(**vars(ticket.cost), **ticket.drawn)


def untrained(method: str, settings: dict) -> Ticket:
    """The ticket of a criterion, which looks at the pre-trained network without training it."""
    cost, probe = Cost(), Probe(settings["seed"], settings)
    prunable = models.pretrained_prunable(main_network.BASE)
    if method in PASSES:
        where = loop.device()
        state, _ = main_network.load_start(settings["start"])
        data = load_split(main_network.ENCODED / "train.safetensors", where)
        batches = training_batches(data, settings, 0, settings["batches"])
        probe.model = main_network.build(state, settings).to(where)
        probe.batches = [batch for _, batch in batches]
    started = time.perf_counter()
    mask = CRITERIA[method](prunable, settings["sparsity"], probe)
    cost.seconds = time.perf_counter() - started
    if probe.model is not None:
        weights = sum(w.numel() for w in prunable.values())
        passes = [models.forward_flops(probe.model, weights, batch) for batch in probe.batches]
        cost.flops = cost.sparse_flops = PASSES[method] * sum(map(sum, passes))
    cost.peak_memory = peak_memory()
    return Ticket(mask, cost)


if __name__ == "__main__":
    run_stage(main)
