"""The code in the docs runs as it stands; their links and the files that they name are there."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from helpers import ROOT, loader, perceptron
from instant_soup.methods.registry import methods

README = (ROOT / "README.md").read_text()
BLOCKS = [
    part.split("```")[0] for part in (ROOT / "docs/api.md").read_text().split("```python\n")[1:]
]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Run a block, with names that it may use, in an empty folder; what it prints."""
    monkeypatch.chdir(tmp_path)

    def runner(block: str, **names: Any) -> list[str]:
        torch.manual_seed(0)
        exec(block, {"__name__": "__main__", **names})
        return capsys.readouterr().out.splitlines()

    return runner


def test_pruning_a_model_of_ones_own(run: Callable[..., list[str]], tmp_path: Path) -> None:
    pruned, steps = run(BLOCKS[0])[-2:]
    assert set(eval(pruned)) == {"0.weight", "2.weight"}
    assert steps == "200 120"  # four rounds of three denoisers, ten steps each
    assert (tmp_path / "pruned/ticket.json").exists()


def test_a_loop_of_ones_own(run: Callable[..., list[str]]) -> None:
    assert run(BLOCKS[1])[-1] == "0.80 True"


def test_the_trainers_callback(
    run: Callable[..., list[str]], tmp_path: Path, tiny_bert: Path
) -> None:
    imports = [line for line in BLOCKS[2].splitlines() if line.startswith(("from", "import"))]
    assert "instant_soup" in imports[0]  # which tests/test_package.py holds to be enough
    shutil.copytree(tiny_bert, tmp_path / "models/base")
    assert run(BLOCKS[2])[-1] == "0.70"


def test_a_script_for_several_processes_runs_in_one_too(run: Callable[..., list[str]]) -> None:
    assert run(BLOCKS[3])[-1] == "0.80"


def test_the_readmes_call(run: Callable[..., list[str]], tmp_path: Path) -> None:
    """On a model and batches of ours and with fewer steps."""
    (call,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert "steps=1000" in call
    ours = {"model": perceptron(), "batches": loader(), "cross_entropy": cross_entropy}
    zeros = "sum(int((~kept).sum()) for kept in pruned.mask.values())"
    shown = f"print(pruned.method, pruned.cost['steps'], {zeros})"
    lines = run(f"{call.replace('steps=1000', 'steps=24')}\n{shown}", **ours)
    assert lines[-1] == f"isp_plus 24 {round(0.8 * (8 * 32 + 32 * 32))}"
    assert (tmp_path / "pruned/ticket.json").exists()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_no_block_is_forgotten() -> None:
    assert len(BLOCKS) == 5


@pytest.mark.parametrize("name", ["InstantSoupCallback", "prune", "Pruned", "Pruner"])
def test_what_the_docs_import_is_there(name: str) -> None:
    import instant_soup

    assert getattr(instant_soup, name).__name__ == name


# Links

PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()
)  # fmt: skip
PACKAGE = ROOT / "src/instant_soup"


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What `#…` may name on a page, by GitHub's rules."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} (.+)$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_the_docs_are_there(page: Path) -> None:
    """`stages/plan.py`, or `pipeline/plan.py` of the package; capitals stand for any name."""
    named = re.findall(r"`([\w.]+/[\w./]*\.(?:py|yaml|md|png|csv|html|json))`", prose(page))
    places = (ROOT, PACKAGE, page.parent)
    missing = [
        name
        for name in named
        if not re.search(r"/[A-Z]+\.", name) and not any((p / name).exists() for p in places)
    ]
    assert missing == []


# The site


def test_the_site_has_all_pages() -> None:
    """mkdocs.yml's nav names each page of docs/, and nothing that is not there."""

    def pages(nav: list | dict | str) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        parts = nav.values() if isinstance(nav, dict) else nav
        return [page for part in parts for page in pages(part)]

    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(named) == len(set(named))
    own = {path.name for path in (ROOT / "docs").glob("*.md")}
    outside = {name for name in named if name not in own}
    assert set(named) == own | outside
    assert all((ROOT / name).exists() for name in outside)
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= outside


