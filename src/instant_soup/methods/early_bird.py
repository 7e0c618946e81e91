"""EarlyBird (You et al. 2020; Chen et al. 2021): the mask settles long before the network does."""

import warnings
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import MOST_EPOCHS, ByFamily, integer, number, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import Method, register

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class EarlyBird(Method):
    """Train densely until the magnitude mask at the target sparsity stays put; train that mask.

    The search's steps are extra: the ticket is then trained from the start. If the mask never
    settles within the budget, the last one is taken, and `drawn` and a warning say so.
    """

    name: ClassVar[str] = "early_bird"
    title: ClassVar[str] = "EarlyBird"
    order: ClassVar[float] = 40
    style: ClassVar[tuple[str, str] | None] = ("#B8860B", "X")

    every: float = setting(
        "epochs between two masks",
        number(0, MOST_EPOCHS, low_too=False),
        paper=ByFamily(1.0, 1.0, 0.5),
        quick=ByFamily(0.1, 1.0),
    )
    window: int = setting("masks that a new one is compared with", integer(1, 1000), default=3)
    threshold: float = setting(
        "share of the weights in which they may differ",
        number(0, 1, low_too=False),
        paper=0.1,
        quick=0.02,
    )

    def check(self, sparsity: float, epochs: float) -> None:
        """Check that the budget has room for two masks.

        Raises:
            UserError: If it does not.
        """
        if self.every * 2 > epochs:
            raise UserError(
                f"early_bird.every: {self.every} epochs between two masks, of a budget of "
                f"{epochs}; allowed: at most half of it"
            )

    def find(self, run: "Run", sparsity: float) -> None:
        """Every `every` epochs a mask; drawn once it is near each of the `window` before."""
        from instant_soup.sparsity import masks, scores
        from instant_soup.training.schedule import steps_of

        start, every = run.moment(), steps_of(self.every, run.steps_per_epoch)
        earlier: deque[Mask] = deque(maxlen=self.window)
        distance, settled = 1.0, False
        for last in [*range(every, run.total, every), run.total]:
            run.train(last, "search")
            candidate = scores.magnitude(run.weights, sparsity)
            if earlier:
                distance = max(masks.distance(candidate, other) for other in earlier)
            settled = len(earlier) == self.window and distance < self.threshold
            if settled:
                break
            earlier.append(candidate)
        step = run.state.step
        if not settled:
            warnings.warn(
                f"early_bird: the mask did not settle in {step} steps, so the last one is taken "
                f"(settled: it differs from each of the {self.window} before it in less than "
                f"{self.threshold:g} of the weights)",
                stacklevel=2,
            )
        run.found["drawn"] = {
            **{"step": step, "epoch": round(step / run.steps_per_epoch, 4)},
            **{"distance": distance, "settled": settled},
        }
        run.go_back(start, candidate)
