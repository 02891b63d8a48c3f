"""The weights of an ONNX graph in 8 bits, by ONNX Runtime's dynamic quantization."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoConfig

from contracts.errors import CompressionFailed, describe
from contracts.names import Quantization
from contracts.recipes import Quantize
from worker.compression.artifacts import KINDS, transformer_folder
from worker.compression.order import Order, Outcome, Progress
from worker.compression.silence import silence
from worker.onnx import GRAPH, is_quantized, load_graph, output_of, weight_files

OPERATORS = ["Attention", "EmbedLayerNormalization", "Gather", "Gemm", "MatMul"]
"""What has weights to quantize: linear layers, and the tables of embeddings."""
IN_ONE_FILE = 3 * 2**29
"""Bytes of weights that are written into the graph's own file: protobuf ends at 2 GB."""


def run(step: Quantize, order: Order, progress: Progress) -> Outcome:
    """Quantize the graph's weights; activations are quantized while it computes, over each micro-batch as a whole.

    `granularity` and `symmetric` are `per_channel` and `WeightSymmetric` of `quantize_dynamic`. Activations have a
    scale and a zero point for each tensor, whatever is asked: the operator that computes them knows nothing else.

    Raises:
        CompressionFailed: The graph is quantized already, has nothing to quantize, or the result cannot compute.
    """
    source = transformer_folder(order.source)
    model = onnx.load(str(source / GRAPH), load_external_data=False)
    if step.method != "int8":
        raise CompressionFailed(f"quantize ({step.method}): an ONNX graph is quantized as int8")
    if is_quantized(model):
        raise CompressionFailed("quantize (int8): the graph computes with integers already; it is not quantized twice")
    progress(0.0, "quantizing to int8")
    weights = [source / GRAPH, *weight_files(source / GRAPH, model)]
    size = sum(file.stat().st_size for file in weights)
    target = order.destination / source.relative_to(order.source)
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(order.source.rglob("*")):
        if file.is_file() and file not in weights:
            copy = order.destination / file.relative_to(order.source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    order.scratch.mkdir(parents=True, exist_ok=True)
    for file in weights[1:]:
        shutil.copyfile(file, order.scratch / file.name)
    # What is said of the shapes between is found again, and may not hold for what comes out. The library writes beside
    # what it reads.
    del model.graph.value_info[:]
    (order.scratch / GRAPH).write_bytes(model.SerializeToString())
    with silence():
        quantize_dynamic(
            order.scratch / GRAPH,
            target / GRAPH,
            op_types_to_quantize=OPERATORS,
            per_channel=step.granularity != "tensor",
            weight_type=QuantType.QInt8,
            use_external_data_format=size > IN_ONE_FILE,
            extra_options={
                "WeightSymmetric": step.symmetric is not False,
                # Of what comes out of operators that the library's own shape inference does not know.
                "DefaultTensorType": onnx.TensorProto.FLOAT,
            },
        )
    progress(0.8, "trying what was written")
    _try(order, target)
    progress(1.0, "done")
    return Outcome(Quantization.INT8, [_note(step)])


def _try(order: Order, folder: Path) -> None:
    """Load what was written, and run a first pass."""
    if not is_quantized(onnx.load(str(folder / GRAPH), load_external_data=False)):
        raise CompressionFailed("quantize (int8): the graph has no weights that ONNX Runtime could quantize")
    kind = KINDS[order.task]
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    try:
        module = load_graph(folder / GRAPH, config, Quantization.INT8, "cpu", kind)
        found = getattr(module(input_ids=torch.tensor([[1, 2, 3]])), output_of(kind))
    except Exception as error:
        raise CompressionFailed(f"quantize (int8): the result cannot compute here: {describe(error)}") from error
    if not np.isfinite(found.numpy()).all():
        raise CompressionFailed("quantize (int8): the result computes no numbers: some sum is too large for it")


def _note(step: Quantize) -> str:
    shared = "tensor" if step.granularity == "tensor" else "channel"
    return (
        f"Linear layers and embeddings hold 8 bits a weight, with a scale for each {shared}. What goes into a layer is "
        "quantized over a whole micro-batch, so that an output depends a little on its neighbours there."
    )
