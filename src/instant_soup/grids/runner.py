"""Lanes of cells: each in its own copy of the repository, one cell after another.

The copy is like that of DVC's own queue, but ours. So the workspace is never touched, cells that
share work come one after another, and nothing is left running. Copies and logs lie in
.dvc/tmp/grid.
"""

import fcntl
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from instant_soup.errors import UserError
from instant_soup.grids.cells import Cell, Identity, change, entry_of, lanes_of
from instant_soup.grids.commits import (
    check_identity,
    commit_of,
    committed_params,
    inside,
    state_of,
)
from instant_soup.methods import registry
from instant_soup.pipeline.processes import (
    Processes,
    Stopped,
    duration,
    dvc,
    end_leftover,
    environment,
    git,
    last_error,
    slots_of,
    try_lock,
)
from instant_soup.pipeline.warm_start import JOB
from instant_soup.reports import numbers
from instant_soup.reports.ledger import merge_ledger, read_results

PREPARED = "attach_head"  # the stage below which lie data and base model, which all lanes share
DENSE = "dense_finetune"  # the stage that lanes with other settings of ISP share
STAGE = re.compile(r"Running stage '([^']+)'")


class Runner:
    """Runs lanes in copies of the repository; what it does arrives in `events`."""

    def __init__(self, root: Path, jobs: int) -> None:
        self.root = root
        self.copies, self.logs = root / ".dvc/tmp/grid/copies", root / ".dvc/tmp/grid/logs"
        # One state of code and settings for all cells, however long they take: the commit, with
        # what is changed in tracked files. Of params.yaml what is committed.
        check_identity(root)
        self.head = git(root, "rev-parse", "HEAD")
        self.state = state_of(root, self.head)
        self.params = committed_params(root)
        self.cache = from_a_copy(dvc(root, "cache", "dir").splitlines()[-1], self.copies)
        self.environment = environment(root, jobs)
        self.events: queue.Queue[tuple[Cell, str, str]] = queue.Queue()
        self.processes = Processes()
        self.prepared: set[str] = set()  # lanes
        self.dense: dict[Identity, threading.Lock] = {}  # of each dense run
        self.slots, self.cards = slots_of(jobs), dict[str, str]()  # lane → its GPUs
        self.preparing, self.collecting = threading.Lock(), threading.Lock()

    def run_lane(self, lane: list[Cell]) -> None:
        """Run cells one after another in one copy; a failed one does not hold up the next."""
        copy = self.copies / lane[0].lane
        self.cards[lane[0].lane] = cards = self.slots.get()
        try:
            for cell in lane:
                if self.processes.stopped:
                    break
                self.events.put((cell, "running", ""))
                try:
                    self.logs.mkdir(parents=True, exist_ok=True)
                    self.log(cell).write_text("")
                    self.run_cell(copy, cell)
                    self.events.put((cell, "done", ""))
                except Stopped:
                    break
                except Exception as error:  # a thread's traceback would show at the very end only
                    reason = str(error) if isinstance(error, UserError) else repr(error)
                    self.events.put((cell, "failed", " ".join(reason.split())))
        finally:
            self.slots.put(cards)
        shutil.rmtree(copy, ignore_errors=True)
        self.lock(copy).unlink(missing_ok=True)

    def run_cell(self, copy: Path, cell: Cell) -> None:
        """Run one cell, row by row: each goes to the ledger when done, all become an experiment.

        A row that fails does not hold up the next. What is done is kept also at an interruption.

        Raises:
            UserError: If rows failed; with what their logs say.
        """
        failed: dict[str, str] = {}
        done, told = [], False
        try:
            with open(self.log(cell), "a") as log:
                if not copy.exists():
                    self.make_copy(copy)
                write_params(copy / "params.yaml", self.params, cell)
                self.prepare(cell, lambda stage: self.dvc(copy, cell, log, "repro", stage))
                for method in cell.to_run:
                    try:
                        self.dvc(copy, cell, log, "repro", entry_of(method))
                        results = read_results(copy / "reports/results", [method])
                    except UserError as error:
                        failed[method] = str(error)
                        continue
                    with self.collecting:
                        merge_ledger(self.root / "reports/results.csv", results, self.head[:12])
                    done.append(method)
                if not cell.targets and not failed:
                    self.dvc(copy, cell, log, "repro")  # the tables: nothing is left to run
                    told = True
        finally:
            if done:
                if not told:
                    write_numbers(copy, done)
                with self.collecting:
                    self.save_experiment(copy, cell)
        if failed:
            raise UserError("; ".join(f"{method}: {why}" for method, why in failed.items()))

    def prepare(self, cell: Cell, make: Callable[[str], Any]) -> None:
        """Make what lanes share, one lane at a time: nothing is made twice."""
        if cell.lane in self.prepared:
            return
        with self.preparing:
            make(PREPARED)
        if registry.DENSE in cell.to_run:
            with self.dense.setdefault(cell.dense, threading.Lock()):
                make(DENSE)
        self.prepared.add(cell.lane)

    def save_experiment(self, copy: Path, cell: Cell) -> None:
        """Make a copy's state an experiment, in place of one with its name and commit.

        This is what `dvc exp save` does, which also commits a temporary file of its own (DVC 3.67).
        """
        commit = commit_of(self.root, copy, self.head, f"grid: {cell.name}")
        ref = f"refs/exps/{self.head[:2]}/{self.head[2:]}/{cell.name}"
        git(self.root, "update-ref", ref, commit)

    def make_copy(self, copy: Path) -> None:
        """A clone of the repository in the runner's state, which shares its cache."""
        unfinished = copy.with_name(f"{copy.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        git(self.root, "clone", "-q", "--shared", "--no-checkout", ".", str(unfinished))
        # A clone of a shallow one shares nothing of itself.
        objects = unfinished / ".git/objects/info/alternates"
        objects.write_text(f"{inside(self.root, 'objects')}\n")
        git(unfinished, "checkout", "-q", "--detach", self.head)
        git(unfinished, "read-tree", "--reset", "-u", self.state)
        local = self.root / ".dvc/config.local"
        if local.exists():
            shutil.copyfile(local, unfinished / ".dvc/config.local")
        dvc(unfinished, "cache", "dir", "--local", self.cache)
        unfinished.replace(copy)

    def dvc(self, copy: Path, cell: Cell, log: TextIO, *arguments: str) -> None:
        """Run DVC in a copy, with its output to the log.

        Raises:
            UserError: If it fails; with the error of its log.
        """
        # DVC_ROOT: where stages keep checkpoints, find relative paths and leave records for MLflow.
        # Its own caches go with the copy.
        # All rows of a grid are one job, whose stages start warm (pipeline/warm_start.py).
        own = {"DVC_ROOT": str(self.root), "DVC_EXP_NAME": cell.name, JOB: str(os.getpid())}
        own["DVC_SITE_CACHE_DIR"] = str(copy / ".dvc/tmp/site")
        if cards := self.cards.get(cell.lane):
            own["CUDA_VISIBLE_DEVICES"] = cards
        with open(self.lock(copy), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = self.processes.start(
                [sys.executable, "-m", "dvc", *arguments],
                cwd=copy,
                env={**self.environment, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],  # DVC holds the lock even when we are gone
            )
            lock.write(str(process.pid))
        status = process.wait()
        self.processes.check()
        if status:
            raise UserError(last_error(Path(log.name)))

    def lock(self, copy: Path) -> Path:
        """What a DVC at work in a copy holds locked; its process id is in it."""
        return copy.with_name(f"{copy.name}.lock")

    def log(self, cell: Cell) -> Path:
        """Where a cell's output goes."""
        return self.logs / f"{cell.name}.log"


def write_numbers(copy: Path, methods: list[str]) -> None:
    """Write what DVC shows of an experiment: some rows, where the tables were not made.

    Else it would show those of the commit, which are of another run.
    """
    numbers.write(copy / "reports", read_results(copy / "reports/results", methods))


def from_a_copy(cache: str, copies: Path) -> str:
    """The cache's path from any copy: DVC writes no letter beyond ASCII, as `root` may have.

    Raises:
        UserError: If there is such a letter on the way from there, too.
    """
    path = os.path.relpath(cache, (copies / "lane").resolve())
    if not path.isascii():
        raise UserError(
            f"cache.dir: {cache}: DVC cannot write that into a copy's settings; allowed: a path in "
            "ASCII, or .dvc/cache"
        )
    return path


def write_params(path: Path, text: str, cell: Cell) -> None:
    """Write params.yaml's `text` with a cell's changes; comments stay."""
    from dvc.utils.serialize import modify_yaml

    path.write_text(text)
    with modify_yaml(str(path)) as params:
        change(params, cell.changes)


@contextmanager
def only_grid(root: Path) -> Iterator[None]:
    """Be the only grid of this repository, and end what a killed one has left running."""
    folder = root / ".dvc/tmp/grid"
    (folder / "copies").mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        if not try_lock(lock):
            raise UserError(f"another grid is running in {root}: wait for it, or stop it")
        for path in (folder / "copies").glob("*.lock"):
            end_leftover(path)
        shutil.rmtree(folder / "copies")
        (folder / "copies").mkdir()
        yield


class Board:
    """Shows how far a grid is: bars on a terminal, else a line for each event."""

    def __init__(self, runner: Runner, todo: list[Cell], at_once: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.runner, self.todo, self.at_once = runner, todo, at_once
        self.console = Console(highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        live = self.console.is_terminal
        self.bars = Progress(*columns, console=self.console, transient=True, disable=not live)
        self.total = self.bars.add_task("cells", total=len(todo))
        self.running: dict[str, tuple[Cell, Any, float]] = {}  # name → cell, its bar, its start
        self.seconds: list[float] = []  # of each finished cell
        self.failed: list[tuple[Cell, str]] = []

    def tell(self, cell: Cell, state: str, reason: str) -> None:
        """Take up an event of the runner."""
        if state == "running":
            bar = self.bars.add_task(cell.name, total=None)
            self.running[cell.name] = (cell, bar, time.monotonic())
            return self.line(f"started {cell.name}")
        _, bar, start = self.running.pop(cell.name)
        self.bars.remove_task(bar)
        self.bars.advance(self.total)
        self.seconds.append(time.monotonic() - start)
        if state == "failed":
            self.failed.append((cell, reason))
        count = f"{len(self.seconds)} of {len(self.todo)}"
        end = f"{state} {cell.name} in {duration(self.seconds[-1])}"
        self.line(f"{count}: {end}{f': {reason}' if reason else ''}; {self.left()}")

    def left(self) -> str:
        """The time left, were all cells as long as those so far."""
        left = len(self.todo) - len(self.seconds)
        mean = sum(self.seconds) / len(self.seconds)
        return f"about {duration(mean * left / self.at_once)} left" if left else "none left"

    def refresh(self) -> None:
        """Show which stage each cell is at."""
        if not self.console.is_terminal:
            return
        for cell, bar, _ in self.running.values():
            log = self.runner.log(cell)
            stages = STAGE.findall(log.read_text(errors="replace")) if log.exists() else []
            self.bars.update(bar, description=f"{cell.name} {stages[-1] if stages else ''}")

    def line(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        self.console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False)


def run_all(runner: Runner, todo: list[Cell], jobs: int) -> list[tuple[Cell, str]]:
    """Run cells, `jobs` lanes at a time; those that failed, and why. Ctrl-C ends all of them."""
    lanes = lanes_of(todo)
    board = Board(runner, todo, min(jobs, len(lanes)))
    with ThreadPoolExecutor(jobs) as pool, board.bars:
        try:
            ends = [pool.submit(runner.run_lane, lane) for lane in lanes]
            ended = False
            while not ended or not runner.events.empty():
                ended = all(end.done() for end in ends)
                try:
                    board.tell(*runner.events.get(timeout=0.5))
                except queue.Empty:
                    board.refresh()
        finally:
            runner.processes.stop()
    for end in ends:
        end.result()
    return board.failed


def make_tables(root: Path, log: Path) -> str:
    """Make ledger and tables of all experiments; what went wrong, or nothing."""
    with open(log, "w") as file:
        done = subprocess.run(
            [sys.executable, "stages/tables.py"],
            cwd=root,
            env={**environment(root, 1), "PYTHONPATH": str(root / "src")},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return f"tables: {last_error(log)} (log: {log})" if done.returncode else ""
