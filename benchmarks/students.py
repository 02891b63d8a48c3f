"""A model with some of its layers, and nothing learned: what distillation has to be better than."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contracts.names import Quantization
from worker.loading import load_module


def cut(model: Path, layers: Sequence[int], folder: Path) -> Path:
    """Write an encoder's folder that has only these of its layers."""
    shutil.copytree(model, folder)
    module: Any = load_module(model, Quantization.NONE, "cpu")
    stack = module.encoder.layer
    module.encoder.layer = type(stack)(stack[number] for number in layers)
    module.config.num_hidden_layers = len(layers)
    module.save_pretrained(folder)
    return folder