# A method of one's own

ADDED = dict(
    re.findall(
        r"^```python file=(\S+)\n(.*?)^```$",
        (ROOT / "docs/add_a_method.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)

# In a copy of the package that has the page's two methods, with the copy as the working folder.
KNOWN = """
from instant_soup.files import read_yaml
from instant_soup.methods import registry
from instant_soup.pipeline import code, params_text
from instant_soup.pipeline.plan import plan_with_code

names = ["row_column", "halving"]
assert set(names) <= set(registry.selectable())
params_text.main()
params = read_yaml("params.yaml")
assert params["row_column"] == {"rows": None} and params["halving"] == {"times": None}
files = plan_with_code({**params, "methods": names, "row_column": {"rows": 0.7}})
row_column, halving = (files[f"ticket_{name}"] for name in names)
assert row_column["settings"] == {"rows": 0.7} and row_column["recipe"] is None
assert halving["settings"] == {"times": 5} and halving["recipe"]["seed"] == 0
assert files["evaluate_row_column"]["variant"] == "row_column.rows=0.7"
assert row_column["code"] != halving["code"]
print(code.PACKAGE)
"""

RUN = """
import sys
from pathlib import Path

import torch
from helpers import make_project, run_row
from instant_soup.sparsity import masks
from instant_soup.training.state import load_state

torch.set_num_threads(1)
methods, training = ["row_column", "halving"], {"epochs": 1, "batch_size": 8, "precision": "fp32"}
model, data = map(Path, sys.argv[1:])
make_project(Path("."), model, data, sparsity=0.7, methods=methods, training=training,
             data={"validation_rows": 40, "max_length": 12})
for method in methods:
    run_row(method)
    folder = Path(f"models/retrained/{method}")
    mask = masks.load(folder / "mask.safetensors")
    state = load_state(folder / "state", moments=False)
    kept, total = masks.count(mask)
    zeros = sum(int((state.weights[name] == 0).sum()) for name in mask)
    print(method, state.step, total - kept == zeros == round(0.7 * total))
"""

# Interrupted between two prunes, where gradients are clipped: a lost mask would show.
RESUME = """
import os, shutil, signal, sys
from pathlib import Path

import pytest
from helpers import assert_same, interrupt_at, make_project, run_script, state_in

model, data = map(Path, sys.argv[1:])
training = {"epochs": 1, "batch_size": 8, "precision": "fp32"}
training |= {"learning_rate": 5e-3, "clip_norm": 0.1}
make_project(Path("."), model, data, sparsity=0.7, methods=["halving"], training=training,
             data={"validation_rows": 40, "max_length": 12})
found, row = "models/tickets/halving/found", ("find_ticket", "--method", "halving")
run_script(*row)
at_once = state_in(found)
shutil.rmtree(".dvc")
shutil.rmtree(found)
with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
    interrupt_at(7, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
    run_script(*row)
run_script(*row)
assert_same(at_once, state_in(found))
"""


# The page's own call, with fewer steps; then its pruner in a loop of one's own.
LIBRARY = """
import sys

import torch
import instant_soup
from helpers import loader as batches, loss, perceptron
from instant_soup.sparsity import masks

torch.set_num_threads(1)
loader, model = batches(), perceptron()
pruned = eval(sys.argv[1])
print(pruned.method, masks.sparsity(pruned.mask), pruned.cost["steps"])

model = perceptron()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
pruner = instant_soup.Pruner(model, optimizer, method="halving", steps=24, sparsity=0.75, times=4)
for _ in range(4):
    for batch in loader:
        loss(model, batch).backward()
        pruner.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.after_step()
zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in pruner.mask)
print(zeros, sum(kept.numel() for kept in pruner.mask.values()))
"""


TESTS = """
import sys

import pytest

assert pytest.main(["-p", "no:cacheprovider", "-c", "/dev/null", sys.argv[1]]) == 0
"""


# Runs each script in its folder, with its arguments; what each prints, as JSON, a line a script.
ONE_AFTER_THE_OTHER = """
import contextlib, io, json, os, sys

for folder, script, *arguments in json.load(sys.stdin):
    os.chdir(folder)
    sys.argv = ["", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(script, {"__name__": "__main__"})
    print(json.dumps(said.getvalue().splitlines()), flush=True)
"""


@pytest.fixture(scope="module")
def with_methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of package and stages, with the files of docs/add_a_method.md."""
    copy = tmp_path_factory.mktemp("with-methods")
    for folder in ("src", "stages"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    shutil.copy(ROOT / "params.yaml", copy)
    (copy / "tests/methods").mkdir(parents=True)
    shutil.copy(ROOT / "tests/helpers.py", copy / "tests")
    assert len(ADDED) == 3
    for name, text in ADDED.items():
        assert not (copy / name).exists()
        (copy / name).write_text(text)
    return copy


@pytest.fixture(scope="module")
def printed(
    with_methods: Path, tiny_bert: Path, tiny_data: Path, tmp_path_factory
) -> dict[str, list[str]]:
    """What the scripts above print, by name, in one process with the copy of the package."""
    text = (ROOT / "docs/add_a_method.md").read_text()
    (call,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert "steps=1000" in call
    given = [str(tiny_bert), str(tiny_data)]
    scripts = {
        "known": [str(with_methods), KNOWN],
        "run": [str(tmp_path_factory.mktemp("run")), RUN, *given],
        "resume": [str(tmp_path_factory.mktemp("resume")), RESUME, *given],
        "library": [
            str(tmp_path_factory.mktemp("library")), LIBRARY,
            call.replace("steps=1000", "steps=24"),
        ],
        "tests": [str(with_methods), TESTS, "tests/methods/test_row_column.py"],
    }  # fmt: skip
    own = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    paths = os.pathsep.join([str(with_methods / "src"), str(with_methods / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER],
        input=json.dumps([*scripts.values()]), capture_output=True, text=True,
        env={**own, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(scripts, map(json.loads, done.stdout.splitlines()), strict=True))


def test_added_methods_are_known_everywhere(printed: dict, with_methods: Path) -> None:
    assert Path(printed["known"][-1]) == with_methods / "src/instant_soup"
    page = (with_methods / "docs/settings.md").read_text()
    assert "## row_column" in page and "## halving" in page


def test_added_methods_run(printed: dict) -> None:
    rows = [line for line in printed["run"] if line.startswith(("row_column ", "halving "))]
    assert rows == ["row_column 20 True", "halving 20 True"]


def test_an_added_pruner_goes_on_to_the_bit(printed: dict) -> None:
    assert "Geometric magnitude: continuing from the checkpoint at step 7" in printed["resume"]


def test_an_added_method_works_through_the_librarys_doors(printed: dict) -> None:
    by_prune, by_loop = printed["library"]
    weights = 8 * 32 + 32 * 32
    assert by_prune == f"halving {round(0.8 * weights) / weights} 24"
    assert by_loop == f"{0.75 * weights:.0f} {weights}"


def test_the_pages_own_test_passes(printed: dict) -> None:
    assert " 4 passed" in printed["tests"][-1]


def test_added_methods_keep_the_habits(with_methods: Path) -> None:
    command = [sys.executable, "-m", "ruff"]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [*command, *check, "--config", str(ROOT / "pyproject.toml"), *ADDED],
            cwd=with_methods,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_the_table_of_methods_is_complete() -> None:
    text = (ROOT / "docs/methods.md").read_text().split("\n## Axes of any row\n")[0]
    rows = dict(re.findall(r"^\| (`.+?`) \| (.*)$", text, re.MULTILINE))
    told = {name: rest for names, rest in rows.items() for name in re.findall(r"`(\w+)`", names)}
    assert set(told) == set(methods())
    for name, method in methods().items():
        if paper := re.search(r"arXiv (\S+)", method.source):
            assert f"https://arxiv.org/abs/{paper[1]}" in told[name] or "the same" in told[name]
