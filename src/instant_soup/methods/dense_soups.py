"""Dense soups: weights of several networks mixed into one (paper, section 7 and Algorithm 3).

All networks start from the same pre-trained weights, so that lines between them stay in good
ground. Scores are of validation data, higher is better.
"""

from collections.abc import Callable

import torch

Weights = dict[str, torch.Tensor]
Score = Callable[[Weights], float]


def interpolate(one: Weights, other: Weights, share: float) -> Weights:
    """(1 − share) · one + share · other, weight by weight; exact at shares 0 and 1."""
    return {name: w.lerp(other[name], share) for name, w in one.items()}


def uniform_soup(networks: list[Weights]) -> Weights:
    """The mean of several networks (Wortsman et al. 2022)."""
    return {
        name: torch.stack([weights[name] for weights in networks]).mean(0) for name in networks[0]
    }


def greedy_soup(networks: list[Weights], score: Score) -> tuple[Weights, list[int]]:
    """The mean of those that help (Wortsman et al. 2022); also their numbers, best first.

    Networks are tried from the best down, and one stays in the soup if the soup's score does not
    fall by it. So the soup never scores below its best network.
    """
    scores = [score(weights) for weights in networks]
    order = sorted(range(len(networks)), key=lambda i: -scores[i])
    chosen, best = [order[0]], scores[order[0]]
    for i in order[1:]:
        found = score(uniform_soup([networks[j] for j in [*chosen, i]]))
        if found >= best:
            chosen, best = [*chosen, i], found
    return uniform_soup([networks[i] for i in chosen]), chosen


def merge(
    network: Weights, other: Weights, coefficients: list[float], score: Score, best: float
) -> tuple[Weights, float, float]:
    """`network` moved towards `other` by the coefficient that scores best (Algorithm 3).

    `best` is the network's own score: unless a coefficient beats it the network stays as it is, at
    coefficient 0, so scores never fall. Returns weights, coefficient and score.
    """
    chosen, weights = 0.0, network
    for coefficient in coefficients:
        mixed = interpolate(network, other, coefficient)
        if (found := score(mixed)) > best:
            chosen, weights, best = coefficient, mixed, found
    return weights, chosen, best
