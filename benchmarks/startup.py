"""What is paid before any work: imports, a stage with nothing to do, a stage until its first step.

`dvc repro` with nothing to do is timed in this checkout, if it has nothing to do there. About two
minutes on two cores.

    python benchmarks/startup.py
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shapes
from common import ROOT, prepare, record, run, run_stage, stage_command

NOTHING_TO_DO = "dvc repro with nothing to do"
UNTIL_FIRST_STEP = str(ROOT / "benchmarks/until_first_step.py")


def wall(command: list[str], folder: Path, repeats: int) -> float:
    """Median wall seconds of a command, after one that does not count.

    Of until_first_step.py those until the instant that it prints.
    """
    times = []
    for _ in range(repeats + 1):
        started = time.time()
        output = run(command, folder)
        ended = float(output.splitlines()[-1]) if UNTIL_FIRST_STEP in command else time.time()
        times.append(ended - started)
    return statistics.median(times[1:])


def until_first_step(stage: str, *arguments: object, cold: bool) -> list[str]:
    """A training stage that ends when it would take its first step."""
    *python, script = stage_command(stage, cold=cold)
    return [*python, UNTIL_FIRST_STEP, script, *map(str, arguments)]


def both(what: str, folder: Path, command: Callable[..., list[str]], *words: object) -> dict:
    """A row: what a stage's command takes in a process of its own, and forked from a warm one."""
    cold, warm = (wall(command(*words, cold=kind), folder, 3) for kind in (True, False))
    return {"what": what, "cold": cold, "warm": warm}


def texts(folder: Path) -> list[dict[str, Any]]:
    """What is timed in a prepared folder of texts, once ISP's round 0 is there."""
    prepare(folder, isp={"denoisers": 1, "look_ahead": 1, "calibration": 0.01}, sparsity=0.2)
    round_0 = ("--round", 0)
    for stage in ("calibrate", "weak_mask", "mask_soup"):
        run_stage(folder, stage, *round_0)
    shutil.rmtree(folder / ".dvc")  # the store, out of which weak masks would come without a step
    alone = {
        "python": [sys.executable, "-c", ""],
        "import instant_soup": [sys.executable, "-c", "import instant_soup"],
        "import torch": [sys.executable, "-c", "import torch"],
        "plan, whole": stage_command("plan"),
    }
    until, whole = until_first_step, stage_command
    return [
        *({"what": what, "cold": wall(command, folder, 3)} for what, command in alone.items()),
        both("calibrate with nothing to do", folder, whole, "calibrate", "--round", 4),
        both("dense_finetune until its first step", folder, until, "dense_finetune"),
        both("calibrate until its first step", folder, until, "calibrate", *round_0),
        both("weak_mask until its first step", folder, until, "weak_mask", *round_0),
        both("sparse_retrain until its first step, with a validation", folder,
             until, "sparse_retrain", "--method", "isp"),
        both("mask_soup, whole", folder, whole, "mask_soup", *round_0),
        both("find_ticket one_shot, whole", folder, whole, "find_ticket", "--method", "one_shot"),
    ]  # fmt: skip


def nothing_to_do() -> float | None:
    """Seconds of `dvc repro` in this checkout; None if it would run a stage."""
    dvc = [sys.executable, "-m", "dvc", "repro"]
    dry = subprocess.run([*dvc, "--dry"], cwd=ROOT, capture_output=True, text=True)
    if dry.returncode or "Running stage" in dry.stdout:
        print(f"{NOTHING_TO_DO}: not timed, as it has something to do here: run it first")
        return None
    return wall(dvc, ROOT, 3)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        rows = texts(Path(name))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shapes.project(folder, "ViT-B/32", 4)
        what = "dense_finetune of a ViT-B/32 until its first step"
        rows.append(both(what, folder, until_first_step, "dense_finetune"))
    rows.append({"what": NOTHING_TO_DO, "cold": nothing_to_do()})
    record("startup", rows, on_gpu=False)


if __name__ == "__main__":
    main()
