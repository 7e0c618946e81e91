"""AC/DC (Peste et al. 2021): compressed and dense by turns.

After some dense steps the network is pruned to the target sparsity and trained so for a phase; then
it is dense for a phase, where what was pruned grows again from zero; and so on. The last dense
phase is longer, and the last mask stays. Each mask is of all matrices together, by magnitude as
published or by Fisher scores w² · v, and stays for its phase.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import number, one_of, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import Throughout, register

if TYPE_CHECKING:
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class AcDc(Throughout):
    """Alternate compressed and dense phases."""

    name: ClassVar[str] = "ac_dc"
    title: ClassVar[str] = "AC/DC"
    order: ClassVar[float] = 63
    source: ClassVar[str] = "Peste et al. 2021, arXiv 2106.12379"
    style: ClassVar[tuple[str, str] | None] = ("#004488", r"$\pm$")

    score: str = setting(
        "magnitude | fisher (w² · v of AdamW), by which weights go",
        one_of("magnitude", "fisher"),
        default="magnitude",
    )
    begin: float = setting(
        "share of T after which the network is compressed first",
        number(0, 0.8, low_too=False),
        default=0.1,
    )
    phase: float = setting(
        "share of T of a phase, compressed or dense", number(0, 0.8, low_too=False), default=0.05
    )
    last_dense: float = setting(
        "share of T after which no compressed phase begins but the last",
        number(0, 0.8, low_too=False),
        default=0.7,
    )
    end: float = setting(
        "share of T after which the network stays compressed",
        number(0, 0.8, low_too=False),
        default=0.8,
    )

    def check(self, sparsity: float, epochs: float) -> None:
        """UserError where the phases do not follow each other."""
        if self.last_dense >= self.end:
            raise UserError(
                f"ac_dc.last_dense: {self.last_dense} is not before ac_dc.end {self.end}; "
                f"allowed: less than {self.end}"
            )
        if self.begin >= self.last_dense:
            raise UserError(
                f"ac_dc.begin: {self.begin} is not before ac_dc.last_dense {self.last_dense}; "
                f"allowed: less than {self.last_dense}"
            )

    def ranks_by_gradients(self) -> bool:
        """Fisher scores are of gradients."""
        return self.score == "fisher"

    def settled(self, total: int) -> int:
        """The step from which the mask stays."""
        return max(1, round(self.end * total))

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The mask that comes and goes."""
        from instant_soup.training.ac_dc_pruner import AcDcPruner, switches

        phase = self.phase * run.total
        if phase < 1:
            raise UserError(
                f"ac_dc.phase: {self.phase} of {run.total} steps is less than one; allowed: at "
                f"least {1 / run.total:.3g}"
            )
        first, last_dense = (max(1, round(s * run.total)) for s in (self.begin, self.last_dense))
        found = switches(first, phase, last_dense, self.settled(run.total))
        return AcDcPruner(run.mask, sparsity, found, self.score)
