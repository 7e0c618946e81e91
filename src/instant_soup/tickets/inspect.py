"""What a mask or a pruned checkpoint looks like, and how two of them differ.

A checkpoint's mask is where its weights are not zero. A matrix's *layer* is its name up to the
first number; its *type* is what follows ("attention.self.query").
"""

import math
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from instant_soup.errors import UserError
from instant_soup.files import read_json
from instant_soup.models.matrices import NEAR_ZERO, inputs_by_type
from instant_soup.models.ticket import MASK
from instant_soup.reports.render import terminal
from instant_soup.sparsity import compact, mask_soup, masks
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.names import in_block, in_order, layer_of, type_of
from instant_soup.sparsity.pq import Spread, pq, spread
from instant_soup.tickets.weights import (
    files_of,
    header,
    inputs_at,
    places_of,
    renamed_inputs,
    renamed_to_fit,
    shapes_of,
    tensor,
)

PATTERNS = ((1, 2), (2, 4), (4, 8), (1, 4))  # N non-zero weights of every M


@dataclass
class Inspected:
    """A mask and, if there are weights, what their magnitudes look like.

    Attributes:
        mask: Name → boolean tensor of the weight's shape; True: kept.
        near_zero: Name → how many kept weights are near zero.
        spread: Name → Σ √|w| and Σ |w|.
        inputs_at: Name → dimension of the inputs, where it is not the last (of images' the second).
    """

    mask: Mask
    near_zero: dict[str, int] = field(default_factory=dict)
    spread: dict[str, Spread] = field(default_factory=dict)
    inputs_at: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, weights: torch.Tensor, near_zero: float) -> None:
        """Take in the values of a matrix."""
        self.near_zero[name] = _count_near_zero(weights, near_zero)
        self.spread[name] = spread(weights)


def read(path: str | Path, near_zero: float = NEAR_ZERO) -> Inspected:
    """Read the mask of a mask file, a compact file, a checkpoint, or a folder with one of these.

    In a checkpoint the matrices count that a mask beside it names. Without such a mask, all
    matrices within numbered blocks count. They are read one at a time.

    Args:
        path: The file or folder.
        near_zero: Weights with 0 < |w| < `near_zero` count as near zero.

    Returns:
        The mask, with what the weights tell.

    Raises:
        UserError: If a file is damaged, or there is nothing to count.
    """
    files = files_of(path)
    kind = header(files[0]).get("format")
    if kind == masks.FORMAT:
        return Inspected(masks.load(files[0]), inputs_at=inputs_at(files[0]))
    if kind == compact.FORMAT:
        weights = compact.load(files[0])
        inspected = Inspected(compact.load_mask(files[0]), inputs_at=inputs_at(files[0]))
        for name in inspected.mask:
            inspected.add(name, weights[name], near_zero)
        return inspected
    shapes, beside = shapes_of(files), files[0].parent / MASK
    inspected, places = Inspected({}), places_of(files)
    if beside.exists():
        found = masks.load(beside)
        fitting = renamed_to_fit(found, shapes, files[0])
        names = set(fitting)
        inspected.inputs_at = renamed_inputs(inputs_at(beside), found, fitting)
    else:
        names = {name for name, shape in shapes.items() if in_block(name, shape)}
    if (config := files[0].parent / "config.json").exists():
        own = {name: shapes[name] for name in names}
        inspected.inputs_at = inputs_by_type(read_json(config), own) | inspected.inputs_at
    for name in sorted(names):
        values = tensor(places, name)
        inspected.mask[name] = values != 0
        inspected.add(name, values, near_zero)
    if not inspected.mask:
        raise UserError(f"{path}: no weight matrices of numbered blocks in it")
    return inspected


def _count_near_zero(weights: torch.Tensor, near_zero: float) -> int:
    """How many weights are near zero, but not zero."""
    sizes = weights.abs()
    return int(((sizes > 0) & (sizes < near_zero)).count_nonzero())


