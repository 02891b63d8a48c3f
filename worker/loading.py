"""Models of the Hugging Face layout, from a folder into memory, in any of our quantizations."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import constants as hub
from transformers import AutoConfig, AutoModel, AutoTokenizer, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from contracts.errors import ModelLoadFailed
from contracts.names import Quantization

HARMLESS = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions")
"""Loggers that say that a fused kernel was not fetched from a hub, and, at every layer, of a cast."""
HEADS = ("pooler.",)
"""Weights that a model may lack: the part that they belong to has no bearing on hidden states."""


def load_module(
    folder: Path, quantization: Quantization, device: str, kind: type[_BaseAutoModelClass] = AutoModel
) -> PreTrainedModel:
    """The model in the folder, on the device, ready to compute what its kind does: hidden states by default.

    Weights come from safetensors, and no code from the folder. bitsandbytes' 4-bit layers are repacked in
    place by their first forward pass on a CPU: what is to be saved must be saved before.

    Raises:
        ModelLoadFailed: A library could not load it, weights are missing, or they are stored in another
            quantization than the one asked for.
    """
    with _quiet(), _failing(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        stored = _stored_quantization(folder, config)
        if stored not in (None, quantization):
            raise ModelLoadFailed(f"{folder}: the weights are stored as {stored}; register the model as that")
        module, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, quantization.compute_dtype),
            quantization_config=_recipe(quantization) if stored is None else None,
            device_map={"": device},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    optional = HEADS if kind is AutoModel else ()
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(optional))
    if missing:
        raise ModelLoadFailed(f"{folder}: {len(missing)} weights are missing, the first of them {missing[0]}")
    return cast("PreTrainedModel", module)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer in the folder.

    Raises:
        ModelLoadFailed: There is none, or the library could not load it.
    """
    with _quiet(), _failing(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ModelLoadFailed(f"{folder}: {type(tokenizer).__name__} is no fast tokenizer; add tokenizer.json")
        # Without its files the library makes one up that knows no word.
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ModelLoadFailed(f"{folder}: the tokenizer has no vocabulary; add tokenizer.json")
        return tokenizer


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of all storage that the module's weights take now, bitsandbytes' scales and tables included."""
    tensors = [*module.parameters(), *module.buffers()]
    for holder in (*module.modules(), *module.parameters()):
        tensors += _tensors_of(holder)
    storages = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}
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


def _recipe(quantization: Quantization) -> BitsAndBytesConfig | None:
    """What bitsandbytes is to do to the linear layers, where it is to do anything."""
    if quantization is Quantization.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    if not quantization.four_bit:
        return None
    kind, _, double = quantization.partition("-")
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=bool(double),
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
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


@contextmanager
def _quiet() -> Iterator[None]:
    """No network, no progress bars, and no advice while the libraries load."""
    for name in HARMLESS:
        logging.getLogger(name).addFilter(_harmless)
    offline, verbosity = hub.HF_HUB_OFFLINE, transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    hub.HF_HUB_OFFLINE = True
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = offline
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _harmless(record: logging.LogRecord) -> bool:
    """Drops the two messages that are no news; everything else that their loggers say passes."""
    message = str(record.msg)
    return not message.startswith(("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be cast"))
