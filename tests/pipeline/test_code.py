"""Which sources a stage runs: found by reading its imports, and compared with what it imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT, environment
from instant_soup.methods import registry
from instant_soup.pipeline import code

PACKAGE = ROOT / "src/instant_soup"


def names(roots: list[Path]) -> set[str]:
    """The files of the package that some roots run, by their names within it."""
    found = code.sources(roots)
    return {str(f.relative_to(PACKAGE)) for f in found if PACKAGE in f.parents}


SCRIPTS = sorted((ROOT / "stages").glob("*.py"))
# Runs each script's head in a fork, which has the libraries and none of our own modules.
REPORT = """
import json, os, runpy, sys
import torch, transformers
for script in sys.argv[1:]:
    if not (child := os.fork()):
        runpy.run_path(script, run_name="stage")
        own = [m for name, m in sys.modules.items() if name.split(".")[0] == "instant_soup"]
        print(json.dumps([getattr(module, "__file__", None) for module in own]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def imported() -> dict[Path, set[Path]]:
    """What each stage's script imports of ours at its start."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *map(str, SCRIPTS)],
        capture_output=True, text=True, env=environment(), check=True,
    )  # fmt: skip
    lines = map(json.loads, done.stdout.splitlines())
    return {s: {Path(f) for f in line if f} for s, line in zip(SCRIPTS, lines, strict=True)}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_what_a_stage_imports_is_among_its_sources(
    imported: dict[Path, set[Path]], script: Path
) -> None:
    """At its start; what it imports late is read from the same sources."""
    assert bool(imported[script]) == (script.stem != "run")  # which imports it late
    # Methods are imported by their folder: those that a stage runs are roots of their own.
    assert imported[script] <= code.sources([script, *registry.FOLDER.glob("*.py")])


def test_late_imports_and_named_files_count_and_those_for_types_do_not() -> None:
    dense = names([ROOT / "stages/dense_finetune.py"])
    assert "models/clip.py" in dense  # imported when the family is known
    assert not any(name.startswith(("reports/", "grids/", "tickets/")) for name in dense)
    assert "methods/isp.py" not in dense
    assert "pretraining/clip_glyph.json" in names([ROOT / "stages/pretrain_clip.py"])
    tables = names([ROOT / "stages/tables.py"])
    assert {"reports/paper.yaml", "reports/page.html"} <= tables


def test_a_method_counts_where_it_is_a_root_and_with_what_it_calls() -> None:
    script = ROOT / "stages/find_ticket.py"
    own = names([script, registry.file_of("granet")])
    assert {"methods/granet.py", "training/granet_pruner.py"} <= own
    assert not {"methods/movement.py", "training/movement_pruner.py"} & own
    assert {"methods/on_batches.py", "methods/grasp.py"} <= names([registry.file_of("grasp")])


def test_a_change_of_a_source_changes_the_digest(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from instant_soup import seeds\n")
    before = code.digest([script])
    assert before == code.digest([script])
    script.write_text("from instant_soup import files\n")
    assert code.digest([script]) != before


def test_docstrings_comments_and_layout_do_not_change_the_digest(tmp_path: Path) -> None:
    script = tmp_path / "script.py"

    def digest(source: str) -> str:
        script.write_text(source)
        return code.digest([script])

    plain = "def double(x):\n    return 2 * x\n\n\nTEXT = 'words'\n"
    told = (
        "'Of numbers.'\n\ndef double( x ):  # any\n    'Twice x.'\n"
        "    return 2 * x\nTEXT = 'words'\n"
    )
    assert digest(plain) == digest(told)
    assert digest(told.replace("2 * x", "3 * x")) != digest(told)
    assert digest(told.replace("'words'", "'others'")) != digest(told)


def test_what_one_process_has_read_of_sources_another_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same digest; a changed text is read anew, and so is all where the file is damaged."""
    script, kept, parsed = tmp_path / "script.py", tmp_path / code.KEPT, []
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    script.write_text("from instant_soup import seeds\n")
    parse = code._parsed
    monkeypatch.setattr(code, "_parsed", lambda text: parsed.append(text) or parse(text))

    def digest_of_a_new_process() -> tuple[str, int]:
        parsed.clear()
        code._uses.cache_clear()
        for memory in ("_kept", "_read"):
            monkeypatch.setattr(code, memory, {})
        with code.remembered():
            found = code.digest([script])
        return found, len(parsed)

    first, all_of_them = digest_of_a_new_process()
    assert all_of_them == len(code.sources([script])) > 1
    assert digest_of_a_new_process() == (first, 0)
    script.write_text("from instant_soup import seeds as other\n")
    second, number = digest_of_a_new_process()
    assert second != first and number == 1
    for damaged in ("{", "[]", '{"a": 1}', '{"a": [1]}'):
        kept.write_text(damaged)
        assert digest_of_a_new_process() == (second, all_of_them)
