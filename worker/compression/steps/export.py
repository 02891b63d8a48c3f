"""A model written as an ONNX graph: traced by transformers' own exporter, and compared with what was traced."""

import inspect
from collections.abc import Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir
import orjson
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from transformers import PreTrainedModel
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from contracts.errors import CompressionFailed, describe
from contracts.names import Quantization, Task
from contracts.recipes import Export
from worker.compression.artifacts import KINDS, copy_others, notes_on, transformer_folder
from worker.compression.order import Order, Outcome, Progress
from worker.compression.sampling import evenly
from worker.compression.silence import silence
from worker.engines.padding import Ids, padded, padded_like
from worker.engines.pairs import Pairs, PairTokenizer
from worker.engines.text import TextTokenizer
from worker.loading import gguf_file, load_module, load_tokenizer, quiet
from worker.onnx import GRAPH, OnnxModule, load_graph, output_of

TOLERANCE = 1e-4
"""The most that a number of the graph may be from torch's, as a share of the largest one, or of 1."""
IN_ONE_FILE = 3 * 2**29
"""Bytes of weights that are written into the graph's own file: protobuf ends at 2 GB."""
LONGEST = 512
"""Tokens of the longest text that is compared, where the model takes as many."""
TEXT = (
    "Return a list of the words in the string, using sep as the delimiter string. If maxsplit is given, at most "
    "maxsplit splits are done (thus, the list will have at most maxsplit+1 elements). Nested scopes, such as 2 * 3.14, "
    "raise ValueError; otherwise nothing happens, and the caller is told why."
)
"""What is compared where the job has no rows to be evaluated on."""
SAMPLE = 32
"""Of these rows, so many are compared at most, from all over the file."""


class _Input(NamedTuple):
    ids: Ids
    types: Ids | None = None
    """Of each token, where it tells a query from a document."""


def run(step: Export, order: Order, progress: Progress) -> Outcome:
    """Write `model.onnx`, whose axes of texts and tokens are dynamic, with the files that stand beside the weights.

    It gives what the engine of the task asks for: `last_hidden_state` `[n, tokens, d]` for `embed`, else `logits`.
    Weights are float32, and the same model gives the same bytes.

    Raises:
        CompressionFailed: A graph cannot do the task, the exporter failed, or the graph gives something else than the
            model.
        ModelLoadFailed: The model could not be loaded, or its weights are quantized.
    """
    if order.task is Task.GENERATE:
        raise CompressionFailed("export: an ONNX graph does not generate here; leave the export out")
    source = transformer_folder(order.source)
    progress(0.0, "loading")
    module = load_module(source, Quantization.NONE, "cpu", KINDS[order.task])
    progress(0.2, "tracing")
    try:
        graph = _traced(module, order.task)
    except Exception as error:  # whatever the exporter raises: it knows some models, and fails on others as it may
        raise CompressionFailed(
            f"export: {module.config.model_type} cannot be traced: {describe(error)}; leave the export out"
        ) from error
    progress(0.7, "writing")
    folder = order.destination / source.relative_to(order.source)
    folder.mkdir(parents=True, exist_ok=True)
    copy_others(order.source, order.destination)
    if gguf_file(source):
        with quiet():
            module.config.save_pretrained(folder)
            load_tokenizer(source).save_pretrained(folder)
    weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    onnx_ir.save(graph, folder / GRAPH, external_data=f"{GRAPH}.data" if weights > IN_ONE_FILE else None)
    progress(0.8, "comparing")
    inputs = _inputs(module, folder, order)
    difference = _difference(module, folder, order.task, inputs)
    if not difference <= TOLERANCE:
        raise CompressionFailed(
            f"export: {module.config.model_type} gives other numbers in ONNX Runtime than in torch (they differ by "
            f"{difference:.1g}, and {TOLERANCE:.0e} is allowed); leave the export out"
        )
    progress(1.0, "done")
    said = f"The graph in ONNX Runtime is within {difference:.0e} of the torch model it was made of."
    if order.evaluate is not None:
        said = f"{said[:-1]}, on {len(inputs)} rows of data."
    return Outcome(Quantization.NONE, [*notes_on(order.source), said])


