"""The k largest of many scores, found piece by piece: the exact ones, in little memory.

Scores may be computed, or read from files, as they are needed (`Pieces`), and may be cut into
shards that never meet (`Shards`). A sample brackets the k-th largest. A first pass counts the
scores above the bracket and gathers those within, a hundredth of all; so the k-th largest is known
exactly. A second pass writes the mask. Of equal scores those come first whose tensor, and then
whose index, does. So the mask depends on neither pieces nor shards.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from instant_soup.errors import UserError

Mask = dict[str, torch.Tensor]
Where = slice | torch.Tensor

NAN = (
    "scores: some are NaN, as weights or gradients are not finite; allowed: a training that "
    "does not diverge (a smaller learning rate)"
)
SAMPLE = 2**17  # scores that a threshold is estimated from
# Comparisons, by numpy and by torch.
GREATER, AT_LEAST, EQUAL = (
    (np.greater, torch.gt),
    (np.greater_equal, torch.ge),
    (np.equal, torch.eq),
)
PIECE = 2**20  # scores that are looked at together; on a GPU, which should not wait for each, more
ON_GPU = 2**6  # times as many


class Pieces(NamedTuple):
    """Scores of which only some are in memory: `read(where)` returns a vector of them.

    `where` is a slice of the scores in order of index, or a vector of indices.
    """

    shape: torch.Size
    read: Callable[[Where], torch.Tensor]
    device: torch.device = torch.device("cpu")

    def numel(self) -> int:
        """How many scores these are."""
        return math.prod(self.shape)


Scores = Mapping[str, torch.Tensor | Pieces]


def alone(own: torch.Tensor) -> list[torch.Tensor]:
    """All shards of what is whole; by name, as a run goes to other processes by pickle."""
    return [own]


class Shards(NamedTuple):
    """Which part of all scores is here: each tensor is cut into shards along its first dimension.

    `gather(x)` returns the x of all `total` shards, in order; x is a tensor of any length. All
    shards rank together, each with the same names.
    """

    number: int = 0
    gather: Callable[[torch.Tensor], list[torch.Tensor]] = alone
    total: int = 1


WHOLE = Shards()


class Standing(NamedTuple):
    """A level of priorities: what is above it is kept, what is at it competes by score."""

    priority: Mapping[str, torch.Tensor]
    level: int
    highest: int  # level that there is

    def competing(self, name: str, where: Where) -> torch.Tensor:
        """Which of some scores are at the level."""
        place = self.priority[name].flatten()[where]
        if place.dtype is torch.bool:  # no comparison, which would take longer than all else
            return place if self.level else place.logical_not()
        return place == self.level

    def above(self, name: str, where: Where) -> torch.Tensor:
        """Which of some scores are above the level."""
        return self.priority[name].flatten()[where] > self.level


class Threshold(NamedTuple):
    """The k-th largest score, how many are larger, and how many are equal.

    Of no scores it is ∞. Of all scores it is −∞, as if they were equal.
    """

    value: float
    larger: int
    equal: int


def computed(of: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> Pieces:
    """Scores as a function of the entries of tensors of one shape."""
    flat = [tensor.detach().flatten() for tensor in tensors]  # no copy of what is contiguous
    first = tensors[0]
    return Pieces(first.shape, lambda where: of(*(t[where] for t in flat)), first.device)


def pieces_of(scores: torch.Tensor | Pieces) -> Pieces:
    """Scores by pieces, whatever they are."""
    return scores if isinstance(scores, Pieces) else computed(lambda s: s, scores)


def keep(scores: Scores, k: int, standing: Standing | None = None, shards: Shards = WHOLE) -> Mask:
    """Mark the k largest of those scores that compete, and all that stand above.

    Args:
        scores: Name → floats, all of one type.
        k: How many of those that compete are kept.
        standing: Who competes; None: all.
        shards: Which part of all scores these are.

    Returns:
        Name → boolean tensor of the scores' shape; True: kept.

    Raises:
        UserError: If a score is NaN, which has no place in an order.
    """
    every = {name: pieces_of(s) for name, s in scores.items()}
    found = threshold(every, k, standing, shards)
    return _written(every, found, k - found.larger, standing, shards)


def threshold(
    scores: Scores, k: int, standing: Standing | None = None, shards: Shards = WHOLE
) -> Threshold:
    """Find the k-th largest of those scores that compete; arguments and errors are those of keep.

    Each score is looked at twice at most, tensor by tensor.
    """
    every = {name: pieces_of(s) for name, s in scores.items()}
    total = competing(scores, standing, shards)
    if 0 < k < total:
        return _bracketed(every, k, total, standing, shards)
    has_nan = any(_has_nan(s) for one in every.values() for _, s in _pieces(one))
    _refuse(sums([has_nan], shards)[0])
    return Threshold(math.inf, k, 0) if k <= 0 else Threshold(-math.inf, 0, k)


def competing(scores: Scores, standing: Standing | None, shards: Shards) -> int:
    """How many scores of all shards compete."""
    number = 0
    for name, one in scores.items():
        if standing is None:
            number += one.numel()
        else:
            number += true_count(standing.competing(name, slice(None)))
    return sums([number], shards)[0]


def _bracketed(
    every: dict[str, Pieces], k: int, total: int, standing: Standing | None, shards: Shards
) -> Threshold:
    """The k-th largest score of all shards; UserError where one is NaN."""
    sample, width = torch.empty(0), 2.0  # four deviations
    if total > SAMPLE:
        sample = _sample(every, standing, shards)
    while True:
        low, high = _bracket(sample, k / total, width)
        counts, parts = [0, 0, 0, 0], []  # above, at its upper end, at its lower end, with NaN
        for name, one in every.items():
            room = torch.empty(2, _at_once(one), dtype=torch.bool, device=one.device)
            for here, scores in _pieces(one):
                above, within = room[:, : len(scores)]
                compare(GREATER, scores, high, out=above)
                compare(AT_LEAST, scores, low, out=within)
                if standing is not None:
                    competing = standing.competing(name, here)
                    above.logical_and_(competing)
                    within.logical_and_(competing)
                values = scores[true_indices(within.logical_xor_(above))]
                counts[0] += true_count(above)
                at_top, at_bottom = (compare(EQUAL, values, end) for end in (high, low))
                counts[1] += true_count(at_top)
                counts[2] += true_count(at_bottom) if low < high else 0
                counts[3] += _has_nan(scores)
                between = at_top.logical_or_(at_bottom).logical_not_()
                parts.append(values[true_indices(between)])
        larger, at_high, at_low, nans = sums(counts, shards)
        _refuse(nans)
        inside = torch.cat(shards.gather(torch.cat(parts) if parts else torch.empty(0)))
        if larger < k <= larger + at_high:
            return Threshold(high, larger, at_high)
        larger += at_high
        if larger < k <= larger + len(inside):
            value = kth_largest(inside, k - larger)
            more = true_count(inside > value)
            return Threshold(value, larger + more, true_count(inside == value))
        if larger + len(inside) < k <= larger + len(inside) + at_low:
            return Threshold(low, larger + len(inside), at_low)
        width *= 16  # the sample was an odd one


def _bracket(sample: torch.Tensor, share: float, width: float) -> tuple[float, float]:
    """Two bounds between which the score of a rank lies almost surely, out of a sample."""
    if not len(sample):
        return -math.inf, math.inf
    rank, slack = share * len(sample), width * math.sqrt(len(sample))
    first, last = math.floor(rank - slack), math.ceil(rank + slack)
    high = float(sample[first]) if first >= 0 else math.inf
    low = float(sample[last]) if last < len(sample) else -math.inf
    return low, high


def _sample(every: dict[str, Pieces], standing: Standing | None, shards: Shards) -> torch.Tensor:
    """About SAMPLE of all scores that compete, largest first."""
    (total,) = sums([sum(s.numel() for s in every.values())], shards)
    draws = torch.Generator().manual_seed(shards.number)
    parts = []
    for name, scores in every.items():
        wanted = math.ceil(SAMPLE * scores.numel() / total)
        index = torch.randint(max(1, scores.numel()), (wanted,), generator=draws)
        index = index.to(scores.device)
        if standing is not None:
            index = index[standing.competing(name, index)]
        parts.append(scores.read(index))
    return _descending(torch.cat(shards.gather(torch.cat(parts))))


def _written(
    every: dict[str, Pieces],
    found: Threshold,
    wanted: int,
    standing: Standing | None,
    shards: Shards,
) -> Mask:
    """The mask of all scores above a threshold, and of the first `wanted` that equal it."""
    some = 0 < wanted < found.equal
    above = AT_LEAST if 0 < wanted == found.equal else GREATER
    quotas = {}
    if some and shards != WHOLE:
        quotas = _quotas(every, found, wanted, standing, shards)
    mask = {}
    for name, one in every.items():
        wanted = quotas.get(name, wanted)
        mask[name] = torch.empty(one.shape, dtype=torch.bool, device=one.device)
        flat = mask[name].view(-1)
        for here, scores in _pieces(one):
            kept = compare(above, scores, found.value, out=flat[here])
            if some and wanted > 0:
                equal = compare(EQUAL, scores, found.value)
                if standing is not None:
                    equal.logical_and_(standing.competing(name, here))
                number = true_count(equal)
                if number > wanted:
                    equal[true_indices(equal)[wanted:]] = False
                wanted -= min(number, wanted)
                kept.logical_or_(equal)
            if standing is not None:
                kept.logical_and_(standing.competing(name, here))
                if standing.level < standing.highest:
                    kept.logical_or_(standing.above(name, here))
    return mask


def _quotas(
    every: dict[str, Pieces],
    found: Threshold,
    wanted: int,
    standing: Standing | None,
    shards: Shards,
) -> dict[str, int]:
    """How many of the scores that equal the threshold are kept of each tensor's shard here."""
    ties = dict.fromkeys(every, 0)
    for name, one in every.items():
        for here, scores in _pieces(one):
            equal = compare(EQUAL, scores, found.value)
            if standing is not None:
                equal.logical_and_(standing.competing(name, here))
            ties[name] += true_count(equal)
    everywhere = [own.tolist() for own in shards.gather(torch.tensor(list(ties.values())))]
    quotas = {}
    for i, name in enumerate(every):
        for number, own in enumerate(everywhere):
            taken = min(wanted, own[i])
            wanted -= taken
            if number == shards.number:
                quotas[name] = taken
    return quotas


