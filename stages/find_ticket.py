"""A baseline's mask, found on the pre-trained weights without training."""

import argparse
import time
from pathlib import Path

from instant_soup import masks, models
from instant_soup.criteria import CRITERIA
from instant_soup.files import read_yaml, run_stage
from instant_soup.tracking import stage_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=CRITERIA, required=True)
    method = parser.parse_args().method
    settings = read_yaml(f"models/plan/ticket_{method}.yaml")
    with stage_run(f"ticket {method}", settings, {"method": method}) as run:
        prunable = models.pretrained_prunable(Path("models/base"))
        started = time.perf_counter()
        mask = CRITERIA[method](prunable, settings["sparsity"], settings["seed"])
        cost = {"seconds": time.perf_counter() - started}
        path = f"models/tickets/{method}/mask.safetensors"
        masks.save(path, mask, method=method, seed=settings["seed"], cost=cost)
        run.summary(sparsity=masks.sparsity(mask), **cost)


if __name__ == "__main__":
    run_stage(main)