def _traced(module: PreTrainedModel, task: Task) -> onnx_ir.Model:
    """The graph, with inputs and the output that engines of the task use, and nothing that names this machine."""
    ids = torch.arange(2 * 9).reshape(2, 9) + 1
    inputs: dict[str, Any] = {"input_ids": ids}
    if task is not Task.SCORE:  # padding stands behind a text, where no token of it looks
        inputs["attention_mask"] = torch.ones_like(ids)
    if task is Task.RERANK and "token_type_ids" in inspect.signature(module.forward).parameters:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    positions = getattr(module.config, "max_position_embeddings", None)
    axes = {0: torch.export.Dim("texts", min=1), 1: torch.export.Dim("tokens", min=1, max=positions)}
    config = OnnxConfig(dynamic_shapes=dict.fromkeys(inputs, axes))
    with quiet(), silence():
        exporter: Any = OnnxExporter  # its constructor has no annotations
        found: onnx_ir.Model = exporter().export(module, {**inputs, "use_cache": False}, config).program
    output = output_of(KINDS[task])
    found.graph.outputs[:] = [value for value in found.graph.outputs if value.name == output]
    _name_axes(found.graph)
    RemoveUnusedNodesPass()(found)
    ClearMetadataAndDocStringPass()(found)
    return found


def _name_axes(graph: onnx_ir.Graph) -> None:
    """Call the dynamic axes what they are, and leave out the shapes of all between, some of which are wrong."""
    numbered = [str(axis) for axis in graph.inputs[0].shape or ()]
    names = dict(zip(numbered, ("texts", "tokens"), strict=True))
    for value in (output for node in graph for output in node.outputs if output not in graph.outputs):
        value.shape = value.type = None
    for value in (*graph.inputs, *graph.outputs):
        value.shape = onnx_ir.Shape([names.get(str(axis), axis) for axis in value.shape or ()])


def _inputs(module: PreTrainedModel, folder: Path, order: Order) -> list[_Input]:
    """What is compared as it is: rows of the evaluation that have tokens, where there are any, or else one of ours."""
    lines = [] if order.evaluate is None else order.evaluate.read_bytes().splitlines()
    payloads = [orjson.loads(lines[place])["input"] for place in evenly(len(lines), SAMPLE)]
    if order.task is Task.RERANK:
        firsts = [{"query": one["query"], "documents": one["documents"][:1]} for one in payloads]
        return _pairs(module, folder, firsts) or _pairs(module, folder, [{"query": TEXT, "documents": [TEXT]}])
    tokenizer = TextTokenizer(folder, module.config, _longest(module))
    return _single(tokenizer, payloads) or _single(tokenizer, [TEXT])


def _single(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[_Input]:
    prepared = tokenizer.prepare(texts, {})
    return [_Input(ids) for place, ids in enumerate(prepared.rows) if place not in prepared.errors]


def _pairs(module: PreTrainedModel, folder: Path, rankings: Sequence[Any]) -> list[_Input]:
    prepared = PairTokenizer(folder, module.config, _longest(module)).prepare(rankings, {})
    pairs: list[Pairs] = [pair for place, pair in enumerate(prepared.rows) if place not in prepared.errors]
    typed = "token_type_ids" in inspect.signature(module.forward).parameters
    return [_Input(pair.ids[0], pair.types[0] if typed and pair.types else None) for pair in pairs]


def _longest(module: PreTrainedModel) -> int:
    """Tokens of the longest input that is compared; two positions fewer than there are, which some models keep."""
    return min(getattr(module.config, "max_position_embeddings", None) or LONGEST, LONGEST) - 2


def _difference(module: PreTrainedModel, folder: Path, task: Task, inputs: list[_Input]) -> float:
    """How far the graph, loaded from its file, is from the module: on inputs two by two, and cut to several lengths."""
    graph = load_graph(folder / GRAPH, module.config, Quantization.NONE, "cpu", KINDS[task])
    tokens = list(islice(cycle(chain.from_iterable(one.ids for one in inputs)), 1000))
    longest = _longest(module)
    shapes = [[3], [17] * 4, [17, 5, 1, 9], [longest], [longest, 40]]
    passes = [inputs[start : start + 2] for start in range(0, len(inputs), 2)]
    for lengths in shapes:
        rows = [tokens[start : start + min(length, longest)] for start, length in enumerate(lengths)]
        passes.append([_Input(np.array(row, np.int32)) for row in rows])
    return max(_apart(module, graph, rows, task) for rows in passes)


def _apart(module: Any, graph: OnnxModule, rows: list[_Input], task: Task) -> float:
    """The largest difference over rows, where a row has tokens."""
    output = output_of(KINDS[task])
    pad = module.config.get_text_config().pad_token_id or 0
    ids, mask = padded([row.ids for row in rows], pad, graph.device)
    inputs: dict[str, Any] = {} if task is Task.SCORE else {"attention_mask": mask}
    if types := [row.types for row in rows if row.types is not None]:
        inputs["token_type_ids"] = padded_like(types, graph.device)
    with torch.inference_mode():
        expected = getattr(module(input_ids=ids, return_dict=True, **inputs), output).float()
        found = getattr(graph(input_ids=ids, **inputs), output)
    if expected.dim() == 3 and mask is not None:
        expected, found = expected[mask > 0], found[mask > 0]
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1.0))
