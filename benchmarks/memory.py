"""The most memory that each stage takes, for well-known shapes (random weights).

Resident memory of the stage's process; beside it, with a GPU, the card's, as the stage records it.
About eight minutes on two cores.

    python benchmarks/memory.py
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import shapes
import torch
from common import record, run, stage_command

from instant_soup.files import read_json

STAGES = (
    ("prepare_model",),
    ("encode_data",),
    ("attach_head",),
    ("dense_finetune",),
    ("calibrate", "--round", "0"),
    ("weak_mask", "--round", "0"),
    ("mask_soup", "--round", "0"),
    ("sparse_retrain", "--method", "isp"),
    ("find_ticket", "--method", "one_shot"),
    ("find_ticket", "--method", "snip"),
    ("find_ticket", "--method", "grasp"),
    ("evaluate", "--method", "isp"),
)
RECORDS = {"dense_finetune": "dense", "sparse_retrain": "isp"}  # stage → its folder, with its cost

# Linux counts what a process was started from to its peak, and this one is large: a small one
# starts the stage.
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def peak_of(folder: Path, stage: str, *arguments: str) -> dict[str, float | None]:
    """GiB: the largest resident size of a stage's process, and what it took of a GPU."""
    command = [sys.executable, "-c", MEASURE, *stage_command(stage, *arguments, cold=True)]
    found: dict[str, Any] = {"peak_gib": int(run(command, folder)) / 2**20}
    if torch.cuda.is_available() and stage in RECORDS:
        path = folder / f"models/retrained/{RECORDS[stage]}/run.json"
        found["gpu_gib"] = read_json(path)["cost"]["peak_memory"] / 2**30
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=shapes.SHAPES, default=shapes.SHAPES)
    rows = []
    for shape in parser.parse_args().shapes:
        with tempfile.TemporaryDirectory() as name:
            shapes.project(Path(name), shape, 4)
            for stage in STAGES:
                words = [w for w in stage if not w.startswith("--") and not w.isdigit()]
                row = {"shape": shape, "stage": " ".join(words)}
                rows.append({**row, **peak_of(Path(name), *stage)})
    record("memory", rows)


if __name__ == "__main__":
    main()
