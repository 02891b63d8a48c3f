"""What this process may use: the device, what makes it fast, and memory for models."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from contracts.errors import ConfigurationError
from contracts.settings import Settings

SHARE = 0.6
"""Of the device's memory, for weights; the rest is for activations and for others."""

FEATURES = {
    "AVX2": ("avx2",),
    "AVX512": ("avx512_f",),
    "VNNI": ("avx512_vnni", "avx_vnni", "i8mm"),
    "BF16": ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"),
    "FP16": ("avx512_fp16", "amx_fp16"),
    "AMX": ("amx_tile",),
    "NEON": ("neon",),
    "SVE": ("sve",),
}
"""Instruction sets that decide which arithmetic is fast, with the keys of `torch.cpu.get_capabilities` for each."""
HIDDEN = {
    "AVX2": {"AVX512", "VNNI", "BF16", "FP16", "AMX"},
    "AVX2_VNNI": {"AVX512", "BF16", "FP16", "AMX"},
    "AVX512_CORE": {"VNNI", "BF16", "FP16", "AMX"},
    "AVX512_CORE_VNNI": {"BF16", "FP16", "AMX"},
    "AVX512_CORE_BF16": {"FP16", "AMX"},
    "AVX512_CORE_FP16": {"AMX"},
}
"""What oneDNN does not use where `ONEDNN_MAX_CPU_ISA` is set: to what is computed, the processor lacks it."""
SLOW_WITHOUT = {"VNNI": "int8", "BF16": "bfloat16"}
"""What a processor without these computes slowly."""
GPU_LANES = 2
"""Passes beside one another that are tried on a GPU: while one is computed, the next can be sent."""
BFLOAT16_CAPABILITY = 8, 0
"""GPUs of this compute capability and later multiply bfloat16."""


@dataclass(frozen=True)
class Hardware:
    """A device as workers see it."""

    device: str
    """As torch names it: `cpu`, `cuda:0`."""
    kind: str
    """What plans are kept under: equal for devices of equal speed."""
    model_memory: int
    """Bytes that models may take."""
    others: Mapping[str, int] = field(default_factory=dict)
    """By device, bytes that parts of a model too large for this one may take elsewhere: GPUs, then `cpu`."""
    features: frozenset[str] = frozenset()
    """Instruction sets of a processor that matter here, and `BF16` of a GPU that multiplies bfloat16."""
    cores: int = 1
    """Threads of all lanes together: on a CPU its cores, on a GPU one a lane."""
    lanes: int | None = None
    """Passes beside one another, where the settings say how many."""

    @property
    def on_gpu(self) -> bool:
        """Whether it is one."""
        return self.device.startswith("cuda")

    def has(self, feature: str) -> bool:
        """Whether the device has what the feature names."""
        return feature in self.features

    def widths(self) -> list[tuple[int, int]]:
        """Numbers of lanes that are worth a trial, each with the threads that a lane has then, one lane first."""
        if self.lanes:
            return [(self.lanes, self.cores // self.lanes)]
        powers = (2**exponent for exponent in range(self.cores.bit_length()))
        return [(lanes, 1 if self.on_gpu else self.cores // lanes) for lanes in powers]

    def enter_lane(self, threads: int) -> None:
        """Let the thread that calls this compute with so many threads, on a GPU in an order of its own."""
        import torch

        if self.on_gpu:
            torch.cuda.set_device(self.device)
            torch.cuda.set_stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        elif torch.get_num_threads() != threads:
            # Of this thread alone: OpenMP keeps the number for each thread that calls it.
            torch.set_num_threads(threads)

    def summary(self) -> str:
        """What the device computes fast, and what it does not, in a few words."""
        if self.on_gpu:
            return "" if self.has("BF16") else "no bfloat16: 4-bit weights are computed in float16 or float32"
        slow = [f"no {feature}: {name} is slow" for feature, name in SLOW_WITHOUT.items() if not self.has(feature)]
        return "; ".join(slow) or "bfloat16 and int8 have instructions of their own"


def detect(settings: Settings) -> Hardware:
    """The device that the settings name, or the first GPU, or the CPU.

    Raises:
        ConfigurationError: It does not exist here, or the settings ask for more threads or lanes than it has.
    """
    import torch  # seconds to import: only a process that computes pays for it

    wanted = settings.device
    if wanted == "auto":
        wanted = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} devices are not supported")
        if device.type == "cuda":
            return _gpu(settings, device.index or 0)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"BATCHMILL_DEVICE={settings.device}: {reason}") from None
    return _cpu(settings)


def _gpu(settings: Settings, index: int) -> Hardware:
    import torch

    properties = torch.cuda.get_device_properties(index)
    capability = properties.major, properties.minor
    kind = f"cuda {properties.name}, sm_{capability[0]}{capability[1]}, {properties.total_memory / 2**30:.0f} GiB"
    return Hardware(
        f"cuda:{index}",
        kind,
        settings.model_memory or int(properties.total_memory * SHARE),
        _others(settings, f"cuda:{index}"),
        frozenset({"BF16"} if capability >= BFLOAT16_CAPABILITY else ()),
        settings.lanes or GPU_LANES,
        settings.lanes,
    )


def _cpu(settings: Settings) -> Hardware:
    import torch

    available = len(os.sched_getaffinity(0))
    if settings.threads is not None:
        if settings.threads > available:
            raise ConfigurationError(f"BATCHMILL_THREADS={settings.threads}: this process may use {available} cores")
        torch.set_num_threads(settings.threads)
    cores = torch.get_num_threads()
    if settings.lanes is not None and settings.lanes > cores:
        raise ConfigurationError(f"BATCHMILL_LANES={settings.lanes}: models have {cores} threads here, one a lane")
    capabilities = torch.cpu.get_capabilities()
    features = cpu_features(capabilities, os.environ.get("ONEDNN_MAX_CPU_ISA", ""))
    named = " ".join(feature for feature in FEATURES if feature in features) or str(capabilities.get("architecture"))
    kind = f"cpu {str(capabilities.get('cpu_name') or 'unnamed').strip()}, {named} x{cores}"
    return Hardware("cpu", kind, settings.model_memory or _main_memory(), {}, features, cores, settings.lanes)


def cpu_features(capabilities: Mapping[str, object], most: str = "") -> frozenset[str]:
    """Instruction sets of a processor that matter here.

    Args:
        capabilities: As `torch.cpu.get_capabilities` tells them.
        most: The value of `ONEDNN_MAX_CPU_ISA`, which hides some of them from the libraries.
    """
    found = {feature for feature, keys in FEATURES.items() if any(capabilities.get(key) for key in keys)}
    return frozenset(found - HIDDEN.get(most.upper(), set()))


def _others(settings: Settings, device: str) -> dict[str, int]:
    """What a GPU's worker may use beside it: all GPUs where it may choose among them, and the CPU's memory."""
    import torch

    found = {}
    if settings.device in ("auto", "cuda"):
        for index in range(torch.cuda.device_count()):
            total = torch.cuda.get_device_properties(index).total_memory
            found[f"cuda:{index}"] = settings.model_memory or int(total * SHARE)
    found.pop(device, None)
    return found | {"cpu": _main_memory()}


def _main_memory() -> int:
    return int(psutil.virtual_memory().total * SHARE)
