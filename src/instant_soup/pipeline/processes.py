"""Processes side by side: commands, their environment, GPUs and signals."""

import argparse
import errno
import fcntl
import math
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from instant_soup.errors import UserError

STORE_LIMIT = "INSTANT_SOUP_STORE_GB"  # what the pipeline's store may hold; 20 where it is not set
PATIENCE = 60.0  # seconds in which a stage ends its step and keeps a checkpoint
# What a machine lacks or forbids, whatever the code does.
WANTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE),
    *(errno.ENFILE, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EAGAIN),
)
OF_LIBRARIES = re.compile(r"\(os error (\d+)\)")  # how those written in Rust tell of one
OWN_ERROR = re.compile(r"(error|[\w.]*(Error|Exception)):")  # of a stage; DVC's begin with ERROR


def store_limit() -> float:
    """How many bytes the pipeline's store may hold.

    Raises:
        UserError: If the environment says something else than a number.
    """
    said = os.environ.get(STORE_LIMIT, "20")
    try:
        limit = 1e9 * float(said)
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        raise UserError(f"{STORE_LIMIT}: {said!r} is not allowed; allowed: a number at least 0")
    return limit


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
    """What each of `jobs` processes may use: its share of the GPUs; "" if there are none.

    If there are more jobs than GPUs, several use the same one.
    """
    cards, slots = graphics_cards(), queue.Queue[str]()
    for job in range(jobs):
        own = cards[job::jobs] or cards[job % len(cards) :][:1] if cards else []
        slots.put(",".join(own))
    return slots


def git(folder: Path, *arguments: str, **variables: str) -> str:
    """Run a Git command, and return its output.

    Raises:
        UserError: If it fails; with its message.
    """
    return _output(["git", *arguments], folder, variables)


def dvc(folder: Path, *arguments: str) -> str:
    """Run a DVC command that runs no stage, and return its output.

    Raises:
        UserError: If it fails; with its message.
    """
    return _output([sys.executable, "-m", "dvc", *arguments], folder, {})


def _output(command: list[str], folder: Path, variables: dict[str, str]) -> str:
    own = {**os.environ, **variables}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=own)
    if done.returncode:
        message = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise UserError(f"{' '.join(command[-4:])}: {message}")
    return done.stdout.strip()


def environment(root: Path, jobs: int) -> dict[str, str]:
    """The environment of jobs side by side: this Python, no outer DVC, each its share of cores."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    folders = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    threads = max(1, (os.cpu_count() or 1) // jobs)
    shared = {"OMP_NUM_THREADS": str(threads)} if jobs > 1 else {}
    return {**shared, **kept, "PATH": folders}


def last_error(log: Path) -> str:
    """The line of a log that says best why DVC failed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if OWN_ERROR.match(line)]
    general = [line for line in lines if line.startswith("ERROR:")]
    return (own or general or lines or ["no output"])[-1]


def take_signals() -> None:
    """Let signals that end this process do so in good order.

    A handler of our own also undoes what a shell's background job inherits, namely that it and all
    it starts ignore Ctrl-C. Under nohup SIGHUP stays ignored.
    """
    hang_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    for number in (signal.SIGINT, signal.SIGTERM, *hang_up):
        signal.signal(number, signal.default_int_handler)


class Stopped(Exception):
    """An end has come: nothing starts or goes on."""


class Processes:
    """Processes, each a group of its own, so that an end of ours can end them all."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen] = []
        self.stopped = False
        self.starting = threading.Lock()

    def start(self, command: list[str], **how: Any) -> subprocess.Popen:
        """Start a process.

        Args:
            command: The program and its arguments.
            how: More for `subprocess.Popen`.

        Raises:
            Stopped: After `stop`.
        """
        with self.starting:  # so that no end comes before the new process is known
            self.check()
            process = subprocess.Popen(command, start_new_session=True, **how)
            self.running = [*(one for one in self.running if one.poll() is None), process]
        return process

    def check(self) -> None:
        """Raise `Stopped` after `stop`."""
        if self.stopped:
            raise Stopped

    def stop(self) -> None:
        """Let nothing start any more, and end what runs: stages keep a checkpoint."""
        with self.starting:
            self.stopped = True
        left = [process for process in self.running if process.poll() is None]
        end_groups(
            [process.pid for process in left],
            lambda: all(process.poll() is not None for process in left),
        )


def end_groups(leaders: list[int], ended: Callable[[], bool]) -> None:
    """Interrupt process groups; kill what has not ended after PATIENCE or another Ctrl-C."""
    for leader in leaders:
        send_signal(leader, signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    try:
        while not ended() and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for leader in leaders:
            send_signal(leader, signal.SIGKILL)


def send_signal(leader: int, number: int) -> None:
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


def end_leftover(path: Path) -> None:
    """End the DVC that holds a copy's lock, if one does."""
    with open(path) as lock:
        if not try_lock(lock):
            print(f"{path.stem}: a killed call left it running; it is stopped", flush=True)
            if leader := lock.read():
                end_groups([int(leader)], lambda: try_lock(lock))
            fcntl.flock(lock, fcntl.LOCK_EX)


def duration(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def want_of(error: Exception) -> str:
    """What the machine lacks or forbids, behind an error, in one line; "" for any other error."""
    text = " ".join(str(error).split())[:300]
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "allocate memory" in text:
        return f"out of memory ({text or kind}): a smaller training.batch_size takes less"
    told = OF_LIBRARIES.search(text)
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    return text if number in WANTS else ""


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage script's `main`: a user's mistake is one line, and Ctrl-C a hint.

    Standard input is closed, so that no library that a stage uses waits for an answer. --help does
    not run a script that reads no arguments.
    """
    script = sys.modules["__main__"]
    if {"-h", "--help"} & {*sys.argv[1:]} and not hasattr(script, "argparse"):
        argparse.ArgumentParser(description=script.__doc__).parse_args()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: `dvc repro` continues from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if want := want_of(error):
            sys.exit(f"error: {want}")
        raise
