"""What a registered model is: the words that its row, its manifest and its loader share."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from contracts.names import Quantization, Task


class ArtifactFile(BaseModel):
    """One file of a model: where it stands in the model's folder, and what it holds."""

    model_config = ConfigDict(frozen=True)

    path: str
    """Relative to the model's folder, with forward slashes."""
    sha256: str
    size: int


def is_graph(files: Iterable[ArtifactFile]) -> bool:
    """Whether the weights among a model's files are an ONNX graph."""
    return any(file.path.endswith(".onnx") for file in files)


class ModelSpec(BaseModel):
    """Everything that a worker needs to know to load a model."""

    model_config = ConfigDict(frozen=True)

    id: int
    name: str
    version: int
    source: str
    revision: str | None
    task: Task
    quantization: Quantization
    engine: str
    """The entry point under `batchmill.engines` that runs it."""
    pool: str
    epoch: int
    digest: str
    """SHA-256 over the manifest; equal for equal files."""
    files: list[ArtifactFile]
    memory_bytes: int
    """Estimate of what the loaded weights take."""
    parent: str | None = None
    """`name@version` of the model that it was made from, where a recipe made it."""
    recipe: list[dict[str, Any]] | None = None
    """What made it of its parent: steps, as `contracts.recipes.parse_recipe` takes them."""
    fidelity: float = 1.0
    """For `auto`: the least mean cosine to float32 that a device may trade for speed or memory."""
    rejected: bool = False
    """Whether it missed what was asked of it: then only `name@version` names it."""

    @property
    def reference(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


class TargetSpec(BaseModel):
    """What a result is a result of: a model with parameters, at one epoch."""

    model_config = ConfigDict(frozen=True)

    id: int
    model: ModelSpec
    params: dict[str, Any]
