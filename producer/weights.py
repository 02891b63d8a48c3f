"""The weights in a model's folder, as far as JSON and the headers of safetensors tell; no tensor is read."""

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from contracts.errors import ModelRefused
from contracts.names import Quantization

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".pt2", ".h5", ".msgpack"})
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_DTYPE = re.compile(r"(?P<float>BF|F|C)?(?:BOOL|[IU])?(?P<bits>\d*)(?:_\w+)?")  # F32, BF16, F8_E4M3, I64, BOOL


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: list[int]
    floating: bool
    stored_bytes: int


def weight_files(folder: Path) -> list[str]:
    """The safetensors that transformers would load: the one file, or else every shard that the index names.

    Raises:
        ModelRefused: There are none, some are missing, or the weights are only pickled.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / INDEX).is_file():
        shards = read_object(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelRefused(f"{folder / INDEX} has no `weight_map`: it is damaged; get the folder again")
        names = sorted({str(name) for name in shards.values()})
        for name in names:
            if not name.endswith(".safetensors") or "/" in name or "\\" in name:
                raise ModelRefused(f"{folder / INDEX} names {name!r}: a shard is a .safetensors beside the index")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelRefused(
                f"{folder} lacks {len(missing)} of {len(names)} shards ({', '.join(missing[:3])}): get it again"
            )
        return names
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise pickles_refused(folder, pickled, "AutoModel.from_pretrained(folder).save_pretrained(other)")
    raise ModelRefused(f"{folder} has neither {WEIGHTS} nor {INDEX}: give a complete folder")


def has_safetensors(folder: Path) -> bool:
    """Whether a folder has weights that `weight_files` could name."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def pickles_refused(folder: Path, pickled: list[str], remedy: str) -> ModelRefused:
    """The error of a folder whose weights are only pickled; the remedy is code that writes them anew."""
    return ModelRefused(
        f"{folder} holds its weights only as {', '.join(pickled[:3])}: loading a pickle can run any code that "
        f"its author put there, so none is loaded. Where you trust it, convert it once: {remedy}, which writes "
        "safetensors"
    )


def loaded_bytes(path: Path, quantization: Quantization) -> int:
    """An estimate of what a file's tensors take when they are loaded.

    Raises:
        ModelRefused: The file is cut short, or its header is not one.
    """
    return sum(_loaded_bytes(tensor, quantization) for tensor in _read_header(path))


def estimated_bytes(elements: int, linear: bool, quantization: Quantization) -> int:
    """What so many floating-point weights take when they are loaded, in a linear layer or elsewhere."""
    rest = 4.0 if quantization is Quantization.NONE else 2.0
    return int(elements * (quantization.linear_bytes if linear else rest))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ModelRefused: The file is missing or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelRefused(f"{path} is not a JSON object: it is damaged; get the folder again")
    return value


def read_json(path: Path) -> Any:
    """The JSON value that a file holds.

    Raises:
        ModelRefused: The file is missing or holds something else.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelRefused(
            f"{path} is missing: give a complete folder, as save_pretrained(…) or a download from the hub leaves it"
        ) from None
    except OSError as error:
        raise ModelRefused(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{path} is not JSON ({error}): it is damaged; get the folder again") from None


def _read_header(path: Path) -> list[_Tensor]:
    """The tensors of a safetensors file, checked against its size.

    Source: the format's description in the safetensors repository.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ModelRefused(f"{path} is cut short or no safetensors ({size:,} bytes): get it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            tensors = [_tensor(name, entry) for name, entry in header.items()]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise ModelRefused(f"{path} has no valid safetensors header ({error!r}): get it again") from None
    expected = 8 + length + sum(tensor.stored_bytes for tensor in tensors)  # tensors lie without gaps
    if size != expected:
        raise ModelRefused(f"{path} should have {expected:,} bytes and has {size:,}: get it again")
    return tensors


def _tensor(name: str, entry: dict[str, Any]) -> _Tensor:
    begin, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], entry["shape"]
    kind = _DTYPE.fullmatch(dtype)
    if kind is None:
        raise ValueError(f"tensor {name}: unknown type {dtype}")
    bits = int(kind["bits"] or 8)
    if not 0 <= begin <= end or prod(shape) * bits != (end - begin) * 8:
        raise ValueError(f"tensor {name}: {dtype} {shape} does not take bytes {begin} to {end}")
    return _Tensor(name, shape, kind["float"] is not None, end - begin)


def _loaded_bytes(tensor: _Tensor, quantization: Quantization) -> int:
    if not tensor.floating:  # positions, masks, and weights that are stored quantized
        return tensor.stored_bytes
    # bitsandbytes leaves words' vectors as they are, on both ends.
    linear = len(tensor.shape) == 2 and not any(part in tensor.name for part in ("embed", "lm_head"))
    return estimated_bytes(prod(tensor.shape), linear, quantization)
