"""Numbers in README and docs are the ledger's."""

import pytest

from helpers import ROOT, ledger_of, of_seeds, run_command
from instant_soup.reports import ledger, parts


@pytest.mark.parametrize("name", parts.FILES)
def test_numbers_of_the_docs_are_the_ledgers(name, tmp_path):
    """As committed: what one's own runs add to the ledger is not in the docs."""
    text, rows = (
        run_command(ROOT, "git", "show", f"HEAD:{path}") for path in (name, "reports/results.csv")
    )
    (tmp_path / "results.csv").write_text(rows)
    every = ledger.read_ledger(tmp_path / "results.csv")
    assert parts.PART.search(text) and parts.render(text, every) == text  # `make numbers` renders


def test_a_part_is_rendered_and_the_rest_stays(tmp_path):
    text = "a\n<!-- ledger: results -->\nold\n<!-- end -->\nb <!-- end -->\n"
    rows = [
        one
        for model, dataset, *_ in (parts.TEXTS, parts.IMAGES)
        for place in [{"model": model, "dataset": dataset}]
        for one in (
            *of_seeds("dense", 0.9, 0.9, target_sparsity=0.0, **place),
            *of_seeds("isp", 0.7, 0.8, target_sparsity=0.7, **place),
            *of_seeds("isp", 0.5, 0.5, target_sparsity=0.9, **place),
            *of_seeds("snip", 0.8, 0.8, target_sparsity=0.7, **place),
        )
    ]
    lines = parts.render(text, ledger_of(tmp_path, *rows)).splitlines()
    assert lines[0] == "a" and lines[-2:] == ["<!-- end -->", "b <!-- end -->"]
    assert [line.split(" | ")[0] for line in lines[4:-2]] == ["| Full (dense)", "| ISP"]
    assert lines[5].split(" | ")[1:3] == ["**75.00 ± 7.07**", "**50.00 ± 0.00**"]


def test_without_results_the_parts_say_so(tmp_path):
    none = ledger_of(tmp_path)
    assert {parts.PARTS[name](none) for name in ("verdict", "example")} == {"No results yet."}
