"""The mask soup: weak masks combined, then adjusted to the round's sparsity (Algorithm 2)."""

import torch

from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.ranking import Scores
from instant_soup.sparsity.scores import by_magnitude


def votes(weak_masks: list[Mask]) -> dict[str, torch.Tensor]:
    """Count the weak masks that keep each weight; uint8 shaped like the weight, int16 of many."""
    first, *others = weak_masks
    kind = torch.uint8 if len(weak_masks) <= torch.iinfo(torch.uint8).max else torch.int16
    tally = {name: kept.to(kind) for name, kept in first.items()}
    for mask in others:
        for name, number in tally.items():
            number.add_(mask[name].view(torch.uint8))
    return tally


def combine(weak_masks: list[Mask], how: str) -> dict[str, torch.Tensor]:
    """Give each weight its standing in the soup. A weight with a higher standing is kept first.

    Args:
        weak_masks: One mask for each denoiser.
        how: `union` (the paper): 1 where any weak mask keeps the weight. `intersection`: 1 where
            all keep it. `vote`: the number of masks that keep it.

    Returns:
        Name → tensor of whole numbers, shaped like the weight.
    """
    tally = votes(weak_masks)
    in_all = len(weak_masks)
    standing = {
        "union": lambda number: number.clamp_max_(1),
        "intersection": lambda number: (number == in_all).view(torch.uint8),
        "vote": lambda number: number,
    }[how]
    return {name: standing(number) for name, number in tally.items()}


def adjust(standing: dict[str, torch.Tensor], weights: Scores, k: int) -> Mask:
    """Keep exactly k weights, by standing first, then by magnitude (one-shot adjustment).

    For the union this is Algorithm 2's last line: the union keeps at least k weights, and the
    smallest of them go. The intersection can keep fewer; then the largest weights outside fill up.

    A law to know: if the network's own magnitude mask is among the weak masks, the adjusted union
    (and intersection) *is* that mask, whatever the denoisers found. See docs/method.md.

    Args:
        standing: Name → small whole numbers, shaped like the weight; see `combine`.
        weights: Name → weight of the main network; or scores that are not negative.
        k: How many weights stay, of all matrices together.

    Returns:
        Name → boolean tensor of the weight's shape; True: kept.
    """
    return masks.keep_largest({n: by_magnitude(weights[n]) for n in standing}, k, standing)


def agreement(weak_masks: list[Mask]) -> dict[str, float]:
    """How much the weak masks agree.

    Args:
        weak_masks: At least one mask, all of the same network.

    Returns:
        `union_density` and `intersection_density`, as shares of all weights, and `agreement`,
        intersection over union. It is 1 if the denoisers changed nothing; then the soup does not
        either.
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
