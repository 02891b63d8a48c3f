"""What a compression gained and what it cost, measured on artifacts as they are served."""

from worker.compression.evaluation.evaluating import evaluate
from worker.compression.evaluation.gate import judge
from worker.compression.evaluation.order import Artifact, Evaluated, EvaluationOrder
from worker.compression.evaluation.report import render

__all__ = ["Artifact", "Evaluated", "EvaluationOrder", "evaluate", "judge", "render"]
