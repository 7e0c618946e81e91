"""SMP, static model pruning (Jiang et al. 2022): a mask is learnt, the weights stay pre-trained.

This is movement pruning (movement.py) of prunable matrices that never change. Only scores learn,
and what is not prunable anyway (biases, norms, the head, embeddings if they are not frozen). So a
task is one bit a weight, and those few parameters. The optimiser holds no moments of the matrices.

Each matrix is as dense as in the mask by magnitude (`scope: magnitude`), or all are alike
(`local`), or the scores of all matrices are ranked together (`global`). The paper's penalty on
scores, its teacher and its head made of words are left out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import again, one_of, setting
from instant_soup.methods.base import register
from instant_soup.methods.moving import LearntScores, Ramp

if TYPE_CHECKING:
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Smp(LearntScores, Ramp):
    """Movement pruning of frozen weights."""

    name: ClassVar[str] = "smp"
    title: ClassVar[str] = "SMP (frozen weights)"
    order: ClassVar[float] = 60.4
    source: ClassVar[str] = "Jiang et al. 2022, arXiv 2210.06210"
    style: ClassVar[tuple[str, str] | None] = ("#AA4499", r"$\star$")
    finishes: ClassVar[bool] = True

    score_learning_rate: float = again(LearntScores, "score_learning_rate", default=2e-2)
    scope: str = setting(
        "magnitude (each matrix as dense as by magnitude) | local (all alike) | global",
        one_of("magnitude", "local", "global"),
        default="magnitude",
    )

    def needed_until(self, total: int) -> int:
        """The end: the weights are frozen all the time."""
        return total

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The mask that moves by learnt scores, on weights that do not."""
        from instant_soup.training.movement_pruner import MovementPruner

        return self.learner(MovementPruner, run, sparsity, scope=self.scope, frozen=True)
