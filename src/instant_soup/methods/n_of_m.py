"""N:M magnitude: N non-zero weights in every M consecutive ones of a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import integer, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import AtStart, register

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@register
@dataclass(frozen=True, kw_only=True)
class NOfM(AtStart):
    """The N largest |w| of each group of M consecutive inputs stay: N non-zero of every M.

    M is a setting; N = (1 − S) · M. (GPUs multiply 2:4 faster.) Of equal magnitudes the first
    stays.
    """

    name: ClassVar[str] = "n_of_m"
    title: ClassVar[str] = "N:M magnitude"
    order: ClassVar[float] = 23
    style: ClassVar[tuple[str, str] | None] = ("#56B4E9", "d")
    looks_at: ClassVar[tuple[str, ...]] = ()

    m: int = setting(
        "n_of_m: N non-zero weights of every M; (1 - sparsity) * M must be whole",
        integer(2),
        section="criteria",
        default=4,
    )

    def check(self, sparsity: float, epochs: float) -> None:
        """Check that N is a whole number.

        Raises:
            UserError: If it is not.
        """
        pattern(sparsity, self.m)

    def mask(self, run: "Run", sparsity: float) -> "Mask":
        """The mask of exactly this sparsity.

        Raises:
            UserError: If N is no whole number, or a row no multiple of M.
        """
        return largest_of_groups(run.weights, pattern(sparsity, self.m), self.m, run.inputs_at)


def largest_of_groups(
    weights: "Weights", n: int, m: int, inputs_at: Mapping[str, int] = MappingProxyType({})
) -> "Mask":
    """Keep the n largest |w| of each group of m consecutive inputs.

    Args:
        weights: Name → weight, outputs × inputs.
        n: How many stay in a group.
        m: Weights in a group.
        inputs_at: Name → the dimension that has the inputs, where it is not the last.

    Returns:
        Name → boolean tensor of the weight's shape; True: kept.

    Raises:
        UserError: If a row is no multiple of m.
    """
    mask = {}
    for name, weight in weights.items():
        along = inputs_at.get(name, -1)
        rows = weight.movedim(along, -1)
        if rows.shape[-1] % m:
            raise UserError(
                f"criteria.m: {m} does not divide the {rows.shape[-1]} inputs of {name}; allowed: "
                "a divisor of them"
            )
        groups = rows.abs().float().reshape(-1, m)
        # Ranks within a group, stable: of equals the first is larger.
        ranks = groups.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        mask[name] = (ranks < n).view(rows.shape).movedim(-1, along).contiguous()
    return mask


def pattern(sparsity: float, m: int) -> int:
    """N of the N:M pattern with this sparsity: N non-zero weights of every M.

    Raises:
        UserError: If (1 − S) · M is no whole number.
    """
    n = round((1 - sparsity) * m)
    if abs(n - (1 - sparsity) * m) > 1e-9 or not 0 < n < m:
        allowed = ", ".join(str(i / m) for i in range(1, m))
        raise UserError(
            f"sparsity: {sparsity} is no N:{m} pattern; allowed with criteria.m {m}: {allowed}"
        )
    return n
