"""A grid on two Ray nodes, one of which is lost in the middle."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from helpers import environment, make_repository, run_command
from instant_soup.errors import UserError
from instant_soup.grids import ray as ray_runner

SETTINGS = {"isp.denoisers": 1, "isp.look_ahead": 1}


@pytest.fixture
def project(tmp_path: Path, tiny_bert: Path, tiny_data: Path) -> Path:
    """A project with the grid `far`: one sparsity, two seeds, no rows beside dense and ISP."""
    project = make_repository(tmp_path / "soup", tiny_bert, tiny_data, rounds=1, methods=[])
    task = {"model": f"local:{tiny_bert}", "dataset": f"local:{tiny_data}", "sparsities": [0.3]}
    grid = {"preset": "quick", "methods": [], "tasks": [task], "seeds": [0, 1]}
    (project / "grids").mkdir(exist_ok=True)
    (project / "grids/far.yaml").write_text(yaml.safe_dump({**grid, "settings": SETTINGS}))
    run_command(project, "git", "add", "-A")
    run_command(project, "git", "commit", "-qm", "grid")
    return project


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose head takes no tasks."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_node(cluster: Cluster, folder: Path) -> object:
    """A node with room for one cell, its clones and its cache in a folder of its own."""
    folder.mkdir()
    return cluster.add_node(num_cpus=1, env_vars={"TMPDIR": str(folder)})


def processes_in(folder: Path) -> list[str]:
    """Command lines of the processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")).is_relative_to(folder):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_a_lost_node_costs_its_running_cells_only(
    project: Path, tmp_path: Path, cluster: Cluster
) -> None:
    places = [tmp_path / "node-0", tmp_path / "node-1"]
    nodes = [add_node(cluster, place) for place in places]
    cluster.wait_for_nodes()
    process = subprocess.Popen(
        [sys.executable, "-m", "instant_soup.grids.command", "grids/far.yaml",
         "--ray", cluster.address, "--remote", str(tmp_path / "remote")],
        cwd=project, env={**os.environ, "PYTHONPATH": str(project / "src")}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        # The node to lose is the first whose cell is under way, past what the two share.
        deadline = time.monotonic() + 600
        while not (begun := [p for p in places if list(p.glob("*/soup/models/retrained/dense"))]):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the cells did not begin"
            time.sleep(0.1)
        lost = begun[0]
        cluster.remove_node(nodes[places.index(lost)], allow_graceful=False)
        output, _ = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert len(re.findall(r"of 2: done far-", output)) == 2
    assert not processes_in(lost), "what the lost node ran goes on"

    ledger = pd.read_csv(project / "reports/results.csv")
    mine = ledger[ledger["dataset"].str.startswith("local:tiny-data")]
    found = mine[["method", "seed"]].value_counts()
    assert found.to_dict() == {(m, s): 1 for m in ("dense", "isp") for s in (0, 1)}
    refs = run_command(project, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    assert len([ref for ref in refs if "/far-" in ref]) == 2
    # What the two share was made once and came through the remote; the lost cell began anew.
    logs = [path.read_text() for path in (project / ".dvc/tmp/grid/logs").glob("far-*.log")]
    stages = re.findall(r"Running stage '([^']+)'", "".join(logs))
    assert stages.count("prepare_data") == 1 and stages.count("dense_finetune") == 2
    assert run_command(project, "git", "status", "--porcelain", "params.yaml") == ""


def test_what_no_node_has_and_no_cluster_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    add_node(cluster, tmp_path / "node")
    cluster.wait_for_nodes()
    with pytest.raises(UserError, match=r"--cpus, --gpus: no node has 1 and 8"):
        ray_runner.connect(cluster.address, 1, 8)
    ray.shutdown()
    with pytest.raises(UserError, match=r"--ray: 127\.0\.0\.1:1: no cluster there"):
        ray_runner.connect("127.0.0.1:1", 1, 0)
