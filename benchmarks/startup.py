"""What is paid before any work: imports, a stage with nothing to do, a stage until its first step.

`dvc repro` with nothing to do is timed in this checkout, if it has nothing to do there. About two
minutes on two cores.

    python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import shapes
from common import ROOT, prepare, record, run, run_stage, stage_command

NOTHING_TO_DO = "dvc repro with nothing to do"

# Runs a stage's script until the engine is about to take its first step.
UNTIL_FIRST_STEP = """
import os, runpy, sys
from instant_soup import training
def ready(*_):
    os._exit(0)
training.make_optimizer = ready
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
os._exit(1)
"""


def wall(command: list[str], folder: Path, repeats: int) -> float:
    """Median wall seconds of a command, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run(command, folder)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def until_first_step(stage: str, *arguments: object) -> list[str]:
    """A training stage that ends when it would take its first step."""
    python, *rest = stage_command(stage, *arguments)
    return [python, "-c", UNTIL_FIRST_STEP, *rest]


def texts(folder: Path) -> dict[str, list[str]]:
    """What is timed in a prepared folder of texts, once ISP's round 0 is there."""
    prepare(folder, isp={"denoisers": 1, "look_ahead": 1, "calibration": 0.01}, sparsity=0.2)
    round_0, denoiser = ("--round", 0), ("--denoiser", 0)
    run_stage(folder, "calibrate", *round_0)
    run_stage(folder, "weak_mask", *round_0, *denoiser)
    run_stage(folder, "mask_soup", *round_0)
    return {
        "python": [sys.executable, "-c", ""],
        "import instant_soup": [sys.executable, "-c", "import instant_soup"],
        "import torch": [sys.executable, "-c", "import torch"],
        "plan, whole": stage_command("plan"),
        "calibrate with nothing to do": stage_command("calibrate", "--round", 4),
        "weak_mask with nothing to do": stage_command("weak_mask", "--round", 4, *denoiser),
        "dense_finetune until its first step": until_first_step("dense_finetune"),
        "calibrate until its first step": until_first_step("calibrate", *round_0),
        "weak_mask until its first step": until_first_step("weak_mask", *round_0, *denoiser),
        "sparse_retrain until its first step, with a validation": until_first_step(
            "sparse_retrain", "--method", "isp"
        ),
        "mask_soup, whole": stage_command("mask_soup", *round_0),
        "find_ticket one_shot, whole": stage_command("find_ticket", "--method", "one_shot"),
    }


def nothing_to_do() -> float | None:
    """Seconds of `dvc repro` in this checkout; None if it would run a stage."""
    dvc = [sys.executable, "-m", "dvc", "repro"]
    dry = subprocess.run([*dvc, "--dry"], cwd=ROOT, capture_output=True, text=True)
    if dry.returncode or "Running stage" in dry.stdout:
        print(f"{NOTHING_TO_DO}: not timed, as it has something to do here: run it first")
        return None
    return wall(dvc, ROOT, 3)


def main() -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, command in texts(folder).items():
            rows.append({"what": what, "seconds": wall(command, folder, 3)})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shapes.project(folder, "ViT-B/32", 4)
        what = "dense_finetune of a ViT-B/32 until its first step"
        rows.append({"what": what, "seconds": wall(until_first_step("dense_finetune"), folder, 3)})
    rows.append({"what": NOTHING_TO_DO, "seconds": nothing_to_do()})
    record("startup", rows, on_gpu=False)


if __name__ == "__main__":
    main()
