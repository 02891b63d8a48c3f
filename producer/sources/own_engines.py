"""Models of engines that other packages bring, and of the fake: `mypackage:thing`; the thing is theirs to read."""

from pathlib import Path

from contracts.errors import ModelRefused
from contracts.fake import parse_fake
from contracts.inputs import TEXT_ENGINES
from contracts.names import Quantization
from producer.sources.found import FoundModel, existing
from producer.weights import PICKLED, pickles_refused
from storage.weights import loaded_bytes

COPIED = frozenset(
    {".safetensors", ".gguf", ".onnx", ".json", ".jsonl", ".txt", ".csv", ".tsv", ".yaml", ".toml"}
    | {".model", ".jinja", ".tiktoken"}
)
"""Files that reach an engine: weights that are data alone, and text. What else a folder holds stays behind."""
WEIGHTS = frozenset({".safetensors", ".gguf", ".onnx"})

_REMEDY = "safetensors.torch.save_file(module.state_dict(), path)"


def find(source: str, engine: str, thing: str, quantization: Quantization) -> FoundModel:
    """What the thing is: an existing folder or file, which the engine gets a copy of, or words that only it can read.

    The engine itself need not be installed here.

    Raises:
        ModelRefused: It is written as a path that leads nowhere, its weights are pickled or cut short, or the engine
            is one of those that need no name.
    """
    if engine == "fake":
        return FoundModel(source, None, engine, parse_fake(source).memory)
    if engine in TEXT_ENGINES:
        raise ModelRefused(
            f"source {source!r}: {engine} is a task; give the folder, file or id alone, with task={engine!r}"
        )
    if thing.startswith("//"):
        raise ModelRefused(f"source {source!r} is a URL: give a folder, a .gguf file, or an id on the hub (org/name)")
    path = existing(thing)
    if path is None:
        if thing.startswith(("/", "./", "../", "~")):
            raise ModelRefused(f"source {source!r}: there is no folder or file {thing}")
        return FoundModel(source, None, engine, 0)
    if path.is_dir():
        folder = path.resolve()
        files = _files(folder)
    else:
        _check_file(path)
        folder, files = path.resolve().parent, [path.resolve().name]
    weights = [folder / name for name in files if name.endswith(".safetensors")]
    memory = sum(loaded_bytes(file, quantization) for file in weights)
    return FoundModel(f"{engine}:{path.resolve()}", None, engine, memory, folder, files)


def _files(folder: Path) -> list[str]:
    """What of a folder the engine gets; nothing hidden."""
    found = [path for path in sorted(folder.rglob("*")) if not path.is_dir() and not _hidden(path.relative_to(folder))]
    copied = [path for path in found if path.suffix in COPIED]
    pickled = [path.name for path in found if path.suffix in PICKLED]
    if pickled and not any(path.suffix in WEIGHTS for path in copied):
        raise pickles_refused(folder, pickled, _REMEDY)
    if not copied:
        raise ModelRefused(f"{folder} holds no file that an engine is given: they end in {', '.join(sorted(COPIED))}")
    for path in copied:
        if not path.is_file():
            raise ModelRefused(f"{path} is a link to a file that is gone: get the folder again")
    return [path.relative_to(folder).as_posix() for path in copied]


def _check_file(path: Path) -> None:
    if path.suffix in PICKLED:
        raise pickles_refused(path.parent, [path.name], _REMEDY)
    if path.suffix not in COPIED:
        raise ModelRefused(f"{path}: an engine is given files that end in {', '.join(sorted(COPIED))}")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
