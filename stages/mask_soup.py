"""ISP round i: the weak masks' soup, adjusted to exactly the round's sparsity → its mask.

Algorithm 2: the union of the weak masks keeps a weight that any denoiser wants to keep; it keeps
too many, so the network is pruned by magnitude, within the union, to the round's sparsity.
"""

import argparse
import time

from instant_soup.files import write_json
from instant_soup.methods.isp import ISP
from instant_soup.pipeline.processes import run_stage
from instant_soup.pipeline.stage_files import (
    SoupStage,
    isp_round,
    mark_idle,
    read_stage,
    weak_mask_file,
)
from instant_soup.pipeline.tracking import stage_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round", type=int, required=True, help="i, from 0")
    i = parser.parse_args().round
    stage, folder = read_stage(SoupStage, f"soup_{i}"), isp_round(i)
    if stage is None:
        return mark_idle(folder / "mask.safetensors", folder / "soup.json")

    from instant_soup.pipeline.workspace import load_mask  # late: see calibrate.py
    from instant_soup.sparsity import mask_soup, masks
    from instant_soup.training.state import load_state

    tags = {"method": "isp", "round": i}
    with stage_run(f"soup {i}", stage.contents(), tags) as tracked:
        isp, sparsity = ISP(**stage.isp), stage.sparsity
        before = load_mask(stage.start)
        state = load_state(folder / "state", moments=isp.score == "fisher")
        weak_masks = [masks.load(weak_mask_file(i, n)) for n in range(isp.denoisers)]
        started = time.perf_counter()
        ingredients = isp.ingredients(state, before, weak_masks, sparsity)
        mask = isp.soup(state, before, ingredients, sparsity, stage.adjust)
        seconds = time.perf_counter() - started

        statistics = {
            "sparsity": masks.sparsity(mask),
            **mask_soup.agreement(ingredients),
            # How far the soup is from plain pruning of the same network, without denoisers.
            "overlap_own_mask": masks.cosine_similarity(mask, isp.own(state, before, sparsity)),
        }
        masks.save(folder / "mask.safetensors", mask, method="isp", round=i, seed=stage.seed)
        write_json(folder / "soup.json", {**statistics, "seconds": seconds})
        tracked.summary(**statistics, seconds=seconds)
        tracked.artifact(folder / "soup.json")


if __name__ == "__main__":
    run_stage(main)
