"""Weights in fewer bits, by bitsandbytes or as a shorter floating-point type: what an engine would do at each load."""

import torch
from transformers import PreTrainedModel

from contracts.errors import CompressionFailed, describe
from contracts.names import Quantization
from contracts.recipes import Quantize
from worker.compression.artifacts import KINDS, notes_on, save, transformer_folder
from worker.compression.order import Order, Outcome, Progress
from worker.loading import load_module

NOTES = {
    "int8": "Linear layers hold 8 bits a weight, in rows with a scale each; embeddings and heads are bfloat16. "
    "This buys memory, not speed.",
    "nf4": "Linear layers hold 4 bits a weight, in blocks of 64 with a scale each; embeddings and heads are bfloat16. "
    "This buys memory, not speed.",
}


def run(step: Quantize, order: Order, progress: Progress) -> Outcome:
    """Quantize the linear layers of the source, as its engine would, and hold the rest in 16 bits.

    Raises:
        CompressionFailed: No layer can be quantized, or the result, loaded from disk, cannot compute on this machine.
        ModelLoadFailed: The source could not be loaded, or is quantized.
    """
    quantization = step.quantization
    progress(0.0, f"quantizing to {quantization}")
    module = load_module(transformer_folder(order.source), quantization, "cpu", KINDS[order.task])
    if quantization.linear_bytes < 2 and not _packed_layers(module):
        raise CompressionFailed(
            f"quantize ({quantization}): {module.config.model_type} has no linear layer that bitsandbytes could pack"
        )
    progress(0.5, "writing")
    # Before any pass: one repacks 4-bit layers in place, and what is written then reloads as garbage.
    save(module, order.source, order.destination)
    del module
    progress(0.8, "trying what was written")
    _try(order, quantization)
    return Outcome(quantization, [*notes_on(order.source), *_notes(step)])


def _packed_layers(module: PreTrainedModel) -> int:
    return sum(type(layer).__name__ in ("Linear4bit", "Linear8bitLt") for layer in module.modules())


def _try(order: Order, quantization: Quantization) -> None:
    """Load what was written and run a first pass: some layers are packed, or refused, only then."""
    module = load_module(transformer_folder(order.destination), quantization, "cpu", KINDS[order.task])
    try:
        with torch.inference_mode():
            found = module(input_ids=torch.tensor([[1, 2, 3]]), return_dict=True)[0]
    except Exception as error:
        raise CompressionFailed(
            f"quantize ({quantization}): the result cannot compute on this machine: {describe(error)}"
        ) from error
    if not found.isfinite().all():
        raise CompressionFailed(
            f"quantize ({quantization}): the result computes no numbers: some weight or sum is too large for it; "
            "use bf16, which reaches as far as float32"
        )


def _notes(step: Quantize) -> list[str]:
    match step.method:
        case "bf16" | "fp16":
            return [f"All weights hold 16 bits, as {step.method}; so do the numbers between layers."]
        case "int8":
            return [NOTES["int8"]]
        case _:
            return [NOTES["nf4"]]
