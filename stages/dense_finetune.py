"""The Full row: the dense network, fine-tuned for the whole budget."""

from instant_soup.files import read_yaml, run_stage
from instant_soup.pipeline import main_network
from instant_soup.pipeline.tracking import stage_run


def main() -> None:
    settings = read_yaml("models/plan/dense.yaml")
    with stage_run("dense", settings, {"method": "dense"}) as run:
        state, mask = main_network.load_start(settings["start"])
        _, total = main_network.budget(settings)
        state, cost, curve = main_network.advance(
            state, mask, settings, last=total, label="dense fine-tuning", run=run
        )
        main_network.save_result("models/retrained/dense", state, mask, cost, curve)
        run.summary(**vars(cost))


if __name__ == "__main__":
    run_stage(main)
