"""Run a grid: every cell that has no results yet, as a DVC experiment of its own.

    python -m instant_soup.run_grid grids/quick.yaml --jobs 2

A lane of cells works in a copy of the repository, as DVC's own queue does, but a copy of ours: the
workspace is never touched, cells that share work come one after another, and nothing is left
running. Copies and logs lie in .dvc/tmp/grid. docs/grids.md has the reasons and the numbers.
"""

import argparse
import fcntl
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from instant_soup.files import UserError, project_root, read_yaml, run_stage
from instant_soup.grid import Cell, Identity, change, known_results, lanes_of, read_cells
from instant_soup.ledger import merge_ledger, read_results

PREPARED = "attach_head"  # the stage below which lie data and base model, which all lanes share
DENSE = "dense_finetune"  # the stage that lanes with other settings of ISP share
PATIENCE = 60.0  # seconds in which a stage ends its step and keeps a checkpoint
STAGE = re.compile(r"Running stage '([^']+)'")
OWN_ERROR = re.compile(r"(error|[\w.]*(Error|Exception)):")  # of a stage; DVC's begin with ERROR


def graphics_cards() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    cards = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(cards))]


def slots_of(jobs: int) -> queue.Queue[str]:
    """What each of `jobs` at a time may use: its share of the GPUs; "" where there are none.

    With more jobs than GPUs several take the same one.
    """
    cards, slots = graphics_cards(), queue.Queue[str]()
    for job in range(jobs):
        own = cards[job::jobs] or cards[job % len(cards) :][:1] if cards else []
        slots.put(",".join(own))
    return slots


class Stopped(Exception):
    """The grid was interrupted: no cell starts or goes on."""


