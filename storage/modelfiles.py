"""What the small files of a registered model say of it: read from the artifact store."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from contracts.models import ModelSpec
from contracts.names import Task
from contracts.preflight import WIDTHS, number
from storage.artifacts import ArtifactStore

_OLD_POOLINGS = "pooling_mode_"
"""What keys begin with that each switch one pooling on, where no key `pooling_mode` lists all."""


def read_config(store: ArtifactStore, model: ModelSpec) -> Mapping[str, Any]:
    """The `config.json` beside a model's weights; empty where it has none: a GGUF file says it all itself."""
    config = _read(store, model, f"{_transformer(store, model)}config.json")
    return config if isinstance(config, dict) else {}


def poolings(store: ArtifactStore, model: ModelSpec) -> int | None:
    """How many vectors of a token's width stand behind one another in what an encoder gives.

    None where that is not known; without `modules.json` it is the mean alone.
    """
    modules = _modules(store, model)
    if len(modules) < 2:
        return 1
    config = _read(store, model, f"{modules[1]}config.json")
    if not isinstance(config, dict):
        return None
    modes = config.get("pooling_mode")
    if isinstance(modes, list):
        return len(modes)
    old = [key for key, value in config.items() if key.startswith(_OLD_POOLINGS) and value is True]
    return 1 if isinstance(modes, str) else max(len(old), 1)


def dimensions(store: ArtifactStore, model: ModelSpec) -> int | None:
    """Of the vectors of our own engine for embeddings, where the files say them."""
    if model.engine != Task.EMBED:
        return None
    width, count = number(read_config(store, model), WIDTHS), poolings(store, model)
    return width * count if width and count else None


def vocabulary(store: ArtifactStore, model: ModelSpec) -> Mapping[str, int] | None:
    """The number of each token that a model's `tokenizer.json` knows; None where it has no such file, or an odd one."""
    folder = _transformer(store, model)
    content, beside = (_read(store, model, f"{folder}{name}") for name in ("tokenizer.json", "tokenizer_config.json"))
    try:
        known = content["model"]["vocab"]
        found = dict(known) if isinstance(known, dict) else {entry[0]: place for place, entry in enumerate(known)}
        found |= {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        added = beside.get("added_tokens_decoder") if isinstance(beside, dict) else None
        return found | {token["content"]: int(place) for place, token in (added or {}).items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None


def _transformer(store: ArtifactStore, model: ModelSpec) -> str:
    """The folder of the weights: sentence-transformers may keep them in one of their own."""
    return next(iter(_modules(store, model)), "")


def _modules(store: ArtifactStore, model: ModelSpec) -> Sequence[str]:
    """The folders of an encoder's parts, each with a slash behind it where it is not the model's own."""
    modules = _read(store, model, "modules.json")
    paths = [str(one.get("path", "")) for one in modules if isinstance(one, dict)] if isinstance(modules, list) else []
    return [f"{path.strip('/')}/" if path.strip("/") else "" for path in paths]


def _read(store: ArtifactStore, model: ModelSpec, path: str) -> Any:
    """What a JSON file of a model holds; None where there is none, or it holds something else."""
    files = [file for file in model.files if file.path == path]
    if not files:
        return None
    with TemporaryDirectory(prefix="batchmill-") as folder:
        try:
            return json.loads((store.fetch(files, Path(folder)) / path).read_bytes())
        except ValueError:
            return None
