"""How close outputs are to those of the parent, and how good they are by labels: pure functions of arrays."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 10
QUERIES = 2_000
"""Rows whose neighbours are looked up, evenly chosen where there are more; all rows are looked through."""
CHUNK = 256
"""Rows whose similarities to all others are held at a time."""
DOCUMENTS = 1_000
"""Of a ranking, whose pairs are compared: the first in the order of the input where there are more."""
SMALLEST = 1e-12
"""Stands for a probability of zero, of which there is no logarithm."""

Floats = NDArray[np.floating]


def cosines(parent: Floats, result: Floats) -> Floats:
    """The cosine of the angle between the vectors of each row, `[n]`; 0 where one of them is zero."""
    dots = np.einsum("nd,nd->n", parent, result, dtype=np.float64)
    norms = np.linalg.norm(parent.astype(np.float64), axis=1) * np.linalg.norm(result.astype(np.float64), axis=1)
    found: Floats = np.clip(np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0), -1, 1)
    return found


def neighbour_overlap(parent: Floats, result: Floats, count: int = NEIGHBOURS) -> float | None:
    """The mean share of a row's nearest rows, by cosine, that both models agree on; of fewer rows nothing.

    The overlap of top-k neighbourhoods, as in Wang and others, "Towards understanding the instability of network
    embedding" (2020). A row is no neighbour of its own.

    Args:
        parent: Vectors `[n, d]`.
        result: Vectors `[n, e]`; the widths may differ.
        count: How many are the nearest.
    """
    if len(parent) <= count:
        return None
    units = _units(parent), _units(result)
    queries = np.unique(np.linspace(0, len(parent) - 1, min(len(parent), QUERIES)).astype(np.intp))
    agreed = 0
    for start in range(0, len(queries), CHUNK):
        part = queries[start : start + CHUNK]
        one, other = (_nearest(vectors, part, count) for vectors in units)
        agreed += int((one[:, :, None] == other[:, None, :]).sum())
    return agreed / (len(queries) * count)


def _units(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Floats = (vectors / np.maximum(norms, SMALLEST)).astype(np.float32)
    return found


def _nearest(units: Floats, rows: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """The rows nearest to these, `[len(rows), count]`, in no order."""
    similarities = units[rows] @ units.T
    similarities[np.arange(len(rows)), rows] = -np.inf
    return np.argpartition(-similarities, count - 1, axis=1)[:, :count]


def agreement(parent: Floats, result: Floats) -> float:
    """The share of rows whose best label is the same; scores `[n, labels]`."""
    return float((parent.argmax(1) == result.argmax(1)).mean())


def agreement_of_sets(parent: Floats, result: Floats) -> float:
    """The share of rows with the same labels, those whose score is at least a half; scores `[n, labels]`."""
    return float(((parent >= 0.5) == (result >= 0.5)).all(1).mean())


def divergence(parent: Floats, result: Floats, *, exclusive: bool = True) -> float:
    """The mean Kullback-Leibler divergence of the result's scores from the parent's, in nats.

    Kullback and Leibler, "On information and sufficiency" (1951): the sum of p log(p / q).

    Args:
        parent: Probabilities `[n, labels]`.
        result: The same.
        exclusive: Whether a row's add up to 1; where each label is a yes or no of its own, theirs are added up.
    """
    parent, result = parent.astype(np.float64), result.astype(np.float64)
    terms = _terms(parent, result)
    if not exclusive:
        terms += _terms(1 - parent, 1 - result)
    return max(float(terms.sum(1).mean()), 0.0)


def _terms(p: Floats, q: Floats) -> Floats:
    found: Floats = p * (np.log(np.maximum(p, SMALLEST)) - np.log(np.maximum(q, SMALLEST)))
    return found


def cross_entropy(scores: Floats, labels: NDArray[np.intp]) -> float:
    """The mean of `-log` of the score that the right label has; scores `[n, labels]`."""
    return float(-np.log(np.maximum(scores[np.arange(len(labels)), labels].astype(np.float64), SMALLEST)).mean())


def accuracy(predicted: NDArray[np.intp], labels: NDArray[np.intp]) -> float:
    """The share of labels that were met."""
    return float((predicted == labels).mean())


def macro_f1(predicted: NDArray[np.intp], labels: NDArray[np.intp]) -> float:
    """The mean F1 of the labels that occur, in truth or as predicted; each counts the same, however rare.

    F1 is `2 tp / (2 tp + fp + fn)`, and the mean that of `f1_score(average="macro")` of scikit-learn.
    """
    scores = []
    for label in np.union1d(predicted, labels):
        true, said = labels == label, predicted == label
        scores.append(2 * (true & said).sum() / (true.sum() + said.sum()))
    return float(np.mean(scores))


def macro_f1_of_sets(predicted: NDArray[np.bool_], labels: NDArray[np.bool_]) -> float:
    """The same where a row may have any number of labels: which it has, and which it is told to have, `[n, labels]`."""
    true, said = 2 * (predicted & labels).sum(0), predicted.sum(0) + labels.sum(0)
    occurs = said > 0
    return float((true[occurs] / said[occurs]).mean()) if occurs.any() else 1.0


def cross_entropy_of_sets(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """The mean over rows of the sum over labels of `-log` of the score that the right yes or no has, `[n, labels]`."""
    right = np.where(labels, scores, 1 - scores).astype(np.float64)
    return float(-np.log(np.maximum(right, SMALLEST)).sum(1).mean())


def correlation(parent: Floats, result: Floats) -> float:
    """Pearson's; where one side is constant, 1 if both are the same and else 0."""
    one, other = parent.astype(np.float64).ravel(), result.astype(np.float64).ravel()
    one, other = one - one.mean(), other - other.mean()
    norms = math.sqrt(float(one @ one) * float(other @ other))
    if norms == 0:
        return float(np.array_equal(parent, result))
    return float(np.clip(one @ other / norms, -1, 1))


def kendall_tau(parent: Floats, result: Floats) -> float:
    """Of two lists of scores for the same documents: pairs in the same order less pairs in another, over all pairs.

    Kendall, "A new measure of rank correlation" (1938), tau-a: a pair that is tied on one side alone counts as 0. A
    pair that is tied on both sides agrees.
    """
    rows, columns = np.triu_indices(min(len(parent), DOCUMENTS), 1)
    signs = [np.sign(scores[rows] - scores[columns]) for scores in (parent, result)]
    return float((signs[0] * signs[1] + ((signs[0] == 0) & (signs[1] == 0))).mean())


def mean_nll(log_likelihoods: Sequence[float], tokens: Sequence[int]) -> float:
    """Nats a token: the negative log-likelihood of all texts over the number of their scored tokens.

    Its exponential is the perplexity (Jelinek and others, 1977).
    """
    return -math.fsum(log_likelihoods) / sum(tokens)
