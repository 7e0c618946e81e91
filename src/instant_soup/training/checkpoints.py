"""What a stopped run goes on from: a store of trainings, and the record of one training.

A store holds a folder for each training (or search for a mask) that was begun. Its name is a digest
of all that the training depends on. So an equal call goes on where one was interrupted, and takes
what one has finished. The rounds of two sparsities, or a lottery ticket's dense network, are
trained once.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from instant_soup.errors import UserError
from instant_soup.files import check_seal, new_folder, project_root, read_json, write_json
from instant_soup.training import exchange
from instant_soup.training.cost import Cost
from instant_soup.training.state import State, load_state, write_state

EVERY = 120.0  # seconds between two checkpoints
BESIDE = ("cost.json", "losses.json", "curve.json")  # what a checkpoint has beside its state

Curve = list[dict[str, Any]]
Found = TypeVar("Found")


def digest(*parts: Any) -> str:
    """Sixteen hex digits of some JSON values and dictionaries of tensors."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, dict) and any(isinstance(v, torch.Tensor) for v in part.values()):
            for name in sorted(part):
                tensor = part[name].detach().cpu().contiguous()
                whole.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
                whole.update(tensor.flatten().view(torch.uint8).numpy().data)
        else:
            whole.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\0")
    return whole.hexdigest()[:16]


class Store:
    """Folders of trainings, by digests of what they depend on. Several processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: list[Path] = []
        self.passing: list[Path] = []  # of these, what `forget` removes

    @contextmanager
    def entry(self, *parts: Any, keep: bool = True) -> Iterator[Path]:
        """Yield the folder that belongs to these parts; no other process has it meanwhile.

        Args:
            *parts: What its contents depend on.
            keep: Whether `forget` leaves it.
        """
        path = self.folder / digest(*parts)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                os.utime(path)
            self.used.append(path)
            if not keep:
                self.passing.append(path)
            yield path

    def forget(self) -> None:
        """Remove what this run need not keep, as the outputs made of it are in place."""
        for path in self.passing:
            _remove(path)

    def remove_used(self) -> None:
        """Forget what this run has kept, as it is finished and its result is elsewhere."""
        for path in self.used:
            shutil.rmtree(path, ignore_errors=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def trim(self, limit: float) -> None:
        """Remove the entries not used for the longest time, until `limit` bytes are left."""
        found: list[tuple[float, int, Path]] = []  # when it was last used, its bytes
        for entry in self.folder.iterdir() if self.folder.is_dir() else ():
            with suppress(FileNotFoundError):  # another process removes it just now
                if entry.is_dir():
                    size = sum(f.stat().st_size for f in entry.rglob("*") if f.is_file())
                    found.append((entry.stat().st_mtime, size, entry))
        total = 0
        for _, size, entry in sorted(found, reverse=True):
            total += size
            if total > limit:
                _remove(entry)


def _remove(entry: Path) -> None:
    """Remove an entry, unless another process works there."""
    with open(entry.with_suffix(".lock"), "w") as lock:
        if _taken(lock):
            shutil.rmtree(entry, ignore_errors=True)


def _taken(lock: Any) -> bool:
    """Whether a lock is free: nobody works there."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def found_in(entry: Path | None, read: Callable[[Path], Found]) -> Found | None:
    """Read an entry of a store.

    Args:
        entry: The folder; None: no store.
        read: Reads the folder.

    Returns:
        What `read` finds; None if nothing is there. A damaged entry is forgotten, with a warning,
        as what it held can be made again.
    """
    if entry is None or not entry.exists():
        return None
    try:
        return read(entry)
    except UserError as error:
        print(f"warning: {error}; it is made again", file=sys.stderr)
        shutil.rmtree(entry, ignore_errors=True)
        return None


def pipeline_store() -> Store:
    """The store in the main repository, which experiments in copies use too."""
    return Store(project_root() / ".dvc/tmp/instant-soup/store")


@contextmanager
def stop_between_steps() -> Iterator[threading.Event]:
    """Turn Ctrl-C and termination into an event, so that no step is cut short."""
    stop_asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_asked
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(s, lambda *_: stop_asked.set()) for s in signals]
    try:
        yield stop_asked
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


