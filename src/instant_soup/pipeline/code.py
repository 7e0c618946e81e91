"""Which sources a stage runs, and their digest: changed code reruns the stages that run it.

The plan writes the digest into a stage's settings file, on which the stage depends. So dvc.yaml
lists no sources, and none can be missing or superfluous. They are what the script imports, and what
that imports in turn, late imports included. Words about code are not code: docstrings, comments and
layout rerun nothing.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
NAME = PACKAGE.name
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


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
        counts = _code(file.read_text()) if file.suffix == ".py" else file.read_bytes()
        whole.update(f"{_name(file)}\0".encode() + counts + b"\0")
    return whole.hexdigest()[:16]


@cache
def _code(source: str) -> bytes:
    """A source's syntax tree as text, without its docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree).encode()


def _name(file: Path) -> str:
    """A file's name, wherever the repository lies."""
    inside = PACKAGE in file.parents
    return str(file.relative_to(PACKAGE)) if inside else f"stages/{file.name}"


@cache
def _uses(file: Path) -> list[Path]:
    """The files that a source imports or names."""
    if file.suffix != ".py":
        return []
    used: list[Path] = []
    waiting: list[ast.AST] = [ast.parse(file.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                used += _files_of(name)
        elif isinstance(node, ast.Import):
            used += [found for alias in node.names for found in _files_of(alias.name)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            beside = file.parent / node.value if _is_file_name(node.value) else file
            if beside != file and beside.is_file():
                used.append(beside)
        waiting += ast.iter_child_nodes(node)
    return used


def _is_file_name(text: str) -> bool:
    return 0 < len(text) < 100 and "." in text and "/" not in text and "\n" not in text


def _files_of(module: str) -> list[Path]:
    """The file of one of this package's modules, and of the packages that it lies in."""
    parts = module.split(".")
    if parts[0] != NAME:
        return []
    folders = [PACKAGE.joinpath(*parts[1:i]) / "__init__.py" for i in range(1, len(parts) + 1)]
    file = PACKAGE.joinpath(*parts[1:]).with_suffix(".py") if len(parts) > 1 else folders[0]
    return [path for path in (*folders, file) if path.is_file()]
