"""A pruned checkpoint without its zeros: a bit for every prunable weight, values for the kept ones.

One safetensors file. A pruned matrix W is stored as `W:mask` (bits as in a mask file) and
`W:values` (what it keeps, row by row); every other tensor is stored as it is. At density d a matrix
takes 1/16 + d of its dense bf16 size, 1/32 + d of its dense fp32 size.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from instant_soup.errors import UserError
from instant_soup.files import new_file, order_header
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask

Weights = dict[str, torch.Tensor]

FORMAT = "instant-soup-compact-1"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cast(weights: Weights, dtype: str) -> Weights:
    """The weights with all floats as `dtype` (a name of DTYPES); integers stay."""
    wanted = DTYPES[dtype]
    return {n: w.to(wanted) if w.is_floating_point() else w for n, w in weights.items()}


def apart(weights: Weights) -> Weights:
    """Weights that share no memory, as tied ones do: safetensors refuses these."""
    seen: set[int] = set()
    found = {}
    for name, w in weights.items():
        memory = w.untyped_storage().data_ptr()
        found[name] = w.clone() if memory in seen else w
        seen.add(memory)
    return found


def save(path: str | Path, weights: Weights, mask: Mask, dtype: str = "fp32") -> None:
    """Write a checkpoint whose pruned weights are zero, its floats as `dtype`.

    UserError when a weight that the mask prunes is not zero: nothing but zeros is left out.
    """
    dense = cast(weights, dtype)
    tensors = apart({name: w.contiguous() for name, w in dense.items() if name not in mask})
    for name, kept in mask.items():
        values = dense[name][kept]
        if values.count_nonzero() != dense[name].count_nonzero():
            raise UserError(f"{path}: not written: pruned weights of {name} are not zero")
        tensors[f"{name}:mask"] = torch.from_numpy(masks.pack(kept))
        tensors[f"{name}:values"] = values
    shapes = json.dumps({name: list(kept.shape) for name, kept in mask.items()})
    header = {"format": FORMAT, "dtype": dtype, "shapes": shapes}
    with new_file(path) as unfinished:
        save_file(tensors, unfinished, metadata=header)
        order_header(unfinished)


def load(path: str | Path) -> Weights:
    """Name → dense tensor, zeros where pruned: the checkpoint that was saved, bit for bit.

    What was never pruned is mapped into memory and read when it is used. UserError if the file is
    missing, damaged or no compact file.
    """
    with _opened(path) as (file, shapes):
        packed = {f"{name}:{part}" for name in shapes for part in ("mask", "values")}
        weights = {name: file.get_tensor(name) for name in file.keys() if name not in packed}  # noqa: SIM118
        for name, shape in shapes.items():
            kept = _kept(file, name, shape)
            values = file.get_tensor(f"{name}:values")
            if values.shape != (int(kept.count_nonzero()),):
                raise ValueError(f"values of {name}")
            weights[name] = torch.zeros(shape, dtype=values.dtype).masked_scatter_(kept, values)
    return weights


def load_mask(path: str | Path) -> Mask:
    """The mask within a compact file; errors as of `load`."""
    with _opened(path) as (file, shapes):
        return {name: _kept(file, name, shape) for name, shape in shapes.items()}


def _kept(file: Any, name: str, shape: list[int]) -> torch.Tensor:
    return masks.unpack(file.get_tensor(f"{name}:mask").numpy(), name, shape)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, dict[str, list[int]]]]:
    """A compact file, open, and the shapes of its pruned matrices; errors as of `load`."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise UserError(f"{path}: not a compact file of the format {FORMAT!r}")
            yield file, dict(json.loads(header["shapes"]))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as a compact file ({error})") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged compact file ({error})") from None
