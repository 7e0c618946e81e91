"""Checkpoints on disk, ours and others': where their weights lie, and how a mask is applied."""

import json
import os
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from instant_soup.errors import UserError
from instant_soup.files import new_folder, read_json
from instant_soup.models import bert, clip
from instant_soup.models.matrices import Weights
from instant_soup.models.ticket import COMPACT, MASK, TICKET
from instant_soup.sparsity import compact, masks
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.names import in_block

# What a folder's weights are called, the first that is there: of transformers, of open_clip, of a
# state of training; a folder without weights may still have a mask.
NAMES = (bert.WEIGHTS, clip.WEIGHTS, "weights.safetensors", MASK)
# The two halves of a weight under torch.nn.utils.prune: it is their product.
ORIGINAL, KEPT = "_orig", "_mask"
SCALES = ("_scale", "_scale_inv")  # of a weight in fp8, beside it
# What is beside or instead of weights of which several are packed in one number, by GPTQ and AWQ,
# compressed-tensors and bitsandbytes. The zeros of these tensors say nothing of the weights.
PACKED = (".qweight", ".qzeros", ".scales", ".weight_packed", ".absmax")
# What a folder has of its weights in other formats: beside them, and exported whole anywhere.
OTHER_FORMATS = (
    *("*.safetensors", "*.bin", "*.bin.index.json", "*.h5", "*.msgpack", "*.ot"),
    *("*.pt", "*.pth", "*.ckpt", "*.gguf"),
)
EXPORTS = ("*.onnx", "*.onnx_data", "*.onnx.data", "*.tflite", "openvino_model*", "*.mlmodel")
OF_A_TICKET = (TICKET, MASK, COMPACT)  # which tell of the network as it was


