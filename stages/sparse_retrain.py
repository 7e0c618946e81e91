"""The rest of the budget on a ticket: its pruned weights stay zero (Algorithm 1, line 7).

A ticket of the pre-trained weights starts at step 0, the control's at step 0 from random ones.
ISP's, and those of other methods that prune while they train, go on from where the last round
stopped: nothing restarts, neither optimiser nor learning-rate schedule.
"""

import argparse
from typing import Any

from instant_soup.pipeline.processes import run_stage
from instant_soup.pipeline.run import PipelineRun
from instant_soup.pipeline.stage_files import RetrainStage
from instant_soup.pipeline.tracking import stage_run
from instant_soup.pipeline.workspace import load_start, load_ticket, mask_finding, save_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True, help="as in params.yaml")
    method = parser.parse_args().method
    stage = RetrainStage.read(f"models/plan/retrain_{method}.yaml")
    with stage_run(f"retrain {method}", stage.contents(), {"method": method}) as tracked:
        more: dict[str, Any] = {}
        if stage.ticket:
            state, mask, cost, curve, more = load_ticket(stage.ticket, stage.start)
        else:
            state, mask = load_start(stage.start)
            cost, curve, more["rounds"] = mask_finding(stage.isp_rounds, stage.isp_denoisers)
        run = PipelineRun(
            state, mask, stage.recipe, tracked,
            code=stage.code, engine=stage.engine, teacher=stage.teacher,
        )  # fmt: skip
        run.cost, run.curve = cost, curve
        run.train(run.total, f"retrain {method}", keep=False)
        if stage.teacher is not None:
            run.cost.add(run.of_teacher.cost.as_search())  # once a row, whatever its stages
        save_result(f"models/retrained/{method}", run, **more)
        tracked.summary(**vars(run.cost))
    run.forget()


if __name__ == "__main__":
    run_stage(main)
