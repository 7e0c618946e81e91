"""What each speed feature of the engine is worth: a training step without it, beside one with all.

The pruned quick preset of texts; also what was tried and left out. About five minutes on two cores.

    python benchmarks/features.py
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import ROOT, prepare, pruned_start, record, step_times

from instant_soup import batches, main_network, training
from instant_soup.settings import check

ADAMW, BUILD = torch.optim.AdamW, main_network.build


def unfused_optimizer(groups: Any, lr: float, **_: Any) -> torch.optim.AdamW:
    """AdamW as torch makes it by default."""
    return ADAMW(groups, lr=lr)


def with_fused_attention(*arguments: Any) -> Any:
    """A model that keeps torch's fused attention whatever the engine asks for."""
    model = BUILD(*arguments)
    model.set_attn_implementation("sdpa")
    model.set_attn_implementation = lambda _: None
    return model


def compiled(*arguments: Any) -> Any:
    """A model run by torch.compile, for batches of any width."""
    model = BUILD(*arguments)
    model.compile(dynamic=True)
    return model


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """torch's fused attention in training, which the engine avoids on a CPU."""
    with (
        patch.object(main_network, "build", with_fused_attention),
        patch.object(training, "sdpa_kernel", lambda _: contextlib.nullcontext()),
    ):
        yield


Changed = tuple[contextlib.AbstractContextManager, dict[str, Any]]


def variants() -> dict[str, Changed]:
    """Name → what is patched, and which training settings are changed."""
    as_it_is = contextlib.nullcontext()
    found: dict[str, Changed] = {
        "all features": (as_it_is, {}),
        "fp32 instead of bf16": (as_it_is, {"precision": "fp32"}),
        "batches not grouped by length": (patch.object(batches, "SORTED_BATCHES", 1), {}),
        "embedding tables trained": (as_it_is, {"freeze_embeddings": False}),
        "the model's own dropout": (as_it_is, {"dropout": "model"}),
        "AdamW not fused": (patch.object(torch.optim, "AdamW", unfused_optimizer), {}),
        "one core": (one_thread(), {}),
        "tried: torch.compile": (patch.object(main_network, "build", compiled), {}),
    }
    if not torch.cuda.is_available():
        found["tried: torch's fused attention"] = (fused_attention(), {})
    return found


def measure(settings: dict[str, Any], changed: Changed, steps: int) -> tuple[float, float]:
    """Mean seconds of a training step, and of all before the first one that counts."""
    around, changes = changed
    plan = {**settings["training"], "seed": 0, **changes}
    state, mask = pruned_start(settings["sparsity"])
    with around:
        started = time.perf_counter()
        times = step_times(plan, state, mask, steps)
        return statistics.mean(times), time.perf_counter() - started - sum(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        texts = {"model": "minilm", "dataset": "reviews-sentiment", "preset": "quick"}
        settings = check(prepare(Path(name), **texts))
        os.chdir(name)
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(arguments.repeats):  # by turns: the machine's moods hit all alike
            for what, changed in variants().items():
                found.setdefault(what, []).append(measure(settings, changed, arguments.steps))
        os.chdir(ROOT)
    rows: list[dict[str, Any]] = []
    for what, pairs in found.items():
        own, before = (statistics.median(values) for values in zip(*pairs, strict=True))
        rows.append({"what": what, "step_seconds": own, "before_seconds": before})
    for row in rows:
        row["ratio"] = row["step_seconds"] / rows[0]["step_seconds"]
    record("features", rows, steps=arguments.steps, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
