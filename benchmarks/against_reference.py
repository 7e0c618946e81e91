"""Our engine and our stages against ISP written the usual way, and against a Trainer.

reference_style.py is code as research usually has it, trainer_style.py a `transformers.Trainer` at
its best settings. Same model, data, steps, batch size and sparsities (the quick preset of texts);
about a quarter of an hour on two cores.

The Trainer takes its texts in groups of 50 batches, the longest first. So a turn of steps has two
whole groups: in a part of one it would get longer texts than ours.

    python benchmarks/against_reference.py
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import reference_style
import trainer_style
from common import ROOT, prepare, pruned_start, recipe_of, record, run, run_stage, step_times

from instant_soup.files import read_json
from instant_soup.pipeline.plan import Params


def our_step(params: Params, precision: str, steps: int) -> float:
    """Mean wall seconds of a step of a pruned network, as the engine counts them."""
    recipe = recipe_of(params, precision=precision)
    state, mask = pruned_start(params.top.sparsity)
    return statistics.mean(step_times(recipe, state, mask, steps))


def our_isp(folder: Path, params: Params) -> dict[str, float]:
    """All of ISP by the stages' own processes, one after another: wall seconds, and what came out.

    Evaluation on the test split is not timed.
    """
    wall = 0.0
    for i in range(len(params.isp.sparsities(params.top.sparsity))):
        for stage in ("calibrate", "weak_mask", "mask_soup"):
            wall += run_stage(folder, stage, "--round", i)
    wall += run_stage(folder, "sparse_retrain", "--method", "isp")
    run_stage(folder, "evaluate", "--method", "isp")
    found = read_json(folder / "reports/results/isp.json")
    return {
        "seconds": wall,
        "steps": found["cost"]["steps"],
        "search_steps": found["cost"]["search_steps"],
        "accuracy": found["test"]["accuracy"],
        "sparsity": found["sparsity"],
    }


def of_one_process(folder: Path, name: str) -> dict[str, float]:
    """ISP in a process of its own: wall seconds with its start, and what came out."""
    script = ROOT / f"benchmarks/{name}.py"
    started = time.perf_counter()
    run([sys.executable, "-c", f"import {name}"], script.parent)
    start_up = time.perf_counter() - started
    found = json.loads(run([sys.executable, str(script)], folder).splitlines()[-1])
    return {**found, "seconds": found["seconds"] + start_up}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = prepare(folder)
        kinds = {
            "reference style": lambda: reference_style.steps(folder, arguments.steps),
            "transformers.Trainer": lambda: trainer_style.steps(folder, arguments.steps),
            "ours, fp32": lambda: our_step(params, "fp32", arguments.steps),
            "ours": lambda: our_step(params, "auto", arguments.steps),
        }
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        with contextlib.chdir(folder):
            for _ in range(arguments.repeats):  # by turns: the machine's moods hit all alike
                for kind, measure in kinds.items():
                    times[kind].append(measure())
        rows: list[dict[str, Any]] = [
            {"what": "training step", "kind": kind, "seconds": statistics.median(own)}
            for kind, own in times.items()
        ]
        kinds_of_isp = {
            "reference style": lambda: of_one_process(folder, "reference_style"),
            "our callback in a transformers.Trainer": lambda: of_one_process(
                folder, "trainer_style"
            ),
            "ours, the stages": lambda: our_isp(folder, params),
            "ours, instant_soup.prune": lambda: of_one_process(folder, "one_process"),
        }
        for kind, measure_isp in kinds_of_isp.items():
            rows.append({"what": "whole ISP", "kind": kind, **measure_isp()})
    record("against_reference", rows, repeats=arguments.repeats, repeats_of_whole_isp=1)


if __name__ == "__main__":
    main()
