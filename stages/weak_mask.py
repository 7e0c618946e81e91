"""ISP round i: of each denoiser n = 0, 1, …, C look-ahead steps under a protocol of its own → one
weak mask.

Algorithm 2, lines 3–6: the network is copied, trained briefly on a random subset of the data
with a random learning rate and weight decay, and its mask at this round's sparsity is kept. The
copy is thrown away. A mask that an equal look-ahead has found is not searched again: not after an
interruption, and not because other denoisers join it.
"""

import argparse
from dataclasses import asdict

from instant_soup.errors import UserError
from instant_soup.methods.isp import ISP
from instant_soup.pipeline.processes import run_stage
from instant_soup.pipeline.stage_files import (
    WeakMasksStage,
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
    stage = read_stage(WeakMasksStage, f"weak_masks_{i}")
    isp = ISP(**stage.isp) if stage else ISP(denoisers=0)
    if stage is None or not isp.denoisers:
        return mark_idle(isp_round(i) / "weak")

    from instant_soup.pipeline.run import PipelineRun  # late: see calibrate.py
    from instant_soup.pipeline.workspace import load_mask
    from instant_soup.sparsity import masks
    from instant_soup.training.cost import Cost
    from instant_soup.training.state import load_state

    mask, state = load_mask(stage.start), load_state(isp_round(i) / "state", moments=False)
    run = PipelineRun(state, mask, stage.recipe, code=stage.code, engine=stage.engine)
    for n in range(isp.denoisers):
        tags = {"method": "isp", "round": i, "denoiser": n}
        with stage_run(f"weak mask {i}/{n}", stage.contents(), tags) as tracked:
            run.cost = Cost()
            protocol = isp.protocol(run, i, n)
            settings = isp.some("look_ahead", "score", "subset")
            key = [settings, protocol.described(), stage.sparsity, i, n]
            weak_mask = run.search(key, isp.weak_mask, run, i, n, stage.sparsity)
            if any((weak_mask[name] & ~mask[name]).any() for name in mask):
                raise UserError("a pruned weight came back: the look-ahead lost its mask")
            told = {**protocol.described(), "subset_rows": len(protocol.rows)}
            masks.save(
                weak_mask_file(i, n), weak_mask,
                method="isp", round=i, denoiser=n, protocol=told, cost=asdict(run.cost),
            )  # fmt: skip
            tracked.summary(**vars(run.cost), **told)


if __name__ == "__main__":
    run_stage(main)