class Record:
    """A training's curve, and its checkpoints in a folder, from which an equal call goes on.

    The curve has a row where something was measured: every `row_every` steps, at validations and at
    the end. `row(step, mean loss since the last row, whether to validate)` makes a row, and
    `show(row)` reports it. A checkpoint is written every two minutes, on an interruption or an
    error, and at the end: until an output is written, it is all there is. Without a folder there is
    only the curve.
    """

    def __init__(
        self,
        folder: Path | None,
        cost: Cost,
        *,
        last: int,
        row_every: int,
        validate_every: int,
        row: Callable[[int, float, bool], dict[str, Any]],
        show: Callable[[dict[str, Any]], None],
    ) -> None:
        self.folder, self.cost, self.last = folder, cost, last
        self.row_every, self.validate_every = row_every, validate_every
        self.row, self.show = row, show
        self.curve: Curve = []
        self.losses: list[torch.Tensor] = []  # of the steps since the curve's last row
        self.saved = time.monotonic()
        self.step = self.saved_step = -1  # the last that was taken, the last that was kept
        self.snapshot: Callable[[], State]

    def resume(self, state: State, label: str) -> State:
        """The state of an equal call that was interrupted or is finished; else the given state."""
        found = exchange.from_first(found_in(self.folder, _kept))
        if found is None:
            return state
        state, cost, losses, curve = found
        self.cost.add(cost)
        self.losses = [torch.tensor(x) for x in losses]
        for row in curve:
            self.add(row)
        done = "taking the finished training" if state.step >= self.last else "continuing"
        if exchange.rank() == 0:
            print(f"{label}: {done} from the checkpoint at step {state.step}")
        return state

    def add(self, row: dict[str, Any]) -> None:
        """Add a row to the curve."""
        self.curve.append(row)
        self.show(row)

    def going(self) -> Any:
        """Let Ctrl-C wait for the end of a step and a checkpoint, within this context."""
        return self._stoppable() if self.folder is not None else nullcontext()

    def after_step(self, step: int, loss: torch.Tensor, snapshot: Callable[[], State]) -> None:
        """Take note of a step. Call this after each one.

        Args:
            step: How many steps are done.
            loss: The step's loss, a scalar.
            snapshot: Returns the state at this point.
        """
        self.losses.append(loss.detach())
        self.step, self.snapshot = step, snapshot
        validating = step % self.validate_every == 0 or step == self.last
        if validating or step % self.row_every == 0:
            where = loss.device
            mean = float(torch.stack([one.to(where) for one in self.losses]).mean())
            self.losses.clear()
            self.add(self.row(step, mean, validating))
        if self.folder is None:
            return
        due = self.stop_asked.is_set() or time.monotonic() - self.saved > EVERY
        if due or step == self.last:
            self.save(snapshot())
        if self.stop_asked.is_set():
            raise KeyboardInterrupt

    def save(self, state: State) -> None:
        """Keep a checkpoint."""
        assert self.folder is not None
        told = asdict(self.cost), [float(x) for x in self.losses], self.curve
        with new_folder(self.folder) as unfinished:
            for name, value in zip(BESIDE, told, strict=True):
                write_json(unfinished / name, value)
            write_state(unfinished, state)  # which seals them all
        self.saved, self.saved_step = time.monotonic(), state.step

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        with stop_between_steps() as self.stop_asked:
            try:
                yield
            except UserError:  # such as a loss that is not finite: nothing to go on from
                raise
            except BaseException:
                self._rescue()
                raise

    def _rescue(self) -> None:
        """Keep what was trained before an error, if the error came between two steps."""
        if self.step > self.saved_step:
            with suppress(Exception):  # the first error is the one to be told
                state = self.snapshot()
                if state.step == self.step:
                    self.save(state)


def _kept(entry: Path) -> tuple[State, dict[str, float], list[float], Curve]:
    """Read a checkpoint's state, cost, losses and curve."""
    check_seal(entry, *BESIDE)
    cost, losses, curve = (read_json(entry / name) for name in BESIDE)
    return load_state(entry), cost, losses, curve
