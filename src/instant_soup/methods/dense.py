"""The Full row: the dense network, fine-tuned for the whole budget."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import Method, register

if TYPE_CHECKING:
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """Nothing is pruned."""

    name: ClassVar[str] = "dense"
    title: ClassVar[str] = "Full (dense)"
    order: ClassVar[float] = 1
    style: ClassVar[tuple[str, str] | None] = ("#000000", "s")
    main: ClassVar[bool] = True
    dense: ClassVar[bool] = True

    def find(self, run: "Run", sparsity: float) -> None:
        """Nothing to find."""

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """A mask that keeps all."""
        from instant_soup.training.pruner import FixedMask

        return FixedMask(run.mask)
