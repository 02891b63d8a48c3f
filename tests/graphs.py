"""ONNX graphs of small models, made by the steps that make them, and models cut down to make that quick."""

from pathlib import Path
from typing import Any

from contracts.names import Quantization, Task
from contracts.recipes import Export, Quantize
from worker.compression.artifacts import KINDS, save
from worker.compression.order import Order, Outcome
from worker.compression.steps import run_of
from worker.loading import load_module


def exported(source: Path, folder: Path, task: Task = Task.EMBED) -> Path:
    """The graph of a model, `folder/graph`."""
    return run(Export(), source, folder / "graph", task)[0]


def quantized(source: Path, folder: Path, task: Task = Task.EMBED, **options: Any) -> Path:
    """The graph in int8, `folder/int8`."""
    return run(Quantize(method="int8", **options), source, folder / "int8", task)[0]


def run(
    step: Export | Quantize, source: Path, destination: Path, task: Task, evaluate: Path | None = None
) -> tuple[Path, Outcome]:
    """Do the step as the process of a step does it."""
    destination.mkdir(parents=True)
    scratch = destination.with_name(f"{destination.name}.scratch")
    scratch.mkdir()
    order = Order(task, source, Quantization.NONE, source, destination, scratch, evaluate=evaluate)
    return destination, run_of(step, order)(step, order, lambda fraction, message: None)


def cut(source: Path, folder: Path, task: Task = Task.EMBED, layers: int = 1) -> Path:
    """A folder with the first layers of a BERT."""
    module: Any = load_module(source, Quantization.NONE, "cpu", KINDS[task])
    bert = module if task is Task.EMBED else module.bert
    del bert.encoder.layer[layers:]
    module.config.num_hidden_layers = layers
    save(module, source, folder)
    return folder
