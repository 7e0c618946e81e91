"""ISP round i = 0, 1, …: t · (i + 1) training steps of the main network (Algorithm 1, line 3)."""

import argparse

from instant_soup.files import new_folder, write_json
from instant_soup.pipeline.processes import run_stage
from instant_soup.pipeline.stage_files import CalibrateStage, isp_round, mark_idle, read_stage
from instant_soup.pipeline.tracking import stage_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round", type=int, required=True, help="i, from 0")
    i = parser.parse_args().round
    stage = read_stage(CalibrateStage, f"calibrate_{i}")
    out = isp_round(i)
    if stage is None:
        return mark_idle(out / "state")

    # Late: an idle round need not wait for torch.
    from instant_soup.pipeline.run import PipelineRun
    from instant_soup.pipeline.workspace import load_start, save_curve
    from instant_soup.training.state import write_state

    tags = {"method": "isp", "round": i}
    with stage_run(f"calibrate {i}", stage.contents(), tags) as tracked:
        run = PipelineRun(
            *load_start(stage.start), stage.recipe, tracked,
            code=stage.code, engine=stage.engine, teacher=stage.teacher,
        )  # fmt: skip
        ends = stage.schedule.ends(stage.rounds, run.total, run.steps_per_epoch)
        run.train(ends[i], f"calibrate round {i}", keep=False)
        with new_folder(out / "state") as unfinished:
            write_state(unfinished, run.state)
            save_curve(unfinished / "curve.csv", run.curve)
            write_json(unfinished / "cost.json", vars(run.cost))
        tracked.summary(**vars(run.cost))
    run.forget()


if __name__ == "__main__":
    run_stage(main)
