"""The Optimal Brain Surgeon on blocks of a Fisher matrix: which weights go, how the rest change.

A matrix is read row by row and cut into blocks of B consecutive weights; zeros fill up the last
one. Within a block the loss around the network is ½ δᵀ F δ with F = Σ g gᵀ + λ I, where g are the
gradients of some batches. All else of the Fisher matrix is left out (oBERT, Kurtic et al. 2022).
Blocks are held without λ, in fp32: B numbers for each weight. λ is `damping` times the mean squared
gradient of the weights that are left, times the number of gradients. So nothing depends on the
loss's scale, nor on the number of gradients. Inverses are taken in fp64, some blocks at a time.
"""

import math
from collections.abc import Iterator

import torch
from torch.nn import functional

from instant_soup.errors import UserError
from instant_soup.sparsity.masks import NAN, Mask

Weights = dict[str, torch.Tensor]

AT_ONCE = 2**21  # numbers of Fisher blocks that are inverted together
# What sums in fp32 may be off by, for each weight of a block, as a share of the diagonal; raised by
# it, a block of fewer gradients than weights stays positive definite, however small λ is beside it.
ROUNDING = 1e-6


def blocks_of(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a tensor's entries, row by row, into blocks × size; zeros fill up the last block."""
    flat = tensor.flatten()
    return functional.pad(flat, (0, -len(flat) % size)).view(-1, size)


def add_gradients(fisher: Weights, gradients: Weights, size: int) -> Weights:
    """Add one more gradient to the Fisher blocks, in place.

    Args:
        fisher: Name → blocks × size × size; empty at first.
        gradients: Name → gradient, shaped like the weight.
        size: Weights in a block.

    Returns:
        The same dictionary.
    """
    for name, gradient in gradients.items():
        g = blocks_of(gradient.detach().float(), size)
        held = fisher[name].to(g.device) if name in fisher else g.new_zeros(len(g), size, size)
        fisher[name] = held.addcmul_(g[:, :, None], g[:, None, :])
    return fisher


def scores(fisher: Weights, weights: Weights, mask: Mask, damping: float) -> Weights:
    """What each weight's removal alone costs, when the rest of its block makes up for it (oBERT).

    Args:
        fisher: Name → Fisher blocks, blocks × size × size.
        weights: Name → weight.
        mask: Name → which weights are left.
        damping: λ in units of the mean squared gradient.

    Returns:
        Name → w² / (2 [F⁻¹]ₚₚ), shaped like the weight, in units of the mean squared gradient.
        Weights that are pruned already have −1, so they stay behind all others.
    """
    found = {}
    for name, parts in _each(fisher, weights, mask, damping):
        rises = [w.square() / (2 * _inverse(f).diagonal(dim1=1, dim2=2)) for _, f, w, _ in parts]
        found[name] = _shaped(rises, weights[name]).where(mask[name], -1.0)
    return found


def sequence_scores(fisher: Weights, weights: Weights, mask: Mask, damping: float) -> Weights:
    """What a block has cost by each weight's removal, when weights go one by one (CAP).

    The next weight to go is the cheapest, given that those before it have gone and the rest has
    made up for them (Kuznedelev et al. 2023). Arguments, units and pruned weights are as in
    `scores`.
    """
    found = {}
    for name, parts in _each(fisher, weights, mask, damping):
        costs = [_eliminated(_inverse(f), w, kept) for _, f, w, kept in parts]
        found[name] = _shaped(costs, weights[name]).where(mask[name], -1.0)
    return found


def corrected(
    fisher: Weights, weights: Weights, before: Mask, after: Mask, damping: float, together: bool
) -> Weights:
    """Change the weights that stay, to make up for those that go.

    Args:
        fisher: Name → Fisher blocks, blocks × size × size.
        weights: Name → weight.
        before: Name → which weights were left.
        after: Name → which weights stay.
        damping: λ in units of the mean squared gradient.
        together: Whether to minimise the block's loss exactly. Otherwise the corrections that each
            removal alone would ask for are added up, as in oBERT. The two differ if several weights
            of a block go.

    Returns:
        Name → new weight.
    """
    found = {}
    for name, parts in _each(fisher, weights, before, damping):
        moved = []
        for here, f, w, kept in parts:
            left = blocks_of(after[name], f.shape[-1])[here].to(w.device)
            gone = w.where(kept & ~left, 0.0)
            change = _joint(f, gone, left) if together else _summed(f, gone)
            moved.append((w + change).where(left, 0.0))
        found[name] = _shaped(moved, weights[name]).to(weights[name].dtype)
    return found


def _summed(f: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    """−Σ (wₚ / [F⁻¹]ₚₚ) F⁻¹ₚ over the weights that go."""
    inverse = _inverse(f)
    return -torch.bmm(inverse, (gone / inverse.diagonal(dim1=1, dim2=2))[:, :, None])[:, :, 0]


def _joint(f: torch.Tensor, gone: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """F_LL⁻¹ F_LG w_G: what the weights that are left add, so that the loss is least."""
    pull = torch.bmm(f, gone[:, :, None]).where(left[:, :, None], 0.0)
    among = f.where(left[:, :, None] & left[:, None, :], 0.0)
    among.diagonal(dim1=1, dim2=2).masked_fill_(~left, 1.0)
    return torch.cholesky_solve(pull, _factors(among))[:, :, 0]


def _eliminated(inverse: torch.Tensor, w: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The cost up to each weight's removal, when the cheapest goes first; in place."""
    left, costs = kept.clone(), torch.zeros_like(w)
    total = w.new_zeros(len(w), 1)
    for _ in range(w.shape[1]):
        rises = w.square() / (2 * inverse.diagonal(dim1=1, dim2=2))
        least, first = rises.where(left, math.inf).min(1, keepdim=True)
        going = least.isfinite()  # a block of which nothing is left waits for the others
        total += least.where(going, 0.0)
        costs.scatter_(1, first, total.where(going, costs.gather(1, first)))
        column = inverse.gather(2, first[:, :, None].expand(-1, w.shape[1], 1))[:, :, 0]
        column = (column / column.gather(1, first).sqrt()).where(going, 0.0)
        w -= column * (w.gather(1, first) / column.gather(1, first)).where(going, 0.0)
        inverse.baddbmm_(column[:, :, None], column[:, None, :], alpha=-1)
        left.scatter_(1, first, False)
    return costs


def _inverse(f: torch.Tensor) -> torch.Tensor:
    """The inverses of positive definite matrices."""
    return 1 / f if f.shape[-1] == 1 else torch.cholesky_inverse(_factors(f))


def _factors(f: torch.Tensor) -> torch.Tensor:
    """Cholesky factors; of those that rounding left indefinite, with a raised diagonal."""
    raised = ROUNDING * f.shape[-1]
    while True:
        factors, failed = torch.linalg.cholesky_ex(f)
        if not failed.any():
            return factors
        raised *= 10
        f.diagonal(dim1=1, dim2=2)[failed > 0] *= 1 + raised


Part = tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]


def _each(
    fisher: Weights, weights: Weights, mask: Mask, damping: float
) -> Iterator[tuple[str, Iterator[Part]]]:
    """Each matrix's name and its blocks, some at a time."""
    mean = mean_square(fisher, mask) or 1.0  # no gradient anywhere: magnitude decides
    if not math.isfinite(mean):
        raise UserError(NAN)
    size = next(iter(fisher.values())).shape[-1] if fisher else 1
    for name, weight in weights.items():
        own = fisher.get(name)  # none where the loss does not reach it
        if own is None:
            own = torch.zeros(1, size, size).expand(-(-weight.numel() // size), size, size)
        yield name, _parts(own, weight, mask[name], mean, damping)


def _parts(
    fisher: torch.Tensor, weight: torch.Tensor, kept: torch.Tensor, mean: float, damping: float
) -> Iterator[Part]:
    """Some of a matrix's blocks at a time: which, Fisher over `mean` and damped, weights, kept."""
    where, size = fisher.device, fisher.shape[-1]
    weights, stays = blocks_of(weight, size), blocks_of(kept, size)
    step = max(1, AT_ONCE // size**2)
    for here in (slice(i, i + step) for i in range(0, len(weights), step)):
        k, w = stays[here].to(where), weights[here].to(where, torch.float64)
        # A pruned weight has no gradient.
        f = (fisher[here].double() / mean).where(k[:, :, None] & k[:, None, :], 0.0)
        f.diagonal(dim1=1, dim2=2).mul_(1 + ROUNDING * size).add_(damping)
        yield here, f, w.where(k, 0.0), k


def mean_square(fisher: Weights, mask: Mask) -> float:
    """The mean squared gradient of the weights that are kept, times the number of gradients."""
    squares = {n: _shaped([f.diagonal(dim1=1, dim2=2)], mask[n]) for n, f in fisher.items()}
    total = sum(float(s.where(mask[name], 0.0).double().sum()) for name, s in squares.items())
    return total / max(1, sum(int(kept.sum()) for kept in mask.values()))


def _shaped(blocks: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Blocks as a tensor of a shape, on the CPU and in fp32, without the padding."""
    flat = torch.cat([block.float().cpu() for block in blocks]).flatten()
    return flat[: like.numel()].view(like.shape)
