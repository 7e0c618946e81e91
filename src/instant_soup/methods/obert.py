"""oBERT (Kurtic et al. 2022): the Optimal Brain Surgeon on blocks of the Fisher matrix, on the way.

At the end of each round the gradients of some batches make the Fisher matrix F of every `block`
consecutive weights of a matrix (sparsity/surgeon.py). The weights go whose removal costs least, w²
/ (2 [F⁻¹]ₚₚ), and the others of their block move to make up for them. With blocks of one weight and
the training's own gradients this is ISP+'s ranking, with damping and another mean of the squared
gradient.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import MOST_STEPS, integer, number, one_of, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import key_of, register
from instant_soup.methods.rounds import OnTheWay

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Cut, Mask
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run
    from instant_soup.training.schedule import Steps
    from instant_soup.training.state import Weights

FRESH, TRAINING = "fresh", "training"
DAMPING = number(0, float("inf"), low_too=False)


@register
@dataclass(frozen=True, kw_only=True)
class OBERT(OnTheWay):
    """Rounds by the second-order cost of a weight's removal; the rest of its block moves."""

    name: ClassVar[str] = "obert"
    title: ClassVar[str] = "oBERT"
    order: ClassVar[float] = 84
    source: ClassVar[str] = "Kurtic et al. 2022, arXiv 2203.07259"
    style: ClassVar[tuple[str, str] | None] = ("#661100", r"$\boxplus$")

    block: int = setting("weights of a Fisher block", integer(1), paper=50, quick=8, library=8)
    gradients: str = setting(
        "fresh (of the next batches, no dropout; counted) | training (of a round's last steps)",
        one_of(FRESH, TRAINING),
        default=FRESH,
    )
    gradient_batches: int = setting(
        "batches, or steps, whose gradients a round looks at",
        integer(1, MOST_STEPS),
        paper=1024,
        quick=8,
        library=16,
    )
    damping: float = setting(
        "added to the Fisher matrix's diagonal, in mean squared gradients", DAMPING, default=0.1
    )
    update: str = setting(
        "sum (of single corrections, as published) | joint (the exact one) | none: how the rest of "
        "a block moves",
        one_of("sum", "joint", "none"),
        default="sum",
    )
    memory: float = setting(
        "GB that a round's Fisher blocks may take",
        number(0, float("inf"), low_too=False),
        default=32.0,
    )

    @property
    def ranks_by(self) -> str:
        """By gradients; those of training are not there before the first step."""
        return "fisher" if self.gradients == TRAINING else "magnitude"

    def ranks_by_moments(self) -> bool:
        """Never: it gathers gradients itself."""
        return False

    @property
    def remembers(self) -> bool:
        """The gradients of a round so far."""
        return self.gradients == TRAINING

    def wants_batches(self) -> bool:
        """For fresh gradients."""
        return self.gradients == FRESH

    def bytes_of(self, weights: int) -> int:
        """What Fisher blocks, a gradient and scores take, in bytes."""
        return 4 * weights * (self.block + 2)

    def check_size(self, weights: int) -> None:
        """Check that the Fisher blocks of so many weights fit into `memory`.

        Raises:
            UserError: If they do not.
        """
        self._check_bytes(weights, round(1e9 * self.memory), f"of {self._key('memory')}")

    def find(self, run: "Run", sparsity: float) -> None:
        """Algorithm 1's rounds, if their blocks fit."""
        self._check_run(run)
        super().find(run, sparsity)

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The same in a loop of one's own."""
        self._check_run(run)
        return super().pruner(run, sparsity)

    def check_steps(self, sparsity: float, run: "Run | Steps") -> None:
        """Check the rounds, and that each has a step, and so gradients of training.

        Raises:
            UserError: If one has not.
        """
        super().check_steps(sparsity, run)
        ends = self.round_ends(sparsity, run)
        if self.gradients == TRAINING and len(set(ends)) < len(ends):
            raise UserError(
                f"{self._key('gradients')}: training has no gradients for rounds without a step, "
                f"and rounds end at the steps {ends}; allowed: fresh, or longer rounds"
            )

    def gradients_at(self, ends: list[int]) -> list[int]:
        """The last steps of each round, as many as are asked for and there."""
        if self.gradients == FRESH:
            return []
        rounds = zip([0, *ends], ends, strict=False)
        return [at for begin, end in rounds for at in self._last_steps(begin, end)]

    def gather(self, held: "Weights", gradients: "Weights") -> "Weights":
        """Fisher blocks with these gradients in them."""
        from instant_soup.sparsity import surgeon

        return surgeon.add_gradients(held, gradients, self.block)

    def train_round(self, run: "Run", i: int, end: int) -> None:
        """Train up to the end of round i, and gather its last gradients where these are asked."""
        if self.gradients == FRESH:
            return super().train_round(run, i, end)
        from instant_soup.training.pruner import FixedMask

        key = [self.name, self.block, self.gradient_batches]
        at = self._last_steps(run.state.step, end)
        pruner = FixedMask(run.mask, at, self.gather)
        run.train(end, f"round {i}", pruner=pruner, key=key, keep_gradients=True)

    def find_mask(self, run: "Run", i: int, sparsity: float) -> "Mask | Cut":
        """The weights that cost least go; the rest of their blocks moves where it is asked to.

        Raises:
            UserError: If all gradients are zero.
        """
        from instant_soup.sparsity import scores, surgeon
        from instant_soup.sparsity.masks import Cut

        fisher = self._fresh(run) if self.gradients == FRESH else run.gradients
        scores.check_some(fisher.values())
        mask = scores.best(self.worth(fisher, run), sparsity)
        if self.update == "none":
            return mask
        together = self.update == "joint"
        return Cut(
            mask,
            surgeon.corrected(fisher, run.weights, run.mask, mask, self.damping, together),
        )

    def worth(self, fisher: "Weights", run: "Run") -> "Weights":
        """What each weight's removal costs."""
        from instant_soup.sparsity import surgeon

        return surgeon.scores(fisher, run.weights, run.mask, self.damping)

    def _last_steps(self, begin: int, end: int) -> range:
        return range(max(begin, end - self.gradient_batches), end)

    def _fresh(self, run: "Run") -> "Weights":
        """Fisher blocks of the batches that come next."""
        import torch

        from instant_soup.training import exchange
        from instant_soup.training.gradients import GRADIENT

        fisher: Weights = {}
        with run.losses(self.gradient_batches, GRADIENT, run.state.step) as (losses, parameters):
            every = list(parameters.values())
            for loss in losses:
                found = torch.autograd.grad(loss, every, materialize_grads=True)
                fisher = self.gather(fisher, dict(zip(parameters, found, strict=True)))
        exchange.average(fisher.values())
        return fisher

    def _check_run(self, run: "Run") -> None:
        """UserError where the blocks do not fit, by the setting or where the network is."""
        from instant_soup.models.memory import free_memory
        from instant_soup.sparsity.masks import count

        weights = count(run.mask)[1]
        self.check_size(weights)
        self._check_bytes(weights, free_memory(run.device), f"that are free on the {run.device}")

    def _check_bytes(self, weights: int, most: int, whose: str) -> None:
        if (wanted := self.bytes_of(weights)) > most:
            largest = most // (4 * weights) - 2
            allowed = f"at most {largest}" if largest > 0 else "none, this model is too large"
            raise UserError(
                f"{self._key('block')}: {self.block} takes {wanted:,} bytes for the {weights:,} "
                f"prunable weights, more than the {most:,} bytes {whose}; allowed: {allowed}"
            )

    def _key(self, setting: str) -> str:
        return key_of(type(self), setting)
