"""Settings of what a network's training protocol is drawn from (training/protocols.py)."""

from typing import Any

from instant_soup.config.fields import setting, span


def rate_range(
    whose: str, *, default: Any, section: str = "", drawn: str = "drawn log-uniformly"
) -> Any:
    """Define the range of factors on the learning rate."""
    return setting(
        f"{whose} factor on learning_rate, {drawn}",
        span(0, low_too=False),
        default=default,
        section=section,
    )


def decay_range(whose: str, *, default: Any, section: str = "") -> Any:
    """Define the range of weight decays."""
    return setting(
        f"{whose} weight decay, drawn uniformly",
        span(0, low_too=True),
        default=default,
        section=section,
    )
