"""Lottery Pools (Yin et al. 2023): tickets of IMP's rounds, interpolated greedily."""

from collections.abc import Callable

from instant_soup.methods import criteria
from instant_soup.methods.dense_soups import interpolate
from instant_soup.training.state import Weights


def lottery_pool(
    ticket: Weights,
    others: list[Weights],
    prunable: list[str],
    sparsity: float,
    coefficients: list[float],
    score: Callable[[Weights], float],
) -> tuple[Weights, list[float]]:
    """Mix the tickets of other rounds into the last round's where validation gains by it.

    The others come nearest round first. Each is tried at every coefficient (the share it gets),
    and the mixture pruned back by magnitude to exactly `sparsity`; it is kept where `score` of
    what remains is better than before, so the result never scores below the ticket. Returns
    weights and the coefficients taken, 0 for a ticket left out.
    """
    best, best_score, taken = ticket, score(ticket), []
    for other in others:
        base, chosen = best, 0.0
        for coefficient in coefficients:
            mixed = pruned_to(interpolate(base, other, coefficient), prunable, sparsity)
            if (found := score(mixed)) > best_score:
                best, best_score, chosen = mixed, found, coefficient
        taken.append(chosen)
    return best, taken


def pruned_to(weights: Weights, prunable: list[str], sparsity: float) -> Weights:
    """The weights with the smallest of the prunable ones set to zero, to exactly `sparsity`."""
    mask = criteria.magnitude({name: weights[name] for name in prunable}, sparsity)
    zeroed = {name: weights[name].where(kept, 0.0) for name, kept in mask.items()}
    return {**weights, **zeroed}
