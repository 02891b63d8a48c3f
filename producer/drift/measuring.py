"""How far results moved since the run before."""

from contracts.runs import Drift, Thresholds
from producer.drift import figures
from producer.drift.samples import Samples
from storage.comparing import Distances, Numbers


def measure(samples: Samples, thresholds: Thresholds) -> Drift | None:
    """Compare what two jobs gave; None where there is nothing to compare.

    Labels: the stability index of the best label's shares, and the Kolmogorov–Smirnov statistic of its score. Numbers
    (a single output, the best document's score, the log-likelihood a token): both of the numbers, the index over the
    deciles of those before. Embeddings: the mean cosine distance between what a row had before and has now, where rows
    with the same input and target count as 0. Generated text: nothing.

    Args:
        samples: Of the outputs of both jobs.
        thresholds: What is too far.
    """
    if samples.distances is not None:
        return _of_embeddings(samples.distances, thresholds)
    if samples.now is None or samples.before is None or not len(samples.now.values) or not len(samples.before.values):
        return None
    return _of_numbers(samples.before, samples.now, samples.labelled, thresholds)


def _of_embeddings(distances: Distances, thresholds: Thresholds) -> Drift | None:
    rows = distances.unchanged + len(distances.changed)
    if not rows:
        return None
    cosine = max(float(distances.changed.sum()) / rows, 0.0)  # rounding may leave a little less than nothing
    return Drift(cosine=cosine, rows=rows, over=("cosine",) if _is_over(cosine, thresholds.cosine) else ())


def _of_numbers(before: Numbers, now: Numbers, labelled: bool, thresholds: Thresholds) -> Drift:
    if labelled:
        _, first, second = figures.label_counts(
            [str(label) for label in before.labels], [str(label) for label in now.labels]
        )
    else:
        edges = figures.decile_edges(before.values)
        first, second = figures.counts(before.values, edges), figures.counts(now.values, edges)
    psi, ks = figures.psi(first, second), figures.ks(before.values, now.values)
    # Of few rows chance alone takes both beyond what is asked of many: twenty rows would be announced each night.
    beyond = {
        "psi": _is_over(psi, thresholds.psi) and figures.counts_differ(first, second),
        "ks": _is_over(ks, thresholds.ks) and figures.distributions_differ(ks, len(before.values), len(now.values)),
    }
    over = tuple(name for name, is_over in beyond.items() if is_over)
    return Drift.model_validate({"psi": psi, "ks": ks, "rows": len(now.values), "over": over})


def _is_over(value: float, threshold: float | None) -> bool:
    return threshold is not None and value > threshold
