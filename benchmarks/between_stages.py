"""ISP by the pipeline's stages, and by `instant_soup.prune` in one process: what lies between.

The quick preset of texts, without DVC's own time (pipeline_overhead.py has that). The stages
validate where their curve has a point; one process does not, so as many validations are timed
behind it. About four minutes on two cores.

    python benchmarks/between_stages.py
    python benchmarks/between_stages.py --project ../older  # measures this clone's stages, too
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from against_reference import of_one_process
from common import ROOT, prepare, record

from instant_soup.files import CODE, code_version

# In a clone's own environment: its stages, in the folder that the clone has prepared.
BY_STAGES = """
import json, sys
from pathlib import Path
from against_reference import our_isp
from common import prepare
folder = Path(sys.argv[1])
print(json.dumps(our_isp(folder, prepare(folder))))
"""


def by_stages(project: Path, name: str, folder: Path) -> dict[str, Any]:
    """A row: ISP by a clone's stages in a folder, and how often they validated."""
    sources = os.pathsep.join([str(project / "src"), str(project / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-c", BY_STAGES, str(folder)],
        env={**os.environ, "PYTHONPATH": sources}, cwd=project, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"error: {project}: {done.stderr[-2000:]}")
    curve = pd.read_csv(folder / "reports/curves/isp.csv")
    return {
        "kind": f"stages of {name}",
        "code": code_version(project, CODE),
        **json.loads(done.stdout.splitlines()[-1]),
        "validations": int(curve["validation"].count()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--project", type=Path, help="measure this clone's stages, too")
    other = parser.parse_args().project
    projects = {"this": ROOT, **({other.name: other.resolve()} if other else {})}
    rows: list[dict[str, Any]] = []
    for name, project in projects.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(by_stages(project, name, Path(folder)))
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        alone = of_one_process(Path(folder), "one_process")
    validating = alone.pop("validation_seconds") * rows[0]["validations"]
    together = alone["seconds"] + validating
    rows += [
        {"kind": "one process", **alone, "validations": 0},
        {"kind": "one process, and as many validations", "seconds": together,
         "validations": rows[0]["validations"]},
    ]  # fmt: skip
    for row in rows:
        row["ratio"] = row["seconds"] / alone["seconds"]
        row["ratio_validating"] = row["seconds"] / together if row["validations"] else None
    record("between_stages", rows, on_gpu=False)


if __name__ == "__main__":
    main()
