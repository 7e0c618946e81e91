"""A classifier's forward pass: its logits for a batch, and what they cost, as torch counts it."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from instant_soup.errors import UserError
from instant_soup.files import read_json, write_json
from instant_soup.models.matrices import Weights

Batch = dict[str, torch.Tensor]

# Matrix products that torch's counter does not know.
GROUPED = ("_grouped_mm", "grouped_mm_fallback")  # experts of a mixture, side by side
RECURRENT = "mkldnn_rnn_layer"  # a layer of nn.LSTM on a CPU
# What a pass costs depends on the architecture and its inputs' shapes: it is counted once.
_counted: dict[tuple, tuple[float, float]] = {}
_shared: list[Path] = []  # the file that processes share their counts by, if there is one
_architectures: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def logits_of(model: Any, batch: Batch) -> torch.Tensor:
    """The classifier's outputs (rows × outputs) for a batch."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    if "token_type_ids" in inputs and not _tells_segments(model.config):
        del inputs["token_type_ids"]
    outputs = model(**inputs)
    return getattr(outputs, "logits", outputs)


def _tells_segments(config: Any) -> bool:
    """Whether a model tells two texts apart; Funnel's configuration does not say that it does."""
    return getattr(config, "type_vocab_size", 0) > 1 or config.model_type == "funnel"


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two outputs differ by more than rounding does."""
    one, other = one.detach(), other.detach()
    return float((one - other).abs().max()) > 1e-4 * float(one.abs().max())


def forward_flops(model: nn.Module, prunable: Iterable[str], batch: Batch) -> tuple[float, float]:
    """FLOPs of one forward pass of a batch.

    They are counted as torch.utils.flop_counter does, a multiply-add as two: matrix products,
    convolutions and attention. Norms, activations and look-ups are left out. A weight that several
    layers share counts in each of them. One row and two rows are passed through, once for each
    shape of inputs. A training step costs three times a forward pass.

    Args:
        model: The network.
        prunable: Names of the prunable weights.
        batch: The batch.

    Returns:
        FLOPs of products with prunable weights, and of all others.
    """
    rows = len(next(iter(batch.values())))
    one = _flops_of(model, prunable, batch, 1)
    if rows == 1:
        return one
    two = _flops_of(model, prunable, batch, 2)
    inside, others = (a + (rows - 1) * (b - a) for a, b in zip(one, two, strict=True))
    return inside, others


def share_counts(file: Path) -> None:
    """Take from a file what other processes have counted, and leave there what this one counts.

    Counting takes a tenth of a second for each shape of inputs, and a run has dozens of processes.
    """
    _shared[:] = [file]


def _flops_of(
    model: nn.Module, prunable: Iterable[str], batch: Batch, rows: int
) -> tuple[float, float]:
    if model not in _architectures:
        shapes = [(name, tuple(p.shape)) for name, p in model.state_dict().items()]
        # As it prints: two models may have weights of the same shapes, and use them otherwise.
        _architectures[model] = f"{model} {getattr(model, 'config', '')} {shapes}"
    shape = tuple((name, tuple(rest.shape[1:])) for name, rest in batch.items())
    key = (_architectures[model], frozenset(prunable), shape, rows)
    if key not in _counted and not _take_shared(key):
        first = {name: part[:rows] for name, part in batch.items()}
        parameters, training = dict(model.named_parameters()), model.training
        counter = CountFlops({name: parameters[name] for name in prunable})
        model.eval()
        # Fused attention on a CPU is not among the products that torch counts.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            logits_of(model, first)
        model.train(training)
        _counted[key] = (counter.within, counter.elsewhere)
        for file in _shared:
            write_json(file, {**_read_shared(file), _name(key): _counted[key]})
    return _counted[key]


def _take_shared(key: tuple) -> bool:
    """Whether another process has counted this: then it is known here, too."""
    for file in _shared:
        match _read_shared(file).get(_name(key)):
            case [float(inside), float(others)]:
                _counted[key] = (inside, others)
    return key in _counted


def _read_shared(file: Path) -> dict[str, Any]:
    """The counts in a file; none where it is missing or damaged, as they can be made again."""
    try:
        found = read_json(file)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def _name(key: tuple) -> str:
    """A count's name in the file."""
    architecture, prunable, shape, rows = key
    told = repr((torch.__version__, architecture, sorted(prunable), shape, rows))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


class CountFlops(TorchDispatchMode):
    """Count FLOPs: `within` of products with some weights, `elsewhere` of all others.

    A weight is recognised in its views, and in what is made of it alone (a cast, a transposed copy,
    the matrices of some experts). The formulas are those of torch's FlopCounterMode, which tells
    modules apart, but not weights.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.within = self.elsewhere = 0.0
        self._held = list(weights.values())  # whose memory, while held, is nobody else's
        self._known = {_place(weight) for weight in self._held}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = getattr(func, "_overloadpacket", func)
        counted = getattr(kind, "__name__", "") in (*GROUPED, RECURRENT) or kind in flop_registry
        if not counted and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        first = args[0] if args else None
        if not counted and isinstance(first, torch.Tensor) and _place(first) not in self._known:
            return out  # most of what runs: nothing to count, and not made of weights
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        ours = [_place(t) in self._known for t in given if t.is_floating_point()]
        if counted:
            flops = _flops(kind, args, kwargs, out)
            self.within += flops if any(ours) else 0
            self.elsewhere += 0 if any(ours) else flops
        elif ours and all(ours) and isinstance(out, torch.Tensor):
            self._held.append(out)
            self._known.add(_place(out))
        return out


def _flops(kind: Any, args: Any, kwargs: dict[str, Any], out: Any) -> float:
    """FLOPs of an operator that is counted."""
    name = kind.__name__
    if name in GROUPED:
        return 2.0 * out.numel() * args[0].shape[-1]  # each row meets one of the matrices
    if name == RECURRENT:  # all rows of all steps meet the inputs' matrix and the state's
        rows = args[0].shape[:-1].numel()
        return 2.0 * rows * (args[1].numel() + args[2].numel())
    return float(flop_registry[kind](*args, **kwargs, out_val=out))


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether an operator is made of others, which inference mode does not take apart by itself."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return isinstance(func, torch._ops.OpOverload) and func.has_kernel_for_dispatch_key(key)


def _place(tensor: torch.Tensor) -> int:
    """Where a tensor's memory begins, whichever part of it the tensor is."""
    return tensor.untyped_storage().data_ptr()
