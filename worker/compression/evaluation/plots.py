"""Plots of a report, as SVG that stands inside of a page and takes its colours."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from contracts.compression import Criterion, Measurement, Sensitivity, Stage, Training
from contracts.pages import CARD, DASHED, FIRST, MUTED, PLOT_STYLE, RULE, SECOND, inline_svg, shortened

WIDTH, HEIGHT = 5.0, 2.9


def size_and_fidelity(names: Sequence[str], stages: Sequence[Stage], criteria: Sequence[Criterion]) -> Markup:
    """Each stage as a point: megabytes on disk, and fidelity to the parent; dashed, what was asked.

    Args:
        names: Of the stages.
        stages: Each with a fidelity.
        criteria: What was asked.
    """
    sizes = [stage.size_bytes / 1e6 for stage in stages]
    values = [stage.fidelity["fidelity"] for stage in stages]
    asked = {criterion.name: criterion.asked for criterion in criteria}

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.plot(sizes, values, color=RULE, linewidth=1.2, zorder=1)
        axis.scatter(sizes, values, s=[46] * len(sizes), color=[SECOND, *[FIRST] * (len(sizes) - 1)], zorder=3)
        axis.set_xlim(0, max(sizes) * 1.12)
        lowest, highest = min([*values, asked.get("fidelity", 1.0)]), max([*values, asked.get("fidelity", 0.0)])
        room = max(highest - lowest, 0.004)
        axis.set_ylim(lowest - 0.35 * room, highest + 0.3 * room)
        ticks = axis.yaxis.get_major_locator().tick_values(lowest - 0.2 * room, highest + 1e-9)
        axis.set_yticks([tick for tick in ticks if lowest - 0.25 * room <= tick <= 1 + 1e-9])
        if "fidelity" in asked:
            axis.axhline(asked["fidelity"], color=MUTED, linewidth=1, linestyle=DASHED)
        if "size_ratio" in asked:
            axis.axvline(asked["size_ratio"] * sizes[0], color=MUTED, linewidth=1, linestyle=DASHED)
        for number, (label, x, y) in enumerate(_labels(names, sizes, values, 0.1 * max(sizes), 0.08 * room)):
            # Neighbours are often of about one height: one label goes above its point, the next one below.
            right, above = x > 0.6 * max(sizes), number % 2 == 0
            axis.annotate(
                label,
                (x, y),
                (-8 if right else 8, 8 if above else -8),
                textcoords="offset points",
                ha="right" if right else "left",
                va="bottom" if above else "top",
                bbox={"facecolor": CARD, "edgecolor": "none", "pad": 1},
            )
        axis.set_xlabel("MB on disk")
        axis.set_ylabel("fidelity to the parent")

    return _svg(draw, "Size on disk against fidelity, for each stage", HEIGHT)


def layers(sensitivity: Sequence[Sensitivity]) -> Markup:
    """A bar a layer: the fidelity that is lost when that layer alone is treated."""
    names = [shortened(layer.layer) for layer in sensitivity]
    lost = [max(1 - layer.fidelity, 0.0) for layer in sensitivity]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        places = range(len(names))
        bars = axis.barh(places, lost, color=FIRST, height=0.65)
        axis.bar_label(bars, [f"{value:.2g}" if value else "0" for value in lost], padding=3, fontsize=8.5)
        axis.set_yticks(places, names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xlim(0, (max(lost) or 1e-6) * 1.18)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("fidelity lost (1 - fidelity) when this layer alone is treated")

    return _svg(draw, "Fidelity lost by treating one layer alone", 0.9 + 0.24 * len(names))


def speed(before: Measurement, after: Measurement) -> Markup:
    """Latency of one input, median and 95th percentile, and throughput, before and after."""

    def draw(figure: Figure) -> None:
        waiting, flowing = figure.subplots(1, 2, width_ratios=(1.7, 1))
        waits = {
            "median": (before.latency_p50 * 1e3, after.latency_p50 * 1e3),
            "95 % below": (before.latency_p95 * 1e3, after.latency_p95 * 1e3),
        }
        _pairs(waiting, waits, "latency of one input, ms")
        _pairs(flowing, {"": (before.throughput, after.throughput)}, "inputs a second")
        handles, labels = waiting.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)

    return _svg(draw, "Latency and throughput before and after", HEIGHT)


def _pairs(axis: Axes, groups: dict[str, tuple[float, float]], title: str) -> None:
    """Two bars beside each other for each group: before and after."""
    for place, (name, colour) in enumerate((("before", SECOND), ("after", FIRST))):
        values = [pair[place] for pair in groups.values()]
        bars = axis.bar([i + 0.38 * (place - 0.5) for i in range(len(groups))], values, 0.34, color=colour, label=name)
        axis.bar_label(bars, [_figure(value) for value in values], padding=2, fontsize=8.5)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set_xlim(-0.55, len(groups) - 0.45)
    axis.set_ylim(0, 1.15 * max(value for pair in groups.values() for value in pair))
    axis.set_title(title, fontsize=9, color=MUTED, loc="left")
    axis.tick_params(axis="x", length=0)
    axis.yaxis.set_visible(False)
    axis.spines["left"].set_visible(False)
    axis.grid(visible=False)


def loss(training: Training) -> Markup:
    """The loss on rows that were learnt from and on rows held out, and the learning rate, over updates."""
    points = training.points
    updates = [point.update for point in points]

    def draw(figure: Figure) -> None:
        axis, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        marker = "o" if len(points) < 30 else None
        axis.plot(
            updates, [point.loss for point in points], color=SECOND, marker=marker, markersize=3, label="learnt from"
        )
        axis.plot(
            updates,
            [point.held_out_loss for point in points],
            color=FIRST,
            marker=marker,
            markersize=3,
            label="held out",
        )
        for panel in (axis, rate):
            panel.axvline(training.kept_update, color=MUTED, linewidth=1, linestyle=DASHED)
        axis.plot([], [], color=MUTED, linewidth=1, linestyle=DASHED, label="kept")
        axis.set_ylabel("loss")
        axis.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=3, handlelength=1.5)
        rate.plot(updates, [point.learning_rate for point in points], color=MUTED, linewidth=1.2)
        rate.set_ylim(0, 1.2 * max((point.learning_rate for point in points), default=1.0) or 1.0)
        rate.ticklabel_format(axis="y", scilimits=(-2, 2))
        rate.set_ylabel("rate")
        rate.set_xlabel("updates")

    return _svg(draw, "Loss while distilling", HEIGHT + 0.5)


def _labels(
    titles: Sequence[str], sizes: Sequence[float], values: Sequence[float], near_x: float, near_y: float
) -> list[tuple[str, float, float]]:
    """A label a point; points that stand on one another share one."""
    found: list[tuple[list[str], float, float]] = []
    for title, x, y in zip(titles, sizes, values, strict=True):
        for names, other_x, other_y in found:
            if abs(x - other_x) < near_x and abs(y - other_y) < near_y:
                names.append(shortened(title))
                break
        else:
            found.append(([shortened(title)], x, y))
    return [("\n".join(names), x, y) for names, x, y in found]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _svg(draw: Callable[[Figure], None], title: str, height: float) -> Markup:
    """What is drawn; equal for equal input. The settings are those of this figure alone."""
    file = io.StringIO()
    # Ids are made of the salt and what they are for: those of two plots of one page must differ.
    settings: Any = {**mpl.rcParamsDefault, **PLOT_STYLE, "svg.hashsalt": title}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasSVG(figure)
        draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return Markup(inline_svg(file.getvalue(), title))
