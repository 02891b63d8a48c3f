"""The report of a compression as one page that needs nothing else."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from contracts.compression import Criterion, Measurement, Report, Stage
from contracts.names import Task
from contracts.pages import STYLE
from contracts.recipes import Step, title
from worker.compression.evaluation.comparing import SAME

FIDELITY = {
    Task.EMBED: "the mean cosine of embeddings to the parent's",
    Task.CLASSIFY: "the share of rows with the same label as the parent's, where a row may have several with all the "
    "same, or for bare numbers their correlation",
    Task.RERANK: "the share of pairs of documents in the same order as the parent's",
    Task.GENERATE: "the parent's perplexity over this one, at most 1",
    Task.SCORE: "the parent's perplexity over this one, at most 1",
}
"""What the one number is, in words."""
NAMES = {
    "cosine_p1": "cosine, 1st percentile",
    "neighbour_overlap_10": "10 nearest, overlap",
    "kl": "KL, nats",
    "mean_absolute_difference": "mean difference",
    "kendall_tau": "Kendall's tau",
    "first_agreement": "same first document",
    "delta_nll": "ΔNLL, nats a token",
    "macro_f1": "macro-F1",
    "mean_absolute_error": "mean error",
    "nll": "NLL, nats a token",
}
CRITERIA = {
    "fidelity": ("Fidelity", "at least"),
    "size_ratio": ("Bytes on disk, after over before", "at most"),
    "speedup": ("Inputs a second, after over before", "at least"),
}


def render(report: Report) -> str:
    """The page: HTML with its style and its plots inside, the same bytes for an equal report.

    What was not measured is left out. It follows the reader's choice of light or dark.
    """
    from worker.compression.evaluation import plots  # a second to import, and nothing else needs it

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(megabytes=megabytes, figure=figure)
    stages = report.stages
    before, after = (stages[0].measurement, stages[-1].measurement) if stages else (None, None)
    measured = before is not None and after is not None
    pictures: dict[str, Markup] = {}
    if all("fidelity" in stage.fidelity for stage in stages):
        names = [report.parent, *(f"{number} {title(step)}" for number, step in enumerate(report.recipe, 1))]
        pictures["size"] = plots.size_and_fidelity(names, stages, report.criteria)
    if report.sensitivity:
        pictures["layers"] = plots.layers(report.sensitivity)
    if before is not None and after is not None:
        pictures["speed"] = plots.speed(before, after)
    return environment.get_template("report.html.jinja").render(
        style=Markup(STYLE),
        report=report,
        verdict=_verdict(report),
        tiles=_tiles(report),
        criteria=[(*CRITERIA[criterion.name], criterion, _missed_by(criterion)) for criterion in report.criteria],
        fidelity=FIDELITY[report.task],
        columns=_columns(stages),
        changes=_changes(stages),
        measures=_measures(before, after) if measured and before and after else [],
        plots=pictures,
        trainings=[
            (number, result.training, plots.loss(result.training))
            for number, result in enumerate(report.results, 1)
            if result.training is not None and result.training.points
        ],
        steps=[
            (number, title(step), _options(step), report.results[number - 1 : number])
            for number, step in enumerate(report.recipe, 1)
        ],
    )


def megabytes(size: float) -> str:
    """Bytes in a unit that people read."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size < 1000 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size:.0f} B"


def figure(value: float) -> str:
    """A number with as many digits as mean something."""
    if abs(value) < 1e-9 or abs(value) >= 1000:
        return f"{abs(value) if abs(value) < 1 else value:,.0f}"
    return f"{value:.4f}" if abs(value) < 10 and abs(value) >= 0.0001 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds in a unit that people read."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def _verdict(report: Report) -> str:
    """In words."""
    missed = [CRITERIA[criterion.name][0].split(",")[0].lower() for criterion in report.criteria if not criterion.met]
    match report.verdict:
        case "rejected":
            return f"Kept, and not served by default: it missed {' and '.join(missed) or 'what was asked'}."
        case "accepted" if report.criteria:
            return "It reached all that was asked."
        case "accepted":
            return "Nothing was asked of it."
        case _:
            return "There were no rows to evaluate on."


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """The few numbers that tell it at a glance: what, how much, and of what."""
    if not report.stages:
        return []
    parent, result = report.stages[0], report.stages[-1]
    tiles = [
        (
            "bytes on disk",
            f"{result.size_bytes / parent.size_bytes:.2f}×",
            f"{megabytes(parent.size_bytes)} → {megabytes(result.size_bytes)}",
        )
    ]
    if "fidelity" in result.fidelity:
        tiles.append(("fidelity", figure(result.fidelity["fidelity"]), f"on {report.rows:,} rows"))
    before, after = parent.measurement, result.measurement
    if before is not None and after is not None:
        tiles += [
            (
                "inputs a second",
                f"{after.throughput / before.throughput:.2f}×",
                f"{_count(before.throughput)} → {_count(after.throughput)}",
            ),
            (
                "memory",
                f"{after.memory_bytes / max(before.memory_bytes, 1):.2f}×",
                f"{megabytes(before.memory_bytes)} → {megabytes(after.memory_bytes)}",
            ),
        ]
    return tiles


