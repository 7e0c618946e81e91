"""What each speed feature of the engine is worth: a training step without it, beside one with all.

The pruned quick preset of texts; also what was tried and left out. About
eight minutes on two cores; torch.compile needs a C++ compiler there.

    python benchmarks/features.py
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import prepare, pruned_start, recipe_of, record, step_times
from torch import nn
from torch.nn import functional

from instant_soup.data import batches
from instant_soup.data.batches import Texts, load_split
from instant_soup.models import first_token
from instant_soup.pipeline import run as pipeline_run
from instant_soup.pipeline.plan import Params
from instant_soup.pipeline.workspace import ENCODED
from instant_soup.training import loop
from instant_soup.training.cost import Cost

ADAMW, BUILD, ROWS = torch.optim.AdamW, pipeline_run.build, Texts.rows
COMPILED = "tried: torch.compile"
# What must not change fp32 results beyond rounding; the others train something else, or in
# another order.
NEUTRAL = (
    *("padded to the longest text", "AdamW not fused", "one core"),
    "tried: torch's fused attention",
    "tried: query, key and value by one product",
    "tried: clipping within AdamW's pass",
)


def unfused_optimizer(groups: Any, lr: float, **_: Any) -> torch.optim.AdamW:
    """AdamW as torch makes it by default."""
    return ADAMW(groups, lr=lr)


def with_fused_attention(*arguments: Any) -> Any:
    """A model that keeps torch's fused attention whatever the engine asks for."""
    model: Any = BUILD(*arguments)
    model.set_attn_implementation("sdpa")
    model.set_attn_implementation = lambda _: None
    return model


def padded(texts: Texts, index: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch as wide as the longest text of the whole split."""
    longest = texts.lengths.argmax()[None]
    return {name: t[:-1] for name, t in ROWS(texts, torch.cat([index, longest])).items()}


def compiled(*arguments: Any) -> Any:
    """A model run by torch.compile, for batches of any width."""
    model = BUILD(*arguments)
    model.compile(dynamic=True)
    return model


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """torch.compile with an empty cache, as on a machine that has never run this."""
    with (
        tempfile.TemporaryDirectory() as cache,
        patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache),
        patch.object(pipeline_run, "build", compiled),
    ):
        yield


def with_one_product(*arguments: Any) -> Any:
    """A model whose attention makes query, key and value by one matrix product."""
    model: Any = BUILD(*arguments)
    for block in model.base_model.encoder.layer:
        attention = block.attention.self
        parts = (attention.query, attention.key, attention.value)
        attention.register_forward_pre_hook(partial(_together, parts))
    return model


def _together(parts: tuple[nn.Linear, ...], _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    weight, bias = (torch.cat([getattr(p, n) for p in parts]) for n in ("weight", "bias"))
    for part, found in zip(
        parts, functional.linear(inputs[0], weight, bias).chunk(3, -1), strict=True
    ):
        part.forward = partial(_given, found)  # type: ignore[method-assign]


def _given(found: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return found


def with_norms_in_bf16(*arguments: Any) -> Any:
    """A model whose norms give bf16, so that what lies between its products is in bf16, too."""
    model: Any = BUILD(*arguments)
    for norm in model.base_model.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.forward = partial(_norm_in_bf16, norm)  # type: ignore[method-assign]
    return model


def _norm_in_bf16(norm: nn.LayerNorm, rows: torch.Tensor) -> torch.Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.to(torch.bfloat16)
        return functional.layer_norm(rows, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


@contextlib.contextmanager
def clipping_in_adamw() -> Iterator[None]:
    """AdamW divides the gradients by what clips them, as it does where losses are scaled."""
    made: list[Any] = []

    def remembered(*arguments: Any, **named: Any) -> torch.optim.AdamW:
        made[:] = [ADAMW(*arguments, **named)]
        return made[0]

    def clip(parameters: list[nn.Parameter], most: float) -> None:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        made[0].grad_scale = ((norm + 1e-6) / most).clamp(min=1)
        made[0].found_inf = torch.zeros((), device=norm.device)

    with (
        patch.object(torch.optim, "AdamW", remembered),
        patch.object(nn.utils, "clip_grad_norm_", clip),
    ):
        yield


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
        patch.object(pipeline_run, "build", with_fused_attention),
        patch.object(loop, "sdpa_kernel", lambda _: contextlib.nullcontext()),
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
        "padded to the longest text": (patch.object(Texts, "rows", padded), {}),
        "embedding tables trained": (as_it_is, {"freeze_embeddings": False}),
        "the model's own dropout": (as_it_is, {"dropout": "model"}),
        "all tokens in the last block": (
            patch.object(first_token, "_in_bf16", lambda _: False),
            {},
        ),
        "AdamW not fused": (patch.object(torch.optim, "AdamW", unfused_optimizer), {}),
        "one core": (one_thread(), {}),
        "tried: query, key and value by one product": (
            patch.object(pipeline_run, "build", with_one_product),
            {},
        ),
        "tried: clipping within AdamW's pass": (clipping_in_adamw(), {}),
        "tried: activations between products in bf16": (
            patch.object(pipeline_run, "build", with_norms_in_bf16),
            {},
        ),
        COMPILED: (compiling(), {}),
    }
    if not torch.cuda.is_available():
        found["tried: torch's fused attention"] = (fused_attention(), {})
    return found


def measure(params: Params, changed: Changed, steps: int) -> tuple[float, float]:
    """Mean seconds of a training step, and of all before the first one that counts."""
    around, changes = changed
    recipe = recipe_of(params, **changes)
    state, mask = pruned_start(params.top.sparsity)
    with around:
        started = time.perf_counter()
        times = step_times(recipe, state, mask, steps)
        return statistics.mean(times), time.perf_counter() - started - sum(times)


def losses(params: Params, changed: Changed) -> list[float]:
    """The losses of ten fp32 steps without dropout."""
    recipe = recipe_of(params, precision="fp32", dropout=0.0)
    state, mask = pruned_start(params.top.sparsity)
    found: list[float] = []
    with changed[0]:
        data = load_split(ENCODED / "train.safetensors", loop.device())
        loop.train(
            pipeline_run.build(state, recipe), state, mask, data, recipe, Cost(),
            last=10, total=None, label="fp32",
            after_step=lambda _, loss, __: found.append(loss.item()),
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        params = prepare(Path(name))
        found: dict[str, list[tuple[float, float]]] = {}
        moved: dict[str, float] = {}
        with contextlib.chdir(name):
            for repeat in range(arguments.repeats):  # by turns: the machine's moods hit all alike
                for what, changed in variants().items():
                    if not (repeat and what == COMPILED):  # minutes, each time
                        times = measure(params, changed, arguments.steps)
                        found.setdefault(what, []).append(times)
            as_it_is = losses(params, variants()["all features"])
            for what in NEUTRAL:
                if what in variants():
                    own = losses(params, variants()[what])
                    moved[what] = max(abs(a - b) for a, b in zip(own, as_it_is, strict=True))
    rows: list[dict[str, Any]] = []
    for what, pairs in found.items():
        step, before = (statistics.median(values) for values in zip(*pairs, strict=True))
        rows.append({"what": what, "step_seconds": step, "before_seconds": before,
                     "loss_moves": moved.get(what)})  # fmt: skip
    for row in rows:
        row["ratio"] = row["step_seconds"] / rows[0]["step_seconds"]
    record("features", rows, steps=arguments.steps, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
