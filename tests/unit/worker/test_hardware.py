import os
from typing import Any

import pytest
import torch

from contracts.errors import ConfigurationError
from contracts.models import ModelSpec
from contracts.names import Quantization
from contracts.settings import Settings
from tests.models import model_spec
from worker import hardware
from worker.hardware import Hardware, cpu_features, detect
from worker.variants import INTEGERS, Variant, choices, most_bytes, stored

SKYLAKE = {"cpu_name": "Intel Xeon Processor (Skylake, IBRS)", "avx2": True, "avx512_f": True, "avx512_bw": True}
GENOA = {"cpu_name": "AMD EPYC", "avx2": True, "avx512_f": True, "avx512_vnni": True, "avx512_bf16": True}
SAPPHIRE = {**GENOA, "cpu_name": "Intel Xeon", "amx_tile": True, "amx_bf16": True, "avx512_fp16": True}
GRAVITON = {"cpu_name": "", "architecture": "aarch64", "neon": True, "sve": True, "bf16": True, "i8mm": True}


def machine(capabilities: dict[str, Any], cores: int = 2) -> Hardware:
    return Hardware("cpu", "made up", 2**30, {}, cpu_features(capabilities), cores)


def gpu(*features: str) -> Hardware:
    return Hardware("cuda:0", "made up", 2**30, {}, frozenset(features), 2)


def dtypes(quantization: Quantization, device: Hardware) -> list[str]:
    return [variant.dtype for variant in choices(model_spec(quantization=quantization), device)]


def test_a_processor_is_known_by_what_makes_it_fast() -> None:
    assert cpu_features(SKYLAKE) == {"AVX2", "AVX512"}
    assert cpu_features(GENOA) == {"AVX2", "AVX512", "VNNI", "BF16"}
    assert cpu_features(SAPPHIRE) == {"AVX2", "AVX512", "VNNI", "BF16", "FP16", "AMX"}
    assert cpu_features(GRAVITON) == {"NEON", "SVE", "VNNI", "BF16"}


def test_instructions_that_are_hidden_from_the_libraries_are_not_there() -> None:
    assert cpu_features(SAPPHIRE, "AVX512_CORE") == cpu_features(SKYLAKE)
    assert cpu_features(SAPPHIRE, "avx512_core_vnni") == {"AVX2", "AVX512", "VNNI"}
    assert cpu_features(SAPPHIRE, "AVX2") == {"AVX2"}
    assert cpu_features(SAPPHIRE, "ALL") == cpu_features(SAPPHIRE)


def test_machines_of_different_speed_are_of_different_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = set()
    for capabilities in (SKYLAKE, GENOA, SAPPHIRE, GRAVITON):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        kinds.add(detect(Settings(device="cpu")).kind)
    cores = torch.get_num_threads()
    assert kinds == {
        f"cpu Intel Xeon Processor (Skylake, IBRS), AVX2 AVX512 x{cores}",
        f"cpu AMD EPYC, AVX2 AVX512 VNNI BF16 x{cores}",
        f"cpu Intel Xeon, AVX2 AVX512 VNNI BF16 FP16 AMX x{cores}",
        f"cpu unnamed, VNNI BF16 NEON SVE x{cores}",
    }


@pytest.mark.parametrize(
    ("device", "quantization", "expected"),
    [
        (machine(SKYLAKE), Quantization.NONE, ["float32"]),
        (machine(SKYLAKE), Quantization.BF16, ["float32", "bfloat16"]),
        (machine(SKYLAKE), Quantization.NF4, ["float32", "bfloat16"]),
        (machine(SKYLAKE), Quantization.INT8, ["float32"]),
        (machine(SKYLAKE), Quantization.FP16, ["float32", "float16"]),
        (machine(GENOA), Quantization.BF16, ["bfloat16", "float32"]),
        (machine(GENOA), Quantization.FP4_DOUBLE, ["bfloat16", "float32"]),
        (machine(GENOA), Quantization.INT8, [INTEGERS]),
        (machine(SAPPHIRE), Quantization.FP16, ["float16", "float32"]),
        (gpu("BF16"), Quantization.NF4, ["bfloat16"]),
        (gpu("BF16"), Quantization.BF16, ["bfloat16"]),
        (gpu(), Quantization.NF4, ["float16", "float32"]),
        (gpu(), Quantization.BF16, ["float32"]),
        (gpu(), Quantization.FP16, ["float16"]),
        (gpu(), Quantization.INT8, [INTEGERS]),
        (gpu(), Quantization.NONE, ["float32"]),
    ],
)
def test_the_machine_says_which_arithmetic_is_tried(
    device: Hardware, quantization: Quantization, expected: list[str]
) -> None:
    assert dtypes(quantization, device) == expected


