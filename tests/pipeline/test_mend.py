"""What a killed DVC leaves: cleared away, and nothing else is."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from instant_soup.pipeline.mend import BUSY, DAMAGED, LOCK, OF_BUSY, OF_LOCK, mend

LOCK_TEXT = "schema: '2.0'\nstages:\n  plan:\n    cmd: python stages/plan.py\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / BUSY.parent).mkdir(parents=True)
    return tmp_path


def busy_of(number: int) -> str:
    """DVC's list, with one process that writes."""
    return json.dumps({"write": {"/x": {"pid": number, "cmd": "dvc repro"}}, "read": {}})


@pytest.mark.parametrize(
    "text",
    [
        "",  # as `kill -9` leaves it
        '{"write": {"/x": {"pi',
        "[]",
        '{"read": {"/x": [3]}}',
        busy_of(2**22 + 1),  # of no process
        busy_of(os.getpid()),  # of one that is no DVC: the number was given anew
    ],
    ids=["empty", "cut off", "a list", "numbers", "no process", "no DVC"],
)
def test_a_damaged_or_dead_list_is_removed(root: Path, text: str) -> None:
    (root / BUSY).write_text(text)
    (said,) = mend(root)
    assert said.startswith(".dvc/tmp/rwlock: ")
    assert not (root / BUSY).exists()


def test_a_list_of_a_running_dvc_stays(root: Path) -> None:
    own = [sys.executable, "-c", "import sys; sys.stdin.read()", "dvc", "repro"]
    with subprocess.Popen(own, stdin=subprocess.PIPE) as running:
        (root / BUSY).write_text(busy_of(running.pid))
        assert mend(root) == []
        assert running.stdin is not None
        running.stdin.close()
    for text in ("{}", '{"write": {}, "read": {}}'):
        (root / BUSY).write_text(text)
        assert mend(root) == [] and (root / BUSY).exists()


def test_what_a_dvc_is_writing_stays(root: Path) -> None:
    (root / BUSY).write_text("")
    (root / LOCK).write_text("")
    with open(root / OF_BUSY, "w") as busy, open(root / OF_LOCK, "w") as lock:
        fcntl.flock(busy, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert mend(root) == [] and (root / BUSY).exists() and (root / LOCK).exists()
    assert len(mend(root)) == 2


@pytest.mark.parametrize(
    "text", ["", "stages:\n  plan:\n    cmd: 'pyth", "stages:\n  plan:\n", "3"]
)
def test_a_damaged_lock_is_put_aside(root: Path, text: str) -> None:
    (root / LOCK).write_text(text)
    (said,) = mend(root)
    assert said.startswith("dvc.lock: damaged by") and (root / DAMAGED).read_text() == text
    assert not (root / LOCK).exists()


def test_a_whole_lock_stays(root: Path) -> None:
    assert mend(root) == [] and mend(root / "never run") == []
    (root / LOCK).write_text(LOCK_TEXT)
    assert mend(root) == [] and (root / LOCK).read_text() == LOCK_TEXT
