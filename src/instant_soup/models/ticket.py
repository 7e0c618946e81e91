"""A finished network's folder: the files beside its weights, whoever writes them.

    mask.safetensors      a bit for every prunable weight
    compact.safetensors   the weights without their zeros
    ticket.json           where it is from, and what a test needs to know

The weights themselves and their configuration are in the form of transformers or open_clip.
"""

from pathlib import Path
from typing import Any

from instant_soup.files import write_json
from instant_soup.models.matrices import Weights
from instant_soup.sparsity import compact, masks
from instant_soup.sparsity.masks import Mask

FORMAT = "instant-soup-ticket-1"
MASK, COMPACT, TICKET = "mask.safetensors", "compact.safetensors", "ticket.json"
# What goes with a checkpoint's weights: configuration, tokenizer.
BESIDE = (".json", ".txt", ".model", ".jinja")


def write_ticket(folder: Path, weights: Weights, mask: Mask, ticket: dict[str, Any]) -> None:
    """Write mask, compact file and ticket.json into a folder.

    Args:
        folder: The folder.
        weights: Name → tensor, of the type that the compact file has.
        mask: Name → boolean tensor of the weight's shape; True: kept.
        ticket: The contents of ticket.json. It has `method` and `seed`.

    Raises:
        UserError: If a weight that the mask prunes is not zero.
    """
    compact.save(folder / COMPACT, weights, mask)
    masks.save(folder / MASK, mask, method=ticket["method"], seed=ticket["seed"])
    write_json(folder / TICKET, ticket)
