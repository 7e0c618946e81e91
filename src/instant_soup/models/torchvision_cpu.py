"""Make `import torchvision` work beside a CPU build of torch.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its compiled extension cannot
load. The import then fails on two operators that nobody here calls. Declaring their schemas is
enough: transforms and models work; the two operators themselves do not. `import instant_soup` makes
Python do so as soon as anything imports torchvision.
"""

import importlib.util
from pathlib import Path

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a schema lives as long as its library object


def declare_missing_operators() -> None:
    """Declare torchvision's two operators if its extension cannot load; else do nothing."""
    if _extension_loads() or _declared:  # in this order: looking for it may have declared them
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True  # nothing to repair; whoever imports it gets Python's own message
    extensions = sorted(Path(spec.submodule_search_locations[0]).glob("_C.*"))
    try:
        for extension in extensions:
            torch.ops.load_library(extension)
    except OSError:
        return False
    return bool(extensions)
