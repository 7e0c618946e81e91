"""Scripts run by a warm server: as if each had a process of its own, without its imports."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from instant_soup.pipeline import warm_start

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or any(Path(driver).exists() for driver in warm_start.GPU_DRIVERS),
    reason="scripts start cold here",
)
COMMAND = [sys.executable, "-m", "instant_soup.pipeline.warm_start"]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """An environment that has a server of its own, up and running."""
    own = {**os.environ, "ONLY_OF_THIS_TEST": f"{os.getpid()}-{time.time()}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONLY_OF_THIS_TEST", own["ONLY_OF_THIS_TEST"])
        warm_start.start_server()
        server = await_server()
        folder = warm_start.address()
    yield own
    os.kill(server, signal.SIGKILL)
    shutil.rmtree(folder)


@contextlib.contextmanager
def connected() -> Iterator[socket.socket]:
    """A connection to this environment's server."""
    with (
        warm_start.private(warm_start.address()) as folder,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        connection.settimeout(30)
        connection.connect(warm_start.socket_in(folder))
        yield connection


def await_server() -> int:
    """The process number of this environment's server, as soon as it answers."""
    for _ in range(600):
        with contextlib.suppress(OSError), connected() as connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4)
            return int.from_bytes(credentials, sys.byteorder)
        time.sleep(0.1)
    raise AssertionError("no server")


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], list[str]]:
    """Write a script's text; the command that runs it warm."""

    def write(text: str) -> list[str]:
        (tmp_path / "script.py").write_text(text)
        return [*COMMAND, str(tmp_path / "script.py")]

    return write


REPORT = """
import json, os, sys
json.dump({
    "argv": sys.argv[1:], "folder": os.getcwd(), "variable": os.environ.get("DVC_STAGE"),
    "beside": __import__("beside").answer, "name": __name__, "input": sys.stdin.read(),
    "torch": "torch" in sys.modules, "own": any(n.startswith("instant_soup.") and n not in (
        "instant_soup.models", "instant_soup.models.torchvision_cpu", "instant_soup.pipeline",
        "instant_soup.pipeline.warm_start") for n in sys.modules),
}, sys.stdout)
print("a warning", file=sys.stderr)
"""


def test_a_script_sees_what_its_command_has_and_only_libraries_of_the_server(
    environment: dict[str, str], script: Callable[[str], list[str]], tmp_path: Path
) -> None:
    command = [*script(REPORT), "--round", "3"]
    for answer in (1, 2):  # code beside the script is read anew
        (tmp_path / "beside.py").write_text(
            f"answer = {answer}  # of {answer} lines" + "\n" * answer
        )
        done = subprocess.run(
            command, input="asked", capture_output=True, text=True, cwd=tmp_path,
            env={**environment, "DVC_STAGE": f"stage {answer}"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "a warning\n")
        assert json.loads(done.stdout) == {
            "argv": ["--round", "3"], "folder": str(tmp_path), "variable": f"stage {answer}",
            "beside": answer, "name": "__main__", "input": "asked", "torch": True, "own": False,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ("", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('error: data.path: no such folder')", 1, "no such folder\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            -signal.SIGKILL,
            "error: killed from outside: out of memory, perhaps\n",
        ),
        ("import atexit; atexit.register(print, 'an end')", 0, ""),
    ],
)
def test_a_command_ends_as_its_script_does(
    environment: dict[str, str],
    script: Callable[[str], list[str]],
    text: str,
    status: int,
    error: str,
) -> None:
    done = subprocess.run(script(text), capture_output=True, text=True, env=environment)
    assert done.returncode == status
    assert done.stderr.endswith(error) and bool(done.stderr) == bool(error)
    assert done.stdout == ("an end\n" if "atexit" in text else "")


