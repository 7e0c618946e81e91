"""ISP round i: the weak masks' soup, adjusted to exactly the round's sparsity → its mask.

Algorithm 2: the union of the weak masks keeps a weight that any denoiser wants to keep; it keeps
too many, so the network is pruned by magnitude, within the union, to the round's sparsity.
"""

import argparse
import time
from pathlib import Path

from instant_soup.files import pass_by, read_yaml, run_stage, write_json
from instant_soup.pipeline.tracking import stage_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round", type=int, required=True)
    i = parser.parse_args().round
    settings = read_yaml(f"models/plan/soup_{i}.yaml")
    folder = Path(f"models/isp/round_{i}")
    if settings.get("idle"):
        return pass_by(folder / "mask.safetensors", folder / "soup.json")

    from instant_soup.methods import criteria
    from instant_soup.sparsity import mask_soup, masks
    from instant_soup.training.state import load_state  # late: see calibrate.py

    with stage_run(f"soup {i}", settings, {"method": "isp", "round": i}) as run:
        before = masks.load(Path(settings["start"]) / "mask.safetensors")
        weights = load_state(folder / "state", moments=False).weights
        prunable = {name: weights[name] for name in before}
        weak_masks = [
            masks.load(folder / "weak" / f"{n}.safetensors") for n in range(settings["denoisers"])
        ]
        started = time.perf_counter()
        own_mask = criteria.magnitude(prunable, settings["sparsity"])
        if settings["own_mask"] or not weak_masks:
            weak_masks.append(own_mask)
        standing = mask_soup.combine(weak_masks, settings["combine"])
        k = masks.number_kept(masks.count(before)[1], settings["sparsity"])
        mask = (
            mask_soup.adjust(standing, prunable, k)
            if settings["adjust"]
            else {name: s > 0 for name, s in standing.items()}
        )
        seconds = time.perf_counter() - started

        statistics = {
            "sparsity": masks.sparsity(mask),
            **mask_soup.agreement(weak_masks),
            # How far the soup is from plain magnitude pruning of the same network.
            "overlap_own_mask": masks.cosine_similarity(mask, own_mask),
        }
        masks.save(folder / "mask.safetensors", mask, method="isp", round=i, seed=settings["seed"])
        write_json(folder / "soup.json", {**statistics, "seconds": seconds})
        run.summary(**statistics, seconds=seconds)
        run.artifact(folder / "soup.json")


if __name__ == "__main__":
    run_stage(main)