def statistics(inspected: Inspected) -> dict[str, Any]:
    """Count sparsity, near-zero weights and N:M patterns.

    Args:
        inspected: What `read` returned.

    Returns:
        Numbers of the whole, of each layer, matrix type and matrix: weights, kept, sparsity and, if
        there are values, near_zero, pq_index and pq_least (sparsity/pq.py); and `patterns`.
    """
    layers, types = _groups(inspected.mask)
    whole = _entry("all", list(inspected.mask), inspected)
    return {
        **{key: value for key, value in whole.items() if key != "name"},
        "layers": [_entry(name, members, inspected) for name, members in layers.items()],
        "types": [_entry(name, members, inspected) for name, members in types.items()],
        "matrices": [
            {**_entry(name, [name], inspected), "layer": layer_of(name), "type": type_of(name)}
            for name in inspected.mask
        ],
        "patterns": [_pattern(inspected, n, m) for n, m in PATTERNS],
    }


def _groups(mask: Mask) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Names by layer, with numbered layers in the order of their numbers, and names by type."""
    layers = {layer: list(part) for layer, part in masks.by_layer(mask).items()}
    types: dict[str, list[str]] = {}
    for name in mask:
        types.setdefault(type_of(name), []).append(name)
    return dict(sorted(layers.items(), key=lambda item: in_order(item[0]))), types


def _entry(name: str, members: list[str], inspected: Inspected) -> dict[str, Any]:
    part = {member: inspected.mask[member] for member in members}
    kept, weights = masks.count(part)
    entry = {"name": name, "weights": weights, "kept": kept, "sparsity": masks.sparsity(part)}
    if inspected.near_zero:
        entry["near_zero"] = sum(inspected.near_zero[member] for member in members)
    if inspected.spread:
        entry |= pq([inspected.spread[member] for member in members], weights)
    return entry


def _pattern(inspected: Inspected, n: int, m: int) -> dict[str, Any]:
    """How far a mask keeps to N:M: at most N of every M consecutive inputs.

    `share`: of all whole groups of M, those that comply; `matrices`: how many comply throughout,
    with rows a multiple of M long.
    """
    groups = good = matrices = 0
    for name, kept in inspected.mask.items():
        last = 1 if kept.ndim > 3 else -1  # a convolution of images has positions behind its inputs
        rows = kept.movedim(inspected.inputs_at.get(name, last), -1)
        whole = rows.shape[-1] // m * m
        fits = rows[..., :whole].reshape(-1, m).sum(1) <= n
        groups, good = groups + len(fits), good + int(fits.sum())
        matrices += bool(whole == rows.shape[-1] and fits.all())
    share = good / groups if groups else None
    compliant = matrices == len(inspected.mask)
    return {"pattern": f"{n}:{m}", "share": share, "matrices": matrices, "compliant": compliant}


def compare(a: Mask, b: Mask) -> dict[str, Any]:
    """How two masks of one model agree, over all and by layer.

    Args:
        a: Name → boolean tensor; True: kept.
        b: The other mask.

    Returns:
        `overlap`, |a ∩ b| / min(|a|, |b|), which is 1 if one lies within the other; `cosine`,
        |a ∩ b| / √(|a| · |b|) (paper, figure 3); `jaccard`, |a ∩ b| / |a ∪ b|; `hamming`, the share
        of all weights that one keeps and the other prunes. The first three are None if a mask
        keeps nothing.

    Raises:
        UserError: If the masks are of different models.
    """
    for name in [*a, *b]:
        if name not in a or name not in b or a[name].shape != b[name].shape:
            raise UserError(f"masks of different models (first difference: {name})")
    layers = masks.by_layer(a)
    ordered = sorted(layers, key=in_order)
    return {
        **_agreement(a, b),
        "layers": [
            {"name": layer, **_agreement(layers[layer], {n: b[n] for n in layers[layer]})}
            for layer in ordered
        ],
    }


def _agreement(a: Mask, b: Mask) -> dict[str, Any]:
    (kept_a, weights), (kept_b, _) = masks.count(a), masks.count(b)
    figures: dict[str, Any] = {"weights": weights, "kept": [kept_a, kept_b], "both": 0}
    figures |= {"overlap": None, "cosine": None, "jaccard": None}
    if kept_a and kept_b:
        both = sum(int((a[name] & b[name]).sum()) for name in a)
        figures |= {"both": both, "overlap": both / min(kept_a, kept_b)}
        figures |= {"cosine": masks.cosine_similarity(a, b)}
        figures |= {"jaccard": mask_soup.agreement([a, b])["agreement"]}
    return {**figures, "hamming": masks.distance(a, b)}


# In a terminal


def _shorter(layers: list[str]) -> tuple[str, list[str]]:
    """What all names of layers begin with, as a title says it, and the names without it."""
    parts = zip(*(name.split(".")[:-2] for name in layers), strict=False)
    same = [part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts)]
    title = f", layers of {'.'.join(same)}" if same else ""
    return title, [".".join(name.split(".")[len(same) :]) for name in layers]


def _near_share(entry: dict[str, Any]) -> list[str]:
    """The near-zero column's cell, where there are weights."""
    return [_percent(entry["near_zero"] / entry["weights"])] if "near_zero" in entry else []


