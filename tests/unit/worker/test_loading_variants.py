"""One model, held and computed in the ways that plans choose from."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from contracts.names import Quantization
from tests.models import model_spec
from worker.default_dtype import SharedLock
from worker.engines.embed import EmbedEngine
from worker.lanes import Lanes
from worker.unpacking import unpack
from worker.variants import INTEGERS, Variant, plain

TEXTS = [f"a text of {number} words, " + "and another word " * (number % 7) for number in range(48)]
SECONDS = 60


def load(folder: Path, quantization: Quantization, dtype: str) -> EmbedEngine:
    spec = model_spec(engine="embed", quantization=quantization)
    return EmbedEngine.load(spec, folder, "cpu", Variant(quantization, dtype))


def vectors(engine: EmbedEngine) -> Any:
    return engine.run(engine.prepare(TEXTS, {}).rows, {})


def likeness(one: Any, other: Any) -> float:
    return float(np.mean((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)))


@pytest.fixture(scope="module")
def exact(encoder: Path) -> Any:
    return vectors(load(encoder, Quantization.NONE, "float32"))


@pytest.mark.parametrize(
    ("quantization", "least"),
    [(Quantization.BF16, 0.9999), (Quantization.FP16, 0.9999), (Quantization.NF4, 0.9), (Quantization.INT8, 0.999)],
)
def test_more_precise_arithmetic_is_no_farther_from_float32(
    encoder: Path, exact: Any, quantization: Quantization, least: float
) -> None:
    packed = vectors(load(encoder, quantization, plain(quantization).dtype))
    precise = vectors(load(encoder, quantization, "float32"))
    assert likeness(precise, exact) >= max(least, likeness(packed, exact) - 0.01)


def test_weights_of_4_bits_stay_packed_in_float32(encoder: Path) -> None:
    engine = load(encoder, Quantization.NF4, "float32")
    layers = [layer for layer in engine._module.modules() if isinstance(layer, Linear4bit)]
    assert layers
    assert {layer.compute_dtype for layer in layers} == {torch.float32}
    assert engine._module.dtype == torch.float32


def test_weights_of_8_bits_are_unpacked_to_what_they_stand_for() -> None:
    torch.manual_seed(0)
    dense = torch.nn.Linear(64, 32)
    packed = Linear8bitLt(64, 32, has_fp16_weights=False)
    packed.load_state_dict(dense.state_dict())
    model = torch.nn.Sequential(packed.to("cpu"))
    integers, scales = model[0].weight.data.clone(), model[0].weight.SCB.clone()
    assert integers.dtype == torch.int8
    unpack(model, torch.float32)
    assert type(model[0]) is torch.nn.Linear
    assert torch.equal(model[0].weight, integers.float() * (scales[:, None] / 127))
    assert torch.allclose(model[0].weight, dense.weight, atol=2 * float(dense.weight.detach().abs().max()) / 127)
    assert torch.equal(model[0].bias, dense.bias)


def test_unpacked_weights_take_their_memory_and_may_have_lanes(encoder: Path) -> None:
    packed, unpacked = load(encoder, Quantization.INT8, INTEGERS), load(encoder, Quantization.INT8, "float32")
    assert unpacked.memory_bytes > packed.memory_bytes
    assert unpacked.concurrent
    assert not packed.concurrent


@pytest.mark.parametrize(
    "variant", [(Quantization.NONE, "float32"), (Quantization.NF4, "float32"), (Quantization.NF4, "bfloat16")]
)
def test_passes_side_by_side_give_what_each_gives_alone(encoder: Path, variant: tuple[Quantization, str]) -> None:
    engine = load(encoder, *variant)
    rows = engine.prepare(TEXTS, {}).rows
    parts = [rows[start : start + 6] for start in range(0, len(rows), 6)] * 3
    alone = [engine.run(part, {}) for part in parts]
    with Lanes(3, 1, torch.set_num_threads) as lanes:
        beside = lanes.run(lambda part: engine.run(part, {}), parts)
    for one, other in zip(alone, beside, strict=True):
        assert np.allclose(one, other, atol=1e-5 if variant[1] == "float32" else 0.01)


def test_a_shared_lock_is_shared_or_had_alone() -> None:
    lock = SharedLock()
    entered = threading.Barrier(2, timeout=SECONDS)
    order: list[str] = []

    def share() -> None:
        lock.share()
        lock.share()  # a model inside of a model
        entered.wait()  # both are in
        lock.unshare()
        order.append("shared")
        lock.unshare()

    with ThreadPoolExecutor(3) as threads:
        sharing = [threads.submit(share) for _ in range(2)]
        for future in sharing:
            future.result(SECONDS)
        with lock.alone(), lock.alone():
            late = threads.submit(lambda: (lock.share(), order.append("late"), lock.unshare()))
            while not lock._changed._waiters:  # type: ignore[attr-defined]
                assert not late.done()
            order.append("alone")
        late.result(SECONDS)
    assert order == ["shared", "shared", "alone", "late"]


def test_a_thread_that_shares_a_lock_may_have_it_alone() -> None:
    lock = SharedLock()
    lock.share()
    with lock.alone():
        lock.share()
        lock.unshare()
    lock.unshare()
    with lock.alone():
        pass
