"""A model's spec made by hand, where there is no database that knows it."""

from typing import Any

from contracts.models import ModelSpec


def model_spec(**changes: Any) -> ModelSpec:
    """The spec of a fake model of embeddings, but for what is changed."""
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
