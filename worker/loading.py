"""Models of the Hugging Face layout or in a GGUF file, from a folder into memory, in any of our quantizations."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from bitsandbytes.nn import Linear4bit
from huggingface_hub import constants as hub
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import logging as transformers_logging
from transformers import modeling_gguf_pytorch_utils as gguf_loading
from transformers import modeling_utils as model_building
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from contracts.errors import ModelLoadFailed
from contracts.names import Quantization
from worker.default_dtype import DEFAULT_DTYPE
from worker.layout import Layout, OffloadFolder, tell
from worker.onnx import GRAPH, OnnxModule, graph_file, load_graph
from worker.shapes import shaped
from worker.unpacking import unpack
from worker.variants import INTEGERS, Variant, plain

HARMLESS = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions", "accelerate.big_modeling")
"""Loggers that say that a fused kernel was not fetched from a hub, at every layer of a cast, and where weights are."""
HEADS = ("pooler.",)
"""Weights that a model may lack: the part that they belong to has no bearing on hidden states."""

_LOADING = threading.RLock()
"""Held while the libraries load: what is changed for that, is changed for every thread."""


def load_model(
    folder: Path, variant: Variant, device: str | Layout, kind: type[_BaseAutoModelClass] = AutoModel
) -> PreTrainedModel | OnnxModule:
    """What computes the model in the folder: its module, or the ONNX graph that it is where it has no safetensors.

    Both are called alike for what their kind gives, and have a `config` and a `device`; weights has only the module.

    Raises:
        ModelLoadFailed: As `load_module` and `load_graph`; or a graph is to be laid over several devices.
    """
    graph = graph_file(folder)
    if graph is None:
        return load_module(folder, variant.quantization, device, kind, variant.dtype)
    if not isinstance(device, str):
        raise ModelLoadFailed(f"{graph}: an ONNX graph is computed on one device")
    with quiet(), _failing(graph):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return load_graph(graph, config, variant.quantization, device, kind, variant.lanes, variant.threads)


def load_module(
    folder: Path,
    quantization: Quantization,
    device: str | Layout,
    kind: type[_BaseAutoModelClass] = AutoModel,
    arithmetic: str | None = None,
) -> PreTrainedModel:
    """The model in the folder, where it is to be, ready to compute what its kind does: hidden states by default.

    Weights come from safetensors, or from the one GGUF file of the folder, and no code from it. bitsandbytes' 4-bit
    layers are repacked in place by their first forward pass on a CPU: what is to be saved must be saved before.

    Args:
        folder: Where its files are.
        quantization: How its weights are held.
        device: Where it computes, or what it is laid over.
        kind: What it computes.
        arithmetic: As variants name it; the least precise that the quantization allows, when not given.

    Raises:
        ModelLoadFailed: A library could not load it, weights are missing, or they are stored in another
            quantization than the one asked for.
    """
    if graph_file(folder):
        raise ModelLoadFailed(f"{folder / GRAPH}: an ONNX graph has no torch module: it only computes")
    packed = gguf_file(folder)
    arithmetic = arithmetic or plain(quantization).dtype
    dtype = getattr(torch, quantization.least_precision if arithmetic == INTEGERS else arithmetic)
    with quiet(), _failing(packed or folder):
        offloaded = OffloadFolder(device.folder) if isinstance(device, Layout) else None
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **_named(packed))
        found = _stored_quantization(folder, config)
        if found not in (None, quantization):
            raise ModelLoadFailed(f"{folder}: the weights are stored as {found}; register the model as that")
        recipe = _recipe(quantization, _heads(config, kind), dtype) if found is None else None
        where = _placed(device, offloaded, quantized=bool(recipe or found))
        module, report = shaped(kind, config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            quantization_config=recipe if packed is None else GgufConfig(dequantize=True),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            # Or it prints a table and raises without a reason; what does not fit is refused below.
            ignore_mismatched_sizes=True,
            **_named(packed),
            **({"device_map": {"": "cpu"}} if packed is not None and recipe is not None else where),
        )
        if packed is not None and recipe is not None:
            module = _quantized(module, recipe, where)
    if quantization is Quantization.INT8 and arithmetic != INTEGERS:
        unpack(module, dtype)
    if found is not None and found.four_bit:
        for layer in module.modules():  # the file names another arithmetic, or none
            if isinstance(layer, Linear4bit):
                layer.compute_dtype, layer.compute_type_is_set = dtype, True
    if offloaded is not None:
        module.offloaded = offloaded  # what it reads from there goes when it goes
    tell(folder, module)
    module.register_forward_pre_hook(_begin_pass)
    module.register_forward_hook(_end_pass, always_call=True)
    optional = HEADS if kind is AutoModel else ()
    # Or it would have weights that are made up, each time others.
    for part in {key.partition(".")[0] for key in report["missing_keys"] if key.startswith(optional)}:
        setattr(module, part, torch.nn.Identity())
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(optional))
    if missing:
        raise ModelLoadFailed(f"{folder}: {len(missing)} weights are missing, the first of them {missing[0]}")
    for key, stored_shape, wanted in sorted(report["mismatched_keys"]):
        names = "; id2label has to name each output" if kind is AutoModelForSequenceClassification else ""
        raise ModelLoadFailed(
            f"{folder / 'config.json'} does not fit the weights: {key} has the shape {list(stored_shape)}, and the "
            f"config makes it {list(wanted)}{names}"
        )
    return cast("PreTrainedModel", module)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer in the folder.

    Raises:
        ModelLoadFailed: There is none, or the library could not load it.
    """
    packed = gguf_file(folder)
    with quiet(), _failing(packed or folder):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **_named(packed)
        )
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ModelLoadFailed(f"{folder}: {type(tokenizer).__name__} is no fast tokenizer; add tokenizer.json")
        # Without its files the library makes one up that knows no word.
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ModelLoadFailed(f"{folder}: the tokenizer has no vocabulary; add tokenizer.json")
        return tokenizer


