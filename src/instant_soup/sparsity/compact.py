"""A pruned checkpoint without its zeros: one bit for each prunable weight, and the kept values.

This is one safetensors file. A pruned matrix W is stored as `W:mask` (bits as in a mask file) and
`W:values` (the kept values, row by row). Every other tensor is stored as it is. At density d a
matrix takes 1/16 + d of its dense bf16 size, or 1/32 + d of its dense fp32 size.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

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
    """Convert all floats to `dtype`, a name of DTYPES; integers stay."""
    wanted = DTYPES[dtype]
    return {n: w.to(wanted) if w.is_floating_point() else w for n, w in weights.items()}


def apart(weights: Weights) -> Weights:
    """Copy tensors that share memory, as tied weights do: safetensors refuses them."""
    seen: set[int] = set()
    found = {}
    for name, w in weights.items():
        memory = w.untyped_storage().data_ptr()
        found[name] = w.clone() if memory in seen else w
        seen.add(memory)
    return found


def save(
    path: str | Path,
    weights: Weights,
    mask: Mask,
    dtype: str | None = None,
    inputs_at: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write a checkpoint whose pruned weights are zero.

    Args:
        path: The new file.
        weights: Name → dense tensor of the whole checkpoint.
        mask: Name → boolean tensor of the weight's shape; True: kept.
        dtype: Type of its floats, a name of DTYPES; None: each tensor keeps its own.
        inputs_at: Name → dimension of the inputs, of weights that do not have them last.

    Raises:
        UserError: If a weight that the mask prunes is not zero. Only zeros are left out.
    """
    dense = weights if dtype is None else cast(weights, dtype)
    tensors = apart({name: w.contiguous() for name, w in dense.items() if name not in mask})
    for name, kept in mask.items():
        values = dense[name][kept]
        if values.count_nonzero() != dense[name].count_nonzero():
            raise UserError(f"{path}: not written: pruned weights of {name} are not zero")
        tensors[f"{name}:mask"] = torch.from_numpy(masks.pack(kept))
        tensors[f"{name}:values"] = values
    shapes = json.dumps({name: list(kept.shape) for name, kept in mask.items()})
    digests = json.dumps({name: _digest(w, shapes) for name, w in tensors.items()})
    header = {"format": FORMAT, "dtype": _type_of(dense), "shapes": shapes, "digests": digests}
    header["inputs_at"] = json.dumps(dict(inputs_at))
    with new_file(path) as unfinished:
        save_file(tensors, unfinished, metadata=header)
        order_header(unfinished)


def _type_of(weights: Weights) -> str:
    """The name of all floats' type; "own" where they have several, or another."""
    found = {w.dtype for w in weights.values() if w.is_floating_point()}
    return next((name for name, dtype in DTYPES.items() if found == {dtype}), "own")


def load(path: str | Path) -> Weights:
    """Read a checkpoint, bit for bit as it was saved.

    Args:
        path: A compact file.

    Returns:
        Name → dense tensor, with zeros where pruned.

    Raises:
        UserError: If the file is missing, damaged or no compact file.
    """
    with _opened(path) as file:
        packed = {f"{name}:{part}" for name in file.shapes for part in ("mask", "values")}
        weights = {name: file.get(name) for name in file.names if name not in packed}
        for name in file.shapes:
            kept, values = _kept(file, name), file.get(f"{name}:values")
            if values.shape != (int(kept.count_nonzero()),):
                raise ValueError(f"values of {name}")
            whole = torch.zeros(kept.shape, dtype=values.dtype)
            weights[name] = whole.masked_scatter_(kept, values)
    return weights


def load_mask(path: str | Path) -> Mask:
    """Read the mask of a compact file.

    Args:
        path: A compact file.

    Returns:
        Name → boolean tensor of the weight's shape; True: kept.

    Raises:
        UserError: If the file is missing, damaged or no compact file.
    """
    with _opened(path) as file:
        return {name: _kept(file, name) for name in file.shapes}


class _File(NamedTuple):
    """An open compact file: names of its tensors, a reader, shapes of the pruned matrices."""

    names: list[str]
    get: Callable[[str], torch.Tensor]
    shapes: dict[str, list[int]]


def _kept(file: _File, name: str) -> torch.Tensor:
    return masks.unpack(file.get(f"{name}:mask").numpy(), name, file.shapes[name])


@contextmanager
def _opened(path: str | Path) -> Iterator[_File]:
    """Open a compact file whose tensors are checked as they are read; errors as in `load`.

    A file written before 0.2.0 has no digests, and is read without this check.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise UserError(f"{path}: not a compact file of the format {FORMAT!r}")
            digests = json.loads(header.get("digests", "{}"))

            def get(name: str) -> torch.Tensor:
                tensor = file.get_tensor(name)
                if digests and digests.get(name) != _digest(tensor, header["shapes"]):
                    raise ValueError(f"{name} is not what was saved")
                return tensor

            yield _File(list(file.keys()), get, dict(json.loads(header["shapes"])))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as a compact file ({error})") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged compact file ({error})") from None


def _digest(tensor: torch.Tensor, shapes: str) -> str:
    """Sixteen hex digits of a tensor of a file, with the shapes in its header."""
    whole = hashlib.sha256(f"{shapes} {tensor.dtype} {list(tensor.shape)}".encode())
    whole.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()[:16]
