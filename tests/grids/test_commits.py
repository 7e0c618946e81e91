"""What a grid takes from a repository, in whatever state that is, and what it asks of Git."""

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instant_soup.errors import UserError
from instant_soup.grids import commits, runner
from instant_soup.grids import ray as ray_runner
from instant_soup.pipeline.processes import dvc, git

IDENTITY = {"user.name": "test", "user.email": "test@example.com"}


@pytest.fixture(autouse=True)
def only_own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Git as on a new machine: no settings of the user's or the system's."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with two commits."""
    root = tmp_path / "soup"
    root.mkdir()
    git(root, "init", "-q")
    for key, value in IDENTITY.items():
        git(root, "config", key, value)
    (root / "params.yaml").write_text("sparsity: 0.7\nisp:\n  denoisers: 3\n")
    (root / ".gitignore").write_text("ignored\n")
    for text in ("one", "two"):
        (root / "code.py").write_text(text)
        git(root, "add", "--all")
        git(root, "commit", "-qm", text)
    return root


def touched(root: Path) -> Path:
    os.utime(root / "params.yaml", (0, 0))
    return root


def copied(root: Path) -> Path:
    """As by `cp -r`, which leaves no file as Git's index knows it."""
    return Path(shutil.copytree(root, root.with_name("copied"), copy_function=shutil.copyfile))


def shallow(root: Path) -> Path:
    folder = root.with_name("shallow")
    git(root, "clone", "-q", "--depth", "1", f"file://{root}", str(folder))
    for key, value in IDENTITY.items():
        git(folder, "config", key, value)
    return folder


def second_worktree(root: Path) -> Path:
    git(root, "worktree", "add", "-q", "--detach", str(root.with_name("second")))
    return root.with_name("second")


STATES = [touched, copied, shallow, second_worktree]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("edit", [False, True], ids=["as committed", "edited"])
def test_a_copy_has_what_tracked_files_have_and_an_experiment_comes_back(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Any, edit: bool
) -> None:
    monkeypatch.setattr(runner, "dvc", lambda *_: "")
    root = state(root)
    (root / "untracked").write_text("")
    if edit:
        (root / "code.py").write_text("edited")
        (root / "new.py").write_text("new")
        git(root, "add", "new.py")
    before = git(root, "status", "--porcelain")
    head = git(root, "rev-parse", "HEAD")
    own: Any = SimpleNamespace(root=root, head=head, state=commits.state_of(root, head), cache="")
    copy = tmp_path / "copies/lane"
    copy.parent.mkdir()
    runner.Runner.make_copy(own, copy)
    assert (copy / "code.py").read_text() == ("edited" if edit else "two")
    assert (copy / "new.py").exists() == edit and not (copy / "untracked").exists()

    (copy / "result").write_text("0.9")
    (copy / "ignored").write_text("")
    runner.Runner.save_experiment(own, copy, SimpleNamespace(name="cell"))  # type: ignore[arg-type]
    (ref,) = git(root, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    assert ref == f"refs/exps/{head[:2]}/{head[2:]}/cell"
    assert git(root, "show", f"{ref}:result") == "0.9"
    assert git(root, "rev-parse", f"{ref}^") == head
    assert "ignored" not in git(root, "ls-tree", "--name-only", ref).split()
    assert git(root, "status", "--porcelain") == before
    git(root, "fsck", "--connectivity-only")


def test_a_copy_shares_the_cache_of_a_repository_whose_path_is_not_in_ascii(root: Path) -> None:
    root = root.rename(root.with_name("süppchen"))
    dvc(root, "init", "-q")
    own = runner.Runner(root, 1)
    copy = own.copies / "lane"
    copy.parent.mkdir(parents=True)
    own.make_copy(copy)
    assert dvc(copy, "cache", "dir") == str(root / ".dvc/cache")


def test_paths_that_dvc_cannot_write_are_refused_before_the_first_cell(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "dvc", lambda *_: "/süppchen/cache")
    with pytest.raises(UserError, match=r"^cache.dir: /süppchen/cache: .* a path in ASC"):
        runner.Runner(root, 1)
    monkeypatch.setattr(ray_runner, "dvc", lambda *_: "")
    for remote in (str(tmp_path / "süppchen"), "s3://süppchen/x"):
        with pytest.raises(UserError, match=r"^--remote: .*; allowed: a folder or U"):
            ray_runner.checked_remote(root, remote)
    assert ray_runner.checked_remote(root, "s3://soup/x") == "s3://soup/x"


@pytest.mark.parametrize("state", STATES)
def test_a_node_of_a_cluster_has_the_same(root: Path, tmp_path: Path, state: Any) -> None:
    root = state(root)
    (root / "code.py").write_text("edited")
    head = git(root, "rev-parse", "HEAD")
    tree, ends = commits.state_of(root, head), commits.inside(root, "shallow")
    own = ray_runner.State(
        bundle=ray_runner._bundle(root, head, tree),
        shallow=ends.read_text() if ends.exists() else "",
        **{"head": head, "tree": tree, "params": "", "remote": "", "local_config": ""},
        gpus=0,
    )
    clone = tmp_path / "node/soup"
    (clone / ".dvc").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_runner, "dvc", lambda *_: "")
        ray_runner._clone(own, clone.parent, clone)
    assert (clone / "code.py").read_text() == "edited"
    (clone / "result").write_text("0.9")
    cell: Any = SimpleNamespace(name="cell")
    found = ray_runner._experiment(own, clone, cell)
    ray_runner.fetch_bundle(root, found["bundle"], found["ref"])
    assert git(root, "show", f"{found['ref']}:result") == "0.9"


