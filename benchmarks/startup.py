"""What is paid before any work: imports, a stage with nothing to do, a stage until its first step.

python benchmarks/startup.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, prepare, record

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
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DVC_ROOT": str(folder)}
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    python, rows = sys.executable, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        dense, idle = (str(ROOT / f"stages/{s}.py") for s in ("dense_finetune", "calibrate"))
        commands = {
            "python": [python, "-c", ""],
            "import instant_soup": [python, "-c", "import instant_soup"],
            "import torch": [python, "-c", "import torch"],
            "a stage with nothing to do": [python, idle, "--round", "4"],
            "a training stage until its first step": [python, "-c", UNTIL_FIRST_STEP, dense],
        }
        for what, command in commands.items():
            rows.append({"what": what, "seconds": wall(command, folder, 5)})
    dry = subprocess.run(["dvc", "repro", "--dry"], cwd=ROOT, capture_output=True, text=True)
    if dry.returncode or "Running stage" in dry.stdout:
        print("dvc repro has something to do here: run it first to time it with nothing to do")
    else:
        what = "dvc repro with nothing to do"
        rows.append({"what": what, "seconds": wall(["dvc", "repro"], ROOT, 3)})
    record("startup", rows)


if __name__ == "__main__":
    main()
