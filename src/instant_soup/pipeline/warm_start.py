"""Run a script in a process that has already imported torch and transformers.

    python -m instant_soup.pipeline.warm_start stages/calibrate.py --round 0

A run has dozens of stage processes, and each would spend four seconds on imports alone. So the
first of them leaves a server behind, which imports the libraries (none of our own code). For each
later stage the server forks. The fork runs the script with the arguments, environment, folder,
input and outputs of the command; the command passes signals on, and ends as the script does.

A server serves the commands of one job only, in one environment, and ends when none has run for
IDLE seconds. A job is that of a terminal (one `dvc repro`, say), or what a program that starts many
commands names by INSTANT_SOUP_JOB. If no server is ready, the script runs in the command's own
process. So it does on anything but Linux, and beside a GPU, whose runs are long and whose driver
does not survive a fork. INSTANT_SOUP_WARM_START=0 turns the server off everywhere.

A fork has its server's rights, limits and umask. So the server's socket lies in a folder of the
user's own, and each side asks the kernel who is at the other end. Only processes that are alike in
all of it (`standing`) serve each other. A command that is confined in any way has no server, or its
own.
"""

import atexit
import contextlib
import fcntl
import gc
import hashlib
import json
import os
import runpy
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # CUDA, ROCm, either in WSL
SETTING, OFF = "INSTANT_SOUP_WARM_START", ("0", "no", "off", "false")
JOB = "INSTANT_SOUP_JOB"  # any text: commands with the same one are of one job
IDLE = 20  # seconds without a command, after which a server ends
SILENCE = 10.0  # seconds that either side waits for the other's next word
SOURCES = str(Path(__file__).parents[2])
# Variables that differ from stage to stage, and that no library reads when it is imported.
IGNORED, IGNORED_PREFIXES = ("PWD", "OLDPWD", "SHLVL", "_"), ("DVC_", "GIT_", "MLFLOW_", "PYTEST_")
# Of /proc/PID/status: who a process is, what it may do, and what its files are made with.
STATUS = (
    *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"),
    *("Seccomp", "Seccomp_filters", "Speculation_Store_Bypass", "SpeculationIndirectBranch"),
    *("Cpus_allowed_list", "Mems_allowed_list", "Umask"),
)
PEER_PIDFD = 77  # SO_PEERPIDFD, of Linux 6.5, which Python has no name for
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    """Run the command."""
    script, *arguments = sys.argv[1:]
    # As `python SCRIPT ARGUMENTS` has them.
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    if is_wanted():
        received, former = hold_signals()  # until it is known who shall have them
        if fork := ask_server():
            sys.exit(status_of(*fork, received))
        for one, handler in former.items():
            signal.signal(one, handler)
        for number in received:
            os.kill(os.getpid(), number)
        start_server()
    runpy.run_path(script, run_name="__main__")


def is_wanted() -> bool:
    """Whether scripts start warm here."""
    if os.environ.get(SETTING, "").lower() in OFF:
        return False
    return sys.platform == "linux" and not any(Path(driver).exists() for driver in GPU_DRIVERS)


def address() -> str:
    """The folder with the socket of the server for commands like this one.

    Its name depends on what a fork has from its server, not from the command: the interpreter, what
    was read from the environment at imports, the job, and the process's `standing`. Our own sources
    are the command's, so the copies of a repository in which experiments run share a server.
    """
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in IGNORED and not name.startswith(IGNORED_PREFIXES)
    }
    paths = own.get("PYTHONPATH", "").split(os.pathsep)
    own["PYTHONPATH"] = os.pathsep.join(path for path in paths if path != SOURCES)
    job = os.environ.get(JOB) or [os.getpgrp(), os.getsid(0)]
    shared = json.dumps([sys.executable, sorted(own.items()), job, standing(os.getpid())])
    digest = hashlib.sha256(shared.encode()).hexdigest()[:24]
    return f"{tempfile.gettempdir()}/instant-soup-{os.getuid()}-{digest}"