def files_of(path: str | Path) -> list[Path]:
    """Find the safetensors file, or the files of a sharded checkpoint.

    Raises:
        UserError: If a folder has none, or several of which none is the obvious one.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    if index := next(path.glob("*.safetensors.index.json"), None):
        found = read_json(index)
        shards = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{index}: damaged (no weight_map in it)")
        return [path / str(name) for name in sorted(set(shards.values()))]
    every = sorted(path.glob("*.safetensors"))
    known = [path / name for name in NAMES if path / name in every]
    if not every or (not known and len(every) > 1):
        names = ", ".join(file.name for file in every) or "none"
        raise UserError(f"{path}: which .safetensors file? It has {names}; name one")
    return [(known or every)[0]]


def header(file: Path) -> dict[str, str]:
    """Read the description in a safetensors file.

    Raises:
        UserError: If it is no safetensors file.
    """
    try:
        with safe_open(file, framework="numpy") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file}: cannot be read as safetensors ({error}); allowed: a whole file of "
            "safetensors.torch.save_file, not one of torch.save"
        ) from None


def places_of(files: list[Path]) -> dict[str, tuple[Path, list[int]]]:
    """Name → file and shape of all tensors of a checkpoint; no tensor is read."""
    places: dict[str, tuple[Path, list[int]]] = {}
    for file in files:
        header(file)  # which says what is wrong with it
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118
                places[name] = file, opened.get_slice(name).get_shape()
    return places


def shapes_of(files: list[Path]) -> dict[str, list[int]]:
    """Name → shape of a checkpoint's tensors, as they are in the model; no tensor is read.

    The two halves of torch.nn.utils.prune count as one tensor under the whole's name. Scales of fp8
    weights are left out.

    Raises:
        UserError: If a block's weights are packed, or made of other tensors in the file.
    """
    raw = {name: shape for name, (_, shape) in places_of(files).items()}
    if packed := [name for name in raw if name.endswith(PACKED) or _is_of_mxfp4(name, raw)]:
        raise UserError(
            f"{files[0]}: {packed[0]}: of quantised weights, several in one number; allowed: one "
            "number for each weight"
        )
    shapes = {}
    for name, shape in raw.items():
        whole = name.removesuffix(ORIGINAL)
        if whole != name and f"{whole}{KEPT}" in raw:
            shapes[whole] = shape
        elif f"{name.removesuffix(KEPT)}{ORIGINAL}" not in raw and not _is_scale(name, raw):
            shapes[name] = shape
    odd = [name for name in shapes if _is_part(name, shapes) and in_block(name, shapes[name])]
    if odd:
        raise UserError(
            f"{files[0]}: {odd[0]}: a weight norm's or a parametrization's part; allowed: weights "
            "as they are, after torch.nn.utils.parametrize.remove_parametrizations or "
            "torch.nn.utils.remove_weight_norm"
        )
    return shapes


def _is_scale(name: str, names: dict[str, list[int]]) -> bool:
    return any(name.endswith(s) and name.removesuffix(s) in names for s in SCALES)


def _is_of_mxfp4(name: str, names: dict[str, list[int]]) -> bool:
    return name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in names


def _is_part(name: str, names: dict[str, list[int]]) -> bool:
    direction, length = f"{name[:-2]}_v", names.get(f"{name[:-2]}_g", [])
    normed = name == direction and len(length) > 1 and set(length[1:]) == {1}
    return normed or ".parametrizations." in name


def tensor(places: dict[str, tuple[Path, list[int]]], name: str) -> torch.Tensor:
    """Read a checkpoint's tensor by its name in the model, as numbers that torch can compare.

    Raises:
        UserError: If torch cannot turn its type into numbers.
    """
    if name not in places:
        return tensor(places, f"{name}{ORIGINAL}") * tensor(places, f"{name}{KEPT}")
    file, _ = places[name]
    with safe_open(file, framework="pt") as opened:
        stored = opened.get_tensor(name)
    if stored.is_complex() or (stored.is_floating_point() and stored.element_size() > 1):
        return stored
    try:
        return stored.float()
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{file}: {name}: no numbers in {stored.dtype} ({error})") from None


def whole(weights: Weights) -> Weights:
    """A checkpoint's tensors as they are in the model, like torch.nn.utils.prune.remove."""
    found = {}
    for name, w in weights.items():
        if name.endswith(ORIGINAL) and (kept := f"{name.removesuffix(ORIGINAL)}{KEPT}") in weights:
            found[name.removesuffix(ORIGINAL)] = w * weights[kept].to(w.dtype)
        elif f"{name.removesuffix(KEPT)}{ORIGINAL}" not in weights or not name.endswith(KEPT):
            found[name] = w
    return found


def renamed_to_fit(mask: Mask, shapes: dict[str, list[int]], where: str | Path) -> Mask:
    """Rename a mask to the names that a checkpoint has for its weights.

    A classifier's encoder is called `bert.…` in it, but not in a checkpoint of the encoder alone.

    Args:
        mask: Name → boolean tensor; True: kept.
        shapes: Name → shape of the checkpoint's tensors.
        where: The checkpoint, for the error.

    Returns:
        The mask under the checkpoint's names.

    Raises:
        UserError: If a weight is missing in its shape; it names the first.
    """
    for begin in (0, 1):
        renamed = {".".join(name.split(".")[begin:]): kept for name, kept in mask.items()}
        if all(shapes.get(name) == list(kept.shape) for name, kept in renamed.items()):
            return renamed
    odd = next(name for name, kept in mask.items() if shapes.get(name) != list(kept.shape))
    shape = " × ".join(map(str, mask[odd].shape))
    raise UserError(f"{where}: a mask of another model: no weights {odd} of {shape} here")


def renamed_inputs(inputs: dict[str, int], mask: Mask, renamed: Mask) -> dict[str, int]:
    """Dimensions of inputs under the names that `renamed_to_fit` has given to a mask."""
    names = zip(mask, renamed, strict=True)
    return {new: inputs[name] for name, new in names if name in inputs}


