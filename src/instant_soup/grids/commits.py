"""States of the repository as commits, made without touching its index and its files.

A grid takes code as it is in tracked files, and params.yaml as it is committed. What `-S` has left
in params.yaml is not meant for a table.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from instant_soup.errors import UserError
from instant_soup.files import read_yaml
from instant_soup.grids.cells import OWN
from instant_soup.pipeline.processes import git

PARAMS = "params.yaml"


def check_identity(root: Path) -> None:
    """Check that Git knows a name and an address, without which it refuses a commit.

    Raises:
        UserError: If it does not.
    """
    for who in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
        try:
            git(root, "var", who)
        except UserError:
            raise UserError(
                "Git does not know who you are, and every cell ends as a commit: "
                "git config user.name NAME, git config user.email ADDRESS"
            ) from None


def state_of(root: Path, head: str) -> str:
    """A commit on `head` of what is in tracked files now, changed or not."""
    if unmerged := git(root, "diff", "--name-only", "--diff-filter=U"):
        raise UserError(f"{unmerged.splitlines()[0]}: an unfinished Git merge: end it first")
    return commit_of(root, root, head, "grid", "--update")


def commit_of(root: Path, folder: Path, parent: str, message: str, files: str = "--all") -> str:
    """A commit, in the store of `root`, of the files in `folder`, which may be a copy of it."""
    with tempfile.TemporaryDirectory() as name:
        index = Path(name) / "index"
        shutil.copyfile(inside(folder, "index"), index)
        own = {"GIT_INDEX_FILE": str(index), "GIT_OBJECT_DIRECTORY": str(inside(root, "objects"))}
        git(folder, "add", files, **own)
        tree = git(folder, "write-tree", **own)
    return git(root, "commit-tree", tree, "-p", parent, "-m", message)


def inside(root: Path, name: str) -> Path:
    """A file or folder of Git's, wherever it lies: a checkout may be one of several."""
    return (root / git(root, "rev-parse", "--git-path", name)).resolve()


def committed_params(root: Path) -> str:
    """The text of params.yaml as it is committed."""
    return git(root, "show", f"HEAD:./{PARAMS}") + "\n"


def committed_values(root: Path) -> Any:
    """What the committed params.yaml says."""
    try:
        return yaml.safe_load(committed_params(root))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{PARAMS}: as committed it cannot be read as YAML ({reason})") from None


def uncommitted_values(root: Path) -> str:
    """What params.yaml says otherwise than its commit, in one line; nothing where nothing."""
    committed = _flat(committed_values(root))
    try:
        here = _flat(read_yaml(root / PARAMS))
    except UserError as error:
        return f"{error}; a grid takes the committed one"
    changed = [
        f"{key} {here.get(key)} (committed: {committed.get(key)})"
        for key in {**committed, **here}
        if here.get(key) != committed.get(key) and key not in OWN
    ]
    if not changed:
        return ""
    return (
        f"{PARAMS}: a grid takes what is committed; these do not count: {', '.join(changed)} "
        f"(commit them, or give them as the grid's settings; git checkout {PARAMS} undoes them)"
    )


def _flat(params: Any) -> dict[str, Any]:
    """Values by key or section.key."""
    found: dict[str, Any] = {}
    for key, value in (params if isinstance(params, dict) else {}).items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": own for name, own in value.items()}
        else:
            found[str(key)] = value
    return found
