"""ISP by `instant_soup.prune` in one process, as other benchmarks time it beside the stages.

Run in a prepared folder (common.prepare); prints one JSON line.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import recipe_of, seconds

import instant_soup
from instant_soup.data.batches import Texts, epoch_batches, load_split, steps_per_epoch
from instant_soup.files import read_yaml
from instant_soup.pipeline.plan import check
from instant_soup.pipeline.run import build
from instant_soup.pipeline.workspace import ENCODED, START, load_start
from instant_soup.sparsity import masks
from instant_soup.training import loop, metrics
from instant_soup.training.schedule import steps_of


class Epochs:
    """Batches grouped by length as in the engine, in another order at each pass."""

    def __init__(self, data: Texts, batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size

    def __len__(self) -> int:
        return steps_per_epoch(len(self.data), self.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        seed = int(torch.randint(2**31, ()))
        for index in epoch_batches(self.data.lengths, self.batch_size, seed, 0):
            yield self.data.rows(index)


def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return loop.loss_of(loop.logits_of(model, batch), batch["labels"])


def whole_isp() -> dict[str, float]:
    """Wall seconds from reading the data to the end; then, not timed, what came out."""
    params = check(read_yaml(Path("params.yaml")))
    recipe, isp, sparsity = recipe_of(params), params.isp, params.top.sparsity
    started = time.perf_counter()
    data = load_split(ENCODED / "train.safetensors", loop.device())
    assert isinstance(data, Texts)
    state, _ = load_start(START)
    model = build(state, recipe).to(data.labels.device)
    batches = Epochs(data, recipe.batch_size)
    total = steps_of(recipe.epochs, len(batches))
    pruned = instant_soup.prune(
        model, batches, loss, steps=total, learning_rate=recipe.learning_rate, sparsity=sparsity,
        compression_rate=isp.compression_rate,
        mask_finding=isp.ends(sparsity, total, len(batches))[-1] / total,
        denoisers=isp.denoisers, look_ahead=isp.look_ahead, combine=isp.combine,
        learning_rate_range=isp.learning_rate_range, weight_decay_range=isp.weight_decay_range,
        weight_decay=recipe.weight_decay, warmup=recipe.warmup, clip_norm=recipe.clip_norm,
        precision=recipe.precision,
    )  # fmt: skip
    wall = time.perf_counter() - started
    precision = loop.resolve_precision(recipe.precision)

    def predict(split: str) -> tuple[str, np.ndarray, np.ndarray]:
        rows = load_split(ENCODED / f"{split}.safetensors", data.labels.device)
        return loop.predict(pruned.model, rows, precision)

    score = metrics.score("accuracy", *predict("test"))
    return {
        "seconds": wall,
        "steps": pruned.cost["steps"],
        "search_steps": pruned.cost["search_steps"],
        "accuracy": score,
        "sparsity": masks.sparsity(pruned.mask),
        "validation_seconds": seconds(lambda: predict("validation"), 3),
    }


if __name__ == "__main__":
    print(json.dumps(whole_isp()))
