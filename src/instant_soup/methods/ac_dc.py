"""AC/DC (Peste et al. 2021): compressed and dense by turns.

After some dense steps the network is pruned to the target sparsity, and trains like that for a
phase. Then it is dense for a phase, in which pruned weights grow again from zero; and so on. The
last dense phase is longer, and the last mask stays. Each mask is of all matrices together, by
magnitude as published or by Fisher scores w² · v, and stays for its phase.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import setting
from instant_soup.errors import UserError
from instant_soup.methods.base import check_before, enough, register
from instant_soup.methods.moving import LATEST, Scored, UntilEnd, score_setting, step_at
from instant_soup.training.schedule import at_least

if TYPE_CHECKING:
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run
    from instant_soup.training.schedule import Steps


@register
@dataclass(frozen=True, kw_only=True)
class AcDc(Scored, UntilEnd):
    """Alternate compressed and dense phases."""

    name: ClassVar[str] = "ac_dc"
    title: ClassVar[str] = "AC/DC"
    order: ClassVar[float] = 63
    source: ClassVar[str] = "Peste et al. 2021, arXiv 2106.12379"
    style: ClassVar[tuple[str, str] | None] = ("#004488", r"$\pm$")

    score: str = score_setting()
    begin: float = setting(
        "share of T after which the network is compressed first", LATEST, default=0.1
    )
    phase: float = setting("share of T of a phase, compressed or dense", LATEST, default=0.05)
    last_dense: float = setting(
        "share of T after which no compressed phase begins but the last", LATEST, default=0.7
    )
    end: float = setting("share of T after which the network stays compressed", LATEST, default=0.8)

    def check(self, sparsity: float, epochs: float) -> None:
        """Check that the phases follow each other.

        Raises:
            UserError: If they do not.
        """
        check_before(self, "last_dense", "end")
        check_before(self, "begin", "last_dense")

    def check_steps(self, sparsity: float, run: "Run | Steps") -> None:
        """Check that a phase has a step.

        Raises:
            UserError: If it has none.
        """
        super().check_steps(sparsity, run)
        if self.phase * run.total < 1:
            raise UserError(
                f"ac_dc.phase: {self.phase} of {run.total} steps is less than one; "
                f"{enough(at_least(1 / run.total))}"
            )

    def ranks_shards(self) -> bool:
        """Always."""
        return True

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The mask that comes and goes."""
        from instant_soup.training.ac_dc_pruner import AcDcPruner, switches

        first, last_dense = (step_at(s, run.total) for s in (self.begin, self.last_dense))
        found = switches(first, self.phase * run.total, last_dense, self.settled(run.total))
        return AcDcPruner(run.mask, sparsity, found, self.score)
