"""The control: ISP's ticket on random weights, which shows what the pre-trained ones are worth."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import Method, register

if TYPE_CHECKING:
    from instant_soup.config.sections import Recipe
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class RandomInit(Method):
    """ISP's mask, trained for T steps from random weights; the head is the same as in every row.

    Random embeddings train even if the preset freezes them. The row costs what ISP's ticket has
    cost, and a run.
    """

    name: ClassVar[str] = "random_init"
    title: ClassVar[str] = "ISP's ticket, random weights"
    order: ClassVar[float] = 90
    style: ClassVar[tuple[str, str] | None] = ("#8C8C8C", "x")
    needs: ClassVar[tuple[str, ...]] = ("isp",)

    def recipe(self, recipe: "Recipe") -> "Recipe":
        """Random embeddings must be able to train."""
        return replace(
            recipe, freeze_embeddings=None if recipe.freeze_embeddings is None else False
        )

    def find(self, run: "Run", sparsity: float) -> None:
        """ISP's mask on a network that was never trained."""
        mask, cost = run.ticket_of("isp")
        run.cost.add(vars(cost.as_search()))
        run.start_from(run.random_state(), mask)
