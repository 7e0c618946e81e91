"""All methods and the engine's speed on a GPU, on a machine that has little else.

One command. It needs the library's own requirements (`pip install .`) without `datasets`: no DVC,
no MLflow, no open_clip, no data, no files of models and no network. Models have random weights: the
figures are speeds, not results. Some minutes on one GPU.

    python benchmarks/on_a_gpu.py
    python benchmarks/on_a_gpu.py --small    # tiny shapes, on a CPU too, to try the script

It measures, on the device:

    methods     each method that `instant_soup.prune` takes: whether its mask is exact, and seconds
    rankings    the same mask as on the CPU, to the bit, and its seconds and memory
    training    a step's seconds, share of the matrix peak, memory, and waits of the CPU for the GPU
    rounds      ISP and ISP+ beside a training of as many steps without rounds
    inference   a pruned encoder in dense bf16, in CSR and in 2:4

It ends with an error if a method is not exact or a ranking differs.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from common import matmul_peak, record, seconds, synchronise
from torch import nn

import instant_soup
from instant_soup.errors import UserError
from instant_soup.library.settings import method_of
from instant_soup.methods.registry import methods
from instant_soup.models.torchvision_cpu import declare_missing_operators
from instant_soup.sparsity import masks, scores
from instant_soup.tickets import layouts
from instant_soup.training import loop

declare_missing_operators()  # before transformers is imported
from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

Rows = list[dict[str, Any]]
SPARSITY = 0.8
# Settings that a short run needs; others have the library's defaults.
SHORT: dict[str, dict[str, Any]] = {
    "isp": {"denoisers": 2, "look_ahead": 3},
    "gmp": {"prunes": 5, "cycles": 2},
    "early_bird": {"every": 1.0, "window": 1},
    "layer_budgets": {"budget": "ecoflap"},
    "obert": {"gradient_batches": 4},
    "cap": {"gradient_batches": 4},
    "rigl": {"every": 5},
}


class Size(NamedTuple):
    """How large everything is."""

    layers: int
    width: int
    tokens: int
    texts: int  # a batch
    images: int
    side: int  # of an image
    steps: int
    ranked: int  # weights


FULL = Size(12, 768, 128, 32, 128, 224, 40, 10**9)
SMALL = Size(2, 32, 16, 8, 8, 32, 24, 10**5)


def text_model(size: Size) -> nn.Module:
    """A BERT of this size with a head of two classes."""
    torch.manual_seed(0)
    model: nn.Module = BertForSequenceClassification(BertConfig(**sizes(size), vocab_size=1000))
    return model.to(loop.device())


def image_model(size: Size) -> nn.Module:
    """A vision transformer of this size, with a head of two classes."""
    torch.manual_seed(0)
    patch = min(32, size.side // 2)
    config = ViTConfig(**sizes(size), image_size=size.side, patch_size=patch)
    model: nn.Module = ViTForImageClassification(config)
    return model.to(loop.device())


def sizes(size: Size) -> dict[str, Any]:
    """What both kinds of models are made by."""
    return {
        "hidden_size": size.width, "num_hidden_layers": size.layers,
        "intermediate_size": 4 * size.width, "num_attention_heads": max(1, size.width // 64),
        "num_labels": 2,
    }  # fmt: skip


def texts(size: Size, number: int = 8) -> Rows:
    """Batches of texts of full length, drawn at random, on the device."""
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (number, size.texts, size.tokens), generator=draws)
    where = loop.device()
    return [{"input_ids": own.to(where), "labels": (own[:, 0] % 2).to(where)} for own in ids]


def images(size: Size, number: int = 8) -> Rows:
    """Batches of images, drawn at random, on the device."""
    draws, where = torch.Generator().manual_seed(0), loop.device()
    shape, rows = (size.images, 3, size.side, size.side), []
    for _ in range(number):
        pixels = torch.randn(shape, generator=draws)
        labels = torch.randint(2, (size.images,), generator=draws)
        rows.append({"pixel_values": pixels.to(where), "labels": labels.to(where)})
    return rows


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).loss


def pruned(
    model: nn.Module, batches: Rows, steps: int, method: Any, sparsity: float = SPARSITY, **own: Any
) -> Any:
    """`instant_soup.prune` in the quicker precision."""
    return instant_soup.prune(
        model, batches, loss, method=method, steps=steps, learning_rate=1e-4, sparsity=sparsity,
        precision="auto", validate=lambda network: -float(loss(network, batches[0])), **own,
    )  # fmt: skip


def all_methods(size: Size) -> Rows:
    """Prune a small network by each method; an error of one is its row."""
    small = size._replace(layers=2, width=64, tokens=16, texts=8)
    batches, rows = texts(small, 12), []
    for name, kind in methods().items():
        if kind.needs or kind.dense:
            continue
        row: dict[str, Any] = {"method": name, "exact": False}
        started, sparsity = time.perf_counter(), 0.5 if name == "n_of_m" else SPARSITY
        method = method_of(name, SHORT.get(name, {}))
        try:
            found = pruned(text_model(small), batches, 48, method, sparsity)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            kept, total = masks.count(found.mask)
            named = dict(found.model.named_parameters())
            zero = all(not named[n][~m.to(named[n].device)].any() for n, m in found.mask.items())
            finite = all(bool(p.isfinite().all()) for p in named.values())
            row["exact"] = kept == masks.number_kept(total, sparsity) and zero and finite
        rows.append({**row, "seconds": time.perf_counter() - started})
    return rows


def rankings(size: Size) -> Rows:
    """Global magnitude masks of weights with many equal scores, here and on the CPU."""
    draws = torch.Generator().manual_seed(0)
    parts = [torch.randint(-5000, 5000, (size.ranked // 10,), generator=draws) for _ in range(10)]
    on_cpu = {str(i): part.float() for i, part in enumerate(parts)}
    here = {name: w.to(loop.device()) for name, w in on_cpu.items()}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    taken = seconds(lambda: scores.magnitude(here, SPARSITY), 3)
    extra = torch.cuda.max_memory_allocated() - before if torch.cuda.is_available() else None
    found, wanted = (scores.magnitude(w, SPARSITY) for w in (here, on_cpu))
    alike = all(torch.equal(found[name].cpu(), wanted[name]) for name in wanted)
    gib = None if extra is None else extra / 2**30
    return [{"weights": size.ranked, "seconds": taken, "as_on_the_cpu": alike, "extra_gib": gib}]


def between(short: int, long: int, work: Callable[[int], Any]) -> tuple[float, float]:
    """Seconds, and waits of the CPU for the GPU, of a step: what a longer run takes more."""
    taken, waits = [], []
    for steps in (short, long):
        started = time.perf_counter()
        work(steps)
        synchronise()
        taken.append(time.perf_counter() - started)
        if torch.cuda.is_available():
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    work(steps)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            waits.append(sum("synchroniz" in str(one.message) for one in told))
    more = long - short
    return (taken[1] - taken[0]) / more, (waits[1] - waits[0]) / more if waits else 0.0


def training(size: Size) -> Rows:
    """A step of both shapes under a mask that stays."""
    return [
        {"shape": "BERT-base", **steps_of(text_model, texts(size), size.texts, size)},
        {"shape": "ViT-B/32", **steps_of(image_model, images(size), size.images, size)},
    ]


def steps_of(
    make: Callable[[Size], nn.Module], batches: Rows, batch_size: int, size: Size
) -> dict[str, Any]:
    """What a step of a model takes: time, memory, and waits of the CPU for the GPU."""

    def run(steps: int) -> Any:
        return pruned(make(size), batches, steps, "one_shot")

    run(8)  # first steps are slow
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    step, waits = between(size.steps, 3 * size.steps, run)
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    flops = run(size.steps).cost["flops"] / size.steps
    precision = loop.resolve_precision("auto")
    peak = matmul_peak(precision) if torch.cuda.is_available() else float("nan")
    return {
        "precision": precision, "step_seconds": step, "rows_per_second": batch_size / step,
        "tflops": flops / step / 1e12, "peak_tflops": peak / 1e12,
        "share_of_peak": flops / step / peak, "gpu_memory_gib": memory, "waits_a_step": waits,
    }  # fmt: skip


def rounds(size: Size) -> Rows:
    """Whole methods beside one without rounds, in seconds and in FLOPs."""
    batches, rows = texts(size), []
    for method, own in (
        ("one_shot", {}),
        ("isp_plus", {}),
        ("isp", {"denoisers": 4, "look_ahead": 10}),
    ):
        started = time.perf_counter()
        found = pruned(text_model(size), batches, 5 * size.steps, method, **own)
        synchronise()
        steps = found.cost["steps"] + found.cost["search_steps"]
        row = {"method": method, "seconds": time.perf_counter() - started, "steps": steps}
        rows.append({**row, "flops": found.cost["flops"]})
    for row in rows:
        for name in ("seconds", "flops"):
            row[f"{name}_ratio"] = row[name] / rows[0][name]
    return rows


def inference(size: Size) -> Rows:
    """A pruned encoder's forward pass in several layouts; a layout that is refused says why."""
    rows: Rows = []
    batch, model = texts(size, 1)[0]["input_ids"], text_model(size).eval()
    if torch.cuda.is_available():
        model = model.to(torch.bfloat16)
    found = pruned(model, texts(size, 2), 2, "n_of_m", 0.5)
    for layout in ("dense", "CSR", "2:4"):
        try:
            own = model if layout == "dense" else layouts.convert(model, found.mask, layout)
            with torch.inference_mode():
                taken = seconds(partial(own, input_ids=batch), 10)
            rows.append({"layout": layout, "milliseconds": 1000 * taken})
        except (UserError, RuntimeError) as error:
            rows.append({"layout": layout, "error": str(error).splitlines()[0]})
    return rows


PARTS: dict[str, Callable[[Size], Rows]] = {
    "methods": all_methods,
    "rankings": rankings,
    "training": training,
    "rounds": rounds,
    "inference": inference,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="tiny shapes; nothing is recorded")
    arguments = parser.parse_args()
    size = SMALL if arguments.small else FULL
    if not (torch.cuda.is_available() or arguments.small):
        sys.exit("error: no GPU here; allowed without one: --small")
    wrong = []
    for part in arguments.parts:
        rows = PARTS[part](size)
        wrong += [
            row for row in rows if row.get("exact") is False or row.get("as_on_the_cpu") is False
        ]
        if arguments.small:
            print(*rows, sep="\n", flush=True)
        else:
            record(f"gpu_{part}", rows)
    if wrong:
        sys.exit(f"error: {len(wrong)} wrong: {wrong}")


if __name__ == "__main__":
    main()
