"""No work on what nobody reads: the last block of an encoder that classifies by its first token.

Behind attention a block treats each token by itself. So in the last block the other tokens need no
matrix products, no activation and no norm there; forward and backward, these are three quarters of
a block's products with weights. Logits and gradients are the same numbers; but sums over fewer rows
are rounded otherwise. So it is done in bf16 training only: fp32 keeps its bits, and whoever looks
at a network at rest sees all tokens.
"""

import torch
from torch import nn


def leave_out_others(part: nn.Module) -> None:
    """Let a part of the last block see the first token alone, in bf16 training.

    Args:
        part: A module behind the last attention. Its inputs are rows × tokens × width.
    """
    part.register_forward_pre_hook(_first)


def _first(part: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    # Under dropout, fewer draws would be other draws.
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in part.modules())
    if drops or not (part.training and _in_bf16(inputs[0])):
        return None
    return tuple(tensor[:, :1] for tensor in inputs)


def _in_bf16(tensor: torch.Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
