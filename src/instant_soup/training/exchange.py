"""What processes that train together tell each other; one process alone sends nothing.

They are those of torch.distributed's default group, whoever made it: torchrun, accelerate or
data_parallel.py. All of them call the same functions in the same order, and get the same bits.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from instant_soup.errors import UserError
from instant_soup.sparsity.ranking import WHOLE, Shards

Value = TypeVar("Value")
Tensors = dict[str, torch.Tensor]
PLACES = (["S(0)"], ["R", "S(0)"])  # of a weight in shards, without and with copies of them
_apart = False  # whether this process works for itself


def is_sharded(tensor: Any) -> bool:
    """Whether only a part of a tensor is in this process: torch's DTensor, as FSDP2 has them."""
    return hasattr(tensor, "to_local")


def own_part(tensor: Any) -> torch.Tensor:
    """What is in this process of a tensor, all of most; in the same memory, without a graph."""
    held = tensor.detach()
    return held.to_local() if is_sharded(held) else held


def size() -> int:
    """How many processes work together; 1 for one that works for itself."""
    if _apart or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if size() > 1 else 0


@contextlib.contextmanager
def for_itself() -> Iterator[None]:
    """Let each process work without the others. An error in one of them ends all.

    Raises:
        UserError: In those processes that had no error; it has the other one's line.
    """
    global _apart
    if size() == 1:
        yield
        return
    error = None
    _apart = True
    try:
        yield
    except Exception as caught:
        error = caught
    finally:
        _apart = False
    failed = torch.tensor(float(error is not None), device=_carrier())
    dist.all_reduce(failed, dist.ReduceOp.MAX)
    if not failed:
        return
    lines = gathered(None if error is None else _line(error))
    if error is not None:
        raise error
    number = next(i for i, line in enumerate(lines) if line is not None)
    raise UserError(f"process {number} of {size()}: {lines[number]}")


def a_step() -> contextlib.AbstractContextManager[None]:
    """`for_itself` for what comes in every step; on GPUs, which would wait, errors are not told."""
    on_gpus = size() > 1 and _carrier().type == "cuda"
    return contextlib.nullcontext() if on_gpus else for_itself()


def each(batches: Iterable[Value]) -> Iterator[Value]:
    """Iterate over batches; where one process cannot get its next one, all end."""
    iterator = iter(batches)
    while True:
        with a_step():
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


def sum_over(tensors: Iterable[torch.Tensor]) -> None:
    """Replace tensors by their sums over the processes, in place."""
    for tensor in tensors if size() > 1 else ():
        total = tensor.contiguous()
        dist.all_reduce(total)
        if total is not tensor:
            tensor.copy_(total)


def average(tensors: Iterable[torch.Tensor]) -> None:
    """Replace tensors by their means over the processes, in place."""
    every = list(tensors)
    sum_over(every)
    for tensor in every if size() > 1 else ():
        tensor /= size()


def summed(held: Tensors, names: Iterable[str]) -> Tensors:
    """The sums of named tensors over the processes; who lacks one adds nothing.

    Args:
        held: Name → tensor; not changed.
        names: All names that there may be, in the same order in all processes.

    Returns:
        Name → sum, shaped like the tensor.
    """
    if size() == 1:
        return held
    shapes: dict[str, Any] = {}
    for told in gathered({n: (list(t.shape), t.dtype) for n, t in held.items()}):
        shapes |= told
    found = {}
    for name in (n for n in names if n in shapes):
        shape, kind = shapes[name]
        own = held.get(name)
        found[name] = (
            torch.zeros(shape, dtype=kind, device=_carrier()) if own is None else own.clone()
        )
    sum_over(found.values())
    return found


def means(held: Tensors, names: Iterable[str]) -> Tensors:
    """The means of named tensors over the processes; zeros count for those that a process lacks."""
    return {
        name: total / size() if size() > 1 else total for name, total in summed(held, names).items()
    }


def mean(number: float) -> float:
    """The mean of a number over the processes."""
    return sum(gathered(number)) / size() if size() > 1 else number


def from_first(value: Value) -> Value:
    """The first process's value."""
    return from_process(value, 0)


def from_process(value: Any, source: int) -> Any:
    """One process's value; what the others give does not count."""
    if size() == 1:
        return value
    parts = [value if rank() == source else None]
    dist.broadcast_object_list(parts, source, device=_carrier())
    return parts[0]


