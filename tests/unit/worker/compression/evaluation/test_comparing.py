import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.names import Task
from worker.compression.evaluation.comparing import Scores, compare, label_numbers, lowered

NAMES = ["no", "maybe", "yes"]


def best_first(*scores: float) -> list[dict[str, Any]]:
    """What the classify engine gives."""
    return sorted(({"label": n, "score": s} for n, s in zip(NAMES, scores, strict=False)), key=lambda e: -e["score"])


def of(
    task: Task, parent: list[Any], result: list[Any], labels: list[Any] | None = None, folder: str = "/no"
) -> Scores:
    return compare(task, parent, result, labels or [None] * len(parent), Path(folder))


def test_embeddings() -> None:
    parent = list(np.eye(12, dtype=np.float32) + 0.1)
    result = [*parent[:-1], -parent[-1]]
    found = of(Task.EMBED, parent, result)
    assert found.quality == {}
    assert found.fidelity["fidelity"] == found.fidelity["cosine_mean"] == pytest.approx(10 / 12)
    assert found.fidelity["cosine_p1"] == pytest.approx(np.percentile([1.0] * 11 + [-1.0], 1))
    assert 0 < found.fidelity["neighbour_overlap_10"] < 1
    assert found.loss == pytest.approx(2 / 12)
    assert "neighbour_overlap_10" not in of(Task.EMBED, parent[:10], result[:10]).fidelity


def test_labels_before_and_after() -> None:
    parent = [best_first(0.1, 0.2, 0.7), best_first(0.6, 0.3, 0.1), best_first(0.2, 0.5, 0.3), best_first(1, 0, 0)]
    result = [best_first(0.1, 0.2, 0.7), best_first(0.3, 0.6, 0.1), best_first(0.2, 0.5, 0.3), best_first(1, 0, 0)]
    found = of(Task.CLASSIFY, parent, result, ["yes", "no", "yes", None])
    assert found.fidelity["fidelity"] == found.fidelity["agreement"] == 3 / 4
    assert found.fidelity["kl"] == pytest.approx((0.6 * math.log(2) + 0.3 * math.log(0.5)) / 4)
    # Rows with a label: yes is met, no is taken for maybe, and yes too. F1 of yes 2/3, of no and of maybe 0.
    assert found.quality == {"accuracy": 1 / 3, "macro_f1": pytest.approx(2 / 9)}
    assert found.loss == pytest.approx(-(math.log(0.7) + math.log(0.3) + math.log(0.3)) / 3)
    assert of(Task.CLASSIFY, parent, parent, ["yes", "no", "yes", None]).quality["accuracy"] == 2 / 3


def test_without_labels_the_loss_is_the_divergence() -> None:
    parent, result = [best_first(0.5, 0.5, 0)], [best_first(0.25, 0.5, 0.25)]
    found = of(Task.CLASSIFY, parent, result)
    assert found.quality == {}
    assert found.loss == found.fidelity["kl"] == pytest.approx(0.5 * math.log(2))


def test_labels_that_are_a_yes_or_no_each() -> None:
    parent, result = [best_first(0.9, 0.5, 0.8)], [best_first(0.9, 0.25, 0.8)]
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert of(Task.CLASSIFY, parent, result).fidelity["kl"] == pytest.approx(expected)


def test_rows_that_have_any_number_of_labels() -> None:
    parent = [
        best_first(0.9, 0.6, 0.1),
        best_first(0.8, 0.2, 0.3),
        best_first(0.1, 0.2, 0.3),
        best_first(0.7, 0.9, 0.9),
    ]
    found = of(Task.CLASSIFY, parent, parent, [["no", "maybe"], ["no", "yes"], [], ["perhaps"]])
    # The rows of known labels: all met, yes missed, rightly none. F1 of no and of maybe 1, of yes 0.
    assert found.quality == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx(2 / 3)}
    right = [0.9, 0.6, 0.9, 0.8, 0.8, 0.3, 0.9, 0.8, 0.7]
    assert found.loss == pytest.approx(-sum(map(math.log, right)) / 3)
    assert found.fidelity["agreement"] == 1
    assert of(Task.CLASSIFY, parent, parent, [["perhaps"], None, None, None]).quality == {}


