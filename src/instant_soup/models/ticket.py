"""A finished network's folder: the files beside its weights, whoever writes them.

    mask.safetensors      a bit for every prunable weight
    compact.safetensors   the weights without their zeros
    ticket.json           where it is from, and what a test needs to know

The weights themselves and their configuration are in the form of transformers or open_clip.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from instant_soup.files import write_json
from instant_soup.models.matrices import Weights
from instant_soup.sparsity import compact, masks
from instant_soup.sparsity.masks import Mask

FORMAT = "instant-soup-ticket-1"
MASK, COMPACT, TICKET = "mask.safetensors", "compact.safetensors", "ticket.json"
# What goes with a checkpoint's weights: configuration, tokenizer.
BESIDE = (".json", ".txt", ".model", ".jinja")


def write_ticket(
    folder: Path,
    weights: Weights,
    mask: Mask,
    ticket: dict[str, Any],
    inputs_at: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write mask, compact file and ticket.json into a folder.

    Args:
        folder: The folder.
        weights: Name → tensor, of the type that the compact file has.
        mask: Name → boolean tensor of the weight's shape; True: kept.
        ticket: The contents of ticket.json. It has `method` and `seed`.
        inputs_at: Name → dimension of the inputs, of weights that do not have them last.

    Raises:
        UserError: If a weight that the mask prunes is not zero.
    """
    own = {name: at for name, at in inputs_at.items() if name in mask}
    compact.save(folder / COMPACT, weights, mask, inputs_at=own)
    masks.save(folder / MASK, mask, method=ticket["method"], seed=ticket["seed"], inputs_at=own)
    write_json(folder / TICKET, ticket)
