"""How much of the machine's own matrix speed the training engine uses, for well-known shapes.

And for the quick preset of texts, as it stands. The peak is that of one large matrix product of the
same type, measured in the same run. The shapes have random weights: the figures are speeds, not
results. About ten minutes on two cores.

    python benchmarks/throughput.py
"""

import argparse
import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import Any

import shapes
import torch
from common import WARM_UP, matmul_peak, prepare, recipe_of, record, step_times

from instant_soup.data.batches import load_split, training_batches
from instant_soup.models import base as models
from instant_soup.pipeline.run import build
from instant_soup.pipeline.workspace import ENCODED, START, load_start
from instant_soup.training import loop
from instant_soup.training.cost import peak_memory

QUICK, QUICK_STEPS = "quick preset, texts", 40


def measure(shape: str, precision: str, steps: int) -> dict[str, Any]:
    """Seconds a training step, and the engine's FLOP/s beside the peak."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if shape == QUICK:
            params = prepare(folder)
        else:
            params = shapes.project(folder, shape, WARM_UP + steps)
        recipe = recipe_of(params, precision=precision)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with contextlib.chdir(name):
            state, mask = load_start(START)
            own = statistics.mean(step_times(recipe, state, mask, steps))
            memory = peak_memory()  # of this process, and so of no use on a CPU
            data = load_split(ENCODED / "train.safetensors", loop.device())
            model = build(state, recipe)
            flops = statistics.mean(
                3 * sum(models.forward_flops(model, mask, batch))
                for _, batch in training_batches(data, recipe, WARM_UP, WARM_UP + steps)
            )
    peak = matmul_peak(precision)
    return {
        "shape": shape,
        "precision": precision,
        "step_seconds": own,
        "rows_per_second": recipe.batch_size / own,
        "tflops": flops / own / 1e12,
        "peak_tflops": peak / 1e12,
        "share_of_peak": flops / own / peak,
        "gpu_memory_gib": memory / 2**30 if torch.cuda.is_available() else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=shapes.SHAPES, default=shapes.SHAPES)
    parser.add_argument("--precisions", nargs="+", default=None)
    parser.add_argument("--steps", type=int, default=100 if torch.cuda.is_available() else 3)
    arguments = parser.parse_args()
    precisions = arguments.precisions or sorted({"fp32", loop.resolve_precision("auto")})
    rows = [measure(QUICK, precision, QUICK_STEPS) for precision in precisions]
    rows += [measure(s, p, arguments.steps) for s in arguments.shapes for p in precisions]
    record("throughput", rows, steps=arguments.steps)


if __name__ == "__main__":
    main()
