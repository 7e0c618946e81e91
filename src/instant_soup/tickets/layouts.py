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
                self.sparse = torch.sparse.to_sparse_semi_structured(weight)
        self.bias = dense.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply inputs of any number of leading dimensions, as nn.Linear does."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        outputs = (self.sparse @ flat.T).T
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.reshape(*inputs.shape[:-1], -1)


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
            of a linear layer (`nn.MultiheadAttention` multiplies its own matrices).
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout: {layout!r} is not allowed; allowed: {' | '.join(LAYOUTS)}")
    model = copy.deepcopy(model)
    for name in names:
        owner, _, child = name.removesuffix(".weight").rpartition(".")
        parent = dict(model.named_modules()).get(owner)
        dense = getattr(parent, child, None)
        if not isinstance(dense, nn.Linear) or isinstance(parent, nn.MultiheadAttention):
            raise UserError(f"{name}: not the weight of a linear layer, which alone can be sparse")
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
