"""What is examined of a model before it is registered: where it comes from, whether it is safe and whole.

Nothing is loaded: JSON files and the headers of safetensors are read, so that a client needs no torch.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from contracts.errors import InvalidRequest, ModelRefused, UnavailableError, UnknownTask
from contracts.fake import is_fake, parse_fake
from contracts.names import Quantization, Task

FAKE_ENGINE = "fake"
ENGINES: Mapping[Task, str] = {Task.EMBED: "embed"}
"""The engine that computes a task on real weights."""
MODULES = frozenset({"Transformer", "Pooling", "Normalize"})
"""The modules of sentence-transformers that the embed engine computes."""

_COPIED = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".pt2", ".h5", ".msgpack"})
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_DTYPE = re.compile(r"(?P<float>BF|F|C)?(?:BOOL|[IU])?(?P<bits>\d*)(?:_\w+)?")  # F32, BF16, F8_E4M3, I64, BOOL


@dataclass(frozen=True)
class ResolvedSource:
    """A source that was found."""

    source: str
    """The folder's absolute path, the id on the hub, or `fake:…` as given."""
    revision: str | None
    """The commit that a hub's revision stood for; None for everything else."""
    folder: Path | None
    """Where the files are; None for a fake, which has none."""


@dataclass(frozen=True)
class ModelFacts:
    """What a folder holds, as far as it matters."""

    engine: str
    files: list[str]
    """What is to be copied, relative to the folder; nothing else in it is ever read."""
    memory_bytes: int
    """Estimate of what the weights take when they are loaded."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: list[int]
    floating: bool
    stored_bytes: int


def engine_of(task: Task) -> str:
    """The engine that computes a task on real weights.

    Raises:
        UnknownTask: There is none yet.
    """
    if task not in ENGINES:
        raise UnknownTask(
            f"task {str(task)!r}: in this version only a `fake:` model computes it; "
            f"real weights serve {', '.join(ENGINES)}"
        )
    return ENGINES[task]


def resolve(source: str, revision: str | None = None) -> ResolvedSource:
    """Find a local folder, a model on the Hugging Face hub (`org/name`, downloaded), or a `fake:` model.

    Raises:
        InvalidRequest: A revision is given for what has none.
        ModelRefused: There is no such folder, model or revision, or the fake is not written as one.
        UnavailableError: The hub does not answer and the model is not in its local cache.
    """
    if is_fake(source):
        parse_fake(source)
        _refuse_revision(source, revision)
        return ResolvedSource(source, None, None)
    path = Path(source).expanduser()
    if source and path.is_dir():
        _refuse_revision(source, revision)
        return ResolvedSource(str(path.resolve()), None, path.resolve())
    if path.is_file():
        raise ModelRefused(f"{source} is a file: give the folder that holds config.json and {_WEIGHTS}")
    if not _HUB_ID.fullmatch(source):
        raise ModelRefused(f"{source!r}: there is no such folder, and it is no id on the Hugging Face hub (org/name)")
    folder = _download(source, revision)
    return ResolvedSource(source, folder.name, folder)


def inspect(folder: Path, task: Task, quantization: Quantization) -> ModelFacts:
    """Check a Hugging Face folder and say what of it is to be registered.

    Raises:
        UnknownTask: No engine computes the task on real weights.
        ModelRefused: The folder is not complete, or loading it could run code.
    """
    engine = engine_of(task)
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _read_object(folder / name, required=name == "config.json"):
            raise ModelRefused(
                f"{folder / name} has an `auto_map`: the model needs code of its own, which is never run; choose "
                "a model whose architecture transformers itself knows"
            )
    shards = _weight_files(folder)
    modules = _module_folders(folder)
    files = list(_copied_files(folder, modules))
    if not any(name.startswith(("tokenizer", "vocab")) or name.endswith(".model") for name in files):
        raise ModelRefused(f"{folder} has no tokenizer: save one into it with tokenizer.save_pretrained(…)")
    for module in modules:
        files += [path.relative_to(folder).as_posix() for path in sorted((folder / module).glob("*.safetensors"))]
    files = sorted({*files, *shards})
    memory = sum(
        _loaded_bytes(tensor, quantization)
        for name in files
        if name.endswith(".safetensors")
        for tensor in _read_header(folder / name)
    )
    return ModelFacts(engine, files, memory)


def _refuse_revision(source: str, revision: str | None) -> None:
    if revision is not None:
        raise InvalidRequest(f"revision {revision!r}: only a model on the hub has revisions, {source} has none")


def _download(source: str, revision: str | None) -> Path:
    # Imported here: it takes a quarter of a second, and most callers never need a hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = ["*.safetensors", *(f"*{suffix}" for suffix in sorted(_COPIED))]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise ModelRefused(
            f"{source} is gated: accept its terms on the hub and log in with `hf auth login`, or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise ModelRefused(f"{source} has no revision {revision!r}: give a branch, a tag or a commit") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelRefused(
            f"{source}: there is no such folder here, and no such model on the hub that this user may see"
        ) from None
    except OSError as error:  # every failure of the network, and a cache that is not complete
        raise UnavailableError(
            f"{source}: there is no such folder here, and the Hugging Face hub does not answer "
            f"({type(error).__name__}); try again, or download the model elsewhere and give its folder"
        ) from error


def _read_object(path: Path, *, required: bool = True) -> dict[str, Any]:
    if not required and not path.exists():
        return {}
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ModelRefused(f"{path} is not a JSON object: it is damaged; get the folder again")
    return value


def _read_json(path: Path) -> Any:
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


def _weight_files(folder: Path) -> list[str]:
    """The safetensors that transformers would load: the one file, or else every shard that the index names."""
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    if (folder / _INDEX).is_file():
        shards = _read_object(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelRefused(f"{folder / _INDEX} has no `weight_map`: it is damaged; get the folder again")
        names = sorted({str(name) for name in shards.values()})
        for name in names:
            if not name.endswith(".safetensors") or "/" in name or "\\" in name:
                raise ModelRefused(f"{folder / _INDEX} names {name!r}: a shard is a .safetensors beside the index")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelRefused(
                f"{folder} lacks {len(missing)} of {len(names)} shards ({', '.join(missing[:3])}): get it again"
            )
        return names
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise ModelRefused(
            f"{folder} holds its weights only as {', '.join(pickled[:3])}: loading a pickle can run any code that "
            "its author put there, so none is loaded. Where you trust it, convert it once: "
            "AutoModel.from_pretrained(folder).save_pretrained(other), which writes safetensors"
        )
    raise ModelRefused(f"{folder} has neither {_WEIGHTS} nor {_INDEX}: give a complete folder")


def _module_folders(folder: Path) -> list[str]:
    """The sub-folders of a sentence-transformers model; none for other models."""
    if not (folder / "modules.json").exists():
        return []
    entries = _read_json(folder / "modules.json")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelRefused(f"{folder / 'modules.json'} is not a list of modules: it is damaged; get the folder again")
    folders = []
    for entry in entries:
        kind, path = str(entry.get("type")), str(entry.get("path", ""))
        package, _, name = kind.rpartition(".")
        if package.partition(".")[0] != "sentence_transformers" or name not in MODULES:
            raise ModelRefused(
                f"{folder / 'modules.json'} has a module of type {kind}: only {', '.join(sorted(MODULES))} of "
                "sentence_transformers are computed; choose a model without it"
            )
        if ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute() or "\\" in path:
            raise ModelRefused(f"{folder / 'modules.json'} leads out of the folder: {path!r}")
        if path not in ("", ".") and (folder / path).is_dir():  # Normalize has no files, so often no folder either
            folders.append(path)
    return folders


def _copied_files(folder: Path, modules: list[str]) -> Iterator[str]:
    """What belongs to a model besides its weights; pickles, code, pictures and READMEs stay behind."""
    for part in ("", *modules):
        for path in sorted((folder / part).iterdir()):
            if path.suffix not in _COPIED or path.is_dir():
                continue
            if not path.is_file():
                raise ModelRefused(f"{path} is a link to a file that is gone: get the folder again")
            yield path.relative_to(folder).as_posix()


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
    linear = len(tensor.shape) == 2 and "embed" not in tensor.name
    rest = 4.0 if quantization is Quantization.NONE else 2.0
    return int(prod(tensor.shape) * (quantization.linear_bytes if linear else rest))
