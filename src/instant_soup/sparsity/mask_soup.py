"""The mask soup: weak masks combined, then adjusted to the round's sparsity (Algorithm 2)."""

import torch

from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask


def votes(weak_masks: list[Mask]) -> dict[str, torch.Tensor]:
    """How many of the weak masks keep each weight."""
    return {
        name: torch.stack([m[name] for m in weak_masks]).sum(0, dtype=torch.uint8)
        for name in weak_masks[0]
    }


def combine(weak_masks: list[Mask], how: str) -> dict[str, torch.Tensor]:
    """Each weight's standing in the soup, a small integer; a higher one is kept first.

    `union` (the paper): 1 where any weak mask keeps the weight; `intersection`: 1 where all do;
    `vote`: the number of masks that do.
    """
    tally = votes(weak_masks)
    if how == "vote":
        return tally
    needed = {"union": 1, "intersection": len(weak_masks)}[how]
    return {name: (t >= needed).to(torch.uint8) for name, t in tally.items()}


def adjust(standing: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], k: int) -> Mask:
    """One-shot adjustment: exactly k weights stay, by standing first, then by magnitude.

    For the union this is Algorithm 2's last line: the union keeps at least k weights, and the
    smallest of them go. The intersection can keep fewer; the largest weights outside fill up.

    A law to know: where the network's own magnitude mask is among the weak masks, the adjusted
    union (and intersection) *is* that mask, whatever the denoisers found. See docs/method.md.
    """
    return masks.keep_largest({n: weights[n].abs().float() for n in standing}, k, standing)


def agreement(weak_masks: list[Mask]) -> dict[str, float]:
    """How much the weak masks agree, as fractions.

    `union_density` and `intersection_density` are of all weights; `agreement` is intersection
    over union: 1 when the denoisers changed nothing, and then neither does the soup.
    """
    tally = votes(weak_masks)
    total = sum(t.numel() for t in tally.values())
    union = sum(int((t > 0).sum()) for t in tally.values())
    common = sum(int((t == len(weak_masks)).sum()) for t in tally.values())
    return {
        "union_density": union / total,
        "intersection_density": common / total,
        "agreement": common / union,
    }
