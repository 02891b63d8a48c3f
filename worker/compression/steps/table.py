"""What runs each step of a recipe."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

from contracts.recipes import Distill, Export, PruneMagnitude, PruneStructured, Quantize, Step
from worker.compression.order import Order, Outcome, Progress

Run: TypeAlias = Callable[[Any, Order, Progress], Outcome]

STEPS: dict[type[Step], str] = {
    PruneMagnitude: "worker.compression.steps.magnitude",
    PruneStructured: "worker.compression.steps.structured",
    Quantize: "worker.compression.steps.quantization",
    Distill: "worker.compression.distillation",
    Export: "worker.compression.steps.export",
}
"""By the class of a step: the module whose `run` does it; the libraries of one are no other's to import."""
ONNX: dict[type[Step], str] = {Quantize: "worker.compression.steps.onnx_quantization"}
"""Where the artifact before is an ONNX graph."""


def run_of(step: Step, order: Order) -> Run:
    """The function that does the step to the order's source."""
    name = STEPS[type(step)]
    if (order.source / "model.onnx").exists():
        name = ONNX.get(type(step), name)
    found: Run = import_module(name).run
    return found