WAITING = """
import os, time
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("kept a checkpoint", flush=True)
    raise SystemExit(130)
"""


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (signal.SIGINT, 130, "kept a checkpoint\n"),
        (signal.SIGTERM, -signal.SIGTERM, ""),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_signals_to_the_command_reach_the_script(
    environment: dict[str, str],
    script: Callable[[str], list[str]],
    sent: signal.Signals,
    status: int,
    said: str,
) -> None:
    with subprocess.Popen(
        script(WAITING), stdout=subprocess.PIPE, text=True, env=environment
    ) as command:
        assert command.stdout is not None
        fork = int(command.stdout.readline())
        assert fork != command.pid
        command.send_signal(sent)
        # To its end: the fork holds the other end of the pipe, so it is gone, too.
        assert command.stdout.read() == said
        assert command.wait(timeout=10) == status


def test_a_signal_before_the_fork_is_known_reaches_it(
    script: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_OF_THIS_TEST", f"late-{os.getpid()}-{time.time()}")
    os.mkdir(warm_start.address(), 0o700)
    with (
        warm_start.private(warm_start.address()) as folder,
        socket.socket(socket.AF_UNIX) as server,
        subprocess.Popen(["sleep", "60"]) as fork,
    ):
        server.bind(warm_start.socket_in(folder))
        server.listen()
        server.settimeout(30)
        # Else it would have what C libraries have put into this process's environment, too.
        with subprocess.Popen(script(""), env={**os.environ}) as command:
            connection, _ = server.accept()
            with connection:
                for stream in socket.recv_fds(connection, 1, 3)[1]:
                    os.close(stream)
                command.send_signal(signal.SIGINT)
                connection.sendall(f"{fork.pid}\n".encode())
                assert fork.wait(timeout=10) == -signal.SIGINT
                connection.sendall(b"130\n")
                assert command.wait(timeout=10) == 130
    shutil.rmtree(warm_start.address())


def test_another_environment_or_job_has_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    here = warm_start.address()
    monkeypatch.setenv("DVC_STAGE", "weak_mask@1")
    assert warm_start.address() == here
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    assert warm_start.address() != here
    monkeypatch.undo()
    monkeypatch.setattr(os, "getpgrp", lambda: 1)
    assert warm_start.address() != here


def test_copies_of_the_sources_share_a_server_and_other_libraries_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{warm_start.SOURCES}{os.pathsep}/libraries")
    here = warm_start.address()
    monkeypatch.setattr(warm_start, "SOURCES", "/copy/src")
    monkeypatch.setenv("PYTHONPATH", f"/copy/src{os.pathsep}/libraries")
    assert warm_start.address() == here
    monkeypatch.setenv("PYTHONPATH", f"/copy/src{os.pathsep}/others")
    assert warm_start.address() != here


def test_a_command_of_a_copy_runs_the_copys_own_sources(
    environment: dict[str, str], script: Callable[[str], list[str]], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(Path(warm_start.SOURCES) / "instant_soup", copy / "instant_soup")
    with open(copy / "instant_soup/seeds.py", "a") as file:
        file.write("EDITED = True\n")
    others = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    paths = [str(copy), *(p for p in others if p != warm_start.SOURCES)]
    done = subprocess.run(
        script("import sys; from instant_soup.seeds import EDITED; print('torch' in sys.modules)"),
        capture_output=True, text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr


def test_what_a_program_calls_one_job_has_one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm_start.JOB, "a grid")
    here = warm_start.address()
    monkeypatch.setattr(os, "getpgrp", lambda: 1)
    monkeypatch.setattr(os, "getsid", lambda _: 1)
    assert warm_start.address() == here
    monkeypatch.setenv(warm_start.JOB, "another grid")
    assert warm_start.address() != here


# Who is served


CONFINED = {
    "umask": "umask 077; exec",
    "limits": "ulimit -n 100; exec",
    "priority": "exec nice -n 1",
    "no_new_privs": "exec setpriv --no-new-privs",
    "capabilities": "exec setpriv --bounding-set -all --inh-caps -all",
    "namespaces": "exec unshare --user --map-root-user",
    "groups": "exec setpriv --groups 4711",
}


@pytest.mark.parametrize("kind", CONFINED)
def test_a_command_that_stands_otherwise_is_not_served(
    environment: dict[str, str],
    script: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Not even where it knows the address of a server, and does not care how that stands."""
    confined = ["bash", "-c", f'{CONFINED[kind]} "$@"', "bash"]
    if subprocess.run([*confined, "true"], capture_output=True).returncode:
        pytest.skip("not allowed here")
    monkeypatch.setenv("ONLY_OF_THIS_TEST", environment["ONLY_OF_THIS_TEST"])
    named = f"warm_start.address = lambda: {warm_start.address()!r}"
    asked = "print(warm_start.ask_server())"
    alike = "warm_start.stands_alike = lambda other: True"
    ask = f"from instant_soup.pipeline import warm_start; {named}; {alike}; {asked}"
    for words, expected in ((confined, "None\n"), (["bash", "-c", '"$@"', "bash"], "(")):
        done = subprocess.run(
            [*words, sys.executable, "-c", ask], capture_output=True, text=True, env=environment
        )
        assert done.stdout.startswith(expected), done.stderr


def test_a_command_that_says_nothing_keeps_nobody_waiting(
    environment: dict[str, str],
    script: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONLY_OF_THIS_TEST", environment["ONLY_OF_THIS_TEST"])
    with connected(), connected():
        started = time.monotonic()
        done = subprocess.run(
            script("import sys; print('torch' in sys.modules)"),
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
        assert done.stdout == "True\n"
        assert time.monotonic() - started < warm_start.SILENCE / 2


def test_a_script_that_nobody_waits_for_is_not_begun(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_OF_THIS_TEST", environment["ONLY_OF_THIS_TEST"])
    (tmp_path / "script.py").write_text("open('begun', 'w')")
    here = {"argv": ["script.py"], "path": [], "folder": str(tmp_path), "environment": {}}
    with connected() as connection:
        socket.send_fds(connection, [b"\0"], [0, 1, 2])
        connection.sendall(json.dumps(here).encode() + b"\n")
        fork = int(connection.recv(100))
    for _ in range(100):
        if not Path(f"/proc/{fork}").exists():
            break
        time.sleep(0.1)
    assert not (tmp_path / "begun").exists()


def test_a_folder_of_others_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "served"
    folder.mkdir(mode=0o755)
    with pytest.raises(PermissionError), warm_start.private(str(folder)):
        pass
    folder.chmod(0o700)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(OSError), warm_start.private(str(tmp_path / "link")):
        pass
    with warm_start.private(str(folder)):
        monkeypatch.setattr(os, "getuid", lambda: 4711)
        with pytest.raises(PermissionError), warm_start.private(str(folder)):
            pass


def test_one_setting_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(warm_start.SETTING, raising=False)
    assert warm_start.is_wanted()
    for value in ("0", "off", "No"):
        monkeypatch.setenv(warm_start.SETTING, value)
        assert not warm_start.is_wanted()


# A command that runs on its own, for a time, beside the server that it leaves behind.
STARTER = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2], str(os.getpid())])
time.sleep(float(sys.argv[3]))
"""
SERVE = """
import time
from instant_soup.pipeline import warm_start
warm_start.IDLE = 1.5
warm_start.import_libraries = lambda: time.sleep(1)
warm_start.serve()
"""


@pytest.mark.parametrize(("lives", "least"), [(0.0, 2.0), (4.0, 4.5)])
def test_a_server_ends_when_its_command_and_a_while_are_over(
    lives: float, least: float, tmp_path: Path
) -> None:
    address = str(tmp_path / "served")
    command = [sys.executable, "-c", STARTER, SERVE, address, str(lives)]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        while not Path(address, "socket").exists():
            time.sleep(0.05)
        second = [sys.executable, "-c", SERVE, address, str(os.getpid())]
        assert subprocess.run(second, timeout=20).returncode == 0  # the address is taken
        first.communicate(timeout=20)  # the server has that pipe, too: to its end
    assert least < time.monotonic() - started < 20
    assert not Path(address).exists()


def test_without_a_server_a_script_runs_on_its_own(
    script: Callable[[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "beside.py").write_text("answer = 0")
    done = subprocess.run(
        script(REPORT), input="", capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "ANOTHER_OF_THIS_TEST": str(time.time())},
    )  # fmt: skip
    assert json.loads(done.stdout)["torch"] is False
