import pytest

from contracts.compression import Measurement, Stage
from contracts.errors import InvalidRequest
from contracts.recipes import Accept
from worker.compression.evaluation import judge


def measurement(throughput: float) -> Measurement:
    return Measurement(
        size_bytes=1,
        parameters=1,
        nonzeros=1,
        memory_bytes=1,
        load_seconds=1,
        latency_p50=1,
        latency_p95=1,
        throughput=throughput,
        tokens_per_second=1,
        budget_tokens=1,
    )


def stages(fidelity: dict[str, float], size: int, throughput: float | None) -> list[Stage]:
    return [
        Stage(
            title=title,
            size_bytes=size_bytes,
            quality={},
            fidelity=of,
            measurement=None if speed is None else measurement(speed),
        )
        for title, size_bytes, of, speed in (
            ("parent", 1000, {"fidelity": 1.0}, None if throughput is None else 100.0),
            ("between", 5000, {"fidelity": 0.1}, None),
            ("result", size, fidelity, throughput),
        )
    ]


def test_the_last_stage_is_held_against_the_first() -> None:
    accept = Accept(fidelity=0.98, size_ratio=0.5, speedup=1.0)
    found = judge(accept, stages({"fidelity": 0.975}, 300, 150.0))
    assert [(c.name, c.asked, c.found, c.met) for c in found] == [
        ("fidelity", 0.98, 0.975, False),
        ("size_ratio", 0.5, 0.3, True),
        ("speedup", 1.0, 1.5, True),
    ]


def test_exactly_what_was_asked_is_enough() -> None:
    accept = Accept(fidelity=0.5, size_ratio=0.25, speedup=2.0)
    assert all(criterion.met for criterion in judge(accept, stages({"fidelity": 0.5}, 250, 200.0)))
    assert not any(criterion.met for criterion in judge(accept, stages({"fidelity": 0.49}, 251, 199.0)))


def test_what_is_not_asked_is_not_judged() -> None:
    assert judge(Accept(), stages({}, 300, None)) == []


def test_without_rows_only_bytes_can_be_judged() -> None:
    bare = stages({}, 300, None)
    assert judge(Accept(size_ratio=0.5), bare)[0].met
    for accept in (Accept(fidelity=0.5), Accept(speedup=1.0)):
        with pytest.raises(InvalidRequest, match="give rows with evaluate="):
            judge(accept, bare)
