"""Data-parallel training: several processes share every batch.

A stage's own process is the first of them, and starts the others for the time of one training
(`training.processes` in params.yaml). Users of the library start all of them, by torchrun or
accelerate. Either way torch's DistributedDataParallel averages the gradients while the backward
pass goes on. So all processes take the same steps.
"""

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from instant_soup.errors import UserError
from instant_soup.models.torchvision_cpu import declare_missing_operators
from instant_soup.training.exchange import size

Batch = dict[str, torch.Tensor]
Loss = Callable[[Any], torch.Tensor]
START, STEP = timedelta(minutes=1), timedelta(minutes=30)  # how long one waits for the others
_own: dict[str, torch.device] = {}


class _Importable:
    """Goes to a fresh process ahead of the model, and makes its package importable there."""

    def __reduce__(self) -> tuple:
        return declare_missing_operators, ()


def own_device() -> torch.device:
    """The device of this process, if several train together."""
    return _own.get("device", torch.device("cpu"))


def share(batch: Batch, own: slice) -> Batch:
    """One process's rows of a batch."""
    return {name: rows[own] for name, rows in batch.items()}


class _Loss(nn.Module):
    """A network with its loss as one module, whose output is the loss of a batch."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, batch: Any) -> torch.Tensor:
        return self.loss(batch)


def averaging(network: nn.Module, loss: Loss, but: Collection[str]) -> Loss:
    """A loss whose backward pass leaves the mean gradients of all processes in the network.

    Args:
        network: What trains. All processes get the first one's weights and buffers.
        loss: `loss(batch)` calls the network.
        but: Names of parameters that are left as they are in each process.

    Returns:
        A function like `loss`; the loss itself if this process is alone.
    """
    if size() == 1:
        return loss
    whole = _Loss(network, loss)
    kind = DistributedDataParallel
    kind._set_params_and_buffers_to_ignore_for_model(whole, [f"network.{name}" for name in but])
    # A loss may leave parameters out, another one in each step.
    return kind(whole, find_unused_parameters=True, gradient_as_bucket_view=True)


def check(processes: int, batch_size: int, rows: int, kind: str) -> None:
    """Check that the processes can share the batches.

    Args:
        processes: How many.
        batch_size: Rows in a batch; each process must get equally many.
        rows: Training rows.
        kind: `cpu` or `cuda`. On `cuda` each process needs a GPU of its own.

    Raises:
        UserError: If they cannot.
    """
    if batch_size % processes or rows < batch_size:
        raise UserError(
            f"training.processes: {processes} do not share batches of {min(rows, batch_size)} "
            "equally; allowed: a divisor of training.batch_size, and at least so many rows"
        )
    if kind == "cuda" and processes > torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise UserError(f"training.processes: {processes}; allowed: at most {gpus}, one per GPU")


@contextlib.contextmanager
def together(
    processes: int, kind: str, work: Callable[..., Any], *arguments: Any
) -> Iterator[None]:
    """Let other processes train along within this context.

    If this process leaves the context, by an error or Ctrl-C too, the others are killed. Only this
    process answers Ctrl-C and SIGTERM: it stops between steps.

    Args:
        processes: How many, this one included.
        kind: `cpu` or `cuda`.
        work: What each of the others runs, `work(*arguments)`. It exchanges gradients with this
            one.
        *arguments: They go to the others by pickle, their tensors by shared memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = str(Path(folder) / "meeting")
        context = torch.multiprocessing.get_context("spawn")
        others = [
            context.Process(
                target=_run_member,
                args=(_Importable(), number, processes, kind, meeting_point, work, arguments),
                daemon=True,
            )
            for number in range(1, processes)
        ]
        try:
            with _ignoring_ctrl_c():  # which is inherited
                for other in others:
                    other.start()
            _wait_until_loaded(others, Path(folder))
            _join(0, processes, kind, meeting_point)
            yield
            _leave()
            for other in others:
                other.join(START.total_seconds())
        finally:
            for other in others:
                if other.pid is not None:
                    other.kill()
            if size() > 1:
                _leave()


@contextlib.contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _wait_until_loaded(others: list[Any], folder: Path) -> None:
    """Wait until all are loaded; an error in one of them ends the wait."""
    while len(list(folder.glob("loaded-*"))) < len(others):
        if any(not other.is_alive() for other in others):
            raise RuntimeError("a process that was to share the batches ended; see above")
        time.sleep(0.02)


def _join(number: int, processes: int, kind: str, meeting_point: str) -> None:
    where = torch.device("cpu")
    if kind == "cuda":
        where = torch.device("cuda", number)
        torch.cuda.set_device(where)
    store = dist.FileStore(meeting_point, processes)
    store.set_timeout(START)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=processes, timeout=STEP)
    _own["device"] = where


def _leave() -> None:
    dist.destroy_process_group()


def _run_member(
    _: None,
    number: int,
    processes: int,
    kind: str,
    meeting_point: str,
    work: Callable[..., Any],
    arguments: tuple,
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ctrl-C: the first process kills this one
    Path(meeting_point).with_name(f"loaded-{number}").touch()
    _join(number, processes, kind, meeting_point)
    with contextlib.suppress(UserError):  # the first process meets it, too, and says so
        work(*arguments)
    _leave()