def standing(number: int) -> list[str]:
    """A process's rights, namespaces, limits, priority and umask, for comparison.

    Raises:
        OSError: If it has ended, or this process may not look at it.
    """
    folder = Path(f"/proc/{number}")
    lines = (line.partition(":") for line in (folder / "status").read_text().splitlines())
    status = {name: value.strip() for name, _, value in lines}
    try:
        confined = (folder / "attr/current").read_text()  # by AppArmor or SELinux
    except OSError:
        confined = ""  # the kernel has neither
    return [
        *[status.get(name, "") for name in STATUS],
        *[os.readlink(space) for space in sorted((folder / "ns").iterdir())],
        *[(folder / name).read_text() for name in ("limits", "cgroup", "oom_score_adj")],
        os.readlink(folder / "root"),
        confined,
        str([os.getpriority(os.PRIO_PROCESS, number), os.sched_getscheduler(number)]),
    ]


def stands_alike(other: socket.socket) -> bool:
    """Whether the process at a socket's other end has what this one has, and no more or less."""
    size = struct.calcsize("3i")
    found = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    number, user, _ = struct.unpack("3i", found)
    if user != os.getuid():
        return False
    try:
        process = other.getsockopt(socket.SOL_SOCKET, PEER_PIDFD)
    except OSError:  # an older kernel
        process = os.pidfd_open(number)
    try:
        alike = standing(number) == standing(os.getpid())
        signal.pidfd_send_signal(process, 0)  # it lives, so the number was its own meanwhile
    except OSError:
        return False
    finally:
        os.close(process)
    return alike


@contextlib.contextmanager
def private(folder: str) -> Iterator[int]:
    """A descriptor of a folder; OSError where it is not this user's alone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError(folder)
        yield descriptor
    finally:
        os.close(descriptor)


def socket_in(folder: int) -> str:
    """The socket's name in an open folder: never too long for one, and in no other folder."""
    return f"/proc/self/fd/{folder}/socket"


def ask_server() -> tuple[int, IO[bytes]] | None:
    """Ask the server to run this process's script.

    The fork begins at this process's last word, so no script is run twice.

    Returns:
        The fork's process number, and its answers; None if no server that stands alike is ready, or
        it ends or says nothing.
    """
    here = {
        "argv": sys.argv,
        "path": sys.path,
        "folder": os.getcwd(),
        "environment": {**os.environ},
    }
    with (
        contextlib.suppress(OSError),
        private(address()) as folder,
        socket.socket(socket.AF_UNIX) as server,
    ):
        server.settimeout(SILENCE)
        server.connect(socket_in(folder))
        if stands_alike(server):
            socket.send_fds(server, [b"\0"], [0, 1, 2])
            server.sendall(json.dumps(here).encode() + b"\n")
            answers = server.makefile("rb")
            if number := answers.readline():
                server.sendall(b"begin\n")
                server.settimeout(None)
                return int(number), answers
    return None


def hold_signals() -> tuple[list[int], dict[signal.Signals, Any]]:
    """From now on, note the signals that would be passed on: their list, and former handlers."""
    received: list[int] = []
    former = {
        one: signal.signal(one, lambda number, _: received.append(number))
        for one in PASSED_ON
        if signal.getsignal(one) != signal.SIG_IGN
    }
    return received, former


def start_server() -> None:
    """Start a server in the background; it ends at once if another one has the address."""
    subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from instant_soup.pipeline import warm_start; warm_start.serve()",
            address(),
            str(os.getpid()),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the commands
    )


