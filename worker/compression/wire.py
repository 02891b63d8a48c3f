"""Requests and answers between a worker and the process of a step, as JSON has them."""

from pydantic import TypeAdapter

from contracts.recipes import Step
from worker.compression.order import Order, Outcome

ORDER: TypeAdapter[Order] = TypeAdapter(Order)
OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)
STEP: TypeAdapter[Step] = TypeAdapter(Step)
