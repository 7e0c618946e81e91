"""The largest of many numbers, of which one tensor at a time is in memory.

Floats from 0 on have the order of their bits. So the k-th largest is found in two passes, which
count how often the upper and the lower 16 bits are what they are.
"""

import math
from collections.abc import Callable, Iterable

import torch

from instant_soup.errors import UserError
from instant_soup.sparsity.masks import NAN

HALF = 16  # bits


def kth_largest(parts: Callable[[], Iterable[torch.Tensor]], k: int) -> tuple[float, int]:
    """Find the k-th largest of all numbers of some tensors.

    Args:
        parts: Gives the tensors, in fp32 and from 0 on, each time that it is called.
        k: How many are wanted, no more than there are.

    Returns:
        The k-th largest number, and how many that equal it are among the k; ∞ and 0 where k is 0.

    Raises:
        UserError: If a number is NaN.
    """
    if not k:
        return math.inf, 0
    upper = torch.zeros(2 ** (HALF - 1), dtype=torch.long)  # the sign's bit is 0
    for part in parts():
        if part.isnan().any():
            raise UserError(NAN)
        upper += torch.bincount(_bits(part) >> HALF, minlength=len(upper))
    high, left = _where(upper, k)
    lower = torch.zeros(2**HALF, dtype=torch.long)
    for part in parts():
        bits = _bits(part)
        own = bits[bits >> HALF == high] & (2**HALF - 1)
        lower += torch.bincount(own, minlength=len(lower))
    low, equal = _where(lower, left)
    value = torch.tensor([high << HALF | low], dtype=torch.int32).view(torch.float32)
    return float(value), equal


def _bits(part: torch.Tensor) -> torch.Tensor:
    return part.contiguous().flatten().view(torch.int32)


def _where(counts: torch.Tensor, k: int) -> tuple[int, int]:
    """The place that the k-th largest is counted at, and how many there are among the k."""
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, k))
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, k - before
