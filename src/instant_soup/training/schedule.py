"""The learning rate at each step, and how many steps a training takes."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context

from instant_soup.config.sections import steps_per_epoch


@dataclass(frozen=True)
class Steps:
    """The steps of a training, before it runs; a run has the same three (run.py)."""

    total: int
    steps_per_epoch: int
    warmup_steps: int = 0

    @classmethod
    def of(cls, epochs: float, rows: int, batch_size: int, warmup: float = 0.0) -> "Steps":
        """Those of so many epochs over so many rows; `warmup`: a share of them."""
        per_epoch = steps_per_epoch(rows, batch_size)
        total = steps_of(epochs, per_epoch)
        return cls(total, per_epoch, warmup_steps(warmup, total))


def steps_of(epochs: float, steps_per_epoch: int) -> int:
    """Optimiser steps in a number of epochs, at least one."""
    return max(1, round(epochs * steps_per_epoch))


def warmup_steps(warmup: float, total: int) -> int:
    """Steps of a warm-up that takes a share of `total`."""
    return round(warmup * total)


def at_least(share: float) -> str:
    """Name the lowest share that is allowed: three digits, rounded up."""
    return f"at least {_digits(share, ROUND_CEILING)}"


def at_most(share: float) -> str:
    """Name the highest share that is allowed: three digits, rounded down; "" if none is."""
    return f"at most {_digits(share, ROUND_FLOOR)}" if share > 0 else ""


def _digits(share: float, rounding: str) -> str:
    return f"{float(Context(prec=3, rounding=rounding).create_decimal(repr(share))):g}"


def learning_rate(
    step: int,
    total: int,
    peak: float,
    warmup_steps: int = 0,
    cycles: int = 1,
    lowest: float = 0.0,
) -> float:
    """Linear warm-up to `peak`, then linear decay to zero at `total` (paper, table 1).

    Args:
        step: The step, counted from 0; the first step after the warm-up has the full rate.
        total: Steps in all.
        peak: The highest rate.
        warmup_steps: Steps of the warm-up.
        cycles: How often the rate falls, see `cyclic`.
        lowest: The lowest rate of a cycle, as a share of `peak`.

    Returns:
        The rate at this step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if cycles > 1:
        return peak * cyclic(step - warmup_steps, total - warmup_steps, cycles, lowest)
    return peak * (total - step) / max(1, total - warmup_steps)


def cyclic(step: int, total: int, cycles: int, lowest: float) -> float:
    """A factor that falls linearly from 1 to `lowest`, again and again.

    This is the cyclic linear rate of Kurtic & Alistarh 2022, arXiv 2210.06384.

    Args:
        step: The step, counted from 0.
        total: Steps in all.
        cycles: Cycles of equal length, up to a step, that fill the steps 0 … total − 1.
        lowest: The factor at a cycle's last step.

    Returns:
        The factor at this step.
    """
    now = ((step + 1) * cycles - 1) // total
    first, following = total * now // cycles, total * (now + 1) // cycles
    return 1 - (1 - lowest) * (step - first) / max(1, following - first - 1)


def cubic(step: float, first: float, last: float, start: float, end: float) -> float:
    """A value that goes from `start` to `end`, fast and then slower.

    end + (start − end)(1 − (step − first) / (last − first))³ (Zhu & Gupta 2017).

    Args:
        step: The step.
        first: Up to this step the value is `start`.
        last: From this step on the value is `end`.
        start: The first value.
        end: The last value.

    Returns:
        The value at this step.
    """
    if last <= first:
        return end if step >= last else start
    left = 1 - min(1.0, max(0.0, (step - first) / (last - first)))
    return end + (start - end) * left**3