def _missed_by(criterion: Criterion) -> str:
    return "" if criterion.met else f"by {figure(abs(criterion.found - criterion.asked))}"


def _columns(stages: Sequence[Stage]) -> list[tuple[str, Callable[[Stage], float | None]]]:
    """Of the table of stages: a heading, and what of a stage stands below it."""
    found = dict.fromkeys(("quality", key) for stage in stages for key in stage.quality)
    found |= dict.fromkeys(("fidelity", key) for stage in stages for key in stage.fidelity if key not in SAME)
    columns: list[tuple[str, Callable[[Stage], float | None]]] = [
        (NAMES.get(key, key), partial(_figure_of, kind=kind, key=key)) for kind, key in found
    ]
    if any(stage.measurement is not None for stage in stages[1:-1]):  # before and after have a table of their own
        columns += [("latency, ms", _latency), ("inputs a second", _throughput)]
    return columns


def _figure_of(stage: Stage, kind: str, key: str) -> float | None:
    figures: dict[str, float] = getattr(stage, kind)
    return figures.get(key)


def _latency(stage: Stage) -> float | None:
    return None if stage.measurement is None else stage.measurement.latency_p50 * 1e3


def _throughput(stage: Stage) -> float | None:
    return None if stage.measurement is None else stage.measurement.throughput


def _changes(stages: Sequence[Stage]) -> list[tuple[float | None, float | None]]:
    """Of each stage its loss, and by how much it differs from the stage before."""
    found: list[tuple[float | None, float | None]] = []
    last = None
    for stage in stages:
        found.append((stage.loss, None if stage.loss is None or last is None else stage.loss - last))
        last = stage.loss
    return found


def _measures(before: Measurement, after: Measurement) -> list[tuple[str, str, str, str]]:
    """Rows of before and after: what, the two, and their ratio."""
    rows: list[tuple[str, Callable[[float], str], float, float]] = [
        ("Bytes on disk", megabytes, before.size_bytes, after.size_bytes),
        ("Parameters", _count, before.parameters, after.parameters),
        ("of them not zero", _count, before.nonzeros, after.nonzeros),
        ("Memory while it computes", megabytes, before.memory_bytes, after.memory_bytes),
        ("Time to load", _seconds, before.load_seconds, after.load_seconds),
        ("Latency of one input, median", duration, before.latency_p50, after.latency_p50),
        ("Latency of one input, 95th percentile", duration, before.latency_p95, after.latency_p95),
        ("Inputs a second", _count, before.throughput, after.throughput),
        ("Tokens a second", _count, before.tokens_per_second, after.tokens_per_second),
        ("Tokens of a micro-batch", _count, before.budget_tokens, after.budget_tokens),
    ]
    return [(what, show(b), show(a), f"{a / b:.2f}×" if b else "–") for what, show, b, a in rows]


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    return f"{value:.2g} s"


def _options(step: Step) -> list[tuple[str, Any]]:
    """What a step was told, in the order of its fields, without what says nothing."""
    values = step.model_dump(mode="json", exclude={"step", "method", "format"}, exclude_none=True)
    found = []
    for name, value in values.items():
        if value is False:
            continue
        if name == "data":
            value = f"{value['rows']:,} rows, {value['file']['sha256'][:12]}"
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {of}" for key, of in value.items() if of) or "none"
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        found.append((name.replace("_", " "), value))
    return found
