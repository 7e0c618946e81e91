"""A grid's cells as Ray tasks on many machines: `--ray ADDRESS --remote REMOTE` of the command.

Each cell runs in its own clone, wherever Ray has room for it. What cells share, and what a cell has
made, passes through a DVC remote (a folder that all nodes see, or S3-compatible), with DVC's run
cache. A cell's results and its experiment come back as the task's value. So a lost node costs only
the cells that ran on it, and Ray runs those elsewhere. This needs the optional package ray, here
and on every node; see docs/grids.md.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from instant_soup.errors import UserError
from instant_soup.grids.cells import Cell, change
from instant_soup.grids.commits import commit_of, inside
from instant_soup.grids.runner import Runner, write_numbers, write_params
from instant_soup.pipeline.processes import Stopped, dvc, environment, git, last_error
from instant_soup.reports.ledger import merge_ledger

FOLDERS = ("causal:local:", "local-dir:", "local:")  # before a model's or a dataset's folder
RETRIES = 10  # of a cell whose node was lost
SEEN = "instant-soup-grid"  # a file in a folder remote: where it is missing, the folder is another

# Runs a command that dies with its starter, however that ends: a lost task leaves nothing running
# and no clone behind. Its input is a pipe that the starter holds.
GUARD = """
import os, shutil, signal, subprocess, sys, threading
folder, *command = sys.argv[1:]
process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
def watch():
    sys.stdin.buffer.read()
    os.killpg(process.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
os._exit(process.wait())
"""


@dataclass
class State:
    """What every clone begins as: the repository's history, a commit, and the tree to run."""

    bundle: bytes
    shallow: str  # where the history of a shallow clone ends
    head: str
    tree: str
    params: str
    remote: str  # a folder, a URL, or the name of one of DVC's remotes
    local_config: str  # .dvc/config.local, where that remote's secrets are
    gpus: float


class RayRunner(Runner):
    """Runs each cell as a Ray task; what it does arrives in `events`, as of a Runner."""

    def __init__(
        self, root: Path, lanes: int, address: str, remote: str, cpus: float, gpus: float
    ) -> None:
        super().__init__(root, lanes)
        self.ray = connect(address, cpus, gpus)
        local, shallow = root / ".dvc/config.local", inside(root, "shallow")
        state = State(
            bundle=_bundle(root, self.head, self.state),
            shallow=shallow.read_text() if shallow.exists() else "",
            head=self.head,
            tree=self.state,
            params=self.params,
            remote=checked_remote(root, remote),
            local_config=local.read_text() if local.exists() else "",
            gpus=gpus,
        )
        self.state_reference = self.ray.put(state)
        self.task = self.ray.remote(run_cell).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )

    def run_cell(self, copy: Path, cell: Cell) -> None:
        """Run one cell on some node; then it is an experiment, and in the ledger.

        Raises:
            UserError: If it fails; or, before anything runs, if no node has what it names.
        """
        params = yaml.safe_load(self.params)
        change(params, cell.changes)
        for key, path in paths_in(params).items():
            if not Path(path).is_absolute() and not in_tree(self.root, self.state, path):
                raise UserError(
                    f"{key}: {path} is on no node; allowed with --ray: an absolute path, or one "
                    "that Git tracks"
                )
        self.prepare(cell, lambda stage: self.on_a_node(cell, stage))
        found = self.on_a_node(cell, "")
        with self.collecting:
            fetch_bundle(self.root, found["bundle"], found["ref"])
            merge_ledger(self.root / "reports/results.csv", found["results"], self.head[:12])

    def on_a_node(self, cell: Cell, target: str) -> dict[str, Any]:
        """Run a cell on a node, and return what `run_cell` returns.

        Raises:
            UserError: If it fails; with the error of its log.
        """
        self.processes.check()
        reference = self.task.remote(self.state_reference, cell, target)
        while not self.ray.wait([reference], timeout=0.5)[0]:
            if self.processes.stopped:
                self.ray.cancel(reference, force=True)  # the guard ends what it runs
                raise Stopped
        found = self.ray.get(reference)
        with open(self.log(cell), "a") as log:
            log.write(found["log"])
        if found["error"]:
            raise UserError(found["error"])
        return found


