"""Models too large for one device: laid over several by accelerate's `device_map`, the last of them the disk."""

import fcntl
import logging
import os
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worker.folder_lock import take

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """What each device has room for; GPUs share a model evenly, and what they have no room for goes further down."""

    memory: Mapping[str, int]
    """Bytes of weights by device, as torch names it: GPUs, then `cpu`. What none of them holds stays on the disk."""
    folder: Path
    """Where weights are kept that stay on the disk and that the model's own files do not hold as they are computed."""

    def arguments(self, *, quantized: bool) -> dict[str, Any]:
        """What transformers is told of it; what bitsandbytes quantizes is laid over GPUs only."""
        memory = {int(name.partition(":")[2]) if name != "cpu" else name: size for name, size in self.memory.items()}
        if quantized:
            memory.pop("cpu", None)
        return {"device_map": "auto", "max_memory": memory}


class OffloadFolder:
    """A folder of this process below one that processes share, removed with this object, or by the next one made.

    Args:
        below: The folder that is shared; made where it is not there.
    """

    def __init__(self, below: Path) -> None:
        below.mkdir(parents=True, exist_ok=True)
        with open(below / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in below.iterdir():
                if left.is_dir() and (descriptor := take(left)) is not None:
                    _remove(left, descriptor)
            self.folder = Path(tempfile.mkdtemp(dir=below))
            held = take(self.folder)
        weakref.finalize(self, _remove, self.folder, held)


def _remove(folder: Path, descriptor: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if descriptor is not None:
        with suppress(OSError):
            os.close(descriptor)


def input_device(module: Any) -> torch.device:
    """Where inputs of a model are made: on its device, or that of the first weights that are in memory."""
    device: torch.device = module.device
    if device.type != "meta":
        return device
    found = (weight.device for weight in module.parameters() if not weight.is_meta)
    return next(found, torch.device("cpu"))


def tell(folder: Path, module: Any) -> None:
    """Log how many bytes of a model stand where, if it stands on several devices."""
    places: Mapping[str, Any] = getattr(module, "hf_device_map", None) or {}
    if len(set(places.values())) < 2 and "disk" not in places.values():
        return
    sizes: Counter[str] = Counter()
    for name, weight in module.named_parameters():
        parts = name.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
        place = next((places[prefix] for prefix in prefixes if prefix in places), "disk")
        sizes[f"cuda:{place}" if isinstance(place, int) else str(place)] += weight.nbytes
    laid = ", ".join(f"{place} {size / 1e6:,.0f} MB" for place, size in sizes.items())
    log.info("%s is too large for one device and laid over several: %s", folder, laid)
