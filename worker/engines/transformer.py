"""What engines on a model of the transformers library have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from contracts.errors import ModelLoadFailed, describe
from contracts.models import ModelSpec
from worker.engines.base import Engine
from worker.layout import Layout, input_device
from worker.loading import weight_bytes
from worker.onnx import OnnxModule


class TransformerEngine(Engine):
    """An engine that computes with one module of transformers.

    Args:
        module: Loaded, on its device.
    """

    def __init__(self, module: PreTrainedModel | OnnxModule) -> None:
        self._module = module
        self._device = input_device(module)

    @classmethod
    @abstractmethod
    def load(cls, model: ModelSpec, folder: Path, device: str | Layout) -> Self:
        """The model, ready on the device, or laid over several where it is too large for one.

        Raises:
            ModelLoadFailed: The library could not load it.
        """

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights in memory, as they are packed for this device."""
        return weight_bytes(self._module)

    def free_memory(self) -> None:
        """Blocks that torch keeps are of the sizes that passes had until now: smaller ones do not always fit them."""
        if isinstance(self._module, OnnxModule):
            self._module.free_memory()
        elif self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _try(self, folder: Path, params: Mapping[str, Any]) -> None:
        """Run a first pass: some layers are packed or refused only then, and better now than in a micro-batch.

        Raises:
            ModelLoadFailed: It failed.
        """
        try:
            self.run(self.synthetic(2, 1), params)
        except Exception as error:
            raise ModelLoadFailed(f"{folder}: the first pass: {describe(error)}") from error
