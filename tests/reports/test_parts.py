"""Numbers in README and docs are the ledger's."""

import pytest

from helpers import ROOT, ledger_of, of_seeds, run_command
from instant_soup.reports import ledger, parts
from instant_soup.reports.origins import apart_by_origin
from instant_soup.reports.render import NOTHING


@pytest.mark.parametrize("name", parts.FILES)
def test_numbers_of_the_docs_are_the_ledgers(name, tmp_path):
    """As committed: what one's own runs add to the ledger is not in the docs."""
    text, rows = (
        run_command(ROOT, "git", "show", f"HEAD:{path}") for path in (name, "reports/results.csv")
    )
    (tmp_path / "results.csv").write_text(rows)
    every = apart_by_origin(ledger.read_ledger(tmp_path / "results.csv"))
    assert parts.PART.search(text) and parts.render(text, every) == text  # `make numbers` renders
    assert NOTHING not in text


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
    said = {name: part(none) for name, part in parts.PARTS.items()}
    assert said.pop("claim") == "" and set(said.values()) == {"No results yet."}


def test_a_table_is_of_the_origin_that_has_most_of_its_rows(tmp_path):
    """A grid of other rows elsewhere takes no lottery ticket out of the README."""
    place = dict(zip(("model", "dataset"), parts.TEXTS[:2], strict=True))
    here = [
        *of_seeds("dense", 0.9, 0.9, **place),
        *(one for m in ("isp", "isp_plus", "lth") for one in of_seeds(m, 0.7, 0.7, **place)),
    ]
    there = [
        *of_seeds("dense", 0.8, 0.8, processor="B", **place),
        *of_seeds("isp", *[0.6] * 9, processor="B", variant="training.teacher=dense", **place),
        *(one for m in ("isp", "isp_plus", "platon", "cap", "gmp", "rigl")
          for one in of_seeds(m, 0.6, 0.6, processor="B", **place)),
    ]  # fmt: skip
    runs = [
        {**one, "target_sparsity": 0.8 if one["target_sparsity"] else 0.0} for one in here + there
    ]
    ledger = apart_by_origin(ledger_of(tmp_path, *runs))
    assert "ISP+ keeps 70.0 % accuracy. ISP has 70.0 %, LTH 70.0 %" in parts.PARTS["example"](
        ledger
    )


def test_a_knee_is_of_the_origin_that_has_a_curve(tmp_path):
    """Its task's name may have gone to an origin with more runs, of other methods."""
    place = dict(zip(("model", "dataset"), parts.IMAGES[:2], strict=True))
    curve = ((0.1, 0.9), (0.3, 0.9), (0.5, 0.9), (0.7, 0.89), (0.9, 0.87))
    here = [*of_seeds("dense", 0.9, **place)]
    for sparsity, value in curve:
        here += of_seeds("one_shot", value, target_sparsity=sparsity, **place)
    there = of_seeds("dense", 0.8, processor="B", **place)
    for method in ("isp", "isp_plus", "platon", "cap", "gmp", "rigl", "one_shot", "random"):
        there += of_seeds(method, 0.6, processor="B", **place)
    ledger = apart_by_origin(ledger_of(tmp_path, *here, *there))
    assert "| images (clip-glyph) | 70 |" in parts.PARTS["knees"](ledger)


def test_the_fields_methods_stand_beside_isp_plus_of_the_same_processor(tmp_path):
    """Seeds 0 and 1 on A; on B one seed, whose difference from ISP+ is another."""
    others = ("wanda", "snip", "lamp", "gmp", "obert", "cap", "bip", "rigl", "platon")
    at = {"target_sparsity": 0.8, "validation": 0.5}
    rows = []
    for model, dataset, *_ in (parts.TEXTS, parts.IMAGES):
        for processor, values, plus in (("A", (0.6, 0.7), (0.7, 0.7)), ("B", (0.9,), (0.7,))):
            place = {"model": model, "dataset": dataset, "processor": processor}
            rows += of_seeds("dense", *(0.9 for _ in values), **place)
            rows += of_seeds("isp_plus", *plus, **place, **at)
            rows += [one for m in others for one in of_seeds(m, *values, **place, **at)]
    lines = parts.PARTS["methods"](apart_by_origin(ledger_of(tmp_path, *rows))).splitlines()
    assert lines[2].split(" | ")[0] == "| ISP+" and len(lines) == 12
    platon = next(line for line in lines if line.startswith("| PLATON"))
    assert platon.split(" | ")[1:5] == ["65.00 ± 7.07", "−5.00", "1.0", "2"]


def test_the_fields_methods_at_each_sparsity_where_most_of_them_ran(tmp_path):
    others = ("wanda", "snip", "lamp", "gmp", "obert", "cap", "bip", "rigl", "platon")
    rows = of_seeds("dense", 0.9, 0.9)
    for sparsity, plus, other in ((0.8, (0.7, 0.8), (0.6, 0.9)), (0.9, (0.6,), (0.62,))):
        at = {"target_sparsity": sparsity, "validation": 0.5}
        rows += of_seeds("isp_plus", *plus, **at)
        rows += [one for method in others for one in of_seeds(method, *other, **at)]
    rows += of_seeds("platon", 0.5, target_sparsity=0.5)  # alone there
    place = dict(zip(("model", "dataset"), parts.TEXTS, strict=False))
    runs = apart_by_origin(ledger_of(tmp_path, *({**row, **place} for row in rows)))
    lines = parts.PARTS["methods_by_sparsity"](runs).splitlines()
    assert lines[0] == "| method | texts, 80 % (2) | texts, 90 % (1) |" and len(lines) == 11
    assert "| PLATON | +0.00 | +2.00 |" in lines
