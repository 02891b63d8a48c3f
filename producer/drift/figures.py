"""The figures that say how far two samples are apart, and how far chance alone takes them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-4
"""The least share of a bin: that of an empty one, whose logarithm would be infinite."""
_ALPHA = 0.001
_QUANTILE = 3.0902
"""Of the normal distribution, at 1 - _ALPHA."""


def decile_edges(before: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inner edges of bins, ascending, that hold a tenth of the values each; a value lies right of its own edge.

    A value that is so frequent that it is several of the deciles has a bin of its own.
    """
    edges, times = np.unique(np.quantile(before, np.arange(1, 10) / 10), return_counts=True)
    return np.union1d(edges, np.nextafter(edges[times > 1], np.inf))


def counts(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many values each bin holds, `[edges + 1]`."""
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


def label_counts(before: Sequence[str], now: Sequence[str]) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """The labels of both, in order, and how often each stands in the one and in the other."""
    first, second = Counter(before), Counter(now)
    labels = sorted(first | second)
    return labels, np.array([first[label] for label in labels]), np.array([second[label] for label in labels])


def psi(before: NDArray[np.int64], now: NDArray[np.int64]) -> float:
    """Population stability index: the sum of `(b - a) ln(b / a)` over the shares a and b of each bin.

    Source: Siddiqi, Credit Risk Scorecards (2006).
    """
    a, b = (np.maximum(found / found.sum(), FLOOR) for found in (before, now))
    return float(((b - a) * np.log(b / a)).sum())


def counts_differ(before: NDArray[np.int64], now: NDArray[np.int64]) -> bool:
    """Whether the shares of bins differ by more than chance makes of them but for one time in a thousand.

    Pearson's chi-square test of homogeneity, which empty bins do not lead astray as they do the index. Source of the
    quantile: Wilson and Hilferty, The distribution of chi-square (1931).
    """
    seen = before + now > 0
    shares = (before + now)[seen] / (before.sum() + now.sum())
    found = sum(((one[seen] - one.sum() * shares) ** 2 / (one.sum() * shares)).sum() for one in (before, now))
    degrees = max(int(seen.sum()) - 1, 1)
    spread = 2 / (9 * degrees)
    return bool(found > degrees * (1 - spread + _QUANTILE * np.sqrt(spread)) ** 3)


def ks(before: NDArray[np.float64], now: NDArray[np.float64]) -> float:
    """The two-sample Kolmogorov–Smirnov statistic: the largest distance of the cumulative distributions."""
    first, second = np.sort(before), np.sort(now)
    every = np.concatenate((first, second))
    shares = (np.searchsorted(one, every, side="right") / len(one) for one in (first, second))
    return float(np.abs(np.subtract(*shares)).max())


def distributions_differ(statistic: float, before: int, now: int) -> bool:
    """Whether a Kolmogorov–Smirnov statistic of so many values is beyond what chance gives, with the same exception.

    Source: Smirnov, Table for estimating the goodness of fit of empirical distributions (1948).
    """
    return bool(statistic > np.sqrt(-np.log(_ALPHA / 2) / 2 * (1 / before + 1 / now)))
