"""Files and folders: written whole or not at all, with digests, found from the project's root."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from instant_soup.errors import UserError

UNFINISHED = ".dvc/tmp/instant-soup/unfinished"
PREFIX = ".instant-soup-"  # of the folders that unfinished files and folders lie in
ABANDONED = 24 * 3600  # seconds after which such a folder is a killed process's
CODE = ("src", "stages", "dvc.yaml", "requirements.txt")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes `path`'s place if the block succeeds."""
    with _unfinished(Path(path)) as unfinished:
        unfinished.mkdir()
        yield unfinished
        before, there = unfinished.with_name(f"{PREFIX}before"), Path(path)
        if there.is_dir() and not there.is_symlink():
            try:  # aside, not away: to remove a large one takes long, and a process may be killed
                there.rename(before)
            except OSError:  # it is on another disk
                shutil.rmtree(there, ignore_errors=True)
        try:
            _put(unfinished, Path(path))
        except BaseException:
            if before.exists():
                before.rename(path)
            raise


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a file name; that file takes `path`'s place if the block succeeds."""
    with _unfinished(Path(path)) as unfinished:
        yield unfinished
        _put(unfinished, Path(path))


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Yield `path`'s name in a folder of its own, which is gone afterwards.

    In a project of DVC's that folder lies in .dvc/tmp. So what a killed process leaves lies in no
    folder that a stage depends on, and goes after a day. Elsewhere it lies beside `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parents = path.absolute().parents
    root = next((folder for folder in parents if (folder / ".dvc").is_dir()), None)
    own = _own_folder(path.parent if root is None else root / UNFINISHED)
    try:
        yield own / path.name
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _own_folder(place: Path) -> Path:
    """Make a new folder in a place, and remove those that were left long ago."""
    place.mkdir(parents=True, exist_ok=True)
    for old in place.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another process has removed it
            if time.time() - old.stat().st_mtime > ABANDONED:
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))


def _put(unfinished: Path, path: Path) -> None:
    """Rename to `path`; if that is on another disk, by way of a folder beside it.

    Files get the mode that the umask allows: safetensors writes them for their owner alone.
    """
    probe = unfinished.with_name(f"{PREFIX}mode")
    probe.touch()
    mode = probe.stat().st_mode
    for file in (unfinished, *unfinished.rglob("*")):
        if file.is_file() and not file.is_symlink():
            file.chmod(file.stat().st_mode | mode)
    try:
        unfinished.replace(path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        own = _own_folder(path.parent)
        try:
            shutil.move(unfinished, own)
            (own / path.name).replace(path)
        finally:
            shutil.rmtree(own, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with new_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None


def write_yaml(path: str | Path, value: Any) -> None:
    """Write `value` as YAML in the order given, atomically."""
    with new_file(path) as unfinished:
        unfinished.write_text(yaml_of(value))


def yaml_of(value: Any) -> str:
    """`value` as YAML in the order given."""
    return yaml.safe_dump(value, sort_keys=False)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        return yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as YAML ({reason})") from None


def order_header(path: str | Path) -> None:
    """Sort the description in a safetensors file, whose writer leaves its order to chance.

    So equal contents are equal bytes, and DVC reruns nothing for them.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # the same text in another order; blanks fill up a header
            file.seek(8)
            file.write(text.ljust(size))


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SEAL = "sha256.json"  # in a folder: the digests of its other files


def seal(folder: Path) -> None:
    """Write the digests of a folder's files beside them, so that a damaged file is noticed."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    write_json(folder / SEAL, {file.name: sha256(file) for file in files})


def sealed(folder: Path) -> dict[str, str]:
    """Name → digest of a folder's sealed files; empty without a seal."""
    found = read_json(folder / SEAL) if (folder / SEAL).exists() else {}
    if not isinstance(found, dict):
        raise UserError(f"{folder / SEAL}: damaged (no digests in it)")
    return found


def check_seal(folder: Path, *names: str) -> None:
    """Check that files are what was sealed; without a seal all pass.

    Raises:
        UserError: If one is not.
    """
    known = sealed(folder)
    for name in names if known else ():
        file = folder / name
        if not file.exists() or known.get(name) != sha256(file):
            raise UserError(f"{file}: damaged (it is not what was saved)")


def project_root() -> Path:
    """The main repository. DVC names it, also to experiments that run in a copy."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def code_version(root: str | Path = ".", code: tuple[str, ...] = CODE) -> str:
    """The short Git commit, with a + if `code` differs from it; "unknown" without Git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout

    commit = git("rev-parse", "--short", "HEAD").strip() or "unknown"
    return commit + ("+" if git("status", "--porcelain", "--", *code) else "")


def path_of(text: str | Path, key: str = "") -> Path:
    """Make a path of what somebody wrote, with its ~ expanded.

    Args:
        text: The path.
        key: The setting's name, for the error.

    Returns:
        The path.

    Raises:
        UserError: If no file can have that name.
    """
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.stat(path)
    except (OSError, RuntimeError, ValueError) as error:
        # What pathlib says of an unknown user names nobody.
        unknown = "there is no such user" if isinstance(error, RuntimeError) else str(error)
        reason = getattr(error, "strerror", None) or unknown
        where = f"{key}: " if key else ""
        raise UserError(f"{where}{str(text)[:80]!r} cannot be a path: {reason}") from None
    return path


def check_new(folder: Path) -> None:
    """Check that a folder can be written: it is new, or empty and no link.

    Raises:
        UserError: If not.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link; name a new folder")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already; name a new folder")
    if folder.name in ("", "..") or folder.resolve() == Path.cwd():
        raise UserError(f"{folder} is the folder where you are; name a new folder")
    over = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not over.is_dir():
        raise UserError(f"{folder}: {over} is no folder; name a new folder elsewhere")


def resolve_path(text: str, key: str) -> Path:
    """Find a path of params.yaml, relative to the main repository.

    Args:
        text: The path.
        key: The setting's name, for the error.

    Returns:
        The absolute path.

    Raises:
        UserError: If nothing is there.
    """
    path = (project_root() / path_of(text, f"params.yaml: {key}")).resolve()
    if not path.is_dir():
        raise UserError(f"params.yaml: {key}: no folder {text} (looked for {path})")
    return path


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and of those below it, sorted; links to folders are followed.

    Raises:
        UserError: If a folder cannot be read, or a link leads to a folder around it.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    found: list[Path] = []
    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        for path in [Path(here) / name for name in folders]:
            if path.is_symlink() and path.resolve() in [above.resolve() for above in path.parents]:
                raise UserError(f"{path}: a link to a folder that it lies in; remove it")
        found += [Path(here) / name for name in names]
    return sorted(found)


def digest(folder: Path) -> str:
    """Digest a local folder, so that a changed file reruns what reads it.

    Files in it count by their contents. Those in folders below, which may be thousands of images,
    count by name, size and time.
    """
    files = [path for path in files_below(folder) if path.is_file()]
    own = [f"{p.name}:{sha256(p)[:12]}" for p in files if p.parent == folder]
    below = [p for p in files if p.parent != folder]
    if below:
        listed = [(str(p.relative_to(folder)), p.stat()) for p in below]
        lines = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in listed]
        whole = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        own.append(f"{len(below)} files below:{whole[:12]}")
    return " ".join(own)
