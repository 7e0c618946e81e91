"""What methods with a moving mask have in common: settings, and what follows from them.

A class that only names a setting leaves its definition to each method, so that params.yaml has the
settings in the method's own order.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from instant_soup.config.fields import MOST_STEPS, again, integer, number, one_of, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import Throughout, check_before, enough, key_of
from instant_soup.training.schedule import at_most

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.granet_pruner import GraNetPruner
    from instant_soup.training.movement_pruner import MovementPruner
    from instant_soup.training.run import Run
    from instant_soup.training.schedule import Steps

Learner = TypeVar("Learner", bound="MovementPruner")

LATEST = number(0, 0.8, low_too=False)  # share of T: at least a fifth is left for the last mask


def step_at(share: float, total: int) -> int:
    """Turn a share of the steps into a step, the first one at the earliest."""
    return max(1, round(share * total))


def check_moves(method: Throughout, every: int, last: int) -> None:
    """Check that a mask moves at all before it stays.

    Args:
        method: The method.
        every: Its setting of this name, steps between two masks.
        last: The last step after which the mask may move.

    Raises:
        UserError: If the mask stays before it could move.
    """
    last = max(0, last)
    if every > last:
        raise UserError(
            f"{key_of(type(method), 'every')}: {every} is more than the {last} steps in which the "
            f"mask moves; {enough(f'at most {last}' if last else '')}"
        )


def check_stays(method: Throughout, until: str, total: int) -> None:
    """Check that a step is left for the last mask.

    Args:
        method: The method.
        until: Its setting that says for how much of `total` the mask moves.
        total: Steps in all.

    Raises:
        UserError: If none is left.
    """
    if method.settled(total) >= total:
        raise UserError(
            f"{key_of(type(method), until)}: {getattr(method, until):g} leaves none of {total} "
            f"steps for the last mask; {enough(at_most(1 - 1 / total))}"
        )


class UntilEnd(Throughout):
    """A method whose mask moves up to a share `end` of the budget."""

    end: float

    def settled(self, total: int) -> int:
        """The step from which the mask stays."""
        return step_at(self.end, total)

    def check_steps(self, sparsity: float, run: "Run | Steps") -> None:
        """Check that a step is left for the last mask.

        Raises:
            UserError: If none is.
        """
        super().check_steps(sparsity, run)
        check_stays(self, "end", run.total)


class ByGradients(UntilEnd):
    """A method that learns from gradients what weights are worth, with a mask every few steps."""

    every: int

    def begins(self, total: int) -> int:
        """The step from which the density falls; here it is low from the first step on."""
        return 0

    def ranks_by_gradients(self) -> bool:
        """Always."""
        return True

    def check_steps(self, sparsity: float, run: "Run | Steps") -> None:
        """Check that the mask moves before it stays.

        Raises:
            UserError: If it does not.
        """
        super().check_steps(sparsity, run)
        self.check_every(run.total)

    def check_every(self, total: int) -> None:
        """UserError if the mask moves at `settled` alone."""
        check_moves(self, self.every, self.settled(total) - 1 - self.begins(total))


@dataclass(frozen=True, kw_only=True)
class Ramp(ByGradients):
    """The density falls from 1 at `begin` to its last value at `end` (Zhu & Gupta 2017).

    density(t) = d + (1 − d)(1 − (t − begin) / (end − begin))³, d = 1 − sparsity. From `end` on the
    mask stays.
    """

    begin: float = setting("share of T after which the density falls", number(0, 1), default=0.1)
    end: float = setting("share of T after which the mask stays", LATEST, default=0.7)
    every: int = setting("steps between two masks", integer(1, MOST_STEPS), paper=1, quick=5)

    def check(self, sparsity: float, epochs: float) -> None:
        """Check that the density has time to fall.

        Raises:
            UserError: If it has not.
        """
        check_before(self, "begin", "end")

    def begins(self, total: int) -> int:
        """The step from which the density falls."""
        return round(self.begin * total)


@dataclass(frozen=True, kw_only=True)
class LearntScores(ByGradients):
    """A method whose mask is made of scores that learn (training/movement_pruner.py)."""

    score_learning_rate: float = setting(
        "of the scores, at the start", number(0, 10, low_too=False), default=1e-2
    )

    def ranks_shards(self) -> bool:
        """Always."""
        return True

    def learner(self, kind: type[Learner], run: "Run", sparsity: float, **own: Any) -> Learner:
        """Make the pruner.

        Args:
            kind: The pruner's class.
            run: The run that it prunes.
            sparsity: The target.
            **own: Arguments of this kind, beside the settings that all have.

        Returns:
            The pruner, not yet attached.
        """
        return kind(
            run.mask,
            sparsity,
            begin=self.begins(run.total),
            settled=self.settled(run.total),
            total=run.total,
            learning_rate=self.score_learning_rate,
            every=self.every,
            **own,
        )


@dataclass(frozen=True, kw_only=True)
class AtTarget(LearntScores):
    """A method at the target sparsity from the first step on; scores learn by SGD."""

    score_learning_rate: float = again(
        LearntScores,
        "score_learning_rate",
        rule=number(0, float("inf"), low_too=False),
        default=0.1,
    )


def score_setting() -> Any:
    """Define `score`: by which scores weights go."""
    return setting(
        "magnitude | fisher (w² · v of AdamW), by which weights go",
        one_of("magnitude", "fisher"),
        default="magnitude",
    )


class Scored(Throughout):
    """A method whose weights go by `score`."""

    score: str

    def ranks_by_gradients(self) -> bool:
        """With Fisher scores, which come from gradients."""
        return self.score == "fisher"

    def ranks_by_moments(self) -> bool:
        """With Fisher scores."""
        return self.score == "fisher"


def update_setting() -> Any:
    """Define `every`: how often weights are exchanged."""
    return setting(
        "steps between two updates", integer(1, MOST_STEPS), paper=100, quick=5, library=10
    )


def regrow_setting(falls_to: str, default: float) -> Any:
    """Define `regrow`: how many weights are exchanged at the start, and what is left of it."""
    return setting(
        f"share of a matrix's weights that is exchanged, at the start; falls to {falls_to}",
        number(0, 1, high_too=False),
        default=default,
    )


class Exchanging(Scored):
    """A method that exchanges weights every few steps (training/granet_pruner.py)."""

    every: int
    regrow: float
    regrow_until: float

    def settled(self, total: int) -> int:
        """The step from which the mask stays."""
        return step_at(self.regrow_until, total)

    def check_steps(self, sparsity: float, run: "Run | Steps") -> None:
        """Check that weights are exchanged, and that a step is left for the last mask.

        Raises:
            UserError: If not.
        """
        super().check_steps(sparsity, run)
        check_moves(self, self.every, min(self.settled(run.total), run.total - 1) - 1)

    def ranks_shards(self) -> bool:
        """Always."""
        return True

    def exchanger(self, mask: "Mask", run: "Run", sparsity: float, **own: Any) -> "GraNetPruner":
        """Make the pruner.

        Args:
            mask: The first mask.
            run: The run that it prunes.
            sparsity: The target.
            **own: Arguments beside the settings above.

        Returns:
            The pruner, not yet attached.
        """
        from instant_soup.training.granet_pruner import GraNetPruner

        return GraNetPruner(
            mask,
            sparsity,
            every=self.every,
            settled=self.settled(run.total),
            regrow=self.regrow,
            ranks_by=self.score,
            **own,
        )
