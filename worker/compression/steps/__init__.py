"""The steps of recipes, each a module with a `run`."""

from worker.compression.steps.table import run_of

__all__ = ["run_of"]
