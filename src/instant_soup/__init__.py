"""Instant Soup Pruning (ICML 2023): the ideas of the paper, one file per idea.

`instant_soup.prune` prunes a model of one's own (api.py), `instant_soup.InstantSoupCallback` that
of a `transformers.Trainer` (trainer_callback.py). Nothing is imported here before it is
asked for: the pipeline runs dozens of short processes, and each pays only for what it uses.
"""

from typing import Any

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name in ("prune", "Pruned"):
        from instant_soup.library import prune

        return getattr(prune, name)
    if name == "InstantSoupCallback":
        from instant_soup.library.trainer import InstantSoupCallback

        return InstantSoupCallback
    raise AttributeError(f"module 'instant_soup' has no attribute {name!r}")
