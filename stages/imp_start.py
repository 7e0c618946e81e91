"""Where a chain of IMP rounds begins: the dense network, trained, and the state to reset to.

The dense network is the Full row's: round 0 of every chain has nothing to train. `lth` resets to
the pre-trained weights, `lth_rewind` to those after a few steps of training.
"""

import argparse
import shutil
from pathlib import Path

from instant_soup.files import new_folder, pass_by, read_json, read_yaml, run_stage, write_json
from instant_soup.pipeline import main_network
from instant_soup.pipeline.tracking import stage_run
from instant_soup.training.cost import Cost
from instant_soup.training.state import save_state

DENSE = Path("models/retrained/dense")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chain", required=True)
    chain = parser.parse_args().chain
    settings = read_yaml(f"models/plan/imp_{chain}_start.yaml")
    folder = Path(f"models/imp/{chain}")
    if settings.get("idle"):
        return pass_by(folder / "start", folder / "reset")

    with stage_run(f"imp {chain} start", settings, {"method": chain}) as run:
        state, mask = main_network.load_start(settings["start"])
        _, total = main_network.budget(settings)
        cost = Cost()
        state, part, _ = main_network.advance(
            state, mask, settings, last=round(settings["rewind"] * total), label="rewind", run=run
        )
        cost.add(vars(part))
        with new_folder(folder / "reset") as reset:
            save_state(reset / "state", state)
            write_json(reset / "cost.json", vars(cost))
        with new_folder(folder / "start") as start:
            shutil.copytree(DENSE / "state", start / "state")
            write_json(start / "run.json", {"cost": read_json(DENSE / "run.json")["cost"]})


if __name__ == "__main__":
    run_stage(main)
