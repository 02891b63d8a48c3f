"""Folders in the layout of transformers and sentence-transformers: whether they are safe, whole, and fit for a task."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from contracts.errors import ModelRefused
from contracts.names import Quantization, Task
from producer.sources import onnx_graph
from producer.sources.heads import check_head
from producer.weights import read_json, read_object, weight_files
from storage.weights import loaded_bytes

MODULES = ["Transformer", "Pooling", "Normalize"]
"""The modules of sentence-transformers that the embed engine computes, the last where it is wanted."""

_COPIED = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
PATTERNS = ["*.safetensors", *(f"*{suffix}" for suffix in sorted(_COPIED))]
"""What is downloaded from a hub."""


@dataclass(frozen=True)
class FolderFacts:
    """What a folder holds, as far as it matters."""

    files: list[str]
    """What is to be copied, relative to the folder."""
    memory_bytes: int
    """Estimate of what the weights take when they are loaded."""


def inspect(folder: Path, task: Task, quantization: Quantization) -> FolderFacts:
    """Check a folder and say what of it is to be registered.

    Raises:
        ModelRefused: It is not complete, not of this task, or loading it could run code.
    """
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        if (file.name == "config.json" or file.exists()) and "auto_map" in read_object(file):
            raise ModelRefused(
                f"{file} has an `auto_map`: the model needs code of its own, which is never run; choose a model "
                "whose architecture transformers itself knows"
            )
    check_head(folder / "config.json", task)
    graph = onnx_graph.graph_files(folder)
    weights = graph or weight_files(folder)
    modules = _module_folders(folder) if task is Task.EMBED else []
    files = list(_copied_files(folder, modules))
    if not any(name.startswith(("tokenizer", "vocab")) or name.endswith(".model") for name in files):
        raise ModelRefused(f"{folder} has no tokenizer: save one into it with tokenizer.save_pretrained(…)")
    for module in modules:
        files += [path.relative_to(folder).as_posix() for path in sorted((folder / module).glob("*.safetensors"))]
    files = sorted({*files, *weights})
    if graph:
        return FolderFacts(files, onnx_graph.inspect(folder, graph, task, quantization))
    memory = sum(loaded_bytes(folder / name, quantization) for name in files if name.endswith(".safetensors"))
    return FolderFacts(files, memory)


def _module_folders(folder: Path) -> list[str]:
    """The sub-folders of a sentence-transformers model; none for other models."""
    file = folder / "modules.json"
    if not file.exists():
        return []
    modules = read_json(file)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelRefused(f"{file} is not a list of modules: it is damaged; get the folder again")
    kinds = [str(module.get("type")) for module in modules]
    names = [kind.rpartition(".")[2] for kind in kinds]
    if names not in (MODULES[:2], MODULES) or {kind.partition(".")[0] for kind in kinds} != {"sentence_transformers"}:
        raise ModelRefused(
            f"{file} has {', '.join(kinds) or 'no module'}: what is computed is sentence_transformers' Transformer, "
            "Pooling, and Normalize where it follows; choose another model"
        )
    folders = []
    for module in modules:
        path = PurePosixPath(str(module.get("path", "")))
        if path.is_absolute() or ".." in path.parts or "\\" in str(path):
            raise ModelRefused(f"{file} leads out of the folder: {str(path)!r}")
        # Normalize has no files, so often no folder either.
        if path.parts and (folder / path).is_dir():
            folders.append(str(path))
    read_object(folder / str(modules[1].get("path", "")) / "config.json")  # says how to pool
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
