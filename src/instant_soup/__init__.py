"""Instant Soup Pruning (ICML 2023) and the methods that it is compared with.

`instant_soup.prune` trains and prunes your own model. `instant_soup.Pruner` prunes in your own
training loop, `instant_soup.InstantSoupCallback` in a `transformers.Trainer`. Each name is imported
when it is first used: the pipeline runs dozens of short processes, and each pays only for what it
uses.

With a CPU build of torch, PyPI's torchvision fails to import, and so do timm, open_clip and the
Trainer, which need it. Import this package before them, and they work (models/torchvision_cpu.py).
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instant_soup.library.loop import Pruner
    from instant_soup.library.prune import prune
    from instant_soup.library.pruned import Pruned
    from instant_soup.library.trainer import InstantSoupCallback

__all__ = ["InstantSoupCallback", "Pruned", "Pruner", "__version__", "prune"]
__version__ = "0.2.0"

# name → the module that has it
_HOMES = {
    "prune": "instant_soup.library.prune",
    "Pruned": "instant_soup.library.pruned",
    "Pruner": "instant_soup.library.loop",
    "InstantSoupCallback": "instant_soup.library.trainer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'instant_soup' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _BeforeTorchvision(MetaPathFinder):
    """Repairs torchvision when Python first looks for it; the usual finders then answer."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            from instant_soup.models.torchvision_cpu import declare_missing_operators

            declare_missing_operators()


if not any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path):
    sys.meta_path.insert(0, _BeforeTorchvision())
