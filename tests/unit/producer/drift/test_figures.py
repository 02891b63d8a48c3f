"""Figures against known values and scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from producer.drift import figures

NORMAL = np.random.default_rng(1).normal(size=2_000)


def psi_of(before: np.ndarray, now: np.ndarray) -> float:
    edges = figures.decile_edges(before)
    return figures.psi(figures.counts(before, edges), figures.counts(now, edges))


def test_psi_of_shares() -> None:
    # (0.4 - 0.5) ln(0.4 / 0.5) + (0.6 - 0.5) ln(0.6 / 0.5)
    assert figures.psi(np.array([50, 50]), np.array([40, 60])) == pytest.approx(0.040547, abs=1e-6)
    assert figures.psi(np.array([1, 3]), np.array([100, 300])) == 0


def test_psi_is_finite_where_a_bin_is_empty() -> None:
    found = figures.psi(np.array([0, 100]), np.array([50, 50]))
    floor = figures.FLOOR
    assert found == pytest.approx((0.5 - floor) * math.log(0.5 / floor) + (0.5 - 1) * math.log(0.5))
    assert figures.psi(np.array([0, 10]), np.array([10, 0])) > 10


def test_deciles_hold_a_tenth_each() -> None:
    edges = figures.decile_edges(NORMAL)
    assert figures.counts(NORMAL, edges).tolist() == [200] * 10
    assert psi_of(NORMAL, NORMAL) == 0
    assert psi_of(NORMAL, NORMAL + 1) > 0.25 > 0.02 > psi_of(NORMAL, np.random.default_rng(2).normal(size=2_000))


@pytest.mark.parametrize("now", [0.4999, 0.5001, 9.0])
def test_a_value_that_all_had_has_a_bin_of_its_own(now: float) -> None:
    same = np.full(50, 0.5)
    assert psi_of(same, same[:20]) == 0
    assert psi_of(same, np.full(50, now)) > 10
    half = np.concatenate((same, np.linspace(0, 1, 50)))
    assert psi_of(half, np.full(100, 0.5)) > 1


def test_labels_of_both_are_counted() -> None:
    labels, before, now = figures.label_counts(["b", "a", "b"], ["c", "a"])
    assert (labels, before.tolist(), now.tolist()) == (["a", "b", "c"], [1, 2, 0], [1, 0, 1])


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (NORMAL[:700], NORMAL[700:] + 0.3),
        (NORMAL[:1_000], NORMAL[1_000:] * 2),
        (np.round(NORMAL[:500]), np.round(NORMAL[500:] + 0.5)),  # many that are equal
        (np.array([1.0]), np.array([1.0, 2.0])),
        (np.zeros(10), np.ones(3)),
    ],
)
def test_ks_is_scipys(before: np.ndarray, now: np.ndarray) -> None:
    assert figures.ks(before, now) == pytest.approx(stats.ks_2samp(before, now).statistic, abs=1e-12)


@pytest.mark.parametrize("moved", range(0, 60, 4))
@pytest.mark.parametrize("bins", [2, 10, 40])
def test_shares_differ_where_the_chi_square_test_says_so(bins: int, moved: int) -> None:
    before, now = np.full(bins, 100), np.full(bins, 60)
    now[0], now[-1] = 60 - moved, 60 + moved
    found = stats.chi2_contingency(np.stack((before, now)), correction=False)
    assert figures.counts_differ(before, now) == (found.pvalue < 0.001)
    assert figures.counts_differ(np.append(before, 0), np.append(now, 0)) == (found.pvalue < 0.001)


def test_distributions_differ_where_the_test_says_so() -> None:
    for shift in np.linspace(0, 1, 41):
        before, now = NORMAL[:200], NORMAL[200:300] + shift
        found = stats.ks_2samp(before, now, method="asymp")
        if abs(found.pvalue - 0.001) > 0.0006:  # Smirnov's bound is that of many values
            assert figures.distributions_differ(found.statistic, 200, 100) == (found.pvalue < 0.001)


def test_samples_of_one_distribution_seldom_differ() -> None:
    random = np.random.default_rng(3)
    differ = 0
    for _ in range(300):
        before, now = random.normal(size=60), random.normal(size=40)
        edges = figures.decile_edges(before)
        differ += figures.counts_differ(figures.counts(before, edges), figures.counts(now, edges))
        differ += figures.distributions_differ(figures.ks(before, now), 60, 40)
    assert differ <= 4  # of 600
