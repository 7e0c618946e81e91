"""How a language model's weights stand in a checkpoint's files, and how in its network.

transformers merges some tensors of a checkpoint into one parameter, as the experts of Mixtral, and
takes them apart again when it saves. Its own conversions are used, both ways. The matrices of
GPT-2's files are inputs × outputs (`Conv1D`); here all are outputs × inputs.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from instant_soup.errors import UserError
from instant_soup.models.matrices import Weights, is_conv1d

# Of a file's weights; others, as fp8, need scales.
FLOATS = {
    **{"F64": torch.float64, "F32": torch.float32},
    **{"F16": torch.float16, "BF16": torch.bfloat16},
}


class Layout:
    """The weights of a network, and the tensors of the files that they are made of.

    `sources` has for each weight its tensors in the files, in order. A weight that is not in them,
    as a head that is the table of embeddings, has no entry.
    """

    def __init__(self, network: Any, in_files: Iterable[str] = ()) -> None:
        """Lay out a network of transformers, with GPT-2's own layers, and the names in its files.

        The network may have its weights on no device.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        self.network = network
        self.turned = {f"{n}.weight" for n, module in network.named_modules() if is_conv1d(module)}
        both = get_model_conversion_mapping(network)
        renamings = [one for one in both if isinstance(one, WeightRenaming)]
        converters = [one for one in both if isinstance(one, WeightConverter)]
        self._merge = {pattern: one for one in converters for pattern in one.source_patterns}
        self._pattern: dict[str, str | None] = {}  # of a file's tensor: how it is merged, if it is
        self.sources: dict[str, list[str]] = {}
        known, prefix = network.state_dict(), network.base_model_prefix
        self._shapes = {name: list(weight.shape) for name, weight in known.items()}
        self._floats = {name for name, weight in known.items() if weight.is_floating_point()}
        for own in sorted(in_files, key=dot_natural_key):
            name, self._pattern[own] = rename_source_key(own, renamings, converters, prefix, known)
            self.sources.setdefault(name, []).append(own)

    def check_files(self, folder: Path, files: Mapping[str, Path]) -> None:
        """UserError where a weight is quantised in the files, or has another shape there.

        `files` has for each tensor the folder's file that it is in. The shape is that of a weight
        which is one tensor of the files.
        """
        for name, (first, *others) in self.sources.items():
            if name not in self._shapes:
                continue
            with safe_open(files[first], framework="numpy") as opened:
                found = opened.get_slice(first)
                shape, kind = found.get_shape(), found.get_dtype()
            if name in self._floats and kind not in FLOATS:
                raise UserError(
                    f"model: {folder}: {first} is {kind} in the files; allowed: "
                    f"{' | '.join(FLOATS)}, a checkpoint that is not quantised"
                )
            whole = not others and self._pattern[first] is None
            if whole and shape != self._shapes[name]:
                there, wanted = (" × ".join(map(str, s)) for s in (shape, self._shapes[name]))
                raise UserError(
                    f"model: {folder}: {first} is {there} in the files, and {wanted} by "
                    "config.json; allowed: weights that are as config.json says"
                )

    def turn(self, tensors: Weights) -> Weights:
        """Weights or masks with those of a Conv1D transposed: from the files' layout, and back."""
        return {n: t.T.contiguous() if n in self.turned else t for n, t in tensors.items()}

    def read(self, name: str, get: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """A weight of the network out of its tensors in the files, which `get` reads by name."""
        sources = self.sources[name]
        pattern = self._pattern[sources[0]]
        if pattern is None:
            weight = get(sources[0])
        else:
            merge: Any = copy.deepcopy(self._merge[pattern])
            for own in sources:
                merge.add_tensor(name, own, self._pattern[own], get(own))
            weight = merge.convert(name, model=self.network, config=self.network.config)[name]
        return self.turn({name: weight})[name]

    def parts(self, name: str, weight: torch.Tensor) -> Weights:
        """A weight of the network as its tensors in the files, under the names that these have."""
        from transformers.core_model_loading import dot_natural_key

        sources = self.sources[name]
        if len(sources) == 1:
            return {sources[0]: self.turn({name: weight})[name]}
        own = self.written({name: weight})
        in_order = sorted(own, key=dot_natural_key)
        return {name: own[theirs] for name, theirs in zip(sources, in_order, strict=True)}

    def written(self, tensors: Weights) -> Weights:
        """Weights or masks as transformers saves them: as the hub's checkpoints have them."""
        from transformers.core_model_loading import revert_weight_conversion

        found = revert_weight_conversion(self.network, self.turn(tensors))
        return {name: t.clone() if _is_part(t) else t for name, t in found.items()}


def _is_part(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a view of a larger one, which would be written with it."""
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
