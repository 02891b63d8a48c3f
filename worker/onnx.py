"""Models as ONNX graphs, computed by ONNX Runtime where engines would call a torch module."""

import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from torch.utils.dlpack import from_dlpack
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from contracts.errors import ModelLoadFailed
from contracts.names import Quantization

GRAPH = "model.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What a graph may take, each `[n, tokens]` of int64."""
INTEGER = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits", "QLinearMatMul"})
"""Operators that only a quantized graph has."""

_MEMORY_FULL = re.compile(r"bad_alloc|Failed to allocate memory|out of memory|Available memory of .* is smaller")
"""How ONNX Runtime says it, on CPUs and on GPUs."""


class OnnxModule:
    """A graph that is called as transformers' module of the same model would be.

    Args:
        session: Holds the graph.
        config: The model's.
        output: What the graph gives: `last_hidden_state` `[n, tokens, d]`, or `logits`, in float32.
        device: Where it computes.
        weight_bytes: What its weights take.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        config: PretrainedConfig,
        output: str,
        device: torch.device,
        weight_bytes: int,
    ) -> None:
        self.config: Any = config
        self.device = device
        self.weight_bytes = weight_bytes
        self._session = session
        self._inputs = [entry.name for entry in session.get_inputs()]
        self._output = output
        self._options = onnxruntime.RunOptions()
        self._shrinking = onnxruntime.RunOptions()
        place = f"{'gpu' if device.type == 'cuda' else 'cpu'}:{device.index or 0}"
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", place)
        self._shrink = False

    def __call__(
        self,
        *,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """What the graph gives for token ids `[n, tokens]`, as a tensor on the device in an attribute of its name.

        Args:
            input_ids: On the device.
            attention_mask: 1 for what is real, 0 for padding; without it all is real.
            token_type_ids: 0 throughout where they are not given.
            return_dict: True, as engines give it.

        Raises:
            MemoryError: It does not fit into memory.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        binding = self._session.io_binding()
        kept = [(name, given[name].contiguous()) for name in self._inputs]
        for name, tensor in kept:
            binding.bind_input(
                name, self.device.type, self.device.index or 0, np.int64, list(tensor.shape), tensor.data_ptr()
            )
        binding.bind_output(self._output, self.device.type, self.device.index or 0)
        if self.device.type == "cuda":
            # The library computes on a stream of its own, which knows nothing of what torch has not done yet.
            torch.cuda.current_stream(self.device).synchronize()
        options, self._shrink = self._shrinking if self._shrink else self._options, False
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            if _MEMORY_FULL.search(str(error)):
                raise MemoryError(str(error).strip().splitlines()[0]) from error
            raise
        if self.device.type == "cuda":
            binding.synchronize_outputs()
        [value] = binding.get_outputs()
        return SimpleNamespace(**{self._output: from_dlpack(value._ortvalue.to_dlpack())})

    def free_memory(self) -> None:
        """Have the next pass give back what it leaves unused of the memory that passes had until now."""
        self._shrink = True


def output_of(kind: type[_BaseAutoModelClass]) -> str:
    """What models of a kind give that engines use."""
    return "last_hidden_state" if kind is AutoModel else "logits"


def graph_file(folder: Path) -> Path | None:
    """The graph that is the model; None where there is none, or safetensors that go before it."""
    file = folder / GRAPH
    dense = any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json"))
    return file if file.is_file() and not dense else None


