"""What is examined of a model before it is registered: where it comes from, whether it is safe and whole.

Nothing is loaded: JSON files and the headers of safetensors are read, so that a client needs no torch.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from contracts.errors import InvalidRequest, ModelRefused, UnavailableError, UnknownTask
from contracts.fake import is_fake, parse_fake
from contracts.names import Quantization, Task
from producer.weights import WEIGHTS, loaded_bytes, read_json, read_object, weight_files

FAKE_ENGINE = "fake"
ENGINES: Mapping[Task, str] = {task: task.value for task in Task}
"""The engine that computes a task on real weights: one file each, named after it."""
MODULES = ["Transformer", "Pooling", "Normalize"]
"""The modules of sentence-transformers that the embed engine computes, the last where it is wanted."""

_COPIED = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


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
        raise ModelRefused(f"{source} is a file: give the folder that holds config.json and {WEIGHTS}")
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
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        if (file.name == "config.json" or file.exists()) and "auto_map" in read_object(file):
            raise ModelRefused(
                f"{file} has an `auto_map`: the model needs code of its own, which is never run; choose a model "
                "whose architecture transformers itself knows"
            )
    shards = weight_files(folder)
    modules = _module_folders(folder)
    files = list(_copied_files(folder, modules))
    if not any(name.startswith(("tokenizer", "vocab")) or name.endswith(".model") for name in files):
        raise ModelRefused(f"{folder} has no tokenizer: save one into it with tokenizer.save_pretrained(…)")
    for module in modules:
        files += [path.relative_to(folder).as_posix() for path in sorted((folder / module).glob("*.safetensors"))]
    files = sorted({*files, *shards})
    memory = sum(loaded_bytes(folder / name, quantization) for name in files if name.endswith(".safetensors"))
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