def paths_in(params: dict[str, Any]) -> dict[str, str]:
    """Key → path, of what params.yaml names by its path."""
    data = params.get("data") or {}
    found = {f"data.{key}": str(data[key]) for key in ("path", "prompts") if data.get(key)}
    for key in ("model", "dataset"):
        for prefix in FOLDERS:
            if (value := str(params[key])).startswith(prefix):
                found[key] = value.removeprefix(prefix)
    return found


def in_tree(root: Path, tree: str, path: str) -> bool:
    """Whether a Git tree, which every clone has, holds a relative path."""
    inside = os.path.normpath(path)
    return not inside.startswith("..") and bool(git(root, "ls-tree", tree, inside))


def connect(address: str, cpus: float, gpus: float) -> Any:
    """Connect to Ray.

    Args:
        address: The cluster's address.
        cpus: CPUs that a cell takes.
        gpus: GPUs that a cell takes.

    Returns:
        The package ray.

    Raises:
        UserError: If ray is missing, or no node can take a cell.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--ray: the package ray is not installed: pip install ray") from None
    check_reachable(address)
    # Tasks take this very package along.
    package = {"py_modules": [str(Path(__file__).parent.parent)]}
    try:
        ray.init(address, log_to_driver=False, ignore_reinit_error=True, runtime_env=package)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--ray: {address}: no cluster there ({reason})") from None
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in alive):
        most = ", ".join(f"{n.get('CPU', 0):g}/{n.get('GPU', 0):g}" for n in alive)
        raise UserError(
            f"--cpus, --gpus: no node has {cpus:g} and {gpus:g}; allowed: what a node has ({most})"
        )
    return ray


def check_reachable(address: str) -> None:
    """Check that somebody listens at a host:port, as Ray itself would try for many minutes.

    Raises:
        UserError: If nobody does.
    """
    host, colon, port = address.partition(":")
    if not colon or not port.isdigit():
        return  # auto, ray://…
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"--ray: {address}: no cluster there ({error})") from None


def checked_remote(root: Path, remote: str) -> str:
    """A remote as clones name it; a folder is made, with a file by which nodes know it.

    Raises:
        UserError: If DVC cannot write it into a clone's settings.
    """
    known = [line.split()[0] for line in dvc(root, "remote", "list").splitlines() if line.strip()]
    if remote in known:
        return remote
    is_url = "://" in remote
    place = remote if is_url else str(Path(remote).expanduser().resolve())
    if not place.isascii():
        raise UserError(f"--remote: {place} is not allowed; allowed: a folder or URL in ASCII")
    if not is_url:
        Path(place).mkdir(parents=True, exist_ok=True)
        Path(place, SEEN).touch()
    return place


def run_cell(state: State, cell: Cell, target: str) -> dict[str, Any]:
    """Run a cell, or its stages up to `target`, in a clone of its own; this is a Ray task.

    Args:
        state: The commit to run.
        cell: The cell.
        target: The last stage to run; empty: all.

    Returns:
        log and error (or ""); for a whole cell also its results, and its experiment as a Git
        bundle.
    """
    folder = Path(tempfile.mkdtemp(prefix="instant-soup-"))
    clone, log = folder / "soup", folder / "log"
    found: dict[str, Any] = {"error": ""}
    try:
        _clone(state, folder, clone)
        write_params(clone / "params.yaml", state.params, cell)
        try:
            targets = [target] if target else cell.targets
            _run(state, folder, cell, "repro", "--pull", *targets)
        except UserError:
            with suppress(UserError):  # what it has finished need not be done again
                _run(state, folder, cell, "push", "--run-cache")
            raise
        _run(state, folder, cell, "push", "--run-cache")
        if not target:
            if cell.targets:  # no tables
                write_numbers(clone, list(cell.to_run))
            reports = clone / "reports/results"
            found["results"] = [
                json.loads((reports / f"{m}.json").read_text()) for m in cell.to_run
            ]
            found |= _experiment(state, clone, cell)
    except UserError as error:
        found["error"] = str(error)
    finally:
        found["log"] = log.read_text(errors="replace") if log.exists() else ""
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _clone(state: State, folder: Path, clone: Path) -> None:
    """The repository in the grid's state, with the remote and this node's cache."""
    is_folder = "://" not in state.remote and Path(state.remote).is_absolute()
    if is_folder and not (Path(state.remote) / SEEN).exists():
        raise UserError(f"--remote: {state.remote} is not there on {os.uname().nodename}")
    (folder / "bundle").write_bytes(state.bundle)
    git(folder, "init", "-q", str(clone))
    if state.shallow:
        (clone / ".git/shallow").write_text(state.shallow)
    every = "refs/instant-soup/*:refs/instant-soup/*"
    git(clone, "fetch", "-q", str(folder / "bundle"), every)
    git(clone, "checkout", "-q", "--detach", state.head)
    git(clone, "read-tree", "--reset", "-u", state.tree)
    git(clone, "config", "user.name", "instant-soup grid")
    git(clone, "config", "user.email", "grid@localhost")
    (clone / ".dvc/config.local").write_text(state.local_config)
    if is_folder or "://" in state.remote:
        dvc(clone, "remote", "add", "--local", "--default", "--force", "grid", state.remote)
    else:
        dvc(clone, "remote", "default", "--local", state.remote)
    # One for all tasks of this user on this node.
    cache = Path(tempfile.gettempdir()) / f"instant-soup-cache-{os.getuid()}"
    dvc(clone, "cache", "dir", "--local", str(cache))


def _run(state: State, folder: Path, cell: Cell, *arguments: str) -> None:
    """Run DVC in a task's clone; UserError with the log's error if it fails."""
    clone, log = folder / "soup", folder / "log"
    own = {"DVC_ROOT": str(clone), "DVC_EXP_NAME": cell.name, "PYTHONPATH": ""}
    own["DVC_SITE_CACHE_DIR"] = str(clone / ".dvc/tmp/site")
    if not state.gpus:
        own["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves them visible to tasks that asked for none
    with open(log, "a") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", GUARD, str(folder), sys.executable, "-m", "dvc", *arguments],
            cwd=clone, env={**environment(clone, 1), **own}, stdin=subprocess.PIPE,
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        status = process.wait()
    if status:
        raise UserError(last_error(log))


def _experiment(state: State, clone: Path, cell: Cell) -> dict[str, Any]:
    """A clone's state as an experiment: its ref, and a bundle of the one commit."""
    commit = commit_of(clone, clone, state.head, f"grid: {cell.name}")
    ref = f"refs/exps/{state.head[:2]}/{state.head[2:]}/{cell.name}"
    git(clone, "update-ref", ref, commit)
    return {"ref": ref, "bundle": _bundle(clone, ref, f"^{state.head}")}


def _bundle(folder: Path, *revisions: str) -> bytes:
    """Commits as one file's bytes. A bundle has refs only, so bare commits get one for a moment."""
    refs = []
    for number, revision in enumerate(revisions):
        if revision.startswith(("^", "refs/")):
            refs.append(revision)
        else:
            refs.append(f"refs/instant-soup/{number}")
            git(folder, "update-ref", refs[-1], revision)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bundle"
        git(folder, "bundle", "create", "-q", str(path), *refs)
        for ref in refs:
            if ref.startswith("refs/instant-soup/"):
                git(folder, "update-ref", "-d", ref)
        return path.read_bytes()


def fetch_bundle(root: Path, bundle: bytes, ref: str) -> None:
    """Bring an experiment into a repository."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bundle"
        path.write_bytes(bundle)
        quiet = ("--quiet", "--no-tags", "--no-write-fetch-head")
        git(root, "fetch", *quiet, str(path), f"+{ref}:{ref}")
