"""GMP* (Kurtic & Alistarh 2022): a large first cut, many small ones, a rate that starts again."""

from dataclasses import dataclass
from typing import ClassVar

from instant_soup.config.fields import again
from instant_soup.methods.base import register
from instant_soup.methods.progressive import Progressive
from instant_soup.methods.rounds import OnTheWay


@register
@dataclass(frozen=True, kw_only=True)
class GMP(Progressive):
    """Progressive magnitude pruning, tuned so that every late prune has a high rate to recover by.

    The paper also trains it under a teacher: `training.teacher: dense`.
    """

    name: ClassVar[str] = "gmp"
    title: ClassVar[str] = "GMP* (magnitude)"
    order: ClassVar[float] = 31
    source: ClassVar[str] = "Kurtic & Alistarh 2022, arXiv 2210.06384"
    style: ClassVar[tuple[str, str] | None] = ("#E69F00", r"$\nabla$")

    schedule: str = again(OnTheWay, "schedule", default="cubic")
    prunes: int = again(OnTheWay, "prunes", default=30)
    first_cut: float = again(OnTheWay, "first_cut", default=0.75)
    begin: float = again(OnTheWay, "begin", default=0.2)
    end: float = again(OnTheWay, "end", default=0.8)
    cycles: int = again(OnTheWay, "cycles", default=5)
