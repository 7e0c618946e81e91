"""The Full row: the dense network, fine-tuned for the whole budget."""

from instant_soup.pipeline.processes import run_stage
from instant_soup.pipeline.run import PipelineRun
from instant_soup.pipeline.stage_files import TrainStage
from instant_soup.pipeline.tracking import stage_run
from instant_soup.pipeline.workspace import load_start, save_result


def main() -> None:
    stage = TrainStage.read("models/plan/dense.yaml")
    with stage_run("dense", stage.contents(), {"method": "dense"}) as tracked:
        run = PipelineRun(
            *load_start(stage.start), stage.recipe, tracked, code=stage.code, engine=stage.engine
        )
        run.train(run.total, "dense fine-tuning")
        save_result("models/retrained/dense", run)
        tracked.summary(**vars(run.cost))


if __name__ == "__main__":
    run_stage(main)
