"""Outputs on their way: a killed process leaves nothing where a stage would see it."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers import ROOT
from instant_soup.files import PREFIX, UNFINISHED, new_file, new_folder

KILLED = """
import os, signal, sys
from instant_soup import files
with getattr(files, sys.argv[1])(sys.argv[2]) as unfinished:
    (unfinished / "part" if unfinished.is_dir() else unfinished).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".dvc").mkdir()
    return tmp_path


@pytest.mark.parametrize("kind", ["new_file", "new_folder"])
def test_a_killed_process_leaves_its_target_folder_as_it_was(project: Path, kind: str) -> None:
    target = project / "models/isp/round_0/mask.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, kind, str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == -signal.SIGKILL
    assert list(target.parent.iterdir()) == []
    (left,) = (project / UNFINISHED).iterdir()
    with new_file(target) as unfinished:
        unfinished.write_text("whole")
    assert left.exists()  # it may be at work
    os.utime(left, (0, 0))
    with new_file(target) as unfinished:
        unfinished.write_text("whole")
    assert list((project / UNFINISHED).iterdir()) == [] and target.read_text() == "whole"


def test_a_folder_stays_where_its_successor_cannot_be_put(project: Path, monkeypatch) -> None:
    """It is set aside, not removed, which takes long where it is large."""
    with new_folder(project / "state") as unfinished:
        (unfinished / "weights").write_text("old")

    def fails(unfinished: Path, path: Path) -> None:
        assert not path.exists()
        (aside,) = unfinished.parent.glob(f"{PREFIX}*")
        assert (aside / "weights").read_text() == "old"
        raise OSError("no space")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr("instant_soup.files._put", fails)
        with new_folder(project / "state") as unfinished:
            (unfinished / "weights").write_text("new")
    assert (project / "state/weights").read_text() == "old"
    with new_folder(project / "state") as unfinished:
        (unfinished / "weights").write_text("new")
    assert (project / "state/weights").read_text() == "new"
    assert list((project / UNFINISHED).iterdir()) == []


def test_names_stay_and_folders_may_be_nested(project: Path) -> None:
    with new_folder(project / "state") as unfinished:
        assert unfinished.name == "state"
        with new_file(unfinished / "weights.safetensors") as inner:
            assert inner.suffix == ".safetensors"
            inner.write_text("w")
    assert [path.name for path in (project / "state").iterdir()] == ["weights.safetensors"]


def test_beside_the_target_where_there_is_no_project(tmp_path: Path) -> None:
    with new_folder(tmp_path / "ticket") as unfinished:
        assert unfinished.parent.parent == tmp_path
        assert unfinished.parent.name.startswith(PREFIX)
    assert [path.name for path in tmp_path.iterdir()] == ["ticket"]


@pytest.mark.parametrize("old", [False, True])
def test_on_another_disk_they_still_come_whole(
    project: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    """A rename from one disk to another fails; by a copy beside the target it is a rename."""
    target, true = project / "models/base", Path.replace
    if old:
        (target / "old").mkdir(parents=True)

    def replace(self: Path, other: Path) -> Path:
        if UNFINISHED in str(self):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return true(self, other)

    monkeypatch.setattr(Path, "replace", replace)
    with new_folder(target) as unfinished:
        (unfinished / "a").write_text("a")
    assert [path.name for path in target.iterdir()] == ["a"]
    with new_file(project / "models/b.json") as unfinished:
        unfinished.write_text("b")
    assert sorted(path.name for path in target.parent.iterdir()) == ["b.json", "base"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_allows(project: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with new_folder(project / "state") as unfinished:
            save_file({"w": torch.zeros(3)}, unfinished / "w.safetensors")
            (unfinished / "run").touch(0o700)
        with new_file(project / "mask.safetensors") as unfinished:
            save_file({"w": torch.zeros(3)}, unfinished)
    finally:
        os.umask(before)
    for name in ("state/w.safetensors", "mask.safetensors"):
        assert stat.S_IMODE((project / name).stat().st_mode) == mode
    assert (project / "state/run").stat().st_mode & stat.S_IXUSR