class Runner:
    """Runs lanes in copies of the repository; what it does arrives in `events`."""

    def __init__(self, root: Path, jobs: int) -> None:
        self.root = root
        self.copies, self.logs = root / ".dvc/tmp/grid/copies", root / ".dvc/tmp/grid/logs"
        # One state of code and settings for all cells, however long they take: the commit, with
        # what is changed in tracked files.
        self.head = git(root, "rev-parse", "HEAD")
        self.state = git(root, "stash", "create") or self.head
        self.params = (root / "params.yaml").read_text()
        self.cache = dvc(root, "cache", "dir").splitlines()[-1]
        self.environment = environment(root, jobs)
        self.events: queue.Queue[tuple[Cell, str, str]] = queue.Queue()
        self.processes: set[subprocess.Popen] = set()
        self.prepared: set[str] = set()  # lanes
        self.dense: dict[Identity, threading.Lock] = {}  # of each dense run
        self.slots, self.cards = slots_of(jobs), dict[str, str]()  # lane → its GPUs
        self.stopped = False
        self.starting, self.preparing, self.collecting = (threading.Lock() for _ in range(3))

    def run_lane(self, lane: list[Cell]) -> None:
        """Run cells one after another in one copy; a failed one does not hold up the next."""
        copy = self.copies / lane[0].lane
        self.cards[lane[0].lane] = cards = self.slots.get()
        for cell in lane:
            if self.stopped:
                break
            self.logs.mkdir(parents=True, exist_ok=True)
            self.log(cell).write_text("")
            self.events.put((cell, "running", ""))
            try:
                self.run_cell(copy, cell)
                self.events.put((cell, "done", ""))
            except Stopped:
                break
            except Exception as error:  # a thread's traceback would show at the very end only
                reason = str(error) if isinstance(error, UserError) else repr(error)
                self.events.put((cell, "failed", " ".join(reason.split())))
        self.slots.put(cards)
        shutil.rmtree(copy, ignore_errors=True)
        self.lock(copy).unlink(missing_ok=True)

    def run_cell(self, copy: Path, cell: Cell) -> None:
        """Run one cell; then it is an experiment, and in the ledger."""
        with open(self.log(cell), "a") as log:
            if not copy.exists():
                self.make_copy(copy)
            write_params(copy / "params.yaml", self.params, cell)
            self.prepare(cell, lambda stage: self.dvc(copy, cell, log, "repro", stage))
            self.dvc(copy, cell, log, "repro")
        with self.collecting:
            self.save_experiment(copy, cell)
            results = read_results(copy / "reports/results", cell.methods)
            merge_ledger(self.root / "reports/results.csv", results, self.head[:12])

    def prepare(self, cell: Cell, make: Callable[[str], Any]) -> None:
        """Make what lanes share, one lane at a time: nothing is made twice."""
        if cell.lane in self.prepared:
            return
        with self.preparing:
            make(PREPARED)
        with self.dense.setdefault(cell.dense, threading.Lock()):
            make(DENSE)
        self.prepared.add(cell.lane)

    def save_experiment(self, copy: Path, cell: Cell) -> None:
        """Make a copy's state an experiment, in place of one with its name and commit.

        As `dvc exp save` does, which also commits a temporary file of its own (DVC 3.67).
        """
        git(copy, "add", "--all")
        tree = git(copy, "write-tree")
        commit = git(copy, "commit-tree", tree, "-p", self.head, "-m", f"grid: {cell.name}")
        ref = f"refs/exps/{self.head[:2]}/{self.head[2:]}/{cell.name}"
        git(copy, "update-ref", ref, commit)
        quiet = ("--quiet", "--no-tags", "--no-write-fetch-head")
        git(self.root, "fetch", *quiet, str(copy), f"+{ref}:{ref}")

    def make_copy(self, copy: Path) -> None:
        """A clone of the repository in the runner's state, which shares its cache."""
        unfinished = copy.with_name(f"{copy.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        git(self.root, "clone", "-q", "--shared", "--no-checkout", ".", str(unfinished))
        git(unfinished, "checkout", "-q", "--detach", self.head)
        git(unfinished, "read-tree", "--reset", "-u", self.state)
        for key in ("user.name", "user.email"):  # of the commits; a clone lacks them
            if value := git(self.root, "config", "--default", "", key):
                git(unfinished, "config", key, value)
        local = self.root / ".dvc/config.local"
        if local.exists():
            shutil.copyfile(local, unfinished / ".dvc/config.local")
        dvc(unfinished, "cache", "dir", "--local", self.cache)
        unfinished.replace(copy)

    def dvc(self, copy: Path, cell: Cell, log: TextIO, *arguments: str) -> None:
        """Run DVC in a copy, its output to the log; UserError with the log's error if it fails."""
        # DVC_ROOT: where stages keep checkpoints, find relative paths and leave records for MLflow.
        # Its own caches go with the copy.
        own = {"DVC_ROOT": str(self.root), "DVC_EXP_NAME": cell.name}
        own["DVC_SITE_CACHE_DIR"] = str(copy / ".dvc/tmp/site")
        if cards := self.cards.get(cell.lane):
            own["CUDA_VISIBLE_DEVICES"] = cards
        with open(self.lock(copy), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self.starting:
                if self.stopped:
                    raise Stopped
                process = subprocess.Popen(
                    [sys.executable, "-m", "dvc", *arguments],
                    cwd=copy,
                    env={**self.environment, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C comes from us, and in time
                    pass_fds=[lock.fileno()],  # DVC holds the lock even when we are gone
                )
                self.processes.add(process)
            lock.write(str(process.pid))
        status = process.wait()
        self.processes.discard(process)
        if self.stopped:
            raise Stopped
        if status:
            raise UserError(last_error(Path(log.name)))

    def stop(self) -> None:
        """Let nothing start any more and end what runs: stages keep a checkpoint."""
        with self.starting:
            self.stopped = True
            running = list(self.processes)
        end_groups(
            [process.pid for process in running],
            lambda: all(process.poll() is not None for process in running),
        )

    def lock(self, copy: Path) -> Path:
        """What a DVC at work in a copy holds locked; its process id is in it."""
        return copy.with_name(f"{copy.name}.lock")

    def log(self, cell: Cell) -> Path:
        """Where a cell's output goes."""
        return self.logs / f"{cell.name}.log"


def git(folder: Path, *arguments: str) -> str:
    """A Git command's output; UserError with its message if it fails."""
    return _output(["git", *arguments], folder)


def dvc(folder: Path, *arguments: str) -> str:
    """The output of a DVC command that runs no stage; UserError with its message if it fails."""
    return _output([sys.executable, "-m", "dvc", *arguments], folder)


def _output(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        message = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise UserError(f"{' '.join(command[-4:])}: {message}")
    return done.stdout.strip()


def environment(root: Path, jobs: int) -> dict[str, str]:
    """The environment of all cells: this Python, no outer DVC, the cores shared between jobs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    folders = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    threads = max(1, (os.cpu_count() or 1) // jobs)
    shared = {"OMP_NUM_THREADS": str(threads)} if jobs > 1 else {}
    return {**shared, **kept, "PATH": folders}


def write_params(path: Path, text: str, cell: Cell) -> None:
    """Write params.yaml's `text` with a cell's changes; comments stay."""
    from dvc.utils.serialize import modify_yaml

    path.write_text(text)
    with modify_yaml(str(path)) as params:
        change(params, cell.changes)


def last_error(log: Path) -> str:
    """The line of a log that says best why DVC failed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if OWN_ERROR.match(line)]
    general = [line for line in lines if line.startswith("ERROR:")]
    return (own or general or lines or ["no output"])[-1]


def end_groups(leaders: list[int], ended: Callable[[], bool]) -> None:
    """Interrupt process groups; kill what has not ended after PATIENCE or another Ctrl-C."""
    for leader in leaders:
        send(leader, signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    try:
        while not ended() and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for leader in leaders:
            send(leader, signal.SIGKILL)


def send(leader: int, number: int) -> None:
    """Send a signal to a process group, if there still is one."""
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


def try_lock(file: TextIO) -> bool:
    """Lock a file, or say that another process holds it locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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


def end_leftover(path: Path) -> None:
    """End the DVC that holds a copy's lock, if one does."""
    with open(path) as lock:
        if not try_lock(lock):
            print(f"{path.stem}: a killed call left it running; it is stopped", flush=True)
            if leader := lock.read():
                end_groups([int(leader)], lambda: try_lock(lock))
            fcntl.flock(lock, fcntl.LOCK_EX)


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
        end = f"{state} {cell.name} in {span(self.seconds[-1])}"
        self.line(f"{count}: {end}{f': {reason}' if reason else ''}; {self.left()}")

    def left(self) -> str:
        """The time left, were all cells as long as those so far."""
        left = len(self.todo) - len(self.seconds)
        mean = sum(self.seconds) / len(self.seconds)
        return f"about {span(mean * left / self.at_once)} left" if left else "none left"

    def refresh(self) -> None:
        """Show which stage each cell is at."""
        if not self.console.is_terminal:
            return
        for cell, bar, _ in self.running.values():
            stages = STAGE.findall(self.runner.log(cell).read_text(errors="replace"))
            self.bars.update(bar, description=f"{cell.name} {stages[-1] if stages else ''}")

    def line(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        self.console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False)


def span(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
            runner.stop()
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


def take_signals() -> None:
    """Let what ends us do so in good order.

    A handler of ours also undoes what a shell's background job inherits: that it and all it starts
    ignore Ctrl-C. Under nohup SIGHUP stays ignored.
    """
    hang_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    for number in (signal.SIGINT, signal.SIGTERM, *hang_up):
        signal.signal(number, signal.default_int_handler)


def runner_of(root: Path, options: argparse.Namespace, lanes: int) -> tuple[Runner, int]:
    """What runs the cells, here or on a Ray cluster, and how many lanes at a time."""
    if not options.ray or not lanes:
        jobs = options.jobs or 1
        return Runner(root, jobs), jobs
    from instant_soup.ray_grid import RayRunner

    jobs = options.jobs or lanes
    return RayRunner(
        root, jobs, options.ray, options.remote, options.cpus or 1, options.gpus or 0
    ), jobs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m instant_soup.run_grid", description=__doc__)
    parser.add_argument("grid", type=Path, help="a YAML file, as grids/quick.yaml")
    parser.add_argument("--jobs", type=int, help="lanes side by side (default 1; with --ray all)")
    parser.add_argument("--only", default="", help="only cells with this in their names")
    parser.add_argument("--again", action="store_true", help="also cells that have results")
    parser.add_argument("--dry-run", action="store_true", help="only list the cells")
    ray = parser.add_argument_group("on many machines (docs/grids.md)")
    ray.add_argument("--ray", metavar="ADDRESS", help="run cells on this Ray cluster (auto, …)")
    ray.add_argument("--remote", help="a folder that all nodes see, or a DVC remote's URL or name")
    ray.add_argument("--cpus", type=float, help="that a cell takes of a node (default 1)")
    ray.add_argument("--gpus", type=float, help="that a cell takes of a node (default 0)")
    options = parser.parse_args()
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs: {options.jobs} is not allowed; allowed: a whole number from 1")
    if options.ray and not options.remote:
        raise UserError(
            "--remote: missing; allowed with --ray: a folder, a DVC remote's URL or name"
        )
    for name in ("remote", "cpus", "gpus"):
        if getattr(options, name) is not None and not options.ray:
            raise UserError(f"--{name}: only with --ray")

    root = project_root().resolve()
    cells = read_cells(options.grid, read_yaml(root / "params.yaml"))
    chosen = [cell for cell in cells if options.only in cell.name]
    if not chosen:
        raise UserError(f"--only: no cell has {options.only!r} in its name, as {cells[0].name} has")
    known = set() if options.again else known_results(root)
    todo = [cell for cell in chosen if not cell.results <= known]
    if options.dry_run:
        for cell in chosen:
            print(f"{'to do' if cell in todo else 'done '}  {cell.name}")
    print(f"{options.grid}: {len(chosen)} cells, {len(todo)} to do", flush=True)
    if options.dry_run:
        return

    take_signals()
    failed: list[tuple[Cell, str]] = []
    try:
        with only_grid(root):
            runner, jobs = runner_of(root, options, len(lanes_of(todo)))
            take_signals()  # Ray has taken SIGTERM for itself
            failed = run_all(runner, todo, jobs) if todo else []
            runner.logs.mkdir(parents=True, exist_ok=True)
            trouble = make_tables(root, runner.logs / "tables.log")
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    for cell, reason in failed:
        print(f"failed: {cell.name}: {reason} (log: {runner.log(cell)})", file=sys.stderr)
    if trouble:
        print(trouble, file=sys.stderr)
    if failed or trouble:
        sys.exit(1)
    print("all cells done; tables: reports/tables/results.md")


if __name__ == "__main__":
    run_stage(main)
