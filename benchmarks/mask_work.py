"""Mask work on many weights, beside a version that sorts, and beside the speed of copying.

Shapes of BERT-base (85 M prunable weights), and a network of a thousand million. For each
operation: seconds, those of the version with sorting and float masks, the share of the machine's
copying speed (bytes that have to be read and written, over the time), and the most memory that
it takes beside its inputs. Then all mask work of a round of ISP, beside the round's training steps,
which are timed, too. About ten minutes on two cores.

    python benchmarks/mask_work.py
"""

import argparse
import contextlib
import ctypes
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shapes
import torch
from common import pruned_start, recipe_of, record, seconds, step_times

from instant_soup.sparsity import mask_soup, masks, scores

SPARSITY, DENOISERS = 0.7, 4
LOOK_AHEAD = 10  # steps of a denoiser, as in the quick preset; the paper's 100 make the share less
NETWORKS = {"86 M": (12, 768), "252 M": (5, 2048), "1 B": (20, 2048)}  # layers, width
SORTED = ("86 M",)  # the sorting version of a thousand million weights takes more than 24 GB


def weights_of(layers: int, width: int) -> dict[str, torch.Tensor]:
    """Random weights of a transformer's encoder: four square matrices and the MLP's two."""
    draws = torch.Generator().manual_seed(0)
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    return {
        f"layer.{i}.{j}": torch.empty(shape).normal_(0, 0.02, generator=draws)
        for i in range(layers)
        for j, shape in enumerate(shapes)
    }


def peak_extra(function: Callable[[], Any]) -> float | None:
    """GiB that a call takes at most beside what is there before it (Linux, CPU)."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return None

    def field(name: str) -> int:
        line = next(x for x in status.read_text().splitlines() if x.startswith(name))
        return int(line.split()[1])

    ctypes.CDLL(None).malloc_trim(0)  # what is free already must not hide what is taken
    clear.write_text("5")  # the peak starts anew
    before = field("VmRSS")
    function()
    return max(0, field("VmHWM") - before) / 2**20


def sorted_magnitude(weights: dict[str, torch.Tensor], within: dict | None = None) -> dict:
    """Float masks by sorting all magnitudes."""
    sizes = {n: w.abs() if within is None else w.abs() * within[n] for n, w in weights.items()}
    every = torch.cat([s.flatten() for s in sizes.values()]).sort().values
    threshold = every[math.floor(SPARSITY * len(every))]
    return {n: (s >= threshold).float() for n, s in sizes.items()}


def float_union(floats: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The union of float masks."""
    return {n: (torch.stack([m[n] for m in floats]).sum(0) > 0).float() for n in floats[0]}


def flipped(mask: masks.Mask, share: float, seed: int) -> masks.Mask:
    """A weak mask: some of the weights decided otherwise."""
    draws = torch.Generator().manual_seed(seed)
    return {n: m ^ (torch.rand(m.shape, generator=draws) < share) for n, m in mask.items()}


def measure(name: str, folder: Path, copy_speed: float) -> list[dict[str, Any]]:
    """One row for each operation."""
    weights = weights_of(*NETWORKS[name])
    total = sum(w.numel() for w in weights.values())
    k = masks.keep_count(weights, SPARSITY)
    mask = scores.magnitude(weights, SPARSITY)
    weak = [flipped(mask, 0.01, seed) for seed in range(DENOISERS)]
    union = mask_soup.combine(weak, "union")
    file = folder / "mask.safetensors"
    sort = name in SORTED
    floats = [{n: m.float() for n, m in each.items()} for each in weak] if sort else []
    joined = float_union(floats) if sort else {}

    def float_cosine() -> float:
        one, other = (torch.cat([m.flatten() for m in each.values()]) for each in floats[:2])
        return float(torch.nn.functional.cosine_similarity(one, other, 0))

    n = DENOISERS
    bits = {x: masks.pack(m) for x, m in mask.items()}
    # Operation, ours, the sorting version, bytes a weight that must be read or written.
    work: list[tuple[str, Callable, Callable | None, float]] = [
        ("threshold", lambda: scores.magnitude(weights, SPARSITY),
         lambda: sorted_magnitude(weights), 4 + 1),
        ("union", lambda: mask_soup.combine(weak, "union"),
         lambda: float_union(floats), n + 1),
        ("vote", lambda: mask_soup.combine(weak, "vote"),
         lambda: {x: sum(m[x] for m in floats) for x in weights}, n + 1),
        ("adjust", lambda: mask_soup.adjust(union, weights, k),
         lambda: sorted_magnitude(weights, joined), 4 + 1 + 1),
        ("compare", lambda: masks.cosine_similarity(weak[0], weak[1]), float_cosine, 2),
        ("apply", lambda: masks.apply(mask, weights),
         lambda: {x: weights[x] * floats[0][x] for x in weights}, 4 + 1),
        ("pack", lambda: {x: masks.pack(m) for x, m in mask.items()}, None, 1 + 1 / 8),
        ("unpack", lambda: {x: masks.unpack(b, x, list(mask[x].shape)) for x, b in bits.items()},
         None, 1 + 1 / 8),
        ("pack and save", lambda: masks.save(file, mask),
         lambda: torch.save(floats[0], folder / "mask.pt"), 1 + 1 / 8),
        ("load and unpack", lambda: masks.load(file),
         lambda: torch.load(folder / "mask.pt", weights_only=True), 1 + 1 / 8),
    ]  # fmt: skip
    rows = []
    for operation, ours, theirs, size in work:
        own = seconds(ours)
        rows.append({
            "weights": name, "operation": operation, "seconds": own,
            "sorting_seconds": seconds(theirs, 3) if theirs and sort else None,
            "share_of_copy": size * total / own / copy_speed,
            "extra_gib": peak_extra(ours),
            "bits_a_weight": 8 * file.stat().st_size / total if operation == "pack and save"
            else None,
        })  # fmt: skip
    return rows


def share_of_round(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All mask work of a round of BERT-base beside its look-ahead steps (32 × 128 tokens)."""
    own = {row["operation"]: row["seconds"] for row in rows}
    each = own["threshold"] + own["pack and save"] + own["load and unpack"]  # of a denoiser
    work = DENOISERS * each + own["union"] + own["adjust"] + own["pack and save"] + own["apply"]
    with tempfile.TemporaryDirectory() as name:
        recipe = recipe_of(shapes.project(Path(name), "BERT-base", 8))
        with contextlib.chdir(name):
            state, mask = pruned_start(SPARSITY)
            step = statistics.median(step_times(recipe, state, mask, 4))
    steps = DENOISERS * LOOK_AHEAD
    return {"mask_seconds": work, "step_seconds": step, "steps": steps,
            "share": work / (work + steps * step)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    chosen = parser.parse_args().networks
    source = torch.rand(2**26)
    target = torch.empty_like(source)
    copy_speed = 2 * 4 * len(source) / seconds(lambda: target.copy_(source))
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in chosen for row in measure(name, Path(folder), copy_speed)]
    base = [row for row in rows if row["weights"] == "86 M"]
    about = {"round": share_of_round(base)} if base else {}
    record("mask_work", rows, on_gpu=False, copy_gb_per_second=copy_speed / 1e9, **about)


if __name__ == "__main__":
    main()
