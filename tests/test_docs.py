"""The code in docs/api.md runs as it stands."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT

BLOCKS = [
    part.split("```")[0] for part in (ROOT / "docs/api.md").read_text().split("```python\n")[1:]
]


def run(block: str, folder: Path) -> list[str]:
    """What a block prints, run in a process of its own beside models/base."""
    environment = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_pruning_a_model_of_ones_own(tmp_path: Path) -> None:
    pruned, steps = run(BLOCKS[0], tmp_path)
    assert set(eval(pruned)) == {"0.weight", "2.weight"}
    assert steps == "200 120"  # four rounds of three denoisers, ten steps each
    assert (tmp_path / "pruned/ticket.json").exists()


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    assert run(BLOCKS[1], tmp_path)[-1] == "0.80 True"


def test_the_trainers_callback(tmp_path: Path, tiny_bert: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "models/base")
    assert run(BLOCKS[2], tmp_path)[-1] == "0.70"


def test_no_block_is_forgotten() -> None:
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("name", ["InstantSoupCallback", "prune", "Pruned", "Pruner"])
def test_what_the_docs_import_is_there(name: str) -> None:
    import instant_soup

    assert getattr(instant_soup, name).__name__ == name