def read_mask(path: str | Path) -> tuple[Mask, dict[str, int]] | None:
    """Read the mask of a mask file, compact file or folder with `mask.safetensors`; else None.

    With it comes name → dimension of the inputs, of weights that do not have them last.
    """
    own = Path(path) / MASK
    file = own if own.exists() else files_of(path)[0]
    kind = header(file).get("format")
    readers = {masks.FORMAT: masks.load, compact.FORMAT: compact.load_mask}
    return (readers[kind](file), inputs_at(file)) if kind in readers else None


def inputs_at(file: Path) -> dict[str, int]:
    """What a mask or compact file says of its weights: name → dimension of the inputs.

    It says it of those that do not have them last.
    """
    own = header(file)
    if own.get("format") == masks.FORMAT:
        return masks.describe(file).get("inputs_at", {})
    return json.loads(own.get("inputs_at", "{}"))


def apply(mask_path: str | Path, model: str | Path, folder: str | Path) -> Mask:
    """Write a copy of a checkpoint with the weights that a mask prunes set to zero.

    Args:
        mask_path: What `read_mask` reads.
        model: A safetensors file, or a folder in the layout of transformers or open_clip. All of
            the folder comes along, except the files that `left_out` names.
        folder: The new folder.

    Returns:
        The mask under the checkpoint's names, as it is written beside the weights.

    Raises:
        UserError: If the mask does not fit, or a file cannot be read.
    """
    files, found = files_of(model), read_mask(mask_path)
    if found is None:
        raise UserError(f"{mask_path}: neither a mask nor a compact file")
    if header(files[0]).get("format") in (masks.FORMAT, compact.FORMAT):
        raise UserError(f"{files[0]}: a mask or a compact file, not a checkpoint")
    if Path(model).is_dir() and Path(folder).resolve().is_relative_to(Path(model).resolve()):
        raise UserError(f"{folder} lies in {model}; name a new folder elsewhere")
    shapes = shapes_of(files)
    if len(files) > 1 and shapes.keys() - places_of(files).keys():
        raise UserError(
            f"{model}: weights under torch.nn.utils.prune, in several files; allowed: a checkpoint "
            "saved after torch.nn.utils.prune.remove"
        )
    mask = renamed_to_fit(found[0], shapes, files[0])
    own_inputs = renamed_inputs(found[1], found[0], mask)
    with new_folder(folder) as unfinished:
        if Path(model).is_dir():
            own = {file.name for file in files}
            for file in _files_in(Path(model)):
                if str(file) not in own and not _is_left_out(file):
                    (unfinished / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(Path(model) / file, unfinished / file)
        for file in files:
            weights = whole(load_file(file))
            masks.apply({name: kept for name, kept in mask.items() if name in weights}, weights)
            save_file(
                compact.apart(weights),
                unfinished / file.name,
                metadata=header(file) or {"format": "pt"},
            )
        masks.save(unfinished / MASK, mask, inputs_at=own_inputs)
    return mask


def left_out(model: str | Path) -> list[str]:
    """The files of a model's folder that do not go with its pruned copy.

    They hold the same weights in other formats, which are dense, or describe an earlier mask.
    """
    if not Path(model).is_dir():
        return []
    own = {file.name for file in files_of(model)}
    every = (str(file) for file in _files_in(Path(model)) if _is_left_out(file))
    return [name for name in every if name not in own]


def _is_left_out(file: Path) -> bool:
    """Whether a file, by its path in a model's folder, has weights in another format."""
    top = len(file.parts) == 1
    patterns = (*EXPORTS, *(OTHER_FORMATS if top else ()), *(OF_A_TICKET if top else ()))
    return any(fnmatch(file.name, pattern) for pattern in patterns)


def _files_in(folder: Path) -> Iterator[Path]:
    """All files of a folder and below, relative to it; no records of clones and downloads."""
    for here, folders, files in os.walk(folder, followlinks=True):
        above = {path.resolve() for path in (Path(here), *Path(here).absolute().parents)}
        folders[:] = sorted(
            name
            for name in folders
            if name not in (".git", ".cache") and Path(here, name).resolve() not in above
        )
        yield from (Path(here, name).relative_to(folder) for name in sorted(files))
