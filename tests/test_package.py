"""What the package offers by its own name: few things, each imported when it is asked for."""

import os
import subprocess
import sys
import tomllib

import pytest

import instant_soup
from helpers import ROOT, run_command


def run(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["prune", "Pruned", "Pruner", "InstantSoupCallback"])
def test_the_public_names_are_there(name: str) -> None:
    assert name in instant_soup.__all__ and name in dir(instant_soup)
    assert getattr(instant_soup, name).__name__ == name


def test_dir_shows_what_the_package_offers_and_nothing_else() -> None:
    assert set(dir(instant_soup)) == set(instant_soup.__all__)


def test_what_imports_torchvision_can_be_imported_after_the_package() -> None:
    """In the project's own environment, where torch may be a build for CPUs."""
    run("import instant_soup, timm, transformers.trainer, torchvision.transforms")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = instant_soup.nothing


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and "version" in project["project"]["dynamic"]
    source = project["tool"]["setuptools"]["dynamic"]["version"]
    assert source == {"attr": "instant_soup.__version__"}
    assert instant_soup.__version__.count(".") == 2


def test_what_is_no_python_comes_with_the_package_too() -> None:
    """Settings of pre-trainings, prompts, the page's parts, the mark that types are there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]
    packed = {
        path
        for package, globs in patterns.items()
        for glob in globs
        for path in (ROOT / "src" / package.replace(".", "/")).glob(glob)
    }
    listed = run_command(ROOT, "git", "ls-files", "src/instant_soup").splitlines()
    assert packed == {ROOT / path for path in listed if not path.endswith(".py")}


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("compact", "sparsity.compact"),
        ("inspection", "tickets.inspect"),
        ("masks", "sparsity.masks"),
        ("sparse_layouts", "tickets.layouts"),
    ],
)
def test_the_names_in_model_cards_stay_importable(name: str, home: str) -> None:
    """By `from instant_soup import …` and by `import instant_soup.…`, with all that is public."""
    script = (
        f"from instant_soup import {name} as one; import instant_soup.{name}; "
        f"from instant_soup.{home} import __dict__ as there; "
        f"assert one is instant_soup.{name}; "
        "assert all(vars(one)[n] is v for n, v in there.items() if not n.startswith('_'))"
    )
    run(script)