def _pieces(scores: Pieces) -> Iterator[tuple[slice, torch.Tensor]]:
    """A tensor's scores, some at a time, and where they are."""
    step = max(1, _at_once(scores))
    for begin in range(0, scores.numel(), step):
        here = slice(begin, min(begin + step, scores.numel()))
        yield here, scores.read(here)


def _at_once(scores: Pieces) -> int:
    """How many of a tensor's scores are looked at together."""
    return min(PIECE * (1 if scores.device.type == "cpu" else ON_GPU), scores.numel())


def kth_largest(values: torch.Tensor, k: int) -> float:
    """The k-th largest of a vector, from 1; numpy finds it eight times as fast on a CPU."""
    place = len(values) - k
    if _for_numpy(values):
        return float(np.partition(values.detach().numpy(), place)[place])
    return float(values.kthvalue(place + 1).values)


def true_count(marked: torch.Tensor) -> int:
    """How many are true; numpy counts five times as fast on a CPU."""
    if marked.device.type == "cpu":
        return int(np.count_nonzero(marked.numpy()))
    return int(marked.count_nonzero())


def true_indices(marked: torch.Tensor) -> torch.Tensor:
    """Which of a vector are true, in order; numpy finds them five times as fast on a CPU."""
    if marked.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(marked.numpy()))
    return marked.nonzero().flatten()


