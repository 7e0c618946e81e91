"""The repository's habits: one version everywhere, CI runs .ci/run, a clone has all folders."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from instant_soup.pipeline import plan

ROOT = Path(__file__).parent.parent
OUTPUTS = ("data", "models")  # folders that DVC's outputs lie in


def version() -> str:
    """The literal in the package's __init__.py, which nothing needs to be imported for."""
    text = (ROOT / "src/instant_soup/__init__.py").read_text()
    (found,) = re.findall(r'^__version__ = "(\d+\.\d+\.\d+)"$', text, re.MULTILINE)
    return found


def releases() -> list[tuple[str, str]]:
    """The changelog's versions with their dates, newest first."""
    text = (ROOT / "CHANGELOG.md").read_text()
    return re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)$", text, re.MULTILINE
    )


def outputs() -> set[str]:
    """All outputs of dvc.yaml, entries of lists and matrices as they are written there."""
    found = set()
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        for out in stage.get("do", stage).get("outs", []):
            found.add(next(iter(out)) if isinstance(out, dict) else out)
    return found


def ignored(path: str) -> bool:
    done = subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT)
    return done.returncode == 0


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version()
    assert releases()[0][0] == version()


def test_changelog_is_in_order() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.count("\n## ") == len(releases()), "a heading that is no version with its date"
    numbers = [tuple(map(int, number.split("."))) for number, _ in releases()]
    assert numbers == sorted(set(numbers), reverse=True)
    dates = [date for _, date in releases()]
    assert "unreleased" not in dates[1:]
    assert dates[1:] == sorted(dates[1:], reverse=True)


def test_citation_names_software_and_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert {"message", "title", "authors", "license"} <= citation.keys()
    assert ("date-released" in citation) == (releases()[0][1] != "unreleased")
    paper = citation["preferred-citation"]
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Jaiswal", "Liu", "Chen", "Ding", "Wang"]
    assert paper["identifiers"][0]["value"] == "arXiv:2306.10460"
    assert paper["title"] in (ROOT / "README.md").read_text()


def test_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    assert job["timeout-minutes"] == 60


def test_hooks_need_no_network() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    tools = [hook["entry"].split()[0] for hook in repository["hooks"]]
    assert tools == ["ruff", "ruff", "mypy"]
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    pinned = (ROOT / "requirements.txt").read_text()
    assert all(re.search(rf"^{tool}==", pinned, re.MULTILINE) for tool in tools)


def test_make_quick_is_make_test_without_the_slow() -> None:
    text = (ROOT / "Makefile").read_text()
    (quick,), (full,) = (
        re.findall(rf"^{target}: setup .*\n((?:\t.*\n)+)", text, re.MULTILINE)
        for target in ("quick", "test")
    )
    assert quick.replace(' -m "not slow"', "") == full != quick


def test_dvc_lists_what_the_plan_knows() -> None:
    whole = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert whole["stages"]["ticket_of_isp"]["foreach"] == plan.needy()
    (rounds,) = (entry["rounds"] for entry in whole["vars"] if "rounds" in entry)
    before = ["models/start", *(f"models/isp/round_{i}" for i in range(plan.ROUNDS))]
    expected = [{"id": i, "start": before[i]} for i in range(plan.ROUNDS)]
    assert rounds == expected


def test_no_stage_depends_on_a_part_of_an_output() -> None:
    """But on the plan's: that stage always comes first. A lock need not have its files in the
    cache, and `dvc exp run` fails where it looks for a part in a folder that it cannot load."""
    whole = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    starts = [one["start"] for entry in whole["vars"] for one in entry.get("rounds", [])]
    listed = [dep for s in whole["stages"].values() for dep in s.get("do", s).get("deps", [])]
    deps = {dep.replace("${item.start}", start) for dep in listed for start in starts}
    named = {re.sub(r"\$\{item(\.id)?\}", "0", name) for name in outputs() - {"models/plan"}}
    assert {d for d in deps for out in named if d.startswith(f"{out}/")} == set()


@pytest.mark.parametrize("folder", OUTPUTS)
def test_outputs_folder_says_what_comes_there(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    inside = {out.split("/")[1] for out in outputs() if out.startswith(f"{folder}/")}
    assert inside
    assert inside == set(re.findall(r"^\| `(\w+)/", text, re.MULTILINE))


def test_git_has_the_pages_and_not_the_outputs() -> None:
    for folder in OUTPUTS:
        assert not ignored(f"{folder}/README.md")
    for out in outputs():
        if out.startswith(tuple(f"{folder}/" for folder in OUTPUTS)):
            assert ignored(re.sub(r"\$\{[^}]*\}", "x", out)), out


def test_reports_are_written_whole_or_not_at_all() -> None:
    """Ctrl-C during `make tables` leaves no half of a file: only what is complete gets its name."""
    sources = [*sorted((ROOT / "src/instant_soup/reports").glob("*.py")), ROOT / "stages/tables.py"]
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            match node.func.attr:
                case "write_text" | "write_bytes":
                    assert ast.unparse(node.func.value) == "unfinished", (path, node.lineno)
                case "print_png":
                    assert ast.unparse(node.args[0]) == "unfinished", (path, node.lineno)
                case "to_csv" | "savefig":  # which a path would make write in place
                    assert not node.args, (path, node.lineno)
