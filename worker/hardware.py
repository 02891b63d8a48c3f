"""What this process may use: the device, what to call its kind, and memory for models."""

from dataclasses import dataclass

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
            return Hardware(f"cuda:{device.index or 0}", f"cuda {properties.name}", limit)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"BATCHMILL_DEVICE={settings.device}: {reason}") from None
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    limit = settings.model_memory or int(psutil.virtual_memory().total * SHARE)
    return Hardware("cpu", f"cpu {torch.backends.cpu.get_cpu_capability()} x{torch.get_num_threads()}", limit)