def show(numbers: dict[str, Any], title: str, near_zero: float) -> None:
    """Print statistics: sparsity by layer and matrix type, near-zero weights, N:M patterns."""
    from rich.table import Table

    types = [entry["name"] for entry in numbers["types"]]
    cells = {(m["layer"], m["type"]): _percent(m["sparsity"]) for m in numbers["matrices"]}
    console, table = terminal(), Table()
    of, layers = _shorter([entry["name"] for entry in numbers["layers"]])
    table.add_column("layer", no_wrap=True)
    for name in [*types, "all"]:
        table.add_column(name.replace(".", "\n"), justify="right", overflow="fold")
    near = "near_zero" in numbers
    if near:
        table.add_column("near\nzero", justify="right")
    for layer, entry in zip(layers, numbers["layers"], strict=True):
        own = [cells.get((entry["name"], name), "") for name in types]
        table.add_row(layer, *own, _percent(entry["sparsity"]), *_near_share(entry))
    own = [_percent(entry["sparsity"]) for entry in numbers["types"]]
    all_of_it = [*own, _percent(numbers["sparsity"]), *_near_share(numbers)]
    table.add_row("all", *all_of_it, end_section=True)
    console.print(f"{title}: sparsity (%){of}", markup=False, highlight=False, soft_wrap=True)
    console.print(table, markup=False)
    pruned = numbers["weights"] - numbers["kept"]
    console.print(f"{pruned:,} of {numbers['weights']:,} weights are zero", highlight=False)
    if near:
        count = f"{numbers['near_zero']:,} more have |w| < {near_zero:g}: near zero (% of all)"
        console.print(count, highlight=False)
    if numbers.get("pq_index") is not None:
        least, free = math.ceil(numbers["pq_least"]), _percent(numbers["pq_index"])
        index = f"PQ index {numbers['pq_index']:.4f} (p = 1/2, q = 1): at least {least:,} must stay"
        console.print(f"{index}; free by it: {free} %", highlight=False)
    for entry in numbers["patterns"]:
        share = "no group" if entry["share"] is None else f"{_percent(entry['share'])} % of groups"
        matrices = f"{entry['matrices']} of {len(numbers['matrices'])} matrices throughout"
        console.print(f"{entry['pattern']}: {share} comply, {matrices}", highlight=False)


def show_comparison(numbers: dict[str, Any], title: str) -> None:
    """Print how two masks agree, by layer and over all."""
    from rich.table import Table

    columns = {"overlap": "overlap", "cosine": "cosine", "jaccard": "Jaccard", "hamming": "Hamming"}
    console, table = terminal(), Table()
    of, layers = _shorter([entry["name"] for entry in numbers["layers"]])
    table.add_column("layer", overflow="fold")
    for shown in columns.values():
        table.add_column(shown, justify="right")
    for layer, entry in zip([*layers, "all"], [*numbers["layers"], numbers], strict=True):
        values = [entry[name] for name in columns]
        table.add_row(layer, *("–" if v is None else f"{v:.4f}" for v in values))
    console.print(f"{title}{of}", markup=False, highlight=False, soft_wrap=True)
    console.print(table, markup=False)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
