"""Masks over the prunable weights: exact top-k, and files with one bit a weight.

A mask is a dictionary of boolean tensors, one for each prunable weight. It has the weight's name in
the model's state dict, and the weight's shape. True means kept.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from instant_soup.errors import UserError
from instant_soup.files import new_file, order_header
from instant_soup.sparsity import ranking
from instant_soup.sparsity.names import layer_of
from instant_soup.sparsity.ranking import NAN, WHOLE, Pieces, Scores, Shards, Standing

Mask = dict[str, torch.Tensor]
Bits = dict[str, np.ndarray]  # of masks, by name
Key = TypeVar("Key")

FORMAT = "instant-soup-mask-1"
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Cut(NamedTuple):
    """A mask, and new values of weights that stay, to make up for those that go."""

    mask: Mask
    weights: dict[str, torch.Tensor]


def count(mask: Mask) -> tuple[int, int]:
    """Count the kept weights, and all weights."""
    kept = sum(ranking.true_count(m) for m in mask.values())
    return kept, sum(m.numel() for m in mask.values())


def count_each(mask: Mask, shards: Shards = WHOLE) -> dict[str, int]:
    """Name → how many weights stay; of all shards, if these are."""
    kept = ranking.sums([ranking.true_count(m) for m in mask.values()], shards)
    return dict(zip(mask, kept, strict=True))


def sparsity(mask: Mask) -> float:
    """The share of the weights that is pruned, from 0 to 1."""
    kept, total = count(mask)
    return 1 - kept / total


def number_kept(total: int, target_sparsity: float) -> int:
    """How many of `total` weights stay if exactly round(S · total) are pruned."""
    return total - math.floor(target_sparsity * total + 0.5)


def keep_count(weights: Scores, target_sparsity: float, shards: Shards = WHOLE) -> int:
    """How many weights of all tensors together stay at a sparsity; of all shards, if these are."""
    return number_kept(ranking.competing(weights, None, shards), target_sparsity)


def share_out(
    wanted: Mapping[Key, float], total: int, most: Mapping[Key, int] | None = None
) -> dict[Key, int]:
    """Round numbers so that they add up to `total`.

    Args:
        wanted: Name → number; these add up to about `total`.
        total: What the rounded numbers add up to.
        most: Name → the largest number that it may get, no less than what is wanted.

    Returns:
        Name → whole number, within one of what is wanted. The largest fractions are rounded up; of
        equal fractions the first.
    """
    shares = {name: math.floor(value) for name, value in wanted.items()}
    full = {name: most is not None and shares[name] >= most[name] for name in wanted}
    by_fraction = sorted(wanted, key=lambda name: (full[name], shares[name] - wanted[name]))
    for name in by_fraction[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def full(weights: dict[str, torch.Tensor]) -> Mask:
    """The dense network's mask, which keeps everything."""
    return {name: torch.ones(w.shape, dtype=torch.bool) for name, w in weights.items()}


def largest(
    scores: torch.Tensor, k: int, among: torch.Tensor | None = None, shards: Shards = WHOLE
) -> torch.Tensor:
    """Mark exactly the k largest scores.

    Of equal scores the one with the lower index is kept, so the result never depends on the
    machine.

    Args:
        scores: A tensor.
        k: How many to keep.
        among: Booleans of the same shape, at least k of them true: whose scores count. None: all.
        shards: Which part of all scores these are.

    Returns:
        A boolean tensor of the same shape; True: kept.

    Raises:
        UserError: If a score is NaN, which has no place in an order.
    """
    if shards != WHOLE:
        first = None if among is None else {"": among}
        return keep_largest({"": scores}, k, first, shards)[""]
    if scores.numel() and scores.max().isnan():
        raise UserError(NAN)
    counted = scores.flatten() if among is None else ranking.picked(scores, among)
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if k >= len(counted):
        return torch.ones_like(scores, dtype=torch.bool) if among is None else among.clone()
    threshold = ranking.kth_largest(counted, k)

    def marked(how: tuple[np.ufunc, Any]) -> torch.Tensor:
        found = ranking.compare(how, scores, threshold)
        return found if among is None else found.logical_and_(among)

    kept = marked(ranking.AT_LEAST)
    over = ranking.true_count(kept) - k
    if over:
        ties = ranking.true_indices(marked(ranking.EQUAL).flatten())
        flat = kept.flatten()  # itself, unless its memory is in another order (channels last)
        flat[ties[-over:]] = False
        kept = flat.view(kept.shape)
    return kept


