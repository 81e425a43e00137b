"""Classification metrics, by scikit-learn: accuracy, macro-F1 and AUROC.

- accuracy: the likeliest class is the right one;
- macro-F1: the mean over the classes, of those that occur or are predicted, of F1;
- AUROC: the area under the ROC curve of each class against the rest (Fawcett, "An introduction to ROC analysis", Pattern
  Recognition Letters 2006), and of these the plain mean. With two classes it is the usual AUROC. It takes samples of every class,
  and is else left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlatrain.metrics.bootstrap import Statistic, mean

NAMES = ("accuracy", "macro_f1", "auroc")
SHOWN = 5  # absent classes that are named


def score(
    probabilities: np.ndarray, labels: Sequence[int], classes: Sequence[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """The scores of a classification, in percent.

    Args:
        probabilities: (N, C) of each sample's classes, or anything that orders samples and classes alike.
        labels: the right class of each sample, counted from 0.
        classes: their names.

    Returns:
        The scores by name, and for each one missing the reason.

    Raises:
        ValueError: nothing to score, or numbers that do not fit.
    """
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    truth = np.asarray(labels)
    if not len(truth) or probabilities.shape != (len(truth), len(classes)):
        raise ValueError(f"probabilities {probabilities.shape} of {len(truth)} samples and {len(classes)} classes")
    chosen = probabilities.argmax(axis=1)
    scores = {
        "accuracy": 100.0 * float(accuracy_score(truth, chosen)),
        "macro_f1": 100.0 * float(f1_score(truth, chosen, average="macro")),
    }
    of_class = truth[:, None] == np.arange(len(classes))  # (N, C)
    if absent := [name for name, there in zip(classes, of_class.any(axis=0), strict=True) if not there]:
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        return scores, {"auroc": f"no sample of class {', '.join(absent[:SHOWN])}{more}"}
    scores["auroc"] = 100.0 * float(roc_auc_score(of_class, probabilities, average="macro"))
    return scores, {}


def statistics(probabilities: np.ndarray, labels: Sequence[int]) -> dict[str, Statistic]:
    """Accuracy and macro-F1 as functions of how often each sample was drawn, see `score` for the arguments. AUROC orders all
    samples anew for each draw, which takes too long."""
    truth, chosen = np.asarray(labels), probabilities.argmax(axis=1)
    classes = probabilities.shape[1]

    def macro_f1(counts: np.ndarray) -> float:
        right = np.bincount(truth[truth == chosen], counts[truth == chosen], classes)  # (C,)
        total = np.bincount(truth, counts, classes) + np.bincount(chosen, counts, classes)
        there = total > 0  # of those that occur or are predicted
        return 100.0 * float((2 * right[there] / total[there]).mean()) if there.any() else float("nan")

    return {"accuracy": mean(100.0 * (truth == chosen)), "macro_f1": macro_f1}