def load_graph(
    file: Path,
    config: PretrainedConfig,
    quantization: Quantization,
    device: str,
    kind: type[_BaseAutoModelClass],
    lanes: int = 1,
    threads: int | None = None,
) -> OnnxModule:
    """The graph of a file, ready to compute.

    Args:
        file: With the files of its weights beside it, where they are not in it.
        config: The model's.
        quantization: As the model is registered: `none` or `int8`.
        device: `cpu`, `cuda:0`.
        kind: What the graph was made of; it gives what that gives.
        lanes: Passes that are to stand beside one another.
        threads: Of each of them; as many as torch has when not given.

    Raises:
        ModelLoadFailed: It has other inputs or outputs, is stored in another quantization, or the device's provider
            is not installed. The libraries raise errors of their own where the file is damaged.
    """
    if quantization not in (Quantization.NONE, Quantization.INT8):
        raise ModelLoadFailed(f"{file}: an ONNX graph is none or int8, not {quantization}; register it as what it is")
    model = onnx.load(str(file), load_external_data=False)
    stored = Quantization.INT8 if is_quantized(model) else Quantization.NONE
    if stored is not quantization:
        raise ModelLoadFailed(f"{file}: the weights are stored as {stored}; register the model as that")
    size = sum(path.stat().st_size for path in [file, *weight_files(file, model)])
    del model
    session = _session(file, torch.device(device), lanes, threads or torch.get_num_threads())
    output = output_of(kind)
    _check(file, session, output, _width(config, kind))
    return OnnxModule(session, config, output, torch.device(device), size)


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether the graph computes with integers."""
    return any(node.op_type in INTEGER or node.op_type.startswith("QLinear") for node in model.graph.node)


def weight_files(file: Path, model: onnx.ModelProto) -> list[Path]:
    """Files beside the graph that hold weights of it.

    Raises:
        ModelLoadFailed: One is missing, or named as if it stood elsewhere.
    """
    tensors = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    names = sorted({ExternalDataInfo(tensor).location for tensor in tensors})
    for name in names:
        if Path(name).name != name or not (file.parent / name).is_file():
            raise ModelLoadFailed(f"{file}: its weights are in {name}, which is not beside it; get the folder again")
    return [file.parent / name for name in names]


def _session(file: Path, device: torch.device, lanes: int, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # Each lane computes on its own thread as well; the others are shared.
    options.intra_op_num_threads = lanes * (threads - 1) + 1
    options.log_severity_level = 4  # what goes wrong is raised as well
    # A plan of memory would be kept for each shape that a micro-batch ever had.
    options.enable_mem_pattern = False
    # Threads that wait for the next operator spin, but not for the next pass: others need the cores between passes.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not torch.cpu._is_vnni_supported():
        # Sums of products of signed weights would overflow; they are made unsigned, at some cost in speed.
        options.add_session_config_entry("session.x64quantprecision", "1")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ModelLoadFailed(
                f"{file}: ONNX Runtime has no CUDA here: install onnxruntime-gpu in place of onnxruntime, or serve "
                "the model on CPUs"
            )

    session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    if device.type == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise ModelLoadFailed(f"{file}: ONNX Runtime cannot use CUDA here; its log says which library is missing")
    return session


def _check(file: Path, session: onnxruntime.InferenceSession, output: str, wanted: int | None) -> None:
    """See that the graph is what engines call."""
    taken = {entry.name: entry for entry in session.get_inputs()}
    for name, entry in taken.items():
        if name not in INPUTS or entry.type != "tensor(int64)" or any(isinstance(size, int) for size in entry.shape):
            raise ModelLoadFailed(
                f"{file}: the graph takes {name}, {entry.type} of {entry.shape}; what is given is {_listed(INPUTS)}, "
                "int64 of any number of rows and tokens"
            )
    if "input_ids" not in taken:
        raise ModelLoadFailed(f"{file}: the graph takes {_listed(taken)}, and no input_ids")
    given = {entry.name: entry for entry in session.get_outputs()}
    if output not in given or given[output].type != "tensor(float)":
        raise ModelLoadFailed(f"{file}: the graph gives {_listed(given)}; what is asked for is {output} in float32")
    size = given[output].shape[-1]
    if isinstance(size, int) and wanted is not None and size != wanted:
        raise ModelLoadFailed(
            f"{file.parent / 'config.json'} does not fit the weights: {output} has {size} numbers, and the config "
            f"makes it {wanted}"
        )


def _width(config: PretrainedConfig, kind: type[_BaseAutoModelClass]) -> int | None:
    """How many numbers the config says that the output has, where it does."""
    if kind is AutoModel:
        return getattr(config, "hidden_size", None)
    return config.get_text_config().vocab_size if kind is AutoModelForCausalLM else config.num_labels


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
