"""Lottery Pools (Yin et al. 2023): tickets of IMP's rounds, interpolated greedily."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import setting, shares
from instant_soup.methods.base import register
from instant_soup.methods.lth import Lottery

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@register
@dataclass(frozen=True, kw_only=True)
class LotteryPool(Lottery):
    """LTH's trained ticket, mixed with those of its earlier rounds where validation gains."""

    name: ClassVar[str] = "lottery_pool"
    title: ClassVar[str] = "Lottery Pool"
    order: ClassVar[float] = 72
    style: ClassVar[tuple[str, str] | None] = ("#117733", "8")
    finishes: ClassVar[bool] = True
    validates: ClassVar[bool] = True

    coefficients: list[float] = setting(
        "lottery_pool: shares that another round's ticket may get",
        shares(),
        section="imp",
        default=[0.1, 0.3, 0.5, 0.7, 0.9],
    )

    def find(self, run: "Run", sparsity: float) -> None:
        """Train all of LTH, last round included; mix, prune back. Nothing is left to train."""
        from instant_soup.sparsity import scores

        earlier = [{n: w.clone() for n, w in one.items()} for one in self.rounds(run, sparsity)]
        run.train(run.total, "lth, the last round")
        weights, run.found["coefficients"] = pool(
            run.state.weights,
            earlier[::-1],
            list(run.mask),
            sparsity,
            self.coefficients,
            run.score,
        )
        run.state.weights = weights
        run.prune(scores.magnitude(run.weights, sparsity))


def pool(
    ticket: "Weights",
    others: list["Weights"],
    prunable: list[str],
    sparsity: float,
    coefficients: list[float],
    score: Callable[["Weights"], float],
) -> tuple["Weights", list[float]]:
    """Mix the tickets of other rounds into the last round's, if validation gains by it.

    Each ticket is tried at every coefficient, and the mixture pruned back by magnitude. It is kept
    if its score is better than before. So the result never scores below the last round's ticket.

    Args:
        ticket: Name → tensor of the last round's ticket.
        others: Tickets of other rounds, nearest round first.
        prunable: Names of the prunable weights.
        sparsity: Share of the prunable weights that is zero in the result, exactly.
        coefficients: Shares that another ticket may get.
        score: Validation score of weights, the higher the better.

    Returns:
        Weights, and the coefficient of each other ticket; 0 for one that is left out.
    """
    from instant_soup.methods.soups import interpolate

    best, best_score, taken = ticket, score(ticket), []
    for other in others:
        base, chosen = best, 0.0
        for coefficient in coefficients:
            mixed = pruned_to(interpolate(base, other, coefficient), prunable, sparsity)
            if (found := score(mixed)) > best_score:
                best, best_score, chosen = mixed, found, coefficient
        taken.append(chosen)
    return best, taken


def pruned_to(weights: "Weights", prunable: list[str], sparsity: float) -> "Weights":
    """The weights with the smallest of the prunable ones set to zero, to exactly `sparsity`."""
    from instant_soup.sparsity import scores

    mask = scores.magnitude({name: weights[name] for name in prunable}, sparsity)
    zeroed = {name: weights[name].where(kept, 0.0) for name, kept in mask.items()}
    return {**weights, **zeroed}
