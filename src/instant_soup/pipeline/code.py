"""Which sources a stage runs, and their digest: changed code reruns the stages that run it.

The plan writes the digest into a stage's settings file, on which the stage depends. So dvc.yaml
lists no sources, and none can be missing or superfluous. They are what the script imports, and what
that imports in turn, late imports included. Words about code are not code: docstrings, comments and
layout rerun nothing.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from instant_soup.errors import UserError
from instant_soup.files import project_root, read_json, write_json

PACKAGE = Path(__file__).parent.parent
NAME = PACKAGE.name
KEPT = ".dvc/tmp/instant-soup/code.json"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Source(NamedTuple):
    """What of a Python source counts."""

    code: str  # digest of its syntax tree without docstrings
    modules: list[str]  # that it imports
    words: list[str]  # that may name files beside it


_kept: dict[str, Source] = {}  # key of a text → what another process has read of it
_read: dict[str, Source] = {}  # the same of this process


@contextmanager
def remembered() -> Iterator[None]:
    """Take what other processes have read of sources, and leave to them what this one has.

    Reading all sources takes a second or more, and each `dvc repro` plans. A changed source is
    another text.
    """
    file = project_root() / KEPT
    _kept.update(_in_file(file))
    yield
    if not _read.keys() <= _kept.keys():
        write_json(file, _read)


def _in_file(file: Path) -> dict[str, Source]:
    try:
        return {key: Source(*own) for key, own in read_json(file).items()}
    except (UserError, AttributeError, TypeError):
        return {}  # not there yet, or of another version


def sources(roots: Iterable[Path]) -> set[Path]:
    """Find the files that some scripts run: themselves, and all of this package that they import.

    A file that a module names and that lies beside it counts too. Methods are imported by their
    folder, so a stage names those that it runs among its roots.
    """
    found: set[Path] = set()
    waiting = [root.resolve() for root in roots]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _uses(file)
    return found


def digest(roots: Iterable[Path]) -> str:
    """Sixteen hex digits of what counts in `sources`.

    Of Python that is the syntax tree without docstrings (another version of Python may read another
    tree, and reruns all), of any other file its bytes.
    """
    whole = hashlib.sha256()
    for file in sorted(sources(roots), key=_name):
        counts = _source(file).code.encode() if file.suffix == ".py" else file.read_bytes()
        whole.update(f"{_name(file)}\0".encode() + counts + b"\0")
    return whole.hexdigest()[:16]


def _name(file: Path) -> str:
    """A file's name, wherever the repository lies."""
    inside = PACKAGE in file.parents
    return str(file.relative_to(PACKAGE)) if inside else f"stages/{file.name}"


def _source(file: Path) -> Source:
    """What of a Python file counts; each text is parsed once, by this process or another."""
    text = file.read_text()
    key = hashlib.sha256(f"{_reader()}\0{text}".encode()).hexdigest()[:24]
    if key not in _read:
        _read[key] = _kept[key] if key in _kept else _parsed(text)
    return _read[key]


@cache
def _reader() -> str:
    """What reads, as a digest: another version of Python, or of this file, may read otherwise."""
    return hashlib.sha256(f"{sys.version}\0{Path(__file__).read_text()}".encode()).hexdigest()


def _parsed(text: str) -> Source:
    tree = ast.parse(text)
    modules, words = _names(tree)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return Source(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), modules, words)


def _names(tree: ast.AST) -> tuple[list[str], list[str]]:
    """The modules that a source imports, and its words that may be names of files."""
    modules, words = [], []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words += [node.value] * _is_file_name(node.value)
        waiting += ast.iter_child_nodes(node)
    own = {module for module in modules if module.partition(".")[0] == NAME}
    return sorted(own), sorted(set(words))


@cache
def _uses(file: Path) -> list[Path]:
    """The files that a source imports or names."""
    if file.suffix != ".py":
        return []
    source = _source(file)
    beside = [file.parent / word for word in source.words]
    imported = [found for module in source.modules for found in _files_of(PACKAGE, module)]
    return imported + [path for path in beside if path != file and path.is_file()]


def _is_file_name(text: str) -> bool:
    return 0 < len(text) < 100 and "." in text and "/" not in text and "\n" not in text


@cache
def _files_of(package: Path, module: str) -> list[Path]:
    """The file of one of a package's modules, and of the packages that it lies in."""
    parts = module.split(".")
    folders = [package.joinpath(*parts[1:i]) / "__init__.py" for i in range(1, len(parts) + 1)]
    file = package.joinpath(*parts[1:]).with_suffix(".py") if len(parts) > 1 else folders[0]
    return [path for path in (*folders, file) if path.is_file()]
