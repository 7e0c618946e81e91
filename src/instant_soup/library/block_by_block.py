"""Language models pruned without training, one block after the other.

A block's inputs over the calibration text are what the blocks before it, already pruned, give out
(Sun et al. 2024, arXiv 2306.11695; Frantar & Alistarh 2023, arXiv 2301.00774). So one block at a
time is all that has to be in memory, beside embeddings, head and the text's activations: a
checkpoint may be `streamed` from its files. Streamed or not, the same is computed from the same
weights.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from instant_soup.data.batches import TOKENS, Blocks, evaluation_batches
from instant_soup.errors import UserError
from instant_soup.methods.n_of_m import largest_of_groups, pattern
from instant_soup.methods.sparsegpt import of_blocks
from instant_soup.models import causal
from instant_soup.models.hugging_face import reason, transformers_auto
from instant_soup.models.known import weight_files
from instant_soup.models.layout import FLOATS, Layout
from instant_soup.models.matrices import Weights, check_finite, check_share, prunable
from instant_soup.models.memory import WEIGHT, check_fits
from instant_soup.models.ticket import BESIDE
from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.compact import apart
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.ranking import Pieces, threshold
from instant_soup.sparsity.sparse_gpt import WIDTH, factor, sweep
from instant_soup.training.activations import watched
from instant_soup.training.loop import surprises
from instant_soup.training.metrics import scores as metrics_of

LOOK_AT_INPUTS = ("wanda", "sparsegpt")
METHODS = ("magnitude", *LOOK_AT_INPUTS, "magnitude-global", "magnitude-rows")
# Tensors at once: of a batch's logits, of a weight as it is read and pruned, of a matrix that is
# factored, between a block's matrices. And of so many weights one is gathered by a ranking.
LOGITS, READ, FACTORED, BETWEEN, GATHERED = 3, 4, 10, 4, 16
# A matrix's name and weight, and the second moments or mean squares of its inputs → mask, weight.
Prune = Callable[[str, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]


def pruner(method: str, weights: Weights, sparsity: float, m: int | None = None) -> Prune:
    """How a matrix is pruned by one of METHODS, all of them together to exactly this sparsity.

    magnitude-global without a pattern is pruned by `of_all`.

    Args:
        method: magnitude ranks each matrix (each expert's) by itself, magnitude-rows and wanda
            each row, sparsegpt each block of 128 columns, where the weights that stay make up for
            the others.
        weights: All prunable weights, of which the shapes are looked at.
        sparsity: The share of the weights that go; of N:M patterns 1 − N / M.
        m: Of an N:M pattern: the largest N of every M inputs stay, whatever the method.

    Returns:
        The function of a matrix.

    Raises:
        UserError: If there is no such method, or M does not divide the inputs of a matrix.
    """
    if method not in METHODS:
        raise UserError(f"method: {method!r} is not allowed; allowed: {' | '.join(METHODS)}")
    check_pattern(weights, m)
    n = None if m is None else pattern(sparsity, m)
    weights = {n: w for name, one in weights.items() for n, w in matrices_of(name, one).items()}
    if method == "sparsegpt":
        choose = of_groups(n, m) if n is not None and m else of_blocks(weights, sparsity)
        return partial(_by_sweep, choose, m or WIDTH)
    if n is not None and m:
        return partial(_by_groups, n, m, method)
    if method == "magnitude":
        wanted = {name: (1 - sparsity) * w.numel() for name, w in weights.items()}
        counts = masks.share_out(wanted, masks.keep_count(weights, sparsity))
        return lambda name, w, _: _kept(w, masks.largest(w.abs().flatten(), counts[name]))
    rows = {(n, i): (1 - sparsity) * w.shape[1] for n, w in weights.items() for i in range(len(w))}
    kept = masks.share_out(rows, masks.keep_count(weights, sparsity))

    def by_rows(
        name: str, w: torch.Tensor, inputs: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        counts = torch.tensor([kept[name, i] for i in range(len(w))])
        return _kept(w, scores.best_of_each(_worth(method, w, inputs), counts))

    return by_rows


def of_all(model: "Model", sparsity: float) -> Prune:
    """How a matrix is pruned where the largest of all matrices stay; of equals the first.

    Matrices have to come in the model's order. Their weights are read twice before, one matrix
    after the other.
    """
    last = lru_cache(maxsize=1)(lambda name: model.read(name).flatten())  # not anew for each piece

    def sizes(name: str, shape: torch.Size) -> Pieces:
        return Pieces(shape, lambda where: last(name)[where].abs())

    kept = masks.keep_count(model.prunable, sparsity)
    found = threshold({name: sizes(name, w.shape) for name, w in model.prunable.items()}, kept)
    left = kept - found.larger

    def prune(
        name: str, w: torch.Tensor, inputs: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal left
        size = w.abs().flatten()
        equal = size == found.value
        chosen = equal & (equal.cumsum(0) <= left)
        left -= int(chosen.sum())
        return _kept(w, (size > found.value) | chosen)

    return prune


def check_pattern(weights: Weights, m: int | None) -> None:
    """UserError where an N:M pattern does not fit into the rows of some matrices."""
    for name, weight in weights.items():
        inputs = next(iter(matrices_of(name, weight).values())).shape[1]
        if m is not None and inputs % m:
            raise UserError(f"--patterns: {m} does not divide the {inputs} inputs of {name}")


def matrices_of(name: str, weight: torch.Tensor) -> Weights:
    """A weight's matrices by name: itself, or each expert's where they lie in one tensor.

    That of a convolution within each channel, as Mamba's, is channels × taps.
    """
    if weight.ndim == 2 or weight.shape[1] == 1:
        return {name: weight.flatten(1)}
    return {f"{name}.{i}": matrix for i, matrix in enumerate(weight)}


def of_groups(n: int, m: int) -> Callable[[str, int, torch.Tensor], torch.Tensor]:
    """The choice of SparseGPT's sweep in an N:M pattern: n of m columns in each row."""
    return lambda name, i, costs: scores.best_of_each(costs, torch.full((len(costs),), n))


def _worth(method: str, w: torch.Tensor, inputs: torch.Tensor | None) -> torch.Tensor:
    """|w|, times the root mean square of its input for wanda."""
    if method not in LOOK_AT_INPUTS:
        return w.abs()
    assert inputs is not None
    return w.abs() * inputs.sqrt()


def _kept(w: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    kept = kept.view(w.shape)
    return kept, torch.where(kept, w, 0.0)


def _by_groups(
    n: int, m: int, method: str, name: str, w: torch.Tensor, inputs: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return _kept(w, largest_of_groups({name: _worth(method, w, inputs)}, n, m)[name])


def _by_sweep(
    choose: Any, width: int, name: str, w: torch.Tensor, inputs: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    assert inputs is not None
    kept, moved = sweep(w, factor(inputs), partial(choose, name), width)
    return kept, moved.to(w.dtype)


class Model:
    """A checkpoint's language model, of which a block has memory only while it is needed.

    Streamed, weights of blocks are read from the files each time; else all weights stay in memory
    once they are read. `prunable` has the matrices of its blocks, by name and shape.
    """

    def __init__(self, folder: str | Path, streamed: bool = False) -> None:
        """Read a folder's configuration, and of its weights what is in no block.

        Raises:
            UserError: If it holds no language model of equal blocks, or one that does not fit.
        """
        self.folder, self.streamed = Path(folder), streamed
        files = weight_files(folder)
        if not files:
            raise UserError(
                f"model: {folder} has no .safetensors weights; allowed: a checkpoint in that format"
            )
        if not streamed:
            check_fits(self.folder.name, files, WEIGHT)
        auto, config = transformers_auto(), causal.configuration(folder)
        with parameters_on_no_device():
            network = auto.AutoModelForCausalLM.from_config(config)
        self._files = {name: file for file in files for name in _names_in(file)}
        self._headers = {file: _header(file) for file in files}
        self.layout = Layout(network, self._files)
        self.network = causal.as_linear(network).eval()
        self.prunable = prunable(self.network)
        if not self.prunable:
            raise UserError(f"model: {self.folder.name} has nothing prunable (no blocks)")
        check_share(self.network, self.prunable)
        self.stack, self.blocks = blocks_of(self.network, self.prunable)
        if any(w.ndim > 2 for w in self.prunable.values()):
            self.network.set_experts_implementation("eager")  # expert by expert, as they are seen
        self._read: Weights = {}  # to stay
        self.types: dict[str, torch.dtype] = {}  # in the files, of what has been read
        self._check_files()
        self._load(self.network, "", but=f"{self.stack}.")
        self.network.tie_weights()

    def _check_files(self) -> None:
        """UserError where the files lack a weight, or have one of another shape."""
        for name, _ in self.network.named_parameters():
            if name not in self.layout.sources:
                raise UserError(f"model: {self.folder} lacks {name}; allowed: a whole checkpoint")
        self.layout.check_files(self.folder, self._files)

    def read(self, name: str) -> torch.Tensor:
        """A weight in fp32, matrices as outputs × inputs; UserError where it is not finite."""
        if name in self._read:
            return self._read[name]
        weight = self.layout.read(name, self.stored)
        self.types[name] = weight.dtype
        weight = weight.float()
        check_finite(self.folder.name, {name: weight})
        if not self.streamed:
            self._read[name] = weight
        return weight

    def stored(self, name: str) -> torch.Tensor:
        """A tensor of the files, read alone: a whole file may be larger than the memory."""
        tensors, start = self._headers[self._files[name]]
        first, last = tensors[name]["data_offsets"]
        with self._files[name].open("rb") as file:
            file.seek(start + first)
            numbers = bytearray(file.read(last - first))
        return torch.frombuffer(numbers, dtype=self.stored_type(name)).view(tensors[name]["shape"])

    def stored_type(self, name: str) -> torch.dtype:
        """The type of a tensor of the files, by its file's header."""
        tensors, _ = self._headers[self._files[name]]
        return FLOATS[tensors[name]["dtype"]]

    @contextlib.contextmanager
    def block(self, i: int) -> Iterator[nn.Module]:
        """Within this, the i-th block has its weights."""
        block = self.blocks[i]
        self._load(block, f"{self.stack}.{i}.")
        yield block
        for module in block.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.detach().to("meta"), False))

    def _load(self, module: nn.Module, prefix: str, but: str = " ") -> None:
        wanted = [prefix + name for name, _ in module.named_parameters()]
        own = [name for name in wanted if not name.startswith(but)]
        state = {name.removeprefix(prefix): self.read(name) for name in own}
        module.load_state_dict(state, strict=False, assign=True)


class Written:
    """A folder that pruned blocks are written into, one file each, as loaders read them.

    Names, layout and types are those of the model's own files.
    """

    def __init__(self, model: Model, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.count = 0  # of the files so far

    def write(self, weights: Weights) -> None:
        """Write some weights into a file of their own."""
        tensors = {}
        for name, weight in weights.items():
            for own, part in self.model.layout.parts(name, weight).items():
                tensors[own] = part.to(self.model.stored_type(own)).contiguous()
        self.count += 1
        file = f"model-{self.count:05d}-of-{len(self.model.blocks) + 1:05d}.safetensors"
        save_file(apart(tensors), self.folder / file, metadata={"format": "pt"})

    def write_blocks(self, network: nn.Module) -> None:
        """Write all blocks of a network that is whole in memory."""
        whole = {name: p.detach() for name, p in network.named_parameters()}
        for i in range(len(self.model.blocks)):
            own = f"{self.model.stack}.{i}."
            self.write({name: p for name, p in whole.items() if name.startswith(own)})

    def finish(self) -> None:
        """Write what is in no block, the index of all files, configuration and tokenizer."""
        model = self.model
        inside = f"{model.stack}."
        rest = {n: w for n, w in model.network.named_parameters() if not n.startswith(inside)}
        self.write({name: weight.detach() for name, weight in rest.items()})
        causal.write_index(self.folder)
        for file in sorted(model.folder.iterdir()):
            if file.suffix in BESIDE and not file.name.endswith(".index.json"):
                shutil.copyfile(file, self.folder / file.name)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and where their numbers begin."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        return json.loads(opened.read(length)), 8 + length


def _names_in(file: Path) -> list[str]:
    try:
        return causal.names_in(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"model: {file} cannot be read as safetensors ({error})") from None


@contextlib.contextmanager
def parameters_on_no_device() -> Iterator[None]:
    """Within this, modules are made without memory for parameters; buffers are as always."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # a tied one is there already
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def blocks_of(network: nn.Module, prunable: Weights) -> tuple[str, nn.ModuleList]:
    """The one stack of blocks that holds all prunable weights, and its name.

    Raises:
        UserError: If there is none.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and all(n.startswith(f"{name}.") for n in prunable):
            return name, module
    raise UserError("model: its matrices are in no one stack of blocks; allowed: a decoder of one")


def working_memory(network: Any, method: str, tokens: int, streamed: bool) -> int:
    """About how many bytes `run_blocks` takes at most, beside Python and its libraries.

    What a batch takes within a block stays with the process when the block has been passed, as the
    C library keeps what is freed; so all parts are added, and an eighth for what it keeps in holes.

    Args:
        network: The model, with its weights on no device.
        method: One of METHODS.
        tokens: Of both texts together; their activations stay from one block to the next.
        streamed: Whether weights of blocks are read when they are needed.

    Returns:
        Bytes: of the weights that stay, a block's new ones, the largest weight as it is read and
        pruned; of activations, of a batch within a block and of its logits; of the second moments
        of sparsegpt, and what a ranking of all weights gathers.
    """
    weights = prunable(network)
    stack, blocks = blocks_of(network, weights)
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    numbers = sum(p.numel() for p in network.parameters())
    numbers += 2 * max(sizes) - sum(sizes) if streamed else max(sizes)
    numbers += READ * max(p.numel() for p in network.parameters())
    config = network.config.get_text_config()
    first = [w for n, w in weights.items() if n.startswith(f"{stack}.0.")]
    within = sum(sum(w.shape[-2:]) for w in first)  # what its matrices take in and give out
    within += BETWEEN * config.hidden_size
    numbers += tokens * config.hidden_size + TOKENS * (within + LOGITS * config.vocab_size)
    if method == "sparsegpt":
        widths = [matrix.shape[-1] for w in first for matrix in matrices_of("", w).values()]
        numbers += sum(n**2 for n in widths) + FACTORED * max(widths) ** 2
    if method == "magnitude-global":
        numbers += sum(w.numel() for w in weights.values()) // GATHERED
    return WEIGHT * (numbers + numbers // 8)


@dataclass
class Call:
    """A batch on its way: the next block's input, and what else each block is called with.

    Blocks that attend in several ways, as Gemma's, get masks and positions of their own.
    """

    hidden: torch.Tensor
    beside: list[tuple[tuple, dict[str, Any]]]
    wrapped: bool = False  # whether blocks give out tuples, as Bloom's

    def through(self, block: nn.Module, i: int) -> torch.Tensor:
        """The output of the i-th block."""
        given, more = self.beside[i]
        out = block(self.hidden, *given, **more)
        self.wrapped = isinstance(out, tuple)
        return out[0] if self.wrapped else out

    def given_out(self, *given: Any, **more: Any) -> Any:
        """What the last block has given out, whatever it is called with."""
        return (self.hidden,) if self.wrapped else self.hidden


class _Seen(Exception):
    """The last block has been called: what all are called with is known."""


def run_blocks(
    model: Model,
    calibration: Blocks,
    test: Blocks,
    method: str = "",
    sparsity: float = 0.0,
    m: int | None = None,
    written: Written | None = None,
    mask: Mask | None = None,
) -> tuple[float, float]:
    """Prune a model's blocks one after the other, and pass the test text through all of them.

    Args:
        model: The model, which stays as it is.
        calibration: Text whose activations are looked at.
        test: Held-out text.
        method: One of METHODS; none: nothing is pruned.
        sparsity: The share of the prunable weights that go.
        m: Of an N:M pattern.
        written: Where the pruned model goes, if it is kept.
        mask: Gets the mask, where it is wanted: a byte for each weight.

    Returns:
        The share of the prunable weights that went, and the perplexity of the test text.

    Raises:
        UserError: If there is no such method, or it cannot prune these matrices.
    """
    prune: Prune | None = None
    if method == "magnitude-global" and m is None:
        prune = of_all(model, sparsity)
    elif method:
        prune = pruner(method, model.prunable, sparsity, m)
    gone, total = 0, sum(w.numel() for w in model.prunable.values())
    with torch.no_grad():
        known = _calls(model, calibration) if method in LOOK_AT_INPUTS else []
        tested = _calls(model, test)
        for i in range(len(model.blocks)):
            prefix = f"{model.stack}.{i}."
            with model.block(i) as block:
                if prune is not None:
                    inputs = _inputs(block, i, prefix, model.prunable, known, method)
                    for name, kept in _pruned(model, block, prefix, prune, inputs):
                        gone += int((~kept).sum())
                        if mask is not None:
                            mask[name] = kept
                if written is not None:
                    written.write({prefix + n: p.detach() for n, p in block.named_parameters()})
                for call in (*known, *tested):  # one at a time, to need no room for two
                    call.hidden = call.through(block, i)
        perplexity = _perplexity(model, tested, test)
    if written is not None:
        written.finish()
    return gone / total, perplexity


def _pruned(
    model: Model, block: nn.Module, prefix: str, prune: Prune, inputs: Weights
) -> Iterator[tuple[str, torch.Tensor]]:
    """Prune a block's matrices, in the model's order; name and mask of each.

    A new weight is rounded as its file holds it, so that what is measured is what is written.
    """
    own = {prefix + name: p for name, p in block.named_parameters()}
    for name in [name for name in model.prunable if name in own]:
        weight = own[name]
        parts = [prune(n, w, inputs.get(n)) for n, w in matrices_of(name, weight).items()]
        kept, new = (torch.stack(one).view(weight.shape) for one in zip(*parts, strict=True))
        weight.data = new.to(model.types[name]).float()
        yield name, kept


@contextlib.contextmanager
def _in_place_of(blocks: nn.ModuleList, forward: Callable) -> Iterator[None]:
    """Within this, `forward` is called instead of each block."""
    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _calls(model: Model, text: Blocks) -> list[Call]:
    """What the blocks are called with, batch by batch.

    UserError for a network that does not call one block with another's output alone, as RWKV's.
    """
    calls: list[Call] = []

    def see(hidden: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        if not calls or len(calls[-1].beside) == len(model.blocks):
            calls.append(Call(hidden, []))
        calls[-1].beside.append((given, more))
        if len(calls[-1].beside) == len(model.blocks):
            raise _Seen
        return hidden

    with _in_place_of(model.blocks, see):
        for index in evaluation_batches(text):
            try:
                model.network(input_ids=text.rows(index)["input_ids"])
            except _Seen:
                continue
            except Exception as error:  # whatever a network makes of blocks that are not its own
                raise UserError(
                    f"model: {model.folder.name}: its blocks cannot be run one by one: "
                    f"{reason(error)}"
                ) from None
    return calls


def _inputs(
    block: nn.Module, i: int, prefix: str, prunable: Weights, calls: list[Call], method: str
) -> Weights:
    """What a method asks of the inputs of the i-th block's matrices; nothing of no calls.

    Second moments for sparsegpt, else mean squares.
    """
    moments = method == "sparsegpt"
    totals: Weights = {}
    rows: dict[str, int] = {}
    wanted = {
        prefix + own: matrices_of(prefix + own, parameter)
        for own, parameter in block.named_parameters()
        if prefix + own in prunable
    }
    names = {matrix.data_ptr(): name for own in wanted.values() for name, matrix in own.items()}

    def see(given: torch.Tensor, weight: torch.Tensor) -> None:
        if (name := names.get(weight.data_ptr())) is not None:
            x = given.reshape(-1, given.shape[-1]).float()
            new = x.T @ x if moments else x.square().sum(0)
            totals[name] = totals[name] + new if name in totals else new
            rows[name] = rows.get(name, 0) + len(x)

    with watched(see):
        for call in calls:
            call.through(block, i)
    for weight, own in wanted.items() if calls else ():
        unseen = [name for name in own if name not in totals]
        if len(unseen) == len(own):
            others = " | ".join(one for one in METHODS if one not in LOOK_AT_INPUTS)
            raise UserError(f"method: {method}: {weight} is no linear layer's; allowed: {others}")
        for name in unseen:  # an expert that no token has come to: its inputs are all as good
            width = own[name].shape[1]
            totals[name] = torch.eye(width) if moments else torch.ones(width)
            rows[name] = 1
    return {name: total / rows[name] for name, total in totals.items()}


def _perplexity(model: Model, calls: list[Call], text: Blocks) -> float:
    """The perplexity of a text by the last block's outputs: norm and head come after it."""
    found = []
    for call, index in zip(calls, evaluation_batches(text), strict=True):
        tokens = text.rows(index)["input_ids"]
        with _in_place_of(model.blocks, call.given_out):
            found.append(surprises(model.network(input_ids=tokens).logits.float(), tokens))
    return metrics_of("language", torch.cat(found).numpy(), np.empty(0))["perplexity"]
