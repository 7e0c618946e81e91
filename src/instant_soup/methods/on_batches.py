"""Criteria that look at a few batches of the pre-trained network before anything trains."""

from dataclasses import dataclass
from typing import Any

from instant_soup.config.fields import MOST_STEPS, integer, setting
from instant_soup.methods.base import AtStart


def batches_setting(doc: str, **defaults: Any) -> Any:
    """How many batches."""
    return setting(doc, integer(1, MOST_STEPS), section="criteria", **defaults)


class LooksAtBatches(AtStart):
    """A criterion that asks for some."""

    def wants_batches(self) -> bool:
        """It does."""
        return True


@dataclass(frozen=True, kw_only=True)
class OnBatches(LooksAtBatches):
    """A criterion that looks at gradients."""

    batches: int = batches_setting("batches that gradients are taken of", paper=8, quick=4)


@dataclass(frozen=True, kw_only=True)
class ByInputs(LooksAtBatches):
    """A criterion that looks at what matrices multiply, in a forward pass."""

    calibration_batches: int = batches_setting(
        "wanda, sparsegpt, multiflow: batches whose activations are looked at",
        paper=128,
        quick=8,
        library=16,
    )
