"""Distillation: a student is trained to give the outputs of the model that a recipe began with."""

from worker.compression.distillation.step import run

__all__ = ["run"]
