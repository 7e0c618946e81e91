"""ISP against each other method: paired over seeds, and nothing else compared."""

import pytest
from scipy.stats import ttest_rel

from helpers import cells_of, ledger_of, of_seeds, result
from instant_soup.reports import head_to_head
from instant_soup.reports.render import markdown

ISP = (0.80, 0.81, 0.83)


def text_of(tmp_path, *runs) -> str:
    return markdown([head_to_head.chapter(ledger_of(tmp_path, *runs))])


def test_differences_are_taken_seed_by_seed(tmp_path):
    lth, random = (0.82, 0.84, 0.85), (0.70, 0.60, 0.75)
    text = text_of(
        tmp_path,
        *of_seeds("isp", *ISP, cost={"flops": 18.0}),
        *of_seeds("lth", *lth, cost={"flops": 50.0}),
        *of_seeds("random", *random, cost={"flops": 10.0}),
    )
    assert ttest_rel(ISP, lth).pvalue < 0.05 < ttest_rel(ISP, random).pvalue
    assert cells_of(text, "LTH (IMP)") == ["−2.33 ± 0.58 (n = 3) ▼", "0.36"]
    assert cells_of(text, "Random") == ["+13.00 ± 7.00 (n = 3)", "1.80"]


def test_only_common_seeds_and_the_same_sparsity_count(tmp_path):
    text = text_of(
        tmp_path,
        *of_seeds("isp", *ISP),
        result("one_shot", 0.75, seed=1),
        result("one_shot", 0.10, seed=7),
        result("snip", 0.50, target_sparsity=0.9),
    )
    assert cells_of(text, "One-shot magnitude")[0] == "+6.00 (n = 1)"
    assert "SNIP" not in text  # nothing to show in a row


def test_the_dense_network_stands_against_every_sparsity(tmp_path):
    text = text_of(
        tmp_path,
        *of_seeds("isp", *ISP),
        *of_seeds("isp", *ISP, target_sparsity=0.9),
        *of_seeds("dense", 0.85, 0.86, 0.88, target_sparsity=0.0),
    )
    cells = cells_of(text, "Full (dense)")
    assert cells[0] == cells[2] == "−5.00 ± 0.00 (n = 3)"  # no spread: nothing to test against


def test_other_settings_do_not_enter(tmp_path):
    text = text_of(
        tmp_path,
        *of_seeds("isp", *ISP),
        *of_seeds("isp", 0.1, 0.2, 0.3, variant="isp.denoisers=6"),
        *of_seeds("random", 0.1, 0.2, 0.3, variant="data.train_rows=8"),
    )
    assert "No results yet" in text


def test_settings_that_all_share_make_a_table_of_their_own(tmp_path):
    shared = "data.train_rows=8 training.epochs=2"
    text = text_of(
        tmp_path,
        *of_seeds("isp", *ISP, variant=shared),
        *of_seeds("lth", 0.82, 0.84, 0.85, variant=shared),
        *of_seeds("random", 0.1, 0.2, 0.3),
    )
    assert f"minilm · reviews · quick · {shared}" in text
    assert cells_of(text, "LTH (IMP)")[0] == "−2.33 ± 0.58 (n = 3) ▼"
    assert "Random" not in text


@pytest.mark.parametrize("runs", [(), (result("lth"),)])
def test_without_isp_there_is_nothing_to_compare(tmp_path, runs):
    assert "No results yet" in text_of(tmp_path, *runs)
