"""How a stage's script runs."""

import os
import subprocess
import sys

from helpers import ROOT

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
