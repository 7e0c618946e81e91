"""Table 6: soups of dense networks beside plain fine-tuning of the same seeds."""

from helpers import cells_of, ledger_of, of_seeds, result
from instant_soup.reports import dense_soups
from instant_soup.reports.render import markdown


def test_soups_stand_beside_fine_tuning_of_their_seeds_and_the_paper(tmp_path):
    dense = {"target_sparsity": 0.0, "sparsity": 0.0}
    ledger = ledger_of(
        tmp_path,
        *of_seeds("dense", 0.80, 0.81, 0.82, 0.10),  # the last seed has no soup
        *of_seeds("greedy_soup", 0.90, 0.92, 0.91, **dense),
        *of_seeds("isp", 0.99, 0.99, 0.99),
        result("greedy_soup", 0.1, variant="model_soup.networks=9", **dense),
        result("dense", 0.5, model="other"),
    )
    text = markdown([dense_soups.chapter(ledger)])
    full = cells_of(text, "Full (dense)")
    assert full[:3] == ["81.00 ± 1.00 (n = 3)", "1.00", "76.43"]
    greedy = cells_of(text, "Greedy soup (dense)")
    assert greedy[0] == "91.00 ± 1.00 (n = 3) ▲" and greedy[-1] == "90.64"
    assert cells_of(text, "Uniform soup (dense)")[:2] == ["–", "–"]
    assert "other ·" not in text and "ISP" not in text


def test_without_soups_nothing_is_shown(tmp_path):
    ledger = ledger_of(tmp_path, *of_seeds("dense", 0.8))
    assert dense_soups.chapter(ledger).tables == []
