"""What engines on a model of the transformers library have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from bitsandbytes.nn import Linear8bitLt
from transformers import PreTrainedModel

from contracts.errors import ModelLoadFailed, describe
from contracts.models import ModelSpec
from worker.engines.base import Engine
from worker.layout import Layout, input_device
from worker.loading import weight_bytes
from worker.onnx import OnnxModule
from worker.variants import Variant


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
    def load(cls, model: ModelSpec, folder: Path, device: str | Layout, variant: Variant | None = None) -> Self:
        """The model, ready on the device, or laid over several where it is too large for one.

        Args:
            model: What is registered.
            folder: Where its files are.
            device: `cpu`, `cuda:0`, or several.
            variant: How it is held and computed; as it is registered, in one lane, when not given.

        Raises:
            ModelLoadFailed: The library could not load it.
        """

    @property
    def concurrent(self) -> bool:
        """Whether passes may stand beside one another: bitsandbytes' 8-bit layers keep a state while they compute."""
        return isinstance(self._module, OnnxModule) or not any(
            isinstance(layer, Linear8bitLt) for layer in self._module.modules()
        )

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
