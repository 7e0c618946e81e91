"""A criterion of one's own: a function of weights, gradients and state (docs/add_a_method.md)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from instant_soup.errors import UserError
from instant_soup.methods.budgets import Budgeted
from instant_soup.methods.rounds import OnTheWay

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run
    from instant_soup.training.state import State, Weights

Criterion = Callable[["Weights", "Weights", "State"], "Weights"]


@dataclass(frozen=True, kw_only=True)
class Custom(Budgeted, OnTheWay):
    """Rounds by the scores of a function: of what is left, the largest stay.

    `criterion(weights, gradients, state)`: the prunable weights, their gradients in the round's
    last step (dense, summed as the optimiser had them), and the state with AdamW's moments. It
    returns a score for each weight, tensors of the same names and shapes.
    """

    name: ClassVar[str] = "custom"
    title: ClassVar[str] = "A criterion of one's own"
    wants_gradients: ClassVar[bool] = True

    criterion: Criterion = field(default=lambda weights, gradients, state: weights)

    def find_mask(self, run: "Run", i: int, sparsity: float) -> "Mask":
        """The best of what is left."""
        from instant_soup.sparsity import masks

        weights = run.weights
        scores = self.criterion(weights, run.gradients, run.state)
        shapes = {name: tuple(w.shape) for name, w in weights.items()}
        given = {name: tuple(s.shape) for name, s in scores.items()}
        if given != shapes:
            raise UserError(
                "method: the scores have not the names and shapes of the weights; allowed: a score "
                "for each weight"
            )
        floats = {name: scores[name].detach().cpu().float() for name in weights}
        if self.budget != "global":
            return self.best(run, floats, sparsity)
        return masks.keep_largest(floats, masks.keep_count(floats, sparsity), priority=run.mask)