def gguf_file(folder: Path) -> Path | None:
    """The GGUF file that is all of the model, its config and tokenizer included; None where the folder has none.

    Raises:
        ModelLoadFailed: There are several.
    """
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1:
        raise ModelLoadFailed(f"{folder}: {len(found)} GGUF files, the first of them {found[0].name}: a model is one")
    return found[0] if found else None


def _named(packed: Path | None) -> dict[str, Any]:
    """How transformers is told of a GGUF file."""
    return {} if packed is None else {"gguf_file": packed.name}


def _placed(device: str | Layout, offloaded: OffloadFolder | None, *, quantized: bool) -> dict[str, Any]:
    """How transformers is told where the weights go."""
    if isinstance(device, str) or offloaded is None:
        return {"device_map": {"": device}}
    return device.arguments(quantized=quantized) | {"offload_folder": str(offloaded.folder)}


def _quantized(dense: PreTrainedModel, recipe: BitsAndBytesConfig, where: Mapping[str, Any]) -> PreTrainedModel:
    """The model with its linear layers packed by bitsandbytes: transformers does not do both to one GGUF file."""
    return type(dense).from_pretrained(
        None,
        config=dense.config,
        state_dict=dense.state_dict(),
        dtype=dense.dtype,
        quantization_config=recipe,
        **where,
    )


def weight_bytes(module: torch.nn.Module | OnnxModule) -> int:
    """Bytes of all storage that the module's weights take in memory now, bitsandbytes' scales and tables included."""
    if isinstance(module, OnnxModule):
        return module.weight_bytes
    tensors = [*module.parameters(), *module.buffers()]
    for holder in (*module.modules(), *module.parameters()):
        tensors += _tensors_of(holder)
    in_memory = (tensor.untyped_storage() for tensor in tensors if not tensor.is_meta)
    storages = {storage.data_ptr(): storage.nbytes() for storage in in_memory}
    return sum(storages.values())