def status_of(number: int, answers: IO[bytes], received: list[int]) -> int:
    """Wait for the fork, and pass signals on to it.

    If the fork was killed, by a signal passed on or by the system, this process dies the same way.

    Args:
        number: The fork's process number.
        answers: What the fork says.
        received: Signals that came before.

    Returns:
        The fork's exit status.
    """
    passed_on = []

    def pass_on(sent: int, _: object) -> None:
        passed_on.append(sent)
        os.kill(number, sent)

    def pause(*_: object) -> None:
        os.kill(number, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(number, signal.SIGCONT)

    for one in PASSED_ON:
        if signal.getsignal(one) != signal.SIG_IGN:
            signal.signal(one, pass_on)
    signal.signal(signal.SIGTSTP, pause)
    for before in received:
        pass_on(before, None)
    if status := answers.readline():
        return int(status)
    last = passed_on[-1] if passed_on else signal.SIGKILL
    if passed_on:
        signal.signal(last, signal.SIG_DFL)
    else:
        print("error: killed from outside: out of memory, perhaps", file=sys.stderr, flush=True)
    os.kill(os.getpid(), last)
    return 128 + last


def serve() -> None:
    """Import what stages need, then fork for each command until none has come for a while.

    `sys.argv` has the server's address, and the process number of the command that started it.
    """
    address, starter = sys.argv[1], int(sys.argv[2])
    with contextlib.suppress(FileExistsError):
        os.mkdir(address, 0o700)
    with private(address) as folder, socket.socket(socket.AF_UNIX) as listening:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another one was first
        with contextlib.suppress(FileNotFoundError):
            os.unlink("socket", dir_fd=folder)  # of one that was killed
        listening.bind(socket_in(folder))
        try:
            sys.path[:] = map(os.path.abspath, sys.path)
            os.chdir("/")  # the command's folder may be removed
            import_libraries()
            listening.listen()  # until here, commands are refused and run on their own
            answer_commands(listening, folder, starter)
        finally:
            os.unlink("socket", dir_fd=folder)
            os.rmdir(address)


def answer_commands(listening: socket.socket, folder: int, starter: int) -> None:
    """Fork for each command that comes. The fork alone listens to it: none keeps others waiting."""
    listening.settimeout(1)
    running, busy = 0, time.monotonic()
    while time.monotonic() < busy + IDLE:
        with contextlib.suppress(TimeoutError):
            command, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                os.close(folder)  # with the lock on it
                run_forked(command)
            running += 1
            command.close()
        while running and os.waitpid(-1, os.WNOHANG)[0]:
            running -= 1
        if running or os.getppid() == starter:  # the first command, which runs on its own
            busy = time.monotonic()


def import_libraries() -> None:
    """Import what the stages import, by our own code, which is then forgotten.

    A fork imports our code again, from where its command has it.
    """
    import scipy.stats  # noqa: F401 - by the metrics, and so is scikit-learn
    import sklearn.metrics  # noqa: F401
    import torch._dynamo  # noqa: F401 - by the optimiser's first step

    from instant_soup.models import clip, hugging_face
    from instant_soup.pipeline import run  # noqa: F401

    clip.open_clip()
    hugging_face.transformers_auto()
    from transformers.models.bert import modeling_bert  # noqa: F401

    for name in [name for name in sys.modules if name.partition(".")[0] == "instant_soup"]:
        # It keeps what torch cannot be told twice.
        if name != "instant_soup.models.torchvision_cpu":
            del sys.modules[name]
    gc.collect()
    gc.freeze()  # so that a fork's collections leave the shared pages alone


def hear(command: socket.socket) -> tuple[dict[str, Any], list[int], IO[bytes]]:
    """What a command asks for, its streams, and its socket to read from; ends where it may not."""
    try:
        command.settimeout(SILENCE)
        if stands_alike(command):
            _, streams, _, _ = socket.recv_fds(command, 1, 3)
            asked = command.makefile("rb")
            here = json.loads(asked.readline())
            command.sendall(f"{os.getpid()}\n".encode())
            if asked.readline():
                command.settimeout(None)
                return here, streams, asked
    except (OSError, ValueError):
        pass
    os._exit(1)


def run_forked(command: socket.socket) -> NoReturn:
    """Run a command's script in this fork and tell the command how it ended."""
    here, streams, asked = hear(command)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server may have inherited none
    status = 1
    try:
        os.environ.clear()
        os.environ.update(here["environment"])
        os.chdir(here["folder"])
        sys.argv[:], sys.path[:] = here["argv"], here["path"]
        sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
        threading.Thread(target=end_with, args=(asked,), daemon=True).start()
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        status = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        leave(command, status)


def end_with(asked: IO[bytes]) -> None:
    """End this process when the command that it runs for is gone."""
    asked.read()  # nothing comes any more: it waits for the end
    os._exit(137)


def leave(command: socket.socket, status: int) -> NoReturn:
    """End this process as the interpreter would, but without taking all modules apart."""
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    with contextlib.suppress(OSError):
        command.sendall(f"{status}\n".encode())
    os._exit(status)


if __name__ == "__main__":
    main()
