"""Where lower is better: what is bold, marked, chosen, and where a curve of perplexities bends."""

import numpy as np
import pandas as pd
import pytest

from helpers import cells_of, ledger_of, of_seeds, result
from instant_soup.methods.soups import greedy_soup
from instant_soup.reports import accuracy_tables, head_to_head, marks, verdict
from instant_soup.reports.essential_sparsity import chapter, worst
from instant_soup.reports.render import markdown
from instant_soup.training.metrics import merit, scores

PLAIN = {"metric": "perplexity", "family": "causal", "model": "llama", "dataset": "wikitext2"}


def test_the_lowest_perplexity_is_the_best(tmp_path) -> None:
    runs = [
        *of_seeds("dense", 20.0, 21.5, 20.5, **PLAIN),
        *of_seeds("isp", 25.0, 26.0, 25.5, **PLAIN),
        *of_seeds("one_shot", 30.0, 31.5, 30.5, **PLAIN),
    ]
    table = markdown(accuracy_tables.chapters(ledger_of(tmp_path, *runs)))
    assert cells_of(table, "ISP") == ["**25.50 ± 0.50**"]
    assert cells_of(table, "One-shot magnitude") == ["30.67 ± 0.76"]
    assert "Test perplexity, mean" in table and "no row is called best" not in table
    assert " Lower is better. Model" in table
    assert not len(verdict.comparable(ledger_of(tmp_path, *runs)))  # which is in points
    against = markdown([head_to_head.chapter(ledger_of(tmp_path, *runs))])
    assert cells_of(against, "One-shot magnitude")[0] == "−5.17 ± 0.29 (n = 3) ▲"
    assert "Test perplexity, as differences. Lower is better." in against
    assert cells_of(against, "Full (dense)")[0].endswith("(n = 3) ▼")


def test_a_mark_goes_by_the_metric() -> None:
    one, other = (pd.Series([a, a + 1.1, a + 2], range(3)) for a in (3.0, 5.01))
    other[2] += 0.02
    assert marks.mark_of(one, other, "accuracy") == "worse"
    assert marks.mark_of(one, other, "perplexity") == "better"


def test_soups_choose_by_merit() -> None:
    """Networks are numbers here, and so are their perplexities."""
    import torch

    networks = [{"w": torch.tensor(value)} for value in (9.0, 4.0, 6.0)]

    def score(weights: dict) -> float:
        return merit("perplexity", float(weights["w"]))

    _, chosen = greedy_soup(networks, score)
    assert chosen == [1]
    assert merit("accuracy", 0.5) == 0.5


def test_the_knee_of_a_perplexity_is_where_it_is_one_percent_worse(tmp_path) -> None:
    runs = [result("dense", 20.0, **PLAIN)]
    for i, factor in enumerate((1.0, 1.0, 1.0, np.exp(0.02), 2.0), 1):
        at = {"target_sparsity": i / 10, "sparsity": i / 10}
        runs.append(result("one_shot", 20.0 * factor, **PLAIN, **at))
    table = markdown([chapter(ledger_of(tmp_path, *runs))])
    assert cells_of(table, "One-shot magnitude")[:2] == ["20.00", "35"]
    assert worst("perplexity", 20.0) == pytest.approx(20.2, abs=0.002)
    assert worst("accuracy", 0.9) == pytest.approx(0.89)


def test_perplexity_is_e_to_the_mean_surprise() -> None:
    surprises = np.log(np.array([[2.0, 8.0], [4.0, 4.0]], dtype=np.float32))
    assert scores("language", surprises, np.zeros((2, 2))) == {"perplexity": pytest.approx(4.0)}