def test_of_several_labels_a_row_all_have_to_be_the_same(tmp_path: Path) -> None:
    parent = [best_first(0.9, 0.8, 0.1), best_first(0.9, 0.2, 0.1), best_first(0.3, 0.2, 0.1)]
    result = [best_first(0.9, 0.3, 0.1), best_first(0.8, 0.3, 0.2), best_first(0.2, 0.3, 0.1)]
    # The first label is the same in two rows; the labels of the first row are not those of before.
    for labels in (None, [["no", "maybe"], ["no"], []]):
        found = of(Task.CLASSIFY, parent, result, labels)
        assert found.fidelity["fidelity"] == found.fidelity["agreement"] == pytest.approx(2 / 3)
    # Scores that add up to 1 by chance: the config says what they are.
    chance = [best_first(0.6, 0.3, 0.1)], [best_first(0.4, 0.3, 0.3)]
    assert of(Task.CLASSIFY, *chance, folder=str(tmp_path)).fidelity["fidelity"] == 1
    (tmp_path / "config.json").write_text(
        '{"problem_type": "multi_label_classification", "id2label": {"0": "no", "1": "maybe", "2": "yes"}}'
    )
    assert of(Task.CLASSIFY, *chance, folder=str(tmp_path)).fidelity["fidelity"] == 0


def test_rows_that_a_model_does_not_compute_lower_its_fidelity() -> None:
    scores = Scores({"accuracy": 0.5}, {"fidelity": 0.9, "cosine_mean": 0.9, "cosine_p1": 0.5}, 0.1)
    assert lowered(Task.EMBED, scores, 1.0) == scores
    found = lowered(Task.EMBED, scores, 0.75)
    assert found == Scores(
        {"accuracy": 0.5}, {"fidelity": 0.9 * 0.75, "cosine_mean": 0.9 * 0.75, "cosine_p1": 0.5}, 0.1
    )
    assert lowered(Task.SCORE, Scores({}, {"fidelity": 0.9, "delta_nll": 0.1}), 0.99).fidelity["fidelity"] == 0


def test_labels_are_given_by_name_or_by_place() -> None:
    assert label_numbers(["yes", 0, "perhaps", 3, None, True, "1"], NAMES).tolist() == [2, 0, -1, -1, -1, -1, -1]
    assert label_numbers(["1", 1], ["0", "1"]).tolist() == [1, 1]


def test_bare_numbers() -> None:
    parent, result = ([[{"label": "LABEL_0", "score": s}] for s in of] for of in ([1.0, 2.0, 4.0], [1.5, 2.0, 3.0]))
    found = of(Task.CLASSIFY, parent, result, [1.0, 1, None])
    correlation = np.corrcoef([1, 2, 4], [1.5, 2, 3])[0, 1]
    assert found.fidelity["fidelity"] == found.fidelity["correlation"] == pytest.approx(correlation)
    assert found.fidelity["mean_absolute_difference"] == pytest.approx(0.5)
    assert found.quality == {"mean_absolute_error": pytest.approx(0.75)}
    assert of(Task.CLASSIFY, parent, result).loss == pytest.approx(0.5)


def ranking(*scores: float) -> list[dict[str, Any]]:
    """What the rerank engine gives."""
    return sorted(({"index": i, "score": s} for i, s in enumerate(scores)), key=lambda e: -e["score"])


def test_rankings() -> None:
    parent, result = [ranking(4, 3, 2, 1), ranking(1, 2)], [ranking(4, 2, 3, 1), ranking(2, 1)]
    found = of(Task.RERANK, parent, result)
    assert found.fidelity["kendall_tau"] == pytest.approx((4 / 6 - 1) / 2)
    assert found.fidelity["fidelity"] == pytest.approx((5 / 6 + 0) / 2)
    assert found.fidelity["first_agreement"] == 0.5
    assert found.loss == found.fidelity["mean_absolute_difference"] == pytest.approx(4 / 6)


def test_of_single_documents_there_is_no_order() -> None:
    parent, result = [ranking(1), ranking(2), ranking(4)], [ranking(1.5), ranking(2), ranking(3)]
    found = of(Task.RERANK, parent, result)
    assert found.fidelity["fidelity"] == pytest.approx(np.corrcoef([1, 2, 4], [1.5, 2, 3])[0, 1])
    assert "kendall_tau" not in found.fidelity


def test_language_models() -> None:
    parent = [{"log_likelihood": -6.0, "tokens": 3}, {"log_likelihood": -2.0, "tokens": 1}]
    result = [{"log_likelihood": -7.0, "tokens": 3}, {"log_likelihood": -3.0, "tokens": 1}]
    found = of(Task.SCORE, parent, result)
    assert found.quality == {"nll": 2.5, "perplexity": pytest.approx(math.exp(2.5))}
    assert found.fidelity == {"fidelity": pytest.approx(math.exp(-0.5)), "delta_nll": 0.5}
    assert found.loss == 2.5
    better = of(Task.SCORE, result, parent)
    assert better.fidelity == {"fidelity": 1.0, "delta_nll": -0.5}