def keep_largest(
    scores: Scores,
    k: int,
    priority: Mapping[str, torch.Tensor] | None = None,
    shards: Shards = WHOLE,
) -> Mask:
    """Keep the k best weights of all tensors together: by priority first, then by score.

    This is one global ranking, as in the paper. So layers get the density that they earn.

    Args:
        scores: Name → floats, shaped like the weight and all of one type; or what computes or reads
            them piece by piece (ranking.py).
        k: How many weights stay.
        priority: Name → small non-negative integers or booleans, shaped like the weight.
        shards: Which part of all scores these are; None of the others is needed here.

    Returns:
        Name → boolean tensor of the weight's shape; True: kept.

    Raises:
        UserError: If a score is NaN.
    """
    if priority is None:
        return ranking.keep(scores, k, shards=shards)
    best = max([int(p.max()) for p in priority.values() if p.numel()], default=0)
    best = max(map(int, shards.gather(torch.tensor(best))))
    if best == 1:
        priority = {n: p.view(torch.bool) if p.element_size() == 1 else p != 0
                    for n, p in priority.items()}  # fmt: skip
    for level in range(best, -1, -1):
        standing = Standing(priority, level, best)
        members = ranking.competing(scores, standing, shards)
        if k < members or level == 0:
            break
        k -= members
    return ranking.keep(scores, k, standing, shards)


def keep_largest_each(scores: Scores, kept: dict[str, int], shards: Shards = WHOLE) -> Mask:
    """Keep the best weights of each tensor by itself: kept[name] of them, of all its shards."""

    def of(name: str, own: torch.Tensor | Pieces) -> torch.Tensor:
        # What is small enough to be copied is ranked at once.
        if shards == WHOLE and isinstance(own, torch.Tensor) and own.numel() <= ranking.PIECE:
            return largest(own, kept[name])
        return ranking.keep({name: own}, kept[name], shards=shards)[name]

    return {name: of(name, own) for name, own in scores.items()}


def apply(mask: Mask, tensors: dict[str, torch.Tensor]) -> None:
    """Set the pruned entries of `tensors` (by the mask's names) to exact zero, in place."""
    with torch.no_grad():
        for name, kept in mask.items():
            # Bits times 0 or 1: a true zero, of negative numbers, inf and nan too, and 3 times as
            # fast on a CPU as masked_fill_.
            bits = tensors[name].view(INTEGERS[tensors[name].element_size()])
            bits.mul_(kept.to(bits.device))


def cosine_similarity(a: Mask, b: Mask) -> float:
    """Cosine of two masks as 0/1 vectors (paper, figure 3): |a ∩ b| / sqrt(|a| · |b|)."""
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    return both / math.sqrt(count(a)[0] * count(b)[0]) if both else 0.0


def distance(a: Mask, b: Mask) -> float:
    """The share of the weights that one mask keeps and the other prunes (normalised Hamming)."""
    return sum(int((a[name] ^ b[name]).sum()) for name in a) / count(a)[1]


def by_layer(mask: Mask) -> dict[str, Mask]:
    """Split a mask by block, in the mask's order."""
    layers: dict[str, Mask] = {}
    for name, kept in mask.items():
        layers.setdefault(layer_of(name), {})[name] = kept
    return layers


def sparsity_by_layer(mask: Mask) -> list[dict[str, Any]]:
    """Name and sparsity of each block."""
    return [{"name": layer, "sparsity": sparsity(part)} for layer, part in by_layer(mask).items()]


def pack(kept: torch.Tensor) -> np.ndarray:
    """Pack one tensor of a mask into bits, row by row; zeros fill up the last byte."""
    return np.packbits(kept.cpu().numpy().reshape(-1))


