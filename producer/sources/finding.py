"""Which kind of source it is: a folder or a GGUF file here, a model on the hub, or a thing of somebody's own engine."""

import re
from pathlib import Path

from contracts.errors import InvalidRequest, ModelRefused
from contracts.names import Quantization, Task
from producer.sources import gguf_file, hub, onnx_graph, own_engines, transformers_folder
from producer.sources.found import FoundModel, existing
from producer.weights import WEIGHTS, has_safetensors

_OF_AN_ENGINE = re.compile(r"(?P<engine>[A-Za-z_][\w.-]*):(?P<thing>.*)", re.ASCII | re.DOTALL)
_ON_THE_HUB = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(:(?P<file>\w[\w.-]*(/\w[\w.-]*)*\.gguf))?", re.ASCII
)


def find_model(source: str, task: Task, quantization: Quantization, revision: str | None = None) -> FoundModel:
    """Find a model and examine what can be examined of it without loading it.

    A source with a colon before any slash, `mypackage:thing` or `fake:`, is of an engine; a folder with a colon in
    its name is written `./a:b`. Of the others, what exists here is taken from here; what does not is sought on the
    Hugging Face hub (`org/name`, or `org/name:file.gguf`) and downloaded.

    Raises:
        InvalidRequest: A revision is given for what has none.
        ModelRefused: There is no such model, or it is not whole, does not do the task, or loading it could run code.
        UnavailableError: The hub does not answer and the model is not in its local cache.
    """
    of_an_engine = _OF_AN_ENGINE.fullmatch(source)
    if of_an_engine:
        _check_no_revision(source, revision)
        return own_engines.find(source, of_an_engine["engine"], of_an_engine["thing"], quantization)
    path = existing(source)
    if path is None:
        return _on_the_hub(source, task, quantization, revision)
    _check_no_revision(source, revision)
    file = _gguf_of(path)
    if file is not None:
        return _gguf(str(file.resolve()), None, file.resolve(), task, quantization)
    if path.is_file():
        raise ModelRefused(
            f"{source} is a file: give the folder that holds config.json and {WEIGHTS}, or a file that ends in .gguf"
        )
    return _folder(str(path.resolve()), None, path.resolve(), task, quantization)


def _check_no_revision(source: str, revision: str | None) -> None:
    if revision is not None:
        raise InvalidRequest(f"revision {revision!r}: only a model on the hub has revisions, {source} has none")


def _on_the_hub(source: str, task: Task, quantization: Quantization, revision: str | None) -> FoundModel:
    named = _ON_THE_HUB.fullmatch(source)
    if named is None:
        raise ModelRefused(
            f"{source!r}: there is no such folder or file, and it is no id on the Hugging Face hub "
            "(org/name, or org/name:file.gguf)"
        )
    if named["file"]:
        folder = hub.download(named["repository"], revision, [named["file"]])
        file = folder / named["file"]
        if not file.is_file():
            raise ModelRefused(f"{source}: {named['repository']} has no file {named['file']} at {folder.name}")
        return _gguf(source, folder.name, file, task, quantization)
    folder = hub.download(source, revision, transformers_folder.PATTERNS)
    if not has_safetensors(folder):
        folder = hub.download(source, revision, [*transformers_folder.PATTERNS, *onnx_graph.PATTERNS])
        if not onnx_graph.graph_files(folder) and (files := hub.gguf_files(source, folder.name)):
            raise ModelRefused(
                f"{source} holds GGUF files and no safetensors: name one of them, as in {source}:{files[0]} "
                f"(it has {', '.join(files[:5])}{', …' if len(files) > 5 else ''})"
            )
    return _folder(source, folder.name, folder, task, quantization)


def _gguf_of(path: Path) -> Path | None:
    """The GGUF file that the path names: itself, or the one in a folder that has no other weights."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    files = [] if has_safetensors(path) or onnx_graph.graph_files(path) else sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ModelRefused(f"{path} holds {len(files)} GGUF files: give one of them, as in {files[0]}")
    return files[0] if files else None


def _gguf(source: str, revision: str | None, file: Path, task: Task, quantization: Quantization) -> FoundModel:
    memory = gguf_file.inspect(file, task, quantization)
    return FoundModel(source, revision, task.value, memory, file.parent, [file.name])


def _folder(source: str, revision: str | None, folder: Path, task: Task, quantization: Quantization) -> FoundModel:
    facts = transformers_folder.inspect(folder, task, quantization)
    return FoundModel(source, revision, task.value, facts.memory_bytes, folder, facts.files)
