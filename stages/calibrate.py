"""ISP round i = 0, 1, …: t · (i + 1) training steps of the main network (Algorithm 1, line 3)."""

import argparse
from pathlib import Path

from instant_soup.files import pass_by, read_yaml, run_stage, write_json
from instant_soup.methods.rounds import calibration_steps
from instant_soup.pipeline.tracking import stage_run
from instant_soup.training.schedule import steps_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round", type=int, required=True)
    i = parser.parse_args().round
    settings = read_yaml(f"models/plan/calibrate_{i}.yaml")
    out = Path(f"models/isp/round_{i}")
    if settings.get("idle"):
        return pass_by(out / "state", out / "curve.csv", out / "calibration.json")

    from instant_soup.pipeline import main_network
    from instant_soup.training.state import (
        save_state,  # late: an idle round need not wait for torch
    )

    with stage_run(f"calibrate {i}", settings, {"method": "isp", "round": i}) as run:
        state, mask = main_network.load_start(settings["start"])
        steps_per_epoch, _ = main_network.budget(settings)
        t = steps_of(settings["calibration"], steps_per_epoch)
        last = state.step + calibration_steps(i, t, settings["growing"])
        state, cost, curve = main_network.advance(
            state, mask, settings, last=last, label=f"calibrate round {i}", run=run
        )
        save_state(out / "state", state)
        main_network.save_curve(out / "curve.csv", curve)
        write_json(out / "calibration.json", vars(cost))
        run.summary(**vars(cost))


if __name__ == "__main__":
    run_stage(main)
