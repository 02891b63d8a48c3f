"""What the outputs of a model say of it, beside those of its parent, in the figures of its task."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ModelLoadFailed
from contracts.names import Task
from worker.compression.evaluation import fidelity
from worker.compression.evaluation.fidelity import Floats

UNKNOWN = -1
"""Stands for a label that a row does not have, or the model does not know."""
SAME = ("cosine_mean", "agreement", "correlation")
"""Figures of fidelity that are the one number, `fidelity`, again."""


@dataclass(frozen=True)
class Scores:
    """Of a stage, as the report holds them; each may lack what cannot be told."""

    quality: dict[str, float] = field(default_factory=dict)
    fidelity: dict[str, float] = field(default_factory=dict)
    loss: float | None = None


def compare(task: Task, parent: Sequence[Any], result: Sequence[Any], labels: Sequence[Any], folder: Path) -> Scores:
    """The figures of one model.

    Args:
        task: Of the engine that gave the outputs; texts of `generate` are told by `score`.
        parent: Outputs of the parent, in the form that the engine gives them.
        result: Outputs of the model for the same rows.
        labels: Of these rows, None where one has none; only classifiers have a use for them.
        folder: The parent's, whose config names the labels.
    """
    match task:
        case Task.EMBED:
            return _vectors(np.array(parent), np.array(result))
        case Task.CLASSIFY:
            names = label_names(parent, folder)
            before, after = (_matrix(rows, names) for rows in (parent, result))
            if len(names) == 1 or before.min() < 0 or before.max() > 1:
                return _numbers(before, after, labels)
            exclusive = _exclusive(before, folder)
            if any(isinstance(label, list) for label in labels):
                return _label_sets(before, after, labels, names, exclusive=exclusive)
            return _labels(before, after, label_numbers(labels, names), exclusive=exclusive)
        case Task.RERANK:
            return _rankings([_in_place(row) for row in parent], [_in_place(row) for row in result])
        case _:
            return _likelihoods(parent, result)


def lowered(task: Task, scores: Scores, share: float) -> Scores:
    """The figures of a model that computes so much of the rows that its parent computes, 0 to 1.

    Fidelity is 0 in each of the others: of its mean over all rows that is a share. A text without a likelihood makes
    the perplexity of all texts infinite, and fidelity 0. Other figures stay those of the rows that it computes.
    """
    if share == 1:
        return scores
    share = 0.0 if task is Task.SCORE else share
    figures = {key: value * share if key in ("fidelity", *SAME) else value for key, value in scores.fidelity.items()}
    return Scores(scores.quality, figures, scores.loss)


def label_names(outputs: Sequence[Any], folder: Path) -> list[str]:
    """All labels, in the order of the model's outputs where its config tells it."""
    try:
        from worker.engines.classify import read_labels

        return read_labels(folder)
    except ModelLoadFailed:  # an engine of somebody else's may have no such file
        return sorted({entry["label"] for row in outputs for entry in row})


def label_numbers(labels: Sequence[Any], names: Sequence[str]) -> NDArray[np.intp]:
    """The place of each label among the names, which are given by name or by that place; -1 where it has none."""
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    found = [
        label if type(label) is int and 0 <= label < len(names) else places.get(str(label), UNKNOWN) for label in labels
    ]
    return np.array(found, np.intp)


def is_known(label: Any, names: Sequence[str]) -> bool:
    """Whether the model has this label, or all of a list."""
    return bool((label_numbers(label if isinstance(label, list) else [label], names) != UNKNOWN).all())


def _vectors(parent: Floats, result: Floats) -> Scores:
    found = fidelity.cosines(parent, result)
    mean = float(found.mean())
    figures = {"fidelity": mean, "cosine_mean": mean, "cosine_p1": float(np.percentile(found, 1))}
    overlap = fidelity.neighbour_overlap(parent, result)
    if overlap is not None:
        figures["neighbour_overlap_10"] = overlap
    return Scores(fidelity=figures, loss=1 - mean)


def _exclusive(scores: Floats, folder: Path) -> bool:
    """Whether a row has one label of all, and not any number of them: its scores are shares of 1 then."""
    try:
        from worker.engines.heads import read_config

        if read_config(folder).get("problem_type") == "multi_label_classification":
            return False
    except ModelLoadFailed:  # as above
        pass
    return bool(np.allclose(scores.sum(1), 1, atol=1e-3))


