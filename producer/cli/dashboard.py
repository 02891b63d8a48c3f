"""One frame of `batchmill top`: what the system does now, as wide and as high as the terminal is."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from contracts.states import JobState
from producer.rates import SILENT_SECONDS, sparkline
from producer.summary import COLOURS, NONE, age_text, byte_size, rate_text

if TYPE_CHECKING:
    from producer.rates import Rates
    from storage.overview import Overview, PoolLoad
    from storage.workers import SeenWorker

_WIDE = 110
_HEADER_LINES = 3
_TITLE_LINES = 2
"""Of each table: a blank line and its header."""
_LATE_SECONDS = 60.0
"""Work that waits for longer stands out."""
_BAR = 10


class Frame:
    """What `top` shows at one moment; it renders itself for the size that it is given.

    Args:
        overview: The system.
        rates: What its workers do in a second.
        stale: Whether Postgres does not answer, so that this is how it was.
        keys: Whether to say how to end it.
    """

    def __init__(self, overview: "Overview", rates: "Rates", *, stale: bool = False, keys: bool = False) -> None:
        self._overview = overview
        self._rates = rates
        self._stale = stale
        self._keys = keys

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The frame's lines."""
        width, height = options.max_width, options.height or 10_000
        overview = self._overview
        yield from self._header(width)
        hints = self._hints()
        yield from hints
        rest = height - _HEADER_LINES - len(hints)
        pools, workers, jobs = _share(rest, (len(overview.pools), len(overview.workers), len(overview.jobs)))
        if overview.pools:
            yield Text()
            yield self._pools(pools)
        if overview.workers:
            yield Text()
            yield self._workers(workers, width)
        if overview.jobs:
            yield Text()
            yield self._jobs(jobs, width)

    def _header(self, width: int) -> list[RenderableType]:
        overview, total = self._overview, self._rates.total
        title = Text.assemble(("batchmill", "bold"), "  ", (f"{overview.at.astimezone():%H:%M:%S}", "dim"))
        if self._keys:
            title.append("  q ends", "dim")
        if self._stale:
            title.append("  Postgres does not answer since then: batchmill doctor", "red")
        title.truncate(width, overflow="ellipsis")
        known = self._rates.known
        speed = Text.assemble(
            (rate_text(total.inputs) if known else NONE, "bold"),
            " inputs/s  ",
            (rate_text(total.tokens) if known else NONE, "bold"),
            " tokens/s  ",
        )
        speed.append(sparkline(self._rates.history, width - len(speed)), "cyan")
        return [title, speed]

    def _hints(self) -> list[Text]:
        """What to do, where nothing happens by itself."""
        overview, hints = self._overview, []
        served = {worker.pool for worker in overview.workers if not _silent(worker, overview.at)}
        waiting = [pool.pool for pool in overview.pools if pool.claimable and pool.pool not in served]
        if not overview.models and not overview.jobs:
            hints.append("no model is registered: batchmill models add NAME SOURCE")
        elif not overview.jobs:
            hints.append("nothing to do: batchmill submit FILE --model NAME")
        if waiting:
            hints += [f"no worker serves pool {pool}: batchmill worker --pool {pool}" for pool in waiting[:3]]
        elif not served:
            hints.append("no worker runs: batchmill up --detach, or batchmill worker with servers of your own")
        return [Text(hint, "yellow", no_wrap=True, overflow="ellipsis") for hint in hints]

    def _pools(self, most: int) -> Table:
        overview = self._overview
        table = _table(("POOL", "<WORKERS", "<WAITING", "<OLDEST", "<RUNNING", "<QUEUED", "<PAUSED"))
        for pool in overview.pools[:most]:
            at_work = sum(w.pool == pool.pool and not _silent(w, overview.at) for w in overview.workers)
            table.add_row(
                Text(pool.pool),
                Text(str(at_work), "red" if pool.claimable and not at_work else ""),
                Text(f"{pool.claimable:,} shards" if pool.claimable != 1 else "1 shard"),
                _age(pool, overview.at),
                *(
                    _count(pool.jobs.get(state, 0), COLOURS.get(state, ""))
                    for state in (JobState.RUNNING, JobState.QUEUED, JobState.PAUSED)
                ),
            )
        return _more(table, len(overview.pools) - most)

    def _workers(self, most: int, width: int) -> Table:
        overview = self._overview
        table = _table(("WORKER", "DEVICE", "<SLOTS", "MEMORY", "<INPUTS/S", "<TOKENS/S", "MODELS"))
        table.columns[0].max_width = 40 if width >= _WIDE else 20
        table.columns[1].max_width = 24 if width >= _WIDE else 8
        table.columns[-1].ratio = 1
        table.expand = True
        for worker in overview.workers[:most]:
            rate = self._rates.of(worker.name)
            silent = _silent(worker, overview.at)
            said = f"silent for {age_text((overview.at - worker.seen_at).total_seconds())}"
            table.add_row(
                Text(worker.name, "red" if silent else ""),
                Text(worker.device),
                Text(f"{worker.held}/{worker.slots}", "cyan" if worker.held else ""),
                _memory(worker, width),
                Text(rate_text(rate.inputs if rate else None)),
                Text(rate_text(rate.tokens if rate else None)),
                Text(said, "red") if silent else Text(", ".join(worker.models) or NONE),
            )
        return _more(table, len(overview.workers) - most)

    def _jobs(self, most: int, width: int) -> Table:
        wide = width >= _WIDE
        overview = self._overview
        table = _table(("JOB", "STATE", "MODEL", "PROGRESS", "<DONE", "<INPUTS", "<FAILED", "<AGE"))
        table.columns[3].ratio = 1
        table.columns[3].min_width = 6
        table.expand = True
        for info in overview.jobs[:most]:
            counts = info.counts
            share = (counts.distinct - counts.waiting) / counts.distinct if counts.distinct else 0.0
            colour = COLOURS.get(info.state, "default")
            age = (overview.at - info.created_at).total_seconds()
            table.add_row(
                Text(str(info.id) if wide else f"…{str(info.id)[-6:]}"),
                Text(info.state, colour),
                Text(info.model),
                ProgressBar(1.0, share, style="bright_black", complete_style=colour, finished_style=colour),
                Text(f"{int(100 * share)} %"),
                Text(f"{counts.distinct or counts.items:,}"),
                _count(counts.failed, "red"),
                Text(age_text(age)),
            )
        return _more(table, len(overview.jobs) - most)


