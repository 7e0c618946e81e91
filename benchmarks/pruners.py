"""What a pruner's own work takes in each step: a mask that stays beside masks that move.

Whole runs of the quick preset of texts to 80 %. A pruner's own work is to mask gradients, to keep
its statistics or train its scores, and to find and take a mask. About three minutes on two cores.

    python benchmarks/pruners.py
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Bare, prepare, pruned_start, recipe_of, record, synchronise

from instant_soup.pipeline.plan import Params
from instant_soup.training.pruner import FixedMask, Pruner

SPARSITY = 0.8
MOVING = ("movement", "platon", "granet", "rigl", "ac_dc")


def timed(work: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """A pruner's method that notes how long each call takes."""

    def call(*arguments: Any) -> None:
        synchronise()
        started = time.perf_counter()
        work(*arguments)
        synchronise()
        seconds.append(time.perf_counter() - started)

    return call


def measure(params: Params, name: str) -> dict[str, Any]:
    """Mean milliseconds of a step, and of a pruner's work in it, over one run."""
    run = Bare(recipe_of(params))
    pruner: Pruner
    if name == "fixed mask":
        run.state, run.mask = pruned_start(params.top.sparsity)
        pruner = FixedMask(run.mask)
    else:
        pruner = params.method(name).pruner(run, params.top.sparsity)  # type: ignore[attr-defined]
    seconds: list[float] = []
    pruner.after_backward = timed(pruner.after_backward, seconds)  # type: ignore[method-assign]
    pruner.after_step = timed(pruner.after_step, seconds)  # type: ignore[method-assign]
    run.train(run.total, name, pruner=pruner, key=name)
    step, own = run.cost.seconds / run.cost.steps, sum(seconds) / run.cost.steps
    return {"pruner": name, "step": 1000 * step, "own": 1000 * own, "share": own / step}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        params = prepare(Path(name), sparsity=SPARSITY, methods=list(MOVING))
        with contextlib.chdir(name):
            rows = [measure(params, kind) for kind in ("fixed mask", *MOVING)]
    record("pruners", rows)


if __name__ == "__main__":
    main()
