"""What the pipeline costs beside its work: DVC's own seconds, and entries that a run does not need.

A network of two small layers, on a few rows, in a clone of the repository: `dvc repro` for the
first time, and again with nothing to do. A `python` before the real one on the PATH measures each
stage's command; DVC's own seconds are all others. About three minutes on two cores.

    python benchmarks/pipeline_overhead.py
    python benchmarks/pipeline_overhead.py --project ../older  # measures this clone, too

Of such a clone params.yaml is changed, and dvc.lock written anew; nothing may have run there.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import shapes
import yaml
from common import ROOT, record

from instant_soup.files import CODE, code_version

# Two rounds to 60 %; keys that params.yaml has had for long.
TINY: dict[str, Any] = {
    "sparsity": 0.6,
    "data": {"train_rows": 160, "validation_rows": 40, "test_rows": 40, "max_length": 16},
    "training": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
    "isp": {"compression_rate": 0.3, "calibration": 0.1, "look_ahead": 2, "denoisers": 2},
}
NOTE = "not needed"  # what an entry that passes by leaves begins with
PYTHON = """#!/usr/bin/env bash
started=$EPOCHREALTIME
"{python}" "$@"
status=$?
echo "${{started/,/.}} ${{EPOCHREALTIME/,/.}} $*" >> "{log}"
exit $status
"""


def give_work(project: Path, folder: Path) -> None:
    """Change a clone's params.yaml to the small network and its rows, which `folder` gets."""
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    model = shapes.bert_folder(folder / "model", 2, 64)
    params["model"] = f"local:{model}"
    params["dataset"] = f"local:{shapes.long_texts(folder / 'texts', 300)}"
    for key, value in TINY.items():
        params[key] = {**params[key], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(params))
    # DVC writes it whole after each stage: here without the entries of other runs.
    (project / "dvc.lock").unlink(missing_ok=True)


def repro(project: Path, path: str) -> tuple[float, int]:
    """Wall seconds of `dvc repro`, and how many entries it ran."""
    dropped = ("DVC_", "MLFLOW_", "PYTHONPATH")
    own = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    own |= {"PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "dvc", "repro"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=project, env=own, capture_output=True, text=True)
    wall = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"error: dvc repro: {(done.stdout + done.stderr)[-2000:]}")
    return wall, done.stdout.count("Running stage ")


def passed_by(project: Path) -> set[str]:
    """The commands of those entries whose every output is a note that it is not needed."""

    def is_note(path: Path) -> bool:
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        return all(file.read_bytes().startswith(NOTE.encode()) for file in files)

    entries = yaml.safe_load((project / "dvc.lock").read_text())["stages"].values()
    return {
        entry["cmd"].partition("python ")[2]
        for entry in entries
        if all(is_note(project / out["path"]) for out in entry["outs"])
    }


def measure(project: Path, name: str) -> dict[str, Any]:
    """A row: what the pipeline of a clone takes beside its work."""
    with tempfile.TemporaryDirectory() as folder:
        log, python = Path(folder) / "commands.log", Path(folder) / "bin/python"
        python.parent.mkdir()
        python.write_text(PYTHON.format(python=sys.executable, log=log))
        python.chmod(0o755)
        path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
        give_work(project, Path(folder))
        first, entries = repro(project, path)
        times = {}
        for line in log.read_text().splitlines():
            started, ended, command = line.split(" ", 2)
            times[command] = float(ended) - float(started)
        again, others = repro(project, path)
        if others:
            raise SystemExit(f"error: {project}: the second dvc repro ran {others} entries")
    idle = [times[command] for command in passed_by(project)]
    return {
        "pipeline": name,
        "code": code_version(project, CODE),
        "entries": entries,
        "passed_by": len(idle),
        "first_seconds": first,
        "stages_seconds": sum(times.values()),
        "dvc_seconds": first - sum(times.values()),
        "passed_by_seconds": sum(idle),
        "again_seconds": again,
        "dvc_yaml_lines": len((project / "dvc.yaml").read_text().splitlines()),
        "dvc_lock_bytes": (project / "dvc.lock").stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--project", type=Path, help="measure this clone, too")
    other = parser.parse_args().project
    rows = [measure(other.resolve(), other.name)] if other else []
    with tempfile.TemporaryDirectory() as name:
        project = Path(name) / "project"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
        rows.append(measure(project, "this"))
    record("pipeline_overhead", rows, on_gpu=False)


if __name__ == "__main__":
    main()