def _labels(parent: Floats, result: Floats, labels: NDArray[np.intp], *, exclusive: bool) -> Scores:
    agreed = (fidelity.agreement if exclusive else fidelity.agreement_of_sets)(parent, result)
    divergence = fidelity.divergence(parent, result, exclusive=exclusive)
    figures = {"fidelity": agreed, "agreement": agreed, "kl": divergence}
    known = labels != UNKNOWN
    if not known.any():
        return Scores(fidelity=figures, loss=divergence)
    predicted = result[known].argmax(1)
    quality = {
        "accuracy": fidelity.accuracy(predicted, labels[known]),
        "macro_f1": fidelity.macro_f1(predicted, labels[known]),
    }
    return Scores(quality, figures, fidelity.cross_entropy(result[known], labels[known]))


def _label_sets(
    parent: Floats, result: Floats, labels: Sequence[Any], names: Sequence[str], *, exclusive: bool
) -> Scores:
    """Of rows that may have any number of labels each: a label is told where its score is at least a half."""
    bare = _labels(parent, result, np.full(len(labels), UNKNOWN, np.intp), exclusive=exclusive)
    known = [place for place, label in enumerate(labels) if label is not None and is_known(label, names)]
    if not known:
        return bare
    truth = np.zeros((len(known), len(names)), bool)
    for row, place in zip(truth, known, strict=True):
        row[label_numbers(labels[place] if isinstance(labels[place], list) else [labels[place]], names)] = True
    told = result[known] >= 0.5
    quality = {
        "accuracy": float((told == truth).all(1).mean()),
        "macro_f1": fidelity.macro_f1_of_sets(told, truth),
    }
    return Scores(quality, bare.fidelity, fidelity.cross_entropy_of_sets(result[known], truth))


def _numbers(parent: Floats, result: Floats, labels: Sequence[Any]) -> Scores:
    """Of heads that give bare numbers."""
    correlation = fidelity.correlation(parent, result)
    difference = float(np.abs(parent - result).mean())
    figures = {"fidelity": correlation, "correlation": correlation, "mean_absolute_difference": difference}
    known = [i for i, label in enumerate(labels) if type(label) in (int, float)]
    if parent.shape[1] > 1 or not known:
        return Scores(fidelity=figures, loss=difference)
    error = float(np.abs(result[known, 0] - np.array([labels[i] for i in known], np.float64)).mean())
    return Scores({"mean_absolute_error": error}, figures, error)


def _rankings(parent: Sequence[Floats], result: Sequence[Floats]) -> Scores:
    pairs = list(zip(parent, result, strict=True))
    difference = float(np.abs(np.concatenate(list(parent)) - np.concatenate(list(result))).mean())
    figures = {"mean_absolute_difference": difference}
    several = [(one, other) for one, other in pairs if len(one) > 1]
    if several:
        tau = float(np.mean([fidelity.kendall_tau(one, other) for one, other in several]))
        figures["kendall_tau"] = tau
        figures["first_agreement"] = float(np.mean([one.argmax() == other.argmax() for one, other in several]))
        # The share of pairs of documents that stand in the same order.
        figures["fidelity"] = (tau + 1) / 2
    else:
        figures["fidelity"] = fidelity.correlation(np.concatenate(list(parent)), np.concatenate(list(result)))
    return Scores(fidelity=figures, loss=difference)


def _likelihoods(parent: Sequence[Any], result: Sequence[Any]) -> Scores:
    before, after = (
        fidelity.mean_nll([row["log_likelihood"] for row in rows], [row["tokens"] for row in rows])
        for rows in (parent, result)
    )
    figures = {"fidelity": math.exp(-max(after - before, 0.0)), "delta_nll": after - before}
    return Scores({"nll": after, "perplexity": math.exp(min(after, 700.0))}, figures, after)


def _matrix(rows: Sequence[Any], names: Sequence[str]) -> Floats:
    """Scores `[n, labels]` in the order of the names; 0 for what a row does not tell."""
    places = {name: place for place, name in enumerate(names)}
    found = np.zeros((len(rows), len(names)))
    for row, entries in zip(found, rows, strict=True):
        for entry in entries:
            if entry["label"] in places:
                row[places[entry["label"]]] = entry["score"]
    return found


def _in_place(ranking: Any) -> Floats:
    """Scores of documents in the order of the input."""
    found = np.zeros(len(ranking))
    for entry in ranking:
        found[entry["index"]] = entry["score"]
    return found