def gathered(value: Value) -> list[Value]:
    """All processes' values, in the order of their numbers."""
    if size() == 1:
        return [value]
    parts: list[Any] = [None] * size()
    dist.all_gather_object(parts, value)
    return parts


def gathered_parts(own: torch.Tensor) -> list[torch.Tensor]:
    """All processes' vectors of one type, of any lengths, in the order of their numbers."""
    if size() == 1:
        return [own]
    lengths = gathered(own.numel())
    sent = torch.zeros(max(lengths), dtype=own.dtype, device=_carrier())
    sent[: own.numel()] = own.detach().flatten()
    room = [torch.empty_like(sent) for _ in lengths]
    dist.all_gather(room, sent)
    return [one[:length].to(own.device) for one, length in zip(room, lengths, strict=True)]


def shards_of(weights: Mapping[str, torch.Tensor]) -> Shards:
    """Which part of some weights is in this process, as torch's `fully_shard` deals them out.

    All processes may share one copy of the weights, or groups of them a copy each.

    Raises:
        UserError: If they are dealt out in another way.
    """
    if not any(map(is_sharded, weights.values())):
        return WHOLE
    dealt = {name: _groups(weight) for name, weight in weights.items()}
    first = next(iter(dealt.values()))
    for name, groups in dealt.items():
        if not groups or groups != first:
            raise UserError(
                f"model: {name} is not dealt out by rows over all {size()} processes, as other "
                "weights may be; allowed: fully_shard(model) of torch.distributed.fsdp on one "
                "dimension of all processes, or on two, of copies and shards; for all prunable "
                "weights, or for none"
            )
    (members,) = [group for group in first if rank() in group]
    return Shards(members.index(rank()), partial(parts_of, members), len(members))


def _groups(weight: Any) -> list[list[int]]:
    """The processes that share each copy of a weight by rows; none if it is dealt out otherwise."""
    if [str(place) for place in getattr(weight, "placements", [])] not in PLACES:
        return []
    mesh = weight.device_mesh.mesh
    groups = mesh.view(-1, mesh.shape[-1]).tolist()
    return groups if sorted(chain(*groups)) == list(range(size())) else []


def parts_of(members: list[int], own: torch.Tensor) -> list[torch.Tensor]:
    """The vectors of some processes, in the given order; all take part."""
    parts = gathered_parts(own)
    return [parts[member] for member in members]


def deal_out_again(model: nn.Module) -> None:
    """Let each process have its shards alone, if a forward pass has left a model in shards whole.

    FSDP2 keeps the outermost part whole for a backward pass, which a validation does not have.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules() if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def placed_as(weight: Any, part: torch.Tensor) -> torch.Tensor:
    """A tensor of which each process has the part that it has of a weight in shards."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part.to(weight.device), weight.device_mesh, weight.placements,
        shape=weight.shape, stride=weight.stride(),
    )  # fmt: skip


def of_shard(whole: torch.Tensor, shards: Shards) -> torch.Tensor:
    """What this process has of a tensor that is dealt out by rows."""
    if shards == WHOLE:
        return whole
    parts = whole.chunk(shards.total)
    return parts[shards.number] if shards.number < len(parts) else whole[:0]  # too few rows


def check_same(values: dict[str, Any]) -> None:
    """Check that all processes were given the same.

    Raises:
        UserError: In all of them, if they were not; it names the first that differs.
    """
    told = gathered(values)
    for name in values:
        first, *others = (one[name] for one in told)
        for number, other in enumerate(others, 1):
            if other != first:
                raise UserError(
                    f"{name}: {other} in process {number} and {first} in process 0; allowed: the "
                    "same in all processes"
                )


def load_first(model: nn.Module) -> None:
    """Give all processes the first one's weights and buffers, in place; not those in shards."""
    if size() > 1:
        whole = [t for t in model.state_dict().values() if not is_sharded(t)]
        with torch.no_grad():
            _load_first(whole)


def load_first_buffers(model: nn.Module) -> None:
    """Give all processes the first one's running statistics, in place."""
    if size() > 1:
        _load_first(model.buffers())


def _load_first(tensors: Iterable[torch.Tensor]) -> None:
    for tensor in (t for t in tensors if isinstance(t, torch.Tensor) and t.numel()):
        sent = tensor.detach().to(_carrier()).contiguous()
        dist.broadcast(sent.view(-1).view(torch.uint8), 0)  # bytes: of whatever type
        tensor.copy_(sent)


def _carrier() -> torch.device:
    """Where tensors must lie to be sent."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