def _share(lines: int, rows: Sequence[int]) -> list[int]:
    """How many rows each table gets of so many lines: each three at first, the rest to those that have more."""
    tables = [count for count in rows if count]
    rest = lines - _TITLE_LINES * len(tables)
    given = [min(count, 3) for count in rows]
    rest -= sum(given)
    for place, count in enumerate(rows):
        more = max(0, min(count - given[place], rest))
        given[place] += more
        rest -= more
    # One that cannot show all says how many are missing, in a line of its own.
    return [have if have >= count else max(have - 1, 1) for have, count in zip(given, rows, strict=True)]


def _table(headers: Sequence[str]) -> Table:
    """Columns; those whose name begins with `<` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for header in headers:
        number = header.startswith("<")
        table.add_column(header.lstrip("<"), justify="right" if number else "left", no_wrap=True, overflow="ellipsis")
    return table


def _more(table: Table, left: int) -> Table:
    if left > 0:
        table.add_row(Text(f"… {left:,} more", "dim"))
    return table


def _count(number: int, colour: str) -> Text:
    return Text(f"{number:,}", colour if number else "dim")


def _age(pool: "PoolLoad", at: datetime) -> Text:
    if pool.oldest is None or not pool.claimable:
        return Text(NONE, "dim")
    seconds = (at - pool.oldest).total_seconds()
    return Text(age_text(seconds), "yellow" if seconds > _LATE_SECONDS else "")


def _silent(worker: "SeenWorker", at: datetime) -> bool:
    return (at - worker.seen_at).total_seconds() > SILENT_SECONDS


def _memory(worker: "SeenWorker", width: int) -> RenderableType:
    """Of its limit what models take."""
    share = worker.model_bytes / worker.memory_limit if worker.memory_limit else 0.0
    text = Text(f"{byte_size(worker.model_bytes)}/{byte_size(worker.memory_limit)}")
    if width < _WIDE:
        return text
    bar = ProgressBar(1.0, min(share, 1.0), width=_BAR, style="bright_black", complete_style="cyan")
    grid = Table.grid(padding=(0, 1))
    grid.add_row(bar, text)
    return Group(grid)