def unpack(bits: np.ndarray | None, name: str, shape: list[int]) -> torch.Tensor:
    """Unpack one tensor of a mask from its bits.

    Args:
        bits: Bytes as `pack` makes them; None if the file has none.
        name: The tensor's name, for the error.
        shape: The tensor's shape.

    Returns:
        A boolean tensor of this shape; True: kept.

    Raises:
        ValueError: If these are not the bits of such a tensor; it names the tensor.
    """
    size = math.prod(shape)
    if bits is None or bits.dtype != np.uint8 or bits.shape != ((size + 7) // 8,):
        raise ValueError(f"tensor {name}")
    if np.unpackbits(bits[-1:])[(size - 1) % 8 + 1 :].any():
        raise ValueError(f"stray bits after {name}")
    return torch.from_numpy(np.unpackbits(bits, count=size).view(np.bool_)).view(shape)


def packed(mask: Mask) -> Bits:
    """A mask as bits by name, to be sent or written."""
    return {name: pack(kept) for name, kept in mask.items()}


def unpacked(bits: Bits, shapes: Mapping[str, list[int]]) -> Mask:
    """A mask of its bits; `shapes` has the weights' shapes by name. ValueError as in `unpack`."""
    return {name: unpack(bits.get(name), name, shape) for name, shape in shapes.items()}


def sparsity_by_matrix(mask: Mask) -> list[dict[str, Any]]:
    """Name and sparsity of each weight."""
    return [{"name": name, "sparsity": sparsity({name: kept})} for name, kept in mask.items()]


def save(path: str | Path, mask: Mask, **description: object) -> None:
    """Write a mask, one bit for each weight.

    Args:
        path: The new file.
        mask: Name → boolean tensor; True: kept.
        **description: JSON values to keep beside it, such as method, round and seed.
    """
    bits = packed(mask)
    header = {
        "format": FORMAT,
        "shapes": json.dumps({name: list(m.shape) for name, m in mask.items()}),
        "description": json.dumps({"sparsity": sparsity(mask), **description}),
    }
    header["digest"] = _digest(header, bits)
    with new_file(path) as unfinished:
        save_file(bits, unfinished, metadata=header)
        order_header(unfinished)


def load(path: str | Path, shapes: dict[str, list[int]] | None = None) -> Mask:
    """Read a mask.

    Args:
        path: A mask file.
        shapes: Name → shape of the weights of the model that the mask must fit.

    Returns:
        Name → boolean tensor of the weight's shape; True: kept.

    Raises:
        UserError: If the file is missing, damaged, not a mask, or a mask of another model.
    """
    header, bits = _read(path)
    stored = _parsed(path, header, "shapes")
    if shapes is not None and stored != {name: list(shape) for name, shape in shapes.items()}:
        odd = sorted(n for n in stored.keys() | shapes.keys() if stored.get(n) != shapes.get(n))
        raise UserError(f"{path}: a mask of another model (first difference: {odd[0]})")
    try:
        mask = unpacked(bits, stored)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: damaged mask ({error})") from None
    # Files of version 0.1.0 have no digest, but all say how many weights they prune.
    kept, total = count(mask)
    if not total:
        raise UserError(f"{path}: damaged mask (it has no weights)")
    said = _parsed(path, header, "description").get("sparsity")
    if isinstance(said, int | float):
        wanted = round(said * total) if math.isfinite(said) else -1
        if wanted != total - kept:
            pruned = f"{total - kept} of {total} pruned"
            raise UserError(f"{path}: damaged mask ({pruned}, not {said:g})")
    return mask


def describe(path: str | Path) -> dict[str, Any]:
    """Read the JSON description that a mask was saved with; errors as in `load`."""
    header, _ = _read(path)
    return _parsed(path, header, "description")


def _read(path: str | Path) -> tuple[dict[str, str], Bits]:
    """Read a mask file's header and its bits by name; check that they are what was saved.

    A file written before 0.2.0 has no digest, and is read without this check.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            bits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as a mask ({error})") from None
    if header.get("format") != FORMAT:
        raise UserError(f"{path}: not a mask file of the format {FORMAT!r}")
    if header.get("digest", "") not in ("", _digest(header, bits)):
        raise UserError(f"{path}: damaged mask (it is not what was saved)")
    return header, bits


def _digest(header: dict[str, str], bits: Bits) -> str:
    """Hex digest of a mask file's shapes, description and bits."""
    whole = hashlib.sha256(f"{header.get('shapes')} {header.get('description')}".encode())
    for name in sorted(bits):
        whole.update(name.encode())
        whole.update(np.ascontiguousarray(bits[name]).data)
    return whole.hexdigest()


def _parsed(path: str | Path, header: dict[str, str], key: str) -> dict[str, Any]:
    """Read a part of a mask file's header, which is JSON."""
    try:
        found = json.loads(header[key])
    except (KeyError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged mask (its {key})")
    return found
