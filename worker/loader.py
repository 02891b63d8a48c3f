"""How a registered model gets into memory, and its token budget with it."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import TypeVar

from contracts.errors import BatchmillError, ModelLoadFailed, describe
from contracts.models import ModelSpec, is_graph
from contracts.params import parse_params
from contracts.settings import Settings
from storage import budgets
from storage.artifacts import ArtifactStore
from storage.budgets import Budget
from storage.database import Database
from worker import budget as budget_measure
from worker.device import Device, yield_to_others
from worker.engines.base import Engine
from worker.engines.registry import engine_class
from worker.hardware import Hardware

log = logging.getLogger(__name__)
T = TypeVar("T")


class ModelLoader:
    """Fetches a model's files, loads them, and measures what no worker on such a device has measured yet."""

    def __init__(self, settings: Settings, database: Database, hardware: Hardware, device: Device) -> None:
        self._settings = settings
        self._database = database
        self._hardware = hardware
        self._device = device
        self._artifacts = ArtifactStore(settings.artifacts_url)
        self._memory = {hardware.device: hardware.model_memory, **hardware.others}

    def load(self, model: ModelSpec) -> tuple[Engine, Budget]:
        """A model, ready to compute.

        Raises:
            ModelError: It cannot be loaded.
            ArtifactError: Its files are missing, or not what was registered.
            CancelledError: The process ends.
        """
        try:
            folder = self._artifacts.fetch(model.files, self._settings.cache)
            began = time.monotonic()
            engine = _on_a_thread_that_ends(lambda: self._engine(model, folder))
        except BatchmillError:
            raise
        except Exception as error:  # whatever a library raises, the job hears of it
            raise ModelLoadFailed(f"{model.reference} cannot be loaded: {describe(error)}") from error
        engine.checkpoint = self._device.checkpoint
        return engine, self._budget(model, engine, time.monotonic() - began)

    def divisible(self, model: ModelSpec) -> bool:
        """Whether a model that is too large for the device can be laid over this and others, down to the disk.

        What bitsandbytes packs has to fit into GPUs, and ONNX Runtime has one device.

        Raises:
            ModelLoadFailed: Its engine is not installed.
        """
        from worker.engines.transformer import TransformerEngine  # seconds to import, as all engines of torch

        if not issubclass(engine_class(model.engine), TransformerEngine) or is_graph(model.files):
            return False
        gpus = sum(size for device, size in self._memory.items() if device != "cpu")
        return model.memory_bytes <= gpus or not model.quantization.packed

    def lower_ceiling(self, model: ModelSpec, tokens: int) -> None:
        """Remember for every worker on such a device that passes of more tokens run out of memory.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        with self._database.transaction() as connection:
            budgets.lower_ceiling(connection, model.id, self._kind(model), tokens)

    def _engine(self, model: ModelSpec, folder: Path) -> Engine:
        kind = engine_class(model.engine)
        if self._in_parts(model):
            from worker.engines.transformer import TransformerEngine
            from worker.layout import Layout

            if issubclass(kind, TransformerEngine):
                return kind.load(model, folder, Layout(self._memory, self._settings.cache / "offload"))
        return kind.load(model, folder, self._hardware.device)

    def _in_parts(self, model: ModelSpec) -> bool:
        return model.memory_bytes > self._hardware.model_memory

    def _kind(self, model: ModelSpec) -> str:
        """What its budget is kept under: in parts it is slower, and larger passes pay."""
        return f"{self._hardware.kind}, in parts" if self._in_parts(model) else self._hardware.kind

    def _budget(self, model: ModelSpec, engine: Engine, load_seconds: float) -> Budget:
        kind = self._kind(model)
        if (known := self._note_load(model, engine, load_seconds)) is not None:
            return known
        params = parse_params(model.task, {})
        measured = self._device.call(lambda: budget_measure.measure(engine, params, self._device.checkpoint))
        with self._database.transaction() as connection:
            budgets.put(connection, model.id, kind, measured)
        # Not sooner: some libraries pack the weights in the first pass.
        budget = self._note_load(model, engine, load_seconds)
        assert budget is not None
        log.info(
            "%s on %s: %d tokens a micro-batch, %.0f tokens/s",
            model.reference,
            kind,
            budget.tokens,
            budget.tokens_per_second,
        )
        return budget

    def _note_load(self, model: ModelSpec, engine: Engine, load_seconds: float) -> Budget | None:
        with self._database.transaction() as connection:
            return budgets.note_load(connection, model.id, self._kind(model), engine.memory_bytes, load_seconds)


def _on_a_thread_that_ends(function: Callable[[], T]) -> T:
    """Call it on a thread of its own.

    Each thread that computes with torch on a CPU keeps a team of OpenMP's threads as long as it lives. Where all teams
    together have more threads than there are cores, libgomp lets those of every team sleep between two operations, and
    the device's passes take up to twice as long: no thread but the device's may have one while that computes.
    """
    # Threads that ONNX Runtime starts take after this one, and compute: others go before them.
    with ThreadPoolExecutor(1, "load", yield_to_others) as thread:
        return thread.submit(copy_context().run, function).result()
