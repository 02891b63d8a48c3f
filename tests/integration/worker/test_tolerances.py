"""Scores of quantized models stay as near to float32 as the docs say; those of tiny models nearly as near."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.tolerances import MEASURED

MEAN, LARGEST = (
    {"bf16": 0.01, "int8": 0.03, "nf4": 0.15, "fp4": 0.15},
    {"bf16": 0.05, "int8": 0.2, "nf4": 0.7, "fp4": 0.7},
)


@pytest.mark.parametrize(
    ("engine", "fixture"),
    [
        ("classify", "classifier"),
        ("rerank", "reranker"),
        pytest.param("classify", "real_classifier", marks=pytest.mark.verify),
        pytest.param("rerank", "real_reranker", marks=pytest.mark.verify),
    ],
)
def test_scores_stay_near_those_of_float32(engine: str, fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    exact = MEASURED[engine]("none", 24, folder)
    means = []
    for quantization, mean in MEAN.items():
        off = np.abs(MEASURED[engine](quantization, 24, folder) - exact)
        means.append(off.mean())
        assert 0 < off.mean() <= mean
        assert off.max() <= LARGEST[quantization]
    assert means[:3] == sorted(means[:3])
