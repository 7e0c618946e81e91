"""Intervals, tests and ranks: known answers, and those of the libraries that have them."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from statsmodels.stats.multitest import multipletests

from instant_soup.reports import statistics

ONE = np.array([0.4, 1.1, 0.7])
OTHER = np.array([2.0, 3.5, 2.2, 4.1])
DRAW = np.random.default_rng(3)
SCORES = pd.DataFrame(DRAW.normal(size=(9, 5)) + np.arange(5), columns=list("abcde"))


def test_p_of_one_task_is_the_paired_t_tests():
    assert statistics.paired_p([ONE]) == pytest.approx(stats.ttest_1samp(ONE, 0).pvalue)


def test_p_of_two_tasks_is_welchs():
    expected = stats.ttest_ind(ONE, -OTHER, equal_var=False).pvalue
    assert statistics.paired_p([ONE, OTHER]) == pytest.approx(expected)


@pytest.mark.parametrize("differences", [[ONE[:1]], [ONE, OTHER[:1]], [np.ones(3)]])
def test_without_a_spread_nothing_is_tested(differences):
    assert np.isnan(statistics.paired_p(differences))


def test_what_does_not_differ_at_all_is_within_noise():
    assert statistics.paired_p([np.zeros(3)]) == 1.0


def test_holm_by_hand_and_as_statsmodels_has_it():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    p = DRAW.random(12) ** 3
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert len(statistics.holm([])) == 0


@settings(max_examples=100, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 5))))
def test_without_gaps_is_the_largest_complete_part(missing):
    rows, columns = statistics.without_gaps(np.where(missing, np.nan, 1.0))
    assert not missing[np.ix_(rows, columns)].any()
    subsets = [
        list(own) for n in range(1, len(rows) + 1) for own in combinations(range(len(rows)), n)
    ]
    most = max(len(own) * (~missing[own]).all(axis=0).sum() for own in subsets)
    assert rows.sum() * columns.sum() == most


def test_an_interval_of_one_task_draws_its_seeds():
    """All 27 resamples of three seeds: both ends are the lowest and highest means but one."""
    low, high = statistics.bootstrap_interval([np.array([0.0, 3.0, 6.0])])
    assert (low, high) == (0.0, 6.0)  # each has 1 of 27, more than 2.5 %


def test_an_interval_draws_tasks_then_seeds():
    """Without a spread over seeds, two tasks give their own means and the one between."""
    far = [np.full(3, -1.0), np.full(2, 5.0)]
    assert statistics.bootstrap_interval(far) == (-1.0, 5.0)
    assert statistics.bootstrap_interval([np.full(3, 2.0), np.full(3, 2.0)]) == (2.0, 2.0)


def test_a_single_run_has_no_interval():
    assert np.isnan(statistics.bootstrap_interval([ONE[:1]])).all()


def test_ranks_share_ties():
    scores = pd.DataFrame({"a": [3.0, 1.0], "b": [3.0, 2.0], "c": [1.0, 0.0]})
    assert dict(statistics.mean_ranks(scores)) == {"a": 1.75, "b": 1.25, "c": 3.0}


def test_nemenyi_is_scikit_posthocs():
    expected = scikit_posthocs.posthoc_nemenyi_friedman(SCORES)
    assert statistics.nemenyi(SCORES, "b").drop("b").to_numpy() == pytest.approx(
        expected.loc["b"].drop("b").to_numpy(), abs=1e-9
    )


def test_critical_difference_is_demsars():
    """Demšar (2006), Table 5: q = 2.728 for five rows at 0.05."""
    expected = 2.728 * np.sqrt(5 * 6 / (6 * 9))
    assert statistics.critical_difference(SCORES) == pytest.approx(expected, abs=1e-3)