def compare(
    how: tuple[np.ufunc, Any],
    scores: torch.Tensor,
    value: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which scores stand so to a value; numpy compares six times as fast on a CPU."""
    by_numpy, by_torch = how
    scores = scores.detach()
    if _for_numpy(scores):
        into = None if out is None else out.numpy()
        found = by_numpy(scores.numpy(), value, out=into)
        return torch.from_numpy(found) if out is None else out
    return by_torch(scores, value, out=out)


def _descending(values: torch.Tensor) -> torch.Tensor:
    """A vector, largest first; numpy sorts twenty times as fast on a CPU."""
    if _for_numpy(values):
        return torch.from_numpy(np.sort(values.detach().numpy())).flip(0)
    return values.sort(descending=True).values


def _for_numpy(values: torch.Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def picked(values: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
    """A vector of those values that are marked; numpy takes them twice as fast on a CPU."""
    index = true_indices(marked.flatten())
    if _for_numpy(values):
        return torch.from_numpy(values.detach().numpy().take(index.numpy()))
    return values.flatten()[index]


def _has_nan(scores: torch.Tensor) -> bool:
    return bool(scores.max().isnan())  # in one pass


def _refuse(nans: int) -> None:
    if nans:
        raise UserError(NAN)


def sums(numbers: Sequence[int], shards: Shards) -> list[int]:
    """Sums over all shards."""
    if shards == WHOLE:
        return list(numbers)
    return torch.stack(shards.gather(torch.tensor(numbers))).sum(0).tolist()


def whole_shapes(tensors: Scores, shards: Shards) -> dict[str, torch.Size]:
    """Name → shape of all shards together, which are cut along the first dimension."""
    rows = sums([tensor.shape[0] for tensor in tensors.values()], shards)
    return {
        name: torch.Size((number, *tensor.shape[1:]))
        for number, (name, tensor) in zip(rows, tensors.items(), strict=True)
    }
