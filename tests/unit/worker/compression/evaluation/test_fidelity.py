"""Figures against numbers that were worked out by hand, and against the libraries that know them."""

import math

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import f1_score

from worker.compression.evaluation import fidelity


def test_cosines() -> None:
    parent = np.array([[1, 0], [1, 1], [3, 4], [0, 0]], np.float32)
    result = np.array([[2, 0], [1, 0], [-3, -4], [1, 0]], np.float32)
    np.testing.assert_allclose(fidelity.cosines(parent, result), [1, math.sqrt(0.5), -1, 0], atol=1e-12)


def test_neighbours_that_two_models_agree_on() -> None:
    """On a line of angles each row's two nearest are known; the result turns one row to the other end."""
    angles = np.radians([0, 1, 3, 6, 60, 61])
    parent = np.column_stack([np.cos(angles), np.sin(angles)])
    turned = np.radians([0, 1, 3, 6, 60, 5])
    result = np.column_stack([np.cos(turned), np.sin(turned)])
    # Parent: 0{1,2} 1{0,2} 2{1,0} 3{2,1} 4{5,3} 5{4,3}. Result, rows at 0 1 3 6 60 5: 0{1,2} 1{0,2} 2{1,5} 3{5,2}
    # 4{3,5} 5{3,2}. Agreed: 2 + 2 + 1 + 1 + 2 + 1 of 12.
    assert fidelity.neighbour_overlap(parent, result, 2) == pytest.approx(9 / 12)
    assert fidelity.neighbour_overlap(parent, parent, 2) == 1


def test_eleven_rows_are_the_fewest_with_ten_neighbours() -> None:
    vectors = np.random.default_rng(0).normal(size=(11, 4))
    assert fidelity.neighbour_overlap(vectors[:10], vectors[:10]) is None
    assert fidelity.neighbour_overlap(vectors, vectors) == 1


def test_of_many_rows_some_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    parent = generator.normal(size=(600, 16))
    result = parent + 0.3 * generator.normal(size=parent.shape)
    whole = fidelity.neighbour_overlap(parent, result)
    monkeypatch.setattr(fidelity, "QUERIES", 300)
    monkeypatch.setattr(fidelity, "CHUNK", 7)
    assert whole is not None
    assert fidelity.neighbour_overlap(parent, result) == pytest.approx(whole, abs=0.03)


def test_agreement_and_divergence() -> None:
    parent = np.array([[0.5, 0.5, 0.0], [0.2, 0.7, 0.1]])
    result = np.array([[0.25, 0.5, 0.25], [0.2, 0.7, 0.1]])
    assert fidelity.agreement(parent, result) == 0.5
    assert fidelity.divergence(parent, result) == pytest.approx(0.5 * math.log(2) / 2)
    yes_or_no = np.array([[0.5]]), np.array([[0.25]])
    assert fidelity.divergence(*yes_or_no, exclusive=False) == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    )


def test_cross_entropy() -> None:
    scores = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    found = fidelity.cross_entropy(scores, np.array([0, 1, 0]))
    assert found == pytest.approx((math.log(2) - math.log(0.75)) / 3)


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_that_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels, predicted = generator.integers(0, 4, 30), generator.integers(1, 6, 30)
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert fidelity.macro_f1(predicted, labels) == pytest.approx(expected)


def test_accuracy_and_macro_f1_by_hand() -> None:
    """Labels 0 0 0 1, predicted 0 0 1 1: F1 of 0 is 4/5, of 1 is 2/3."""
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert fidelity.accuracy(predicted, labels) == 0.75
    assert fidelity.macro_f1(predicted, labels) == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_correlation() -> None:
    one, other = np.array([1.0, 2.0, 3.0, 5.0]), np.array([2.0, 2.5, 2.0, 6.0])
    assert fidelity.correlation(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert fidelity.correlation(one, -one) == -1
    assert fidelity.correlation(np.ones(3), np.ones(3)) == 1
    assert fidelity.correlation(np.ones(3), np.zeros(3)) == 0


def test_orders_of_documents() -> None:
    """Of the pairs of a b c d, b and c are swapped: 5 of 6 agree, so tau is (5 - 1) / 6."""
    parent, result = np.array([4.0, 3.0, 2.0, 1.0]), np.array([4.0, 2.0, 3.0, 1.0])
    assert fidelity.kendall_tau(parent, result) == pytest.approx(4 / 6)
    generator = np.random.default_rng(1)
    one, other = generator.normal(size=40), generator.normal(size=40)
    assert fidelity.kendall_tau(one, other) == pytest.approx(kendalltau(one, other).statistic)
    assert fidelity.kendall_tau(np.ones(3), np.ones(3)) == 1
    assert fidelity.kendall_tau(np.ones(3), np.arange(3.0)) == 0


def test_nats_a_token() -> None:
    assert fidelity.mean_nll([-6.0, -2.0], [3, 1]) == 2
