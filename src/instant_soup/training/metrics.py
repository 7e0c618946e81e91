"""Task metrics, from scikit-learn and scipy."""

from typing import Any

import numpy as np

LOWER_IS_BETTER = frozenset({"perplexity"})


def merit(metric: str, value: Any) -> Any:
    """A metric's value, or values, as what to choose by: the higher, the better."""
    return -value if metric in LOWER_IS_BETTER else value


def score(metric: str, kind: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    """Compute one of the task's metrics, for curves.

    Accuracy is counted here, as importing scikit-learn takes longer than many a stage's training.

    Args:
        metric: The metric's name.
        kind: `classification` or `regression`.
        predictions: Logits, rows × classes; regression: one number a row.
        labels: Class numbers or numbers, one a row.

    Returns:
        The metric, as a fraction.
    """
    if metric == "accuracy":
        return float((predictions.argmax(axis=1) == labels).mean())
    return scores(kind, predictions, labels)[metric]


def scores(kind: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute all metrics of a task, as fractions.

    Args:
        kind: `classification`, `regression` or `language`.
        predictions: Logits, rows × classes; regression: one number a row; language: each token's
            negative log likelihood.
        labels: Class numbers or numbers, one a row.

    Returns:
        Classification: accuracy, F1 (of class 1; macro if there are more than two classes) and
        Matthews correlation. Regression: Pearson and Spearman correlation. A correlation with
        constant predictions is undefined and counts as 0. Language: perplexity, e to the power of
        the mean, which is no fraction.
    """
    if kind == "language":
        return {"perplexity": float(np.exp(predictions.mean(dtype=np.float64)))}
    if kind == "regression":
        from scipy.stats import pearsonr, spearmanr

        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return {"pearson": 0.0, "spearman": 0.0}
        return {
            "pearson": float(pearsonr(predictions, labels).statistic),
            "spearman": float(spearmanr(predictions, labels).statistic),
        }
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    chosen = predictions.argmax(axis=1)
    average = "binary" if predictions.shape[1] == 2 else "macro"
    return {
        "accuracy": float(accuracy_score(labels, chosen)),
        "f1": float(f1_score(labels, chosen, average=average, zero_division=0)),
        "matthews": float(matthews_corrcoef(labels, chosen)),
    }
