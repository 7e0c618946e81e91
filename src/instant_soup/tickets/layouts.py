"""A pruned model for inference on a CPU: its matrices in one of torch's sparse layouts.

Whether that pays depends on sparsity and batch size: reports/benchmarks.md, Inference.

Example:
    from instant_soup import masks, sparse_layouts

    fast = sparse_layouts.convert(model, masks.load("mask.safetensors"))  # CSR
"""

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import nn

from instant_soup.errors import UserError

LAYOUTS = ("CSR", "BSR", "2:4")
ON_A_CPU = (torch.float32, torch.float64)  # what torch multiplies there in these layouts
BLOCK = 32  # rows and columns of a block of the BSR layout


class SparseLinear(nn.Module):
    """A linear layer for inference, whose weight matrix is in one of LAYOUTS.

    The matrix is a plain attribute, because safetensors and `nn.Parameter` know dense layouts only.
    So save the dense model or its compact file, and convert after loading.
    """

    def __init__(self, dense: nn.Linear, layout: str) -> None:
        super().__init__()
        weight = dense.weight.detach()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta")
            if layout == "CSR":
                self.sparse = weight.to_sparse_csr()
            elif layout == "BSR":
                self.sparse = weight.to_sparse_bsr((BLOCK, BLOCK))
            else:
                _check_pattern(weight)
                self.sparse = torch.sparse.to_sparse_semi_structured(weight)
        self.bias = dense.bias

    @property
    def weight(self) -> torch.Tensor:
        """The sparse matrix: T5, for one, asks for its type."""
        return self.sparse

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply inputs of any number of leading dimensions, as nn.Linear does."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        outputs = (self.sparse @ flat.T).T
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.reshape(*inputs.shape[:-1], -1)


def _check_pattern(weight: torch.Tensor) -> None:
    """ValueError unless a matrix is 2:4: torch keeps two of every four, whatever the others are."""
    if weight.shape[1] % 4:
        raise ValueError("its rows are no multiple of 4 long")
    over = int((weight.reshape(-1, 4).count_nonzero(1) > 2).sum())
    if over:
        raise ValueError(f"{over} of {weight.numel() // 4} groups have more than 2 non-zero of 4")


def _check_layer(name: str, layer: nn.Linear, parent: nn.Module) -> None:
    """UserError unless a layer does nothing but what SparseLinear does in its place."""
    if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
        why = f"{type(parent).__name__} multiplies its matrices itself"
    elif getattr(layer.forward, "__func__", None) is not nn.Linear.forward:
        why = f"a {type(layer).__name__} with a forward of its own"
    elif layer._forward_hooks or layer._forward_pre_hooks:
        why = "it has forward hooks, which would be lost"
    elif layer.weight.device.type == "cpu" and layer.weight.dtype not in ON_A_CPU:
        why = f"{layer.weight.dtype} on a CPU, which torch does not multiply there"
    else:
        return
    raise UserError(
        f"{name}: {why}; allowed: a plain nn.Linear without hooks (those of torch.nn.utils.prune "
        "go with its remove), on a CPU in fp32 or fp64"
    )


def convert(model: nn.Module, names: Iterable[str], layout: str = "CSR") -> nn.Module:
    """Copy a model with some of its matrices in a sparse layout, for inference.

    Args:
        model: The dense model, its pruned weights zero.
        names: Names of the matrices; a mask has them.
        layout: CSR: any zeros. BSR: stores every block of BLOCK × BLOCK with a non-zero in it. 2:4:
            a GPU, at most 2 non-zero of every 4.

    Returns:
        The copy.

    Raises:
        UserError: If the layout is not known or does not take a matrix, or a name is not the weight
            of a linear layer that is nothing but that.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout: {layout!r} is not allowed; allowed: {' | '.join(LAYOUTS)}")
    model = copy.deepcopy(model)
    for name in names:
        owner, _, child = name.removesuffix(".weight").rpartition(".")
        parent = dict(model.named_modules()).get(owner)
        dense = getattr(parent, child, None)
        if not isinstance(dense, nn.Linear) or parent is None:
            raise UserError(f"{name}: not the weight of a linear layer, which alone can be sparse")
        _check_layer(name, dense, parent)
        try:
            sparse = SparseLinear(dense, layout)
        except (RuntimeError, ValueError) as error:
            rows, columns = dense.weight.shape
            why = str(error).splitlines()[0]
            raise UserError(
                f"layout: {layout} does not take {name} ({rows} × {columns}): {why}; allowed: CSR, "
                f"or BSR where both are multiples of {BLOCK}"
            ) from None
        setattr(parent, child, sparse)
    return model