@pytest.mark.parametrize(
    ("quantization", "dtype", "times"),
    [
        (Quantization.NONE, "float32", 1),
        (Quantization.BF16, "bfloat16", 1),
        (Quantization.BF16, "float32", 2),
        (Quantization.FP16, "float32", 2),
        (Quantization.NF4, "float32", 2),
        (Quantization.NF4, "float16", 1),
        (Quantization.INT8, INTEGERS, 1),
        (Quantization.INT8, "float32", 4),
    ],
)
def test_what_a_variant_takes_at_most(quantization: Quantization, dtype: str, times: int) -> None:
    model = model_spec(quantization=quantization, memory_bytes=1000)
    assert most_bytes(model, Variant(quantization, dtype)) == times * 1000


def test_a_model_as_it_is_registered_takes_what_is_registered() -> None:
    for quantization in Quantization:
        model = model_spec(quantization=quantization, memory_bytes=1000)
        assert most_bytes(model, stored(model)) == 1000


@pytest.mark.parametrize(
    ("cores", "lanes", "expected"),
    [
        (1, None, [(1, 1)]),
        (2, None, [(1, 2), (2, 1)]),
        (6, None, [(1, 6), (2, 3), (4, 1)]),
        (16, None, [(1, 16), (2, 8), (4, 4), (8, 2), (16, 1)]),
        (16, 3, [(3, 5)]),
        (2, 1, [(1, 2)]),
    ],
)
def test_lanes_share_the_cores(cores: int, lanes: int | None, expected: list[tuple[int, int]]) -> None:
    assert Hardware("cpu", "made up", 1, cores=cores, lanes=lanes).widths() == expected


def test_a_gpu_may_have_two_lanes_of_one_thread() -> None:
    assert gpu().widths() == [(1, 1), (2, 1)]


def test_a_setting_beyond_the_cores_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    available = len(os.sched_getaffinity(0))
    with pytest.raises(ConfigurationError, match=rf"BATCHMILL_THREADS={available + 1}: .* {available} cores"):
        detect(Settings(device="cpu", threads=available + 1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert detect(Settings(device="cpu", lanes=2)).widths() == [(2, 1)]
    with pytest.raises(ConfigurationError, match="BATCHMILL_LANES=3: models have 2 threads here, one a lane"):
        detect(Settings(device="cpu", lanes=3))


def test_a_device_says_what_it_computes_slowly() -> None:
    assert machine(SKYLAKE).summary() == "no VNNI: int8 is slow; no BF16: bfloat16 is slow"
    assert machine(GENOA).summary() == "bfloat16 and int8 have instructions of their own"
    assert gpu().summary() == "no bfloat16: 4-bit weights are computed in float16 or float32"
    assert gpu("BF16").summary() == ""


def test_a_gpu_is_known_by_its_name_capability_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, total_memory = "Tesla T4", 7, 5, 16 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    found = detect(Settings())
    assert (found.device, found.kind) == ("cuda:0", "cuda Tesla T4, sm_75, 16 GiB")
    assert not found.has("BF16")
    Properties.name, Properties.major, Properties.minor = "NVIDIA A100", 8, 0
    assert detect(Settings()).has("BF16")
    assert hardware.BFLOAT16_CAPABILITY == (8, 0)


def auto(fidelity: float, memory: int = 1000) -> ModelSpec:
    return model_spec(quantization=Quantization.AUTO, fidelity=fidelity, memory_bytes=memory)


@pytest.mark.parametrize(
    ("fidelity", "device", "tried", "otherwise"),
    [
        (1.0, machine(GENOA), ["none"], "none"),
        (0.999, machine(GENOA), ["bf16", "none"], "bf16"),
        (0.999, machine(SKYLAKE), ["none"], "bf16"),
        (0.998, machine(SKYLAKE), ["none"], "int8"),
        (0.97, machine(GENOA), ["bf16", "none"], "nf4"),
        (0.97, gpu("BF16"), ["bf16", "none"], "nf4"),
        (0.97, gpu(), ["none"], "nf4"),
    ],
)
def test_auto_tries_what_its_fidelity_allows_and_takes_the_smallest_where_nothing_fits(
    fidelity: float, device: Hardware, tried: list[str], otherwise: str
) -> None:
    model = auto(fidelity)
    assert [variant.quantization for variant in choices(model, device)] == tried
    assert stored(model).quantization == otherwise


def test_what_auto_takes_at_most_is_reckoned_from_the_smallest() -> None:
    assert most_bytes(auto(1.0), Variant(Quantization.NONE, "float32")) == 1000
    assert most_bytes(auto(0.999), Variant(Quantization.NONE, "float32")) == 2000
    assert most_bytes(auto(0.998), Variant(Quantization.NONE, "float32")) == 4000
    assert most_bytes(auto(0.97), Variant(Quantization.NONE, "float32")) == 7112
    assert most_bytes(auto(0.97), Variant(Quantization.BF16, "bfloat16")) == 3556
    assert most_bytes(auto(0.97), Variant(Quantization.NF4, "bfloat16")) == 1000
