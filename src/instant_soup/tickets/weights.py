"""Checkpoints on disk, ours and others': where their weights lie, and a mask applied to them."""

import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from instant_soup.errors import UserError
from instant_soup.files import new_folder, read_json
from instant_soup.models import bert, clip
from instant_soup.models.ticket import BESIDE, MASK, TICKET, set_usual_permissions
from instant_soup.sparsity import compact, masks
from instant_soup.sparsity.masks import Mask

# What a folder's weights are called, the first that is there: of transformers, of open_clip, of a
# state of training; a folder without weights may still have a mask.
NAMES = (bert.WEIGHTS, clip.WEIGHTS, "weights.safetensors", MASK)


def files_of(path: str | Path) -> list[Path]:
    """The safetensors file or, of a sharded checkpoint, files that a path means.

    UserError when a folder has none, or several among which nothing tells.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    if index := next(path.glob("*.safetensors.index.json"), None):
        shards = read_json(index).get("weight_map", {}).values()
        return [path / name for name in sorted(set(shards))]
    found = sorted(path.glob("*.safetensors"))
    known = [path / name for name in NAMES if path / name in found]
    if not found or (not known and len(found) > 1):
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{path}: which .safetensors file? It has {names}; name one")
    return [(known or found)[0]]


def header(file: Path) -> dict[str, str]:
    """The description in a safetensors file; UserError if it is none."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read as safetensors ({error})") from None


def shapes_of(files: list[Path]) -> dict[str, list[int]]:
    """Name → shape of all tensors of a checkpoint; none is read."""
    shapes: dict[str, list[int]] = {}
    for file in files:
        header(file)  # which says what is wrong with it
        with safe_open(file, framework="pt") as opened:
            shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    return shapes


def renamed_to_fit(mask: Mask, shapes: dict[str, list[int]], where: str | Path) -> Mask:
    """A mask under the names that a checkpoint has for its weights.

    A classifier's encoder is called `bert.…` in it, but not in a checkpoint of the encoder alone.
    UserError, naming the first weight that is not there in its shape.
    """
    for begin in (0, 1):
        renamed = {".".join(name.split(".")[begin:]): kept for name, kept in mask.items()}
        if all(shapes.get(name) == list(kept.shape) for name, kept in renamed.items()):
            return renamed
    odd = next(name for name, kept in mask.items() if shapes.get(name) != list(kept.shape))
    shape = " × ".join(map(str, mask[odd].shape))
    raise UserError(f"{where}: a mask of another model: no weights {odd} of {shape} here")


def read_mask(path: str | Path) -> Mask | None:
    """The mask of a mask file, a compact file or a folder with `mask.safetensors`; else None."""
    own = Path(path) / MASK
    file = own if own.exists() else files_of(path)[0]
    kind = header(file).get("format")
    readers = {masks.FORMAT: masks.load, compact.FORMAT: compact.load_mask}
    return readers[kind](file) if kind in readers else None


def apply(mask_path: str | Path, model: str | Path, folder: str | Path) -> Mask:
    """Write a copy of a checkpoint with the weights that a mask prunes set to zero.

    `mask_path`: what `read_mask` reads. `model`: a safetensors file, or a folder in the layout of
    transformers or open_clip, whose configuration and tokenizer come along. Returns the mask under
    the checkpoint's names, as it is written beside the weights.
    """
    files, found = files_of(model), read_mask(mask_path)
    if found is None:
        raise UserError(f"{mask_path}: neither a mask nor a compact file")
    if header(files[0]).get("format") in (masks.FORMAT, compact.FORMAT):
        raise UserError(f"{files[0]}: a mask or a compact file, not a checkpoint")
    mask = renamed_to_fit(found, shapes_of(files), files[0])
    with new_folder(folder) as unfinished:
        if Path(model).is_dir():
            for file in sorted(Path(model).iterdir()):
                if file.suffix in BESIDE and file.name != TICKET:
                    shutil.copyfile(file, unfinished / file.name)
        for file in files:
            weights = load_file(file)
            masks.apply({name: kept for name, kept in mask.items() if name in weights}, weights)
            save_file(
                compact.apart(weights),
                unfinished / file.name,
                metadata=header(file) or {"format": "pt"},
            )
        masks.save(unfinished / MASK, mask)
        set_usual_permissions(unfinished)
    return mask