def test_a_merge_under_way_is_refused(root: Path) -> None:
    git(root, "checkout", "-q", "-b", "other", "HEAD^")
    (root / "code.py").write_text("three")
    git(root, "commit", "-qam", "three")
    subprocess.run(["git", "merge", "-q", "-"], cwd=root, capture_output=True)
    with pytest.raises(UserError, match=r"^code\.py: an unfinished Git merge: end it first$"):
        commits.state_of(root, git(root, "rev-parse", "HEAD"))


def test_git_must_know_who_commits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits.check_identity(root)
    git(root, "config", "--unset", "user.email")
    git(root, "config", "user.useConfigOnly", "true")  # else a machine's name may do
    with pytest.raises(UserError, match=r"git config user\.name NAME, git config user\.email"):
        commits.check_identity(root)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "test@example.com")
    commits.check_identity(root)


# Whose values a grid takes


def test_values_that_are_not_committed_do_not_count_and_are_named(root: Path) -> None:
    assert commits.uncommitted_values(root) == ""
    (root / "params.yaml").write_text("sparsity: 1.5\nisp:\n  denoisers: 5\n  combine: vote\n")
    said = commits.uncommitted_values(root)
    assert "isp.denoisers 5 (committed: 3), isp.combine vote (committed: None)" in said
    assert "sparsity" not in said  # a grid has its own
    assert commits.committed_values(root) == {"sparsity": 0.7, "isp": {"denoisers": 3}}
    (root / "params.yaml").write_text("sparsity: [")
    assert "cannot be read as YAML" in commits.uncommitted_values(root)
    assert commits.committed_values(root)["sparsity"] == 0.7


def test_params_that_are_not_committed_or_no_yaml_are_one_line(root: Path) -> None:
    (root / "params.yaml").write_text("sparsity: [")
    git(root, "commit", "-qam", "broken")
    with pytest.raises(UserError, match=r"^params\.yaml: as committed it cannot be read as YAML"):
        commits.committed_values(root)
    git(root, "rm", "-q", "--cached", "params.yaml")
    git(root, "commit", "-qm", "none")
    with pytest.raises(UserError, match=r"params\.yaml"):
        commits.committed_values(root)


class Reached(Exception):
    """A cell has got past the checks."""


def run_on_ray(root: Path, params: str, changes: dict[str, Any]) -> None:
    """Run a cell as far as to its first node."""
    own = object.__new__(ray_runner.RayRunner)
    own.root, own.params = root, params
    own.state = commits.state_of(root, git(root, "rev-parse", "HEAD"))

    def prepare(*_: Any) -> None:
        raise Reached

    own.prepare = prepare  # type: ignore[method-assign]
    cell: Any = SimpleNamespace(changes={"model": "minilm", "dataset": "sst2", **changes})
    ray_runner.RayRunner.run_cell(own, root / "copy", cell)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("model", f"{kind}:../x") for kind in ("local", "local-dir", "causal:local")],
        *[("dataset", "local:x"), ("data.path", "x"), ("data.prompts", "x/prompts.yaml")],
        *[("data.prompts", "../soup/code.py"), ("data.path", "~/x")],
    ],
)
def test_a_path_that_no_node_has_is_refused_before_a_cell_runs(
    root: Path, key: str, value: str
) -> None:
    refused = rf"^{key}: .* is on no node; allowed with --ray: an absolute path, or one that Git"
    with pytest.raises(UserError, match=refused):
        run_on_ray(root, "{}", {key: value})
    section, _, name = key.partition(".")
    if section == "data":  # which a grid may leave to params.yaml
        with pytest.raises(UserError, match=refused):
            run_on_ray(root, f"data: {{{name}: {value!r}}}", {})


@pytest.mark.parametrize(
    "changes",
    [
        *[{}, {"model": "local:/x", "dataset": "local:/y", "data.path": "/z"}],
        {"model": "causal:org/name"},
        {"data.prompts": "code.py"},
    ],
)
def test_what_every_node_has_is_allowed(root: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(Reached):
        run_on_ray(root, "data:\n", changes)
