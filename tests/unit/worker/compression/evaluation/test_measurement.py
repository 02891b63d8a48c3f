"""Two real models measured in turns."""

import json
from pathlib import Path

import pytest

from benchmarks.texts import sentences
from contracts.errors import CompressionFailed
from contracts.names import Quantization, Task
from tests.measuring import serve_small
from tests.steps import run_step
from worker.compression.evaluation import measurement
from worker.compression.evaluation.measuring import Subject
from worker.compression.evaluation.order import Artifact


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps({"input": text}) + "\n" for text in [*sentences(24), 7]))
    return file


def subject(folder: Path, rows: Path, quantization: Quantization = Quantization.NONE) -> Subject:
    return Subject(Artifact(folder.name, folder, quantization), Task.EMBED, "embed", rows)


@pytest.mark.parametrize(
    ("model", "share", "faster"),
    [("encoder", 0.8, 1.0), pytest.param("real_encoder", 0.7, 1.3, marks=pytest.mark.verify)],
)
def test_before_and_after(
    model: str,
    share: float,
    faster: float,
    tmp_path: Path,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The parent against one whose layers have a quarter of their heads and neurons, and so are faster."""
    encoder = request.getfixturevalue(model)
    monkeypatch.setattr(measurement, "LATENCY_SECONDS", 0.3)
    monkeypatch.setattr(measurement.measuring, "serve", serve_small)
    run_step({"step": "prune", "method": "structured", "keep_ratio": 0.25}, encoder, tmp_path / "quarter")
    told: list[float] = []
    (before, after), spread = measurement.measure(
        [subject(encoder, rows), subject(tmp_path / "quarter", rows)], told.append
    )
    assert told == sorted(told)
    assert told[-1] == 1
    assert after.parameters < share * before.parameters
    assert after.size_bytes < share * before.size_bytes
    assert after.throughput > faster * before.throughput
    for found in (before, after):
        assert 0 < found.latency_p50 <= found.latency_p95 < 5
        assert found.tokens_per_second > 3 * found.throughput
        assert found.budget_tokens >= 64
        assert 0 < found.load_seconds < 60
        # The weights, and not the libraries, of which there are several hundred megabytes.
        assert 0.5 * 4 * found.parameters < found.memory_bytes < 4 * found.parameters + 150e6
    # What is saved has to show among what the libraries take, now more and now less.
    saved = 4 * (before.parameters - after.parameters)
    assert after.memory_bytes < before.memory_bytes + (0 if saved > 20e6 else 20e6)
    assert spread >= 0


def test_all_are_measured_where_memory_holds_all_at_once() -> None:
    sizes = [100_000_000, 80_000_000, 60_000_000, 30_000_000]
    assert measurement.places(sizes, 4_000_000_000) == [0, 1, 2, 3]
    assert measurement.places(sizes, 2_000_000_000) == [0, 3]


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path, rows: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CompressionFailed, match=rf"measuring {tmp_path.name}: .*config"):
        measurement.measure([subject(tmp_path, rows)])


def test_a_process_that_dies_is_told(encoder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement.measuring, "serve", exit_at_once)
    with pytest.raises(CompressionFailed, match="its process ended with 9, as one that runs out of memory does"):
        measurement.measure([subject(encoder, rows)])


def exit_at_once(*_: object) -> None:
    raise SystemExit(9)
