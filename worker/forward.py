"""One forward pass, with a failure pinned on the row that caused it."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

from contracts.errors import ItemFailed, describe
from contracts.itemcodes import ItemCode
from worker.engines.base import Engine, Output, Row
from worker.outputs import OutputForm, WrongCount, joined, unfit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forward:
    """What a micro-batch gave: outputs for the rows that succeeded, errors for the others."""

    places: list[int]
    """Which rows succeeded, ascending; the outputs stand in this order."""
    outputs: Output | None
    """None when no row succeeded."""
    errors: dict[int, ItemFailed]
    """By place."""
    fitting: int | None
    """Where memory was too small for a pass, the most rows of it that went through at once."""
    broken: ItemFailed | None = None
    """Why nothing that the engine gives is to be believed; None where it gave an output for each row."""


def forward(
    engine: Engine,
    rows: Sequence[Row],
    params: Mapping[str, Any],
    form: OutputForm,
    begin_pass: Callable[[], None] = lambda: None,
) -> Forward:
    """Compute rows; halves of a micro-batch that raises are tried apart, until the row that raises stands alone.

    An engine that gives another number of outputs than it was given rows fails all of them: even halves where the
    number happens to be right could be somebody else's.

    Args:
        engine: Computes them.
        rows: As its `prepare` made them.
        params: The target's.
        form: The target's.
        begin_pass: Called before each pass.

    Raises:
        CancelledError: Between two steps of a pass nobody waited for it any more.
    """
    search = _Search(engine, rows, params, form, begin_pass)
    try:
        search.compute(range(len(rows)))
    except WrongCount as error:
        log.error("%s: nothing of the micro-batch is kept", error)
        failed = ItemFailed(ItemCode.INVALID_OUTPUT, str(error))
        errors = {place: search.errors.get(place, failed) for place in range(len(rows))}
        return Forward(places=[], outputs=None, errors=errors, fitting=search.fitting, broken=failed)
    if search.causes:
        # Not what the engine says: that may quote an input. It is kept with the item.
        causes = ", ".join(f"{count} {cause}" for cause, count in search.causes.most_common())
        log.info("of %d inputs in a micro-batch, some fail alone: %s", len(rows), causes)
    return Forward(
        places=[place for places, _ in search.parts for place in places],
        outputs=joined([outputs for places, outputs in search.parts if places]),
        errors=search.errors,
        fitting=search.fitting,
    )


@dataclass
class _Search:
    engine: Engine
    rows: Sequence[Row]
    params: Mapping[str, Any]
    form: OutputForm
    begin_pass: Callable[[], None]
    parts: list[tuple[Sequence[int], Output]] = field(default_factory=list)
    """Places that succeeded with their outputs, ascending."""
    errors: dict[int, ItemFailed] = field(default_factory=dict)
    causes: Counter[str] = field(default_factory=Counter)
    fitting: int | None = None

    def compute(self, trial: range) -> tuple[int, bool]:
        """The most of these rows that went through at once, and whether one does not fit into memory by itself."""
        self.begin_pass()
        try:
            outputs = self.engine.run(self.rows[trial.start : trial.stop], self.params)
            self.form.check(outputs, len(trial))
        # By the checkpoint: nobody waits for the pass any more.
        except (CancelledError, WrongCount):
            raise
        except Exception as error:  # whatever an engine raises is the row's to answer for
            full = self.engine.ran_out_of_memory(error)
            failed = _item_failed(error, full)
            cause = f"{failed.item_code} ({type(error).__name__})"
        else:
            self._keep(trial, outputs)
            return len(trial), False
        # Not sooner: an exception that is being handled keeps the tensors of the pass alive.
        if full:
            self.engine.free_memory()
        if len(trial) == 1:
            self.errors[trial.start] = failed
            self.causes[cause] += 1
            return 0, full
        half = len(trial) // 2
        (first, first_unfit), (second, second_unfit) = self.compute(trial[:half]), self.compute(trial[half:])
        most, unfit_alone = max(first, second), first_unfit or second_unfit
        # A pass with a row that does not even fit by itself says nothing of how many others do.
        if full and most and not unfit_alone:
            self.fitting = max(self.fitting or 0, most)
        return most, unfit_alone

    def _keep(self, trial: range, outputs: Output) -> None:
        """Note the outputs that can be stored; the others become errors."""
        bad = unfit(outputs)
        if not bad:
            self.parts.append((trial, outputs))
            return
        self.errors.update({trial[index]: error for index, error in bad.items()})
        self.causes.update(error.item_code for error in bad.values())
        kept = [index for index in range(len(trial)) if index not in bad]
        remaining = [outputs[index] for index in kept] if isinstance(outputs, list) else outputs[kept]
        self.parts.append(([trial[index] for index in kept], remaining))


def _item_failed(error: Exception, full: bool) -> ItemFailed:
    """What is kept with an item that raised by itself; a new error, as a raised one keeps its pass's tensors alive."""
    if isinstance(error, ItemFailed):
        return ItemFailed(error.item_code, error.message)
    said = describe(error)
    if full:
        return ItemFailed(ItemCode.OUT_OF_MEMORY, f"it does not fit into memory by itself: {said}")
    return ItemFailed(ItemCode.ENGINE_ERROR, said)
