"""The process that a model is measured in, where the figures are no matter: budgets are sought among small passes."""

from multiprocessing.connection import Connection

from worker import budget
from worker.compression.evaluation import measuring
from worker.compression.evaluation.measuring import Subject

LARGEST = 2048
"""Tokens of a pass; two seconds' worth of larger ones would be tried, of each model."""


def serve_small(pipe: Connection, subject: Subject) -> None:
    """As `measuring.serve`."""
    budget.LARGEST = LARGEST
    measuring.serve(pipe, subject)
