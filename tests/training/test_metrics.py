"""Metrics against their textbook formulas in double precision."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from instant_soup.training.metrics import scores

LAW = settings(deadline=None, max_examples=60)
CLASSES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)


def logits(chosen: list[int], classes: int) -> np.ndarray:
    """Logits whose largest entry is at the chosen class."""
    table = np.random.default_rng(0).uniform(-1, 1, (len(chosen), classes)).astype(np.float32)
    table[np.arange(len(chosen)), chosen] = 2.0
    return table


def f1(chosen: np.ndarray, labels: np.ndarray, of: int) -> float:
    """2 TP / (2 TP + FP + FN), 0 where that is 0 / 0."""
    right = float(((chosen == of) & (labels == of)).sum())
    either = float((chosen == of).sum() + (labels == of).sum())
    return 2 * right / either if either else 0.0


def matthews(chosen: np.ndarray, labels: np.ndarray) -> float:
    """(TP TN − FP FN) / sqrt of the four margins' product, 0 where a margin is empty."""
    tp, tn = float((chosen & labels).sum()), float(((1 - chosen) & (1 - labels)).sum())
    fp, fn = float((chosen & (1 - labels)).sum()), float(((1 - chosen) & labels).sum())
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(margins) if margins else 0.0


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Covariance over the product of the spreads."""
    x, y = x.astype(np.float64) - x.mean(dtype=np.float64), y - y.mean(dtype=np.float64)
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])


@LAW
@given(CLASSES)
def test_two_classes_against_the_formulas(rows: list[tuple[int, int]]) -> None:
    chosen, labels = (np.array(column) for column in zip(*rows, strict=True))
    found = scores("classification", logits(chosen, 2), labels)
    assert found == {
        "accuracy": pytest.approx((chosen == labels).mean()),
        "f1": pytest.approx(f1(chosen, labels, 1)),
        "matthews": pytest.approx(matthews(chosen, labels), abs=1e-12),
    }


def test_a_known_confusion_table() -> None:
    chosen = np.array([1] * 6 + [0] * 4 + [1] * 1 + [0] * 9)
    labels = np.array([1] * 10 + [0] * 10)  # TP 6, FN 4, FP 1, TN 9
    found = scores("classification", logits(chosen, 2), labels)
    assert found["accuracy"] == 0.75
    assert found["f1"] == pytest.approx(12 / 17)
    assert found["matthews"] == pytest.approx(50 / math.sqrt(7 * 10 * 10 * 13))


@pytest.mark.parametrize(("always", "expected_f1"), [(0, 0.0), (1, 2 / 3)])
def test_constant_predictions_have_no_correlation(always: int, expected_f1: float) -> None:
    found = scores("classification", logits([always] * 6, 2), np.array([0, 1, 0, 1, 0, 1]))
    assert found == {"accuracy": 0.5, "f1": pytest.approx(expected_f1), "matthews": 0.0}


def test_f1_of_three_classes_is_the_mean_over_the_classes() -> None:
    chosen = np.array([0, 0, 1, 1, 2, 2, 2, 0])
    labels = np.array([0, 1, 1, 1, 2, 0, 2, 2])
    found = scores("classification", logits(chosen, 3), labels)
    parts = [f1(chosen, labels, c) for c in range(3)]
    assert parts == [pytest.approx(v) for v in (2 / 5, 4 / 5, 2 / 3)]
    assert found["f1"] == pytest.approx(sum(parts) / 3)
    assert found["accuracy"] == pytest.approx(5 / 8)


def test_matthews_of_three_classes_is_gorodkins() -> None:
    chosen = np.array([0, 0, 1, 1, 2, 2, 2, 0])
    labels = np.array([0, 1, 1, 1, 2, 0, 2, 2])
    x, y = np.eye(3)[chosen], np.eye(3)[labels]
    x, y = x - x.mean(0), y - y.mean(0)
    expected = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
    found = scores("classification", logits(chosen, 3), labels)
    assert found["matthews"] == pytest.approx(expected)


@LAW
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=40))
def test_correlations_against_the_formulas(rows: list[tuple[int, int]]) -> None:
    x, y = (np.array(column, dtype=np.float32) for column in zip(*rows, strict=True))
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    found = scores("regression", x, y)
    assert found == {
        "pearson": pytest.approx(pearson(x, y), abs=1e-5),
        "spearman": pytest.approx(pearson(ranks(x), ranks(y)), abs=1e-9),
    }


def test_a_monotone_curve_has_spearman_one_and_pearson_below() -> None:
    x = np.arange(1, 9, dtype=np.float32)
    found = scores("regression", x**4, x)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(pearson(x**4, x), abs=1e-6)
    assert found["pearson"] < 0.95
    assert scores("regression", -x, x)["pearson"] == pytest.approx(-1.0)


@pytest.mark.parametrize("x", [np.full(5, 0.7, dtype=np.float32), np.arange(5.0)])
def test_a_constant_side_counts_as_no_correlation(x: np.ndarray) -> None:
    y = np.full(5, 2.0) if np.ptp(x) else np.arange(5.0)
    assert scores("regression", x, y) == {"pearson": 0.0, "spearman": 0.0}
