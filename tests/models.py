"""Models to test with: specs made by hand, and the real folder of a small sentence encoder."""

import json
from pathlib import Path
from typing import Any

from benchmarks.weights import MINILM
from contracts.models import ModelSpec

__all__ = ["MINILM", "model_spec", "variant"]


def model_spec(**changes: Any) -> ModelSpec:
    values = {
        "id": 1,
        "name": "small",
        "version": 1,
        "source": "fake:",
        "revision": None,
        "task": "embed",
        "quantization": "none",
        "engine": "fake",
        "pool": "default",
        "epoch": 0,
        "digest": "0" * 64,
        "files": [],
        "memory_bytes": 0,
    }
    return ModelSpec.model_validate(values | changes)


def variant(folder: Path, files: dict[str, Any]) -> Path:
    """A folder with MiniLM's weights and other files: JSON values by path, None for a file to leave out."""
    for original in MINILM.rglob("*.*"):
        path = str(original.relative_to(MINILM))
        if original.is_file() and path not in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(original)
    for path, value in files.items():
        if value is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(json.dumps(value))
    return folder
