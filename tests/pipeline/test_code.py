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


@pytest.mark.parametrize("script", sorted((ROOT / "stages").glob("*.py")), ids=lambda p: p.stem)
def test_what_a_stage_imports_is_among_its_sources(script: Path) -> None:
    """At its start; what it imports late is read from the same sources."""
    report = (
        "import json, runpy, sys; runpy.run_path(sys.argv[1], run_name='stage'); "
        "print(json.dumps([getattr(m, '__file__', None) for n, m in sys.modules.items() "
        "if n.split('.')[0] == 'instant_soup']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", report, str(script)],
        capture_output=True, text=True, env=environment(), check=True,
    )  # fmt: skip
    imported = {Path(file) for file in json.loads(done.stdout) if file}
    # Methods are imported by their folder: those that a stage runs are roots of their own.
    assert imported <= code.sources([script, *registry.FOLDER.glob("*.py")])


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
