"""Criteria that look at a few batches of the pre-trained network before anything trains."""

from dataclasses import dataclass

from instant_soup.config.fields import MOST_STEPS, integer, setting
from instant_soup.methods.base import AtStart


@dataclass(frozen=True, kw_only=True)
class OnBatches(AtStart):
    """A criterion that looks at gradients on some batches of the pre-trained network."""

    batches: int = setting(
        "batches that gradients are taken of",
        integer(1, MOST_STEPS),
        section="criteria",
        paper=8,
        quick=4,
    )

    def wants_batches(self) -> bool:
        """Gradients of some."""
        return True