def _stored_quantization(folder: Path, config: PretrainedConfig) -> Quantization | None:
    """How bitsandbytes quantized the weights in the files, or nothing where they are plain.

    Raises:
        ModelLoadFailed: Another library quantized them.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    if stored.get("quant_method") != "bitsandbytes":
        raise ModelLoadFailed(f"{folder}: weights quantized by {stored.get('quant_method')!r}, not by bitsandbytes")
    if stored.get("load_in_8bit"):
        return Quantization.INT8
    double = "-double" if stored.get("bnb_4bit_use_double_quant") else ""
    return Quantization(f"{stored['bnb_4bit_quant_type']}{double}")


def _heads(config: PretrainedConfig, kind: type[_BaseAutoModelClass]) -> list[str] | None:
    """The parts of a classifier that stay as they are: all but its base; None where the library knows by itself.

    A head has few outputs, often fewer than a 4-bit layer can be packed with, and next to no weights.
    """
    if kind is not AutoModelForSequenceClassification:
        return None
    with torch.device("meta"):
        shell = kind.from_config(deepcopy(config))  # type: ignore[no-untyped-call]
    return [name for name, _ in shell.named_children() if name != shell.base_model_prefix]


def _recipe(quantization: Quantization, left_alone: list[str] | None, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What bitsandbytes is to do to the linear layers, where it is to do anything."""
    if quantization is Quantization.INT8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left_alone)  # type: ignore[no-untyped-call]
    if not quantization.four_bit:
        return None
    kind, _, double = quantization.partition("-")
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        llm_int8_skip_modules=left_alone,  # of 4-bit layers too, whatever its name says
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=bool(double),
        bnb_4bit_compute_dtype=dtype,
    )


def _tensors_of(holder: object) -> Iterator[torch.Tensor]:
    """Tensors in plain attributes, where bitsandbytes keeps scales, and scales of scales."""
    for value in vars(holder).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif type(value).__module__.startswith("bitsandbytes.") and not isinstance(value, torch.nn.Module):
            yield from _tensors_of(value)


@contextmanager
def _failing(folder: Path) -> Iterator[None]:
    """Whatever a library raises inside becomes a ModelLoadFailed of one line."""
    try:
        yield
    except ModelLoadFailed:
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ModelLoadFailed(f"{folder}: {type(error).__name__}: {reason}") from error


def _begin_pass(*_: object) -> None:
    DEFAULT_DTYPE.share()


def _end_pass(*_: object) -> None:
    DEFAULT_DTYPE.unshare()


@contextmanager
def _between_passes(dtype: torch.dtype, *arguments: Any) -> Iterator[None]:
    """The library's `local_torch_dtype`, while no model computes: passes of some make tensors that name no dtype.

    That is not the whole load: weights are read and quantized after it.
    """
    with DEFAULT_DTYPE.alone(), _local_torch_dtype(dtype, *arguments):
        yield


_local_torch_dtype = model_building.local_torch_dtype


@contextmanager
def quiet() -> Iterator[None]:
    """No network, no progress bars, no advice, and no other thread that loads, while the libraries do."""
    with _LOADING, _changed_libraries():
        yield


@contextmanager
def _changed_libraries() -> Iterator[None]:
    for name in HARMLESS:
        logging.getLogger(name).addFilter(_harmless)
    offline, verbosity = hub.HF_HUB_OFFLINE, transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    hub.HF_HUB_OFFLINE = True
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # This one asks nobody.
    gguf_bar = vars(gguf_loading)["tqdm"]
    vars(gguf_loading)["tqdm"] = partial(gguf_bar, disable=True)
    vars(model_building)["local_torch_dtype"] = _between_passes
    try:
        yield
    finally:
        vars(model_building)["local_torch_dtype"] = _local_torch_dtype
        vars(gguf_loading)["tqdm"] = gguf_bar
        hub.HF_HUB_OFFLINE = offline
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _harmless(record: logging.LogRecord) -> bool:
    """Drops the three messages that are no news; everything else that their loggers say passes."""
    message = str(record.msg)
    return not message.startswith(
        ("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be cast", "Some parameters are on the meta")
    )
