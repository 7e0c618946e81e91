"""The most memory that each stage takes, for well-known shapes (random weights).

Resident memory of the stage's process; with a GPU the stage's own record is of the card, and is
in the cost table. About six minutes on two cores.

    python benchmarks/memory.py
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import shapes
from common import ROOT, record

STAGES = (
    ("dense_finetune",),
    ("calibrate", "--round", "0"),
    ("weak_mask", "--round", "0", "--denoiser", "0"),
    ("mask_soup", "--round", "0"),
    ("sparse_retrain", "--method", "isp"),
    ("find_ticket", "--method", "one_shot"),
    ("find_ticket", "--method", "snip"),
    ("find_ticket", "--method", "grasp"),
    ("evaluate", "--method", "isp"),
)


def peak_of(folder: Path, stage: str, *arguments: str) -> float:
    """GiB: the largest resident size of a stage's process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DVC_ROOT": str(folder)}
    command = [sys.executable, str(ROOT / f"stages/{stage}.py"), *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"error: {stage} ended with status {status}")
    return usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=shapes.SHAPES, default=shapes.SHAPES)
    rows = []
    for shape in parser.parse_args().shapes:
        with tempfile.TemporaryDirectory() as name:
            shapes.project(Path(name), shape, 4)
            for stage in STAGES:
                words = [w for w in stage if not w.startswith("--") and not w.isdigit()]
                peak = peak_of(Path(name), *stage)
                rows.append({"shape": shape, "stage": " ".join(words), "peak_gib": peak})
    record("memory", rows)


if __name__ == "__main__":
    main()
