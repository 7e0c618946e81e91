"""Task metrics, from scikit-learn and scipy."""

import numpy as np


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
        kind: `classification` or `regression`.
        predictions: Logits, rows × classes; regression: one number a row.
        labels: Class numbers or numbers, one a row.

    Returns:
        Classification: accuracy, F1 (of class 1; macro if there are more than two classes) and
        Matthews correlation. Regression: Pearson and Spearman correlation. A correlation with
        constant predictions is undefined and counts as 0.
    """
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
