"""Small models to distill, and orders to do it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.texts import stdlib_docstrings
from contracts.models import ArtifactFile
from contracts.names import Quantization, Task
from contracts.params import parse_params
from contracts.recipes import Dataset, Distill
from tests.models import model_spec
from worker.compression.order import Order
from worker.engines.registry import engine_class


def texts(count: int) -> list[str]:
    """Distinct docstrings of one paragraph."""
    found = dict.fromkeys(" ".join(text.split("\n\n")[0].split()) for text in stdlib_docstrings(count * 4))
    return [text for text in found if len(text) > 20][:count]


def save_layers(source: Path, folder: Path, layers: Sequence[int], kind: Any = None, **config: Any) -> Path:
    """Some layers of a BERT, and other values in its config."""
    from transformers import AutoModel

    from worker.compression.artifacts import save
    from worker.compression.distillation.student import keep_layers
    from worker.loading import load_module

    module = load_module(source, Quantization.NONE, "cpu", kind or AutoModel)
    module.config.update(config)
    keep_layers(module, tuple(layers))
    save(module, source, folder / "model")
    if config:
        (folder / "model" / "config.json").write_text(module.config.to_json_string(use_diff=False))
    return folder / "model"


def distillation(**options: Any) -> Distill:
    """A step; its rows are those of the order."""
    file = ArtifactFile(path="rows.jsonl", sha256="0" * 64, size=1)
    labelled = options.pop("labelled", False)
    return Distill(data=Dataset(file=file, rows=1, labelled=labelled), **options)


def teacher_outputs(model: Path, task: Task, inputs: Sequence[Any]) -> NDArray[np.float32]:
    """What the engine of the task gives, `[rows, n]`; scores in the order of `id2label`."""
    engine = engine_class(task).load(model_spec(task=task), model, "cpu")
    params = parse_params(task, {})
    outputs = engine.run(engine.prepare(inputs, params).rows, params)
    if task is Task.EMBED:
        return np.asarray(outputs, np.float32)
    names = json.loads((model / "config.json").read_text())["id2label"].values()
    scores = [{entry["label"]: entry["score"] for entry in output} for output in outputs]
    return np.array([[row[name] for name in names] for row in scores], np.float32)


def order(
    folder: Path,
    model: Path,
    inputs: Sequence[Any],
    *,
    task: Task = Task.EMBED,
    labels: Sequence[Any] | None = None,
    teacher: NDArray[np.float32] | None = None,
    **more: Any,
) -> Order:
    """An order to distill the model into something else, its files in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir()
    rows = [{"input": text} for text in inputs]
    if labels is not None:
        rows = [row | {"label": label} for row, label in zip(rows, labels, strict=True)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if task in (Task.EMBED, Task.CLASSIFY):
        np.save(folder / "teacher.npy", teacher_outputs(model, task, inputs) if teacher is None else teacher)
    return Order(
        task=task,
        source=model,
        quantization=Quantization.NONE,
        parent=model,
        destination=folder / "out",
        scratch=folder / "scratch",
        data=folder / "rows.jsonl",
        teacher=folder / "teacher.npy" if task in (Task.EMBED, Task.CLASSIFY) else None,
        **more,
    )
