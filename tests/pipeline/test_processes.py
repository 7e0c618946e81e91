"""How a stage's script runs, and ends: what the machine lacks is one line."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import ROOT
from instant_soup.errors import UserError
from instant_soup.pipeline.processes import Processes, Stopped, run_stage, want_of

SCRIPT = """
import os, sys
from instant_soup.pipeline.processes import run_stage
run_stage(lambda: print(repr(sys.stdin.read()), os.read(0, 9)))
"""


def test_a_stage_gets_no_answer_from_standard_input() -> None:
    """As one to the question whether a checkpoint's own code shall run."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input="y\n",
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "'' b''\n", done.stderr


def failing(error: BaseException) -> Any:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("params.yaml: no"), "error: params.yaml: no"),
        (OSError(errno.ENOSPC, "No space left on device", "models/x"), "No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "models/x"), "'models/x'"),
        (
            PermissionError(errno.EACCES, "Permission denied", "models"),
            "Permission denied: 'models'",
        ),
        (OSError(errno.EROFS, "Read-only file system", "models"), "Read-only file system"),
        (MemoryError(), "error: out of memory (MemoryError): a smaller training.batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "(CUDA out of memory. Tried): a"),
    ],
)
def test_wants_of_the_machine_are_one_line(error: Exception, said: str) -> None:
    with pytest.raises(SystemExit) as end:
        run_stage(failing(error))
    text = str(end.value.code)
    assert text.startswith("error: ") and said in text and "\n" not in text


def test_faults_of_the_code_are_told_whole() -> None:
    for error in (KeyError("a"), RuntimeError("shapes"), FileNotFoundError(errno.ENOENT, "no")):
        with pytest.raises(type(error)):
            run_stage(failing(error))


LITTLE = """
import resource
from pathlib import Path
import numpy, torch
from safetensors.torch import save_file
from instant_soup.pipeline.processes import run_stage
resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for statement in (
    lambda: torch.zeros(2**40),
    lambda: numpy.zeros(2**50),
    lambda: save_file({"w": torch.zeros(1000)}, "x.safetensors"),
    lambda: Path("x").write_bytes(bytes(4000)),
):
    try:
        run_stage(statement)
    except SystemExit as end:
        print(end)
"""


def test_wants_that_libraries_tell_in_their_own_ways(tmp_path: Path) -> None:
    """In a process that may have little memory, and write little."""
    done = subprocess.run(
        [sys.executable, "-c", LITTLE],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.stderr == ""
    of_torch, of_numpy, of_safetensors, of_python = done.stdout.splitlines()
    for line in (of_torch, of_numpy):
        assert line.startswith("error: out of memory (") and "allocate" in line
    for line in (of_safetensors, of_python):
        assert line.startswith("error: ") and "File too large" in line


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        (tmp_path / "file" / "below").mkdir()
    assert want_of(caught.value) == ""  # not a want of the machine


def test_after_an_end_nothing_starts() -> None:
    processes = Processes()
    processes.stop()
    with pytest.raises(Stopped):
        processes.start(["true"])


def test_only_what_runs_is_kept_in_mind() -> None:
    """A long grid starts thousands of commands."""
    processes = Processes()
    processes.start(["true"]).wait()
    last = processes.start(["sleep", "60"])
    assert processes.running == [last]
    processes.stop()
    assert last.returncode == -signal.SIGINT
