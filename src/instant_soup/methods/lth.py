"""Lottery tickets by iterative magnitude pruning (Frankle & Carbin 2019): prune, reset, train all.

`lth` resets to the pre-trained weights, `lth_rewind` (Frankle et al. 2020) to weights, moments and
step after a few steps of training.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import ByFamily, number, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import Method, enough, register
from instant_soup.methods.rounds import RATE, RATE_OF, round_sparsities
from instant_soup.training.schedule import at_least, at_most

if TYPE_CHECKING:
    from instant_soup.training.run import Moment, Run
    from instant_soup.training.schedule import Steps
    from instant_soup.training.state import Weights


@dataclass(frozen=True, kw_only=True)
class Lottery(Method):
    """Rounds of prune, reset, train; what is left after the last reset is the ticket."""

    compression_rate: float = setting(
        "sparsity added a round", RATE, section="imp", paper=ByFamily(0.1, 0.15), quick=0.2
    )
    rate_of: str = setting("total | remaining", RATE_OF, section="imp", default="total")

    def more_trainings(self, sparsity: float) -> float:
        """One a round, but for the first, which is the dense row's."""
        return len(round_sparsities(sparsity, self.compression_rate, self.rate_of)) - 1

    def reset_point(self, run: "Run") -> "Moment":
        """Where every round goes back to."""
        return run.moment()

    def rounds(self, run: "Run", sparsity: float) -> "Iterator[Weights]":
        """Yield each round's trained weights except the last's, whose ticket is left to train.

        The first network is the dense row's. The steps up to a later reset point are its own first
        ones, and are counted once, with the ticket. A store may have the whole training from the
        start, so there it is asked for as that; without one it goes on from the reset point.
        """
        from instant_soup.sparsity import scores

        start, cost = run.moment(), replace(run.cost)
        reset = self.reset_point(run)
        if run.store is not None:
            run.go_back(start)
            run.cost = cost
        run.train(run.total, "dense")
        targets = round_sparsities(sparsity, self.compression_rate, self.rate_of)
        for i, target in enumerate(targets):
            mask = scores.magnitude(run.weights, target)
            run.go_back(reset, mask)
            if i + 1 < len(targets):
                run.train(run.total, f"{self.name} round {i}")
                yield run.state.weights

    def find(self, run: "Run", sparsity: float) -> None:
        """All rounds; the ticket is at the reset point again."""
        for _ in self.rounds(run, sparsity):
            pass


@register
@dataclass(frozen=True, kw_only=True)
class LTH(Lottery):
    """Reset to the pre-trained weights."""

    name: ClassVar[str] = "lth"
    title: ClassVar[str] = "LTH (IMP)"
    order: ClassVar[float] = 70
    style: ClassVar[tuple[str, str] | None] = ("#009E73", "D")
    main: ClassVar[bool] = True


@register
@dataclass(frozen=True, kw_only=True)
class LTHRewind(Lottery):
    """Reset to the state after a share of the budget."""

    name: ClassVar[str] = "lth_rewind"
    title: ClassVar[str] = "LTH-Rewind"
    order: ClassVar[float] = 71
    style: ClassVar[tuple[str, str] | None] = ("#44C29B", "h")

    rewind: float = setting(
        "lth_rewind: share of the budget after which weights are taken",
        number(0, 1, low_too=False, high_too=False),
        section="imp",
        default=0.05,
    )

    def check_steps(self, sparsity: float, run: "Run | Steps") -> None:
        """Check that the reset point is behind the start and before the end.

        Raises:
            UserError: If it is not.
        """
        super().check_steps(sparsity, run)
        step, total = self._rewound(run), run.total
        if not 1 <= step < total:
            shares = f"{at_least(1 / total)} and {at_most(1 - 1 / total)}" if total > 1 else ""
            raise UserError(
                f"imp.rewind: {self.rewind:g} goes back to step {step} of {total}, where lth "
                f"{'starts' if step < 1 else 'has nothing left to train'}; {enough(shares)}"
            )

    def reset_point(self, run: "Run") -> "Moment":
        """After a share `rewind` of the budget."""
        run.train(self._rewound(run), "rewind")
        return run.moment()

    def _rewound(self, run: "Run | Steps") -> int:
        return round(self.rewind * run.total)
