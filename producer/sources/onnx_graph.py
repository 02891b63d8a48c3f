"""ONNX graphs: which files of a folder are one, and whether it can do what it is registered for."""

from pathlib import Path

from contracts.errors import ModelRefused
from contracts.names import Quantization, Task
from producer.weights import has_safetensors

GRAPH = "model.onnx"
PATTERNS = [GRAPH, f"{GRAPH}.data", f"{GRAPH}_data*"]
"""What is downloaded from a hub: the graph, and its weights where they are not in it, as torch and optimum say."""


def graph_files(folder: Path) -> list[str]:
    """The graph and the files of its weights; none where there is no graph, or safetensors, which go before it."""
    if has_safetensors(folder) or not (folder / GRAPH).is_file():
        return []
    return sorted({path.name for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()})


def inspect(folder: Path, files: list[str], task: Task, quantization: Quantization) -> int:
    """Check what can be checked without the library, and tell what the weights take: what the files do.

    Whether the graph is whole, and quantized as it is said to be, is for the worker to say, which has the library.

    Raises:
        ModelRefused: A graph does not do the task, or is not quantized like that.
    """
    if task is Task.GENERATE:
        raise ModelRefused(f"{folder / GRAPH}: an ONNX model does not generate here; register the torch model")
    if quantization not in (Quantization.NONE, Quantization.INT8):
        raise ModelRefused(
            f"{folder / GRAPH}: an ONNX graph is quantized before it is registered: give quantization='none', or "
            f"'int8' where it holds integers, not {str(quantization)!r}"
        )
    return sum((folder / name).stat().st_size for name in files)
