"""What this process may use: the device, what to call its kind, and memory for models."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from contracts.errors import ConfigurationError
from contracts.settings import Settings

SHARE = 0.6
"""Of the device's memory, for weights; the rest is for activations and for others."""


@dataclass(frozen=True)
class Hardware:
    """A device as workers see it."""

    device: str
    """As torch names it: `cpu`, `cuda:0`."""
    kind: str
    """What budgets are kept under: equal for devices of equal speed."""
    model_memory: int
    """Bytes that models may take."""
    others: Mapping[str, int] = field(default_factory=dict)
    """By device, bytes that parts of a model too large for this one may take elsewhere: GPUs, then `cpu`."""


def detect(settings: Settings) -> Hardware:
    """The device that the settings name, or the first GPU, or the CPU.

    Raises:
        ConfigurationError: It does not exist here.
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
            properties = torch.cuda.get_device_properties(device)
            limit = settings.model_memory or int(properties.total_memory * SHARE)
            name = f"cuda:{device.index or 0}"
            return Hardware(name, f"cuda {properties.name}", limit, _others(settings, name))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"BATCHMILL_DEVICE={settings.device}: {reason}") from None
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    limit = settings.model_memory or _main_memory()
    return Hardware("cpu", f"cpu {torch.backends.cpu.get_cpu_capability()} x{torch.get_num_threads()}", limit)


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
