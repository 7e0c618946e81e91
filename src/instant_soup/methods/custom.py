"""Your own criterion: a function of weights, gradients and state (docs/add_a_method.md)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from instant_soup.errors import UserError
from instant_soup.methods.budgets import Budgeted
from instant_soup.methods.rounds import OnTheWay

if TYPE_CHECKING:
    import torch

    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run
    from instant_soup.training.state import State, Weights

Criterion = Callable[["Weights", "Weights", "State"], "Weights"]


@dataclass(frozen=True, kw_only=True)
class Custom(Budgeted, OnTheWay):
    """Rounds by the scores of a function: of what is left, the largest stay.

    `criterion(weights, gradients, state)` gets the prunable weights, their gradients in the round's
    last step (dense, summed as the optimiser had them), and the state with AdamW's moments. It
    returns a score for each weight, in tensors of the same names and shapes.
    """

    name: ClassVar[str] = "custom"
    title: ClassVar[str] = "A criterion of one's own"
    wants_gradients: ClassVar[bool] = True

    criterion: Criterion = field(default=lambda weights, gradients, state: weights)

    def ranks_shards(self) -> bool:
        """Never: the function may look at whole matrices."""
        return False

    def find_mask(self, run: "Run", i: int, sparsity: float) -> "Mask":
        """The best of what is left."""
        from instant_soup.sparsity import masks

        weights = {name: w.clone() for name, w in run.weights.items()}  # for it to do as it likes
        scores = self.criterion(weights, Gradients(run.gradients), run.state)
        floats = checked(scores, run.weights)
        if self.budget != "global":
            return self.best(run, floats, sparsity)
        return masks.keep_largest(floats, masks.keep_count(floats, sparsity), priority=run.mask)


class Gradients(dict[str, "torch.Tensor"]):
    """Name → gradient. A matrix that has none raises UserError, not KeyError."""

    def __missing__(self, name: str) -> "torch.Tensor":
        raise UserError(
            f"method: {name} has no gradient, as it is frozen, no loss reaches it, or the first "
            "round prunes before the first step; allowed: a criterion that asks for none, matrices "
            "that train (`prunable`), or a later first round (`mask_finding`)"
        )


def checked(scores: Any, weights: "Weights") -> "Weights":
    """Check a criterion's scores.

    Args:
        scores: What the criterion returned.
        weights: Name → weight.

    Returns:
        Name → scores in fp32, on the CPU.

    Raises:
        UserError: If a weight has no score that can be ranked.
    """
    import torch

    if not isinstance(scores, Mapping):
        raise _refused(f"it returned {type(scores).__name__}")
    if odd := next((n for n in (*weights, *scores) if n not in scores or n not in weights), None):
        are = "none" if odd in weights else "some"
        raise _refused(f"the scores have not the names and shapes of the weights: {are} of {odd}")
    found = {}
    for name, weight in weights.items():
        score = scores[name]
        if not isinstance(score, torch.Tensor):
            raise _refused(f"the scores of {name} are {type(score).__name__}")
        if score.shape != weight.shape:
            shapes = f"{list(score.shape)}, of {list(weight.shape)}"
            raise _refused(
                f"the scores have not the names and shapes of the weights: those of {name} are "
                f"{shapes}"
            )
        if score.is_complex() or score.is_meta:
            kind = "on the meta device" if score.is_meta else f"of {score.dtype}"
            raise _refused(f"the scores of {name} are {kind}")
        found[name] = score.detach().cpu().float()
        if found[name].isnan().any():
            raise _refused(f"the scores of {name} hold NaN")
    return found


def _refused(what: str) -> UserError:
    return UserError(
        f"method: {what}; allowed: a dict with a tensor of scores for each weight, of its name and "
        "shape, without NaN"
    )
