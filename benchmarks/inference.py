"""Does sparsity pay at inference? Dense weights, the same with zeros, and torch's sparse layouts.

Whole classifiers of the packaged BERT's shape, by magnitude masks, fp32, 32 tokens a text: the
figures are speeds, not results. 2:4 semi-structured products where the GPU has them. About four
minutes on two cores.

    python benchmarks/inference.py
"""

import argparse
import copy
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import record, seconds
from shapes import MINILM
from torch import nn

from instant_soup.methods.n_of_m import largest_of_groups
from instant_soup.models import bert
from instant_soup.models.matrices import prunable
from instant_soup.sparsity import compact, masks, scores
from instant_soup.tickets.layouts import BLOCK, convert
from instant_soup.training import loop

TOKENS = 32


def block_mask(weights: dict[str, torch.Tensor], sparsity: float) -> masks.Mask:
    """Whole blocks of BLOCK × BLOCK weights, by their norms: what BSR could gain from."""
    norms = {
        name: w.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).square().sum((-1, -2))
        for name, w in weights.items()
    }
    kept = masks.keep_largest(norms, masks.keep_count(norms, sparsity))
    return {
        name: m.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1) for name, m in kept.items()
    }


def pruned(model: nn.Module, mask: masks.Mask) -> nn.Module:
    """A copy of a model with a mask applied."""
    model = copy.deepcopy(model)
    masks.apply(mask, dict(model.named_parameters()))
    return model


def size_on_disk(weights: dict[str, torch.Tensor], mask: masks.Mask) -> float:
    """MiB of the compact file in bf16, pruned matrices only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compact.safetensors"
        compact.save(path, {n: w * mask[n] for n, w in weights.items()}, mask, "bf16")
        return path.stat().st_size / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    arguments = parser.parse_args()
    where = loop.device()
    model, _ = bert.load_pretrained(MINILM)
    model = model.to(where).eval()
    weights = {name: w.detach().cpu() for name, w in prunable(model).items()}
    names, rows, sizes = list(weights), [], []
    # Layout, sparsity, the network, and the dense one that it is compared with.
    candidates: list[tuple[str, float, nn.Module, nn.Module]] = []
    for sparsity in arguments.sparsities:
        mask, blocks = scores.magnitude(weights, sparsity), block_mask(weights, sparsity)
        one, other = pruned(model, mask), pruned(model, blocks)
        candidates += [
            ("zeros in dense matrices", sparsity, one, model),
            ("CSR", sparsity, convert(one, names, "CSR"), model),
            (f"BSR, blocks of {BLOCK} pruned", sparsity, convert(other, names, "BSR"), model),
        ]
        size = size_on_disk(weights, mask)
        ratio = sum(w.numel() for w in weights.values()) * 2 / 2**20 / size
        sizes.append({"layout": "compact file, bf16", "sparsity": sparsity, "mib": size,
                      "ratio": ratio})  # fmt: skip
    if where.type == "cpu" and loop.resolve_precision("auto") == "bf16":
        candidates.append(("dense, bf16", 0.0, copy.deepcopy(model).bfloat16(), model))
    if where.type == "cuda":
        half = copy.deepcopy(model).half()
        mask = largest_of_groups(weights, 2, 4)
        candidates.append(("2:4, fp16", 0.5, convert(pruned(half, mask), names, "2:4"), half))
    for batch_size in arguments.batch_sizes:
        ids = torch.randint(1000, 20_000, (batch_size, TOKENS), device=where)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            for layout, sparsity, network, dense in candidates:
                # By turns, as the machine's moods come and go.
                theirs = seconds(partial(dense, **batch), 10)
                own = seconds(partial(network, **batch), 10)
                rows.append({"layout": layout, "sparsity": sparsity, "batch_size": batch_size,
                             "milliseconds": 1000 * own, "dense_milliseconds": 1000 * theirs,
                             "ratio": theirs / own})  # fmt: skip
    record("inference", rows + sizes, tokens=TOKENS)


if __name__ == "__main__":
    main()
