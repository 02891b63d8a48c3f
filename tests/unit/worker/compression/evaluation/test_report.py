"""The page: complete by itself, true to the report, and safe whatever names hold."""

import re
from typing import Any
from uuid import UUID

import matplotlib as mpl
import pytest

from contracts.compression import Measurement, Report
from tests.pages import Page
from worker.compression.evaluation import render

MEASUREMENT = {
    "size_bytes": 91_500_000,
    "parameters": 22_713_216,
    "nonzeros": 22_713_000,
    "memory_bytes": 120_000_000,
    "load_seconds": 0.4,
    "latency_p50": 0.0061,
    "latency_p95": 0.0152,
    "throughput": 166.0,
    "tokens_per_second": 9000.0,
    "budget_tokens": 2048,
}
NASTY = """<script>alert("1")</script> & 'x' $\\frac{1}{2}$ {{ 7 * 7 }}"""


def report(**changes: Any) -> Report:
    """Of a recipe with all kinds of parts, but for what is changed."""
    result = {"files": [], "digest": "0" * 64, "format": "torch", "quantization": "none", "size_bytes": 60_000_000}
    points = [
        {"update": u, "epoch": u / 20, "loss": 0.3 / u, "held_out_loss": 0.35 / u, "learning_rate": 1e-4 / u}
        for u in (5, 10, 15, 20)
    ]
    training = {"points": points, "stopped": "early", "kept_update": 15}
    data = {"file": {"path": "rows", "sha256": "ab" * 32, "size": 1}, "rows": 500}
    values = {
        "job": UUID(int=7),
        "parent": "minilm@1",
        "model": "small@2",
        "task": "embed",
        "recipe": [{"step": "distill", "student": [0, 2, 5], "data": data}, {"step": "quantize", "method": "nf4"}],
        "verdict": "rejected",
        "rows": 500,
        "stages": [
            {
                "title": "minilm@1",
                "size_bytes": 91_500_000,
                "quality": {},
                "fidelity": {"fidelity": 1.0, "cosine_mean": 1.0, "cosine_p1": 1.0, "neighbour_overlap_10": 1.0},
                "loss": 0.0,
                "measurement": MEASUREMENT,
            },
            {
                "title": "after step 1 (distill into 3 layers)",
                "size_bytes": 60_000_000,
                "quality": {},
                "fidelity": {"fidelity": 0.93, "cosine_mean": 0.93, "cosine_p1": 0.8, "neighbour_overlap_10": 0.7},
                "loss": 0.07,
            },
            {
                "title": "after step 2 (quantize nf4)",
                "size_bytes": 30_000_000,
                "quality": {},
                "fidelity": {"fidelity": 0.91, "cosine_mean": 0.91, "cosine_p1": 0.7, "neighbour_overlap_10": 0.6},
                "loss": 0.09,
                "measurement": MEASUREMENT | {"throughput": 332.0, "size_bytes": 30_000_000},
            },
        ],
        "results": [
            result | {"seconds": 61.5, "training": training, "notes": ["A note of the first step."]},
            result | {"seconds": 1.5, "quantization": "nf4", "size_bytes": 30_000_000},
        ],
        "sensitivity": [{"step": 2, "layer": f"encoder.layer.{i}", "fidelity": 1 - 0.01 * i} for i in range(3)],
        "criteria": [
            {"name": "fidelity", "asked": 0.98, "found": 0.91, "met": False},
            {"name": "size_ratio", "asked": 0.5, "found": 0.3279, "met": True},
        ],
        "notes": ["The 2 steps together made the model slower here."],
        "machine": {"processor": "A processor", "cores": 2, "memory_bytes": 8e9, "versions": {"torch": "2.13.0"}},
    }
    return Report.model_validate(values | changes)


def test_a_whole_report() -> None:
    page = Page(render(report()))
    assert page.sections == ["criteria", "notes", "stages", "speed", "sensitivity", "training-1", "recipe", "machine"]
    assert page.plots == [
        "Size on disk against fidelity, for each stage",
        "Latency and throughput before and after",
        "Fidelity lost by treating one layer alone",
        "Loss while distilling",
    ]
    for said in (
        "rejected Kept, and not served by default: it missed fidelity.",
        "✗ missed by 0.0700",
        "✓ met",
        "inputs a second 2.00× 166 → 332",
        "bytes on disk 0.33× 91.5 MB → 30 MB",
        "The 2 steps together made the model slower here.",
        "A note of the first step.",
        "Stopped early",
        "after update 15 were kept",
        "held out",
        "encoder.layer.2",
        "2 quantize nf4",
        "0.0900 +0.0200",
        "memory 8 GB",
        "torch 2.13.0",
        "500 rows, abababababab",
    ):
        assert said in page.text, said


def test_it_needs_nothing_else() -> None:
    text = render(report())
    assert set(re.findall(r'(\S+)="https?://', text)) <= {"xmlns", "xmlns:xlink"}
    assert re.findall(r"https?:", re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)) == []
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert "@import" not in text
    for value in re.findall(r"url\(([^)]*)\)", text):
        assert value.startswith("#")
    names = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    used = re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert {one or other for one, other in used} <= set(names)
    assert len(text) < 150_000


def test_the_speed_of_every_stage_where_it_was_measured() -> None:
    assert "latency, ms" not in Page(render(report())).text
    stages = [stage.model_copy(update={"measurement": report().stages[0].measurement}) for stage in report().stages]
    stages[1] = stages[1].model_copy(
        update={"measurement": Measurement.model_validate(MEASUREMENT | {"throughput": 211.0, "latency_p50": 0.0043})}
    )
    text = Page(render(report(stages=stages))).text
    assert "latency, ms inputs a second" in text
    assert "4.3000 211" in text


def test_plots_take_the_colours_of_the_page() -> None:
    text = render(report())
    colours = set(re.findall(r"(?:fill|stroke): ?(#\w+|var\(--\w+\))", text.partition("</style>")[2]))
    assert colours
    assert all(colour.startswith("var(--") for colour in colours), colours
    assert "prefers-color-scheme: dark" in text


def test_equal_reports_are_equal_bytes_and_matplotlib_stays_as_it_was() -> None:
    before = dict(mpl.rcParams)
    first = render(report())
    mpl.rcParams["font.size"] = 20
    try:
        assert render(report()) == first
    finally:
        mpl.rcParams.update(before)
    assert dict(mpl.rcParams) == before


def test_whatever_a_user_names_is_text() -> None:
    stages = [stage.model_copy(update={"title": NASTY}) for stage in report().stages]
    step = {"step": "distill", "student": NASTY, "data": report().recipe[0].model_dump()["data"]}
    layers = [{"step": 1, "layer": NASTY, "fidelity": 0.9}]
    results = [result.model_copy(update={"notes": [NASTY]}) for result in report().results]
    text = render(
        report(
            parent=NASTY,
            model=NASTY,
            stages=stages,
            results=results,
            recipe=[step, {"step": "quantize", "method": "nf4"}],
            sensitivity=layers,
            notes=[NASTY],
            machine={NASTY: NASTY},
        )
    )
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert") >= 8
    assert "49" not in page.texts


def test_what_was_not_measured_is_left_out() -> None:
    bare = [stage.model_copy(update={"fidelity": {}, "loss": None, "measurement": None}) for stage in report().stages]
    results = [result.model_copy(update={"training": None}) for result in report().results]
    page = Page(
        render(
            report(
                verdict="not evaluated",
                rows=0,
                stages=bare,
                results=results,
                sensitivity=[],
                criteria=[],
                notes=[],
                machine={},
            )
        )
    )
    assert page.sections == ["stages", "recipe"]
    assert page.plots == []
    assert "There were no rows to evaluate on." in page.text
    assert "None" not in page.text


@pytest.mark.parametrize(
    ("task", "quality", "fidelity"),
    [
        ("classify", {"accuracy": 0.81, "macro_f1": 0.8}, {"fidelity": 0.95, "agreement": 0.95, "kl": 0.02}),
        ("rerank", {}, {"fidelity": 0.9, "kendall_tau": 0.8, "first_agreement": 0.85}),
        ("score", {"nll": 3.2, "perplexity": 24.53}, {"fidelity": 0.94, "delta_nll": 0.06}),
    ],
)
def test_figures_of_each_task(task: str, quality: dict[str, float], fidelity: dict[str, float]) -> None:
    stages = [stage.model_copy(update={"quality": quality, "fidelity": fidelity}) for stage in report().stages]
    text = Page(render(report(task=task, stages=stages))).text
    for value in (*quality.values(), *fidelity.values()):
        assert f"{value:.4f}" in text or f"{value:.3g}" in text


def test_losses_that_are_no_numbers() -> None:
    first, *rest = report().results
    assert first.training is not None
    points = [point.model_copy(update={"loss": float("nan")}) for point in first.training.points]
    training = first.training.model_copy(update={"points": points, "stopped": "diverged"})
    text = render(report(results=[first.model_copy(update={"training": training}), *rest]))
    assert "The loss was no number any more" in Page(text).text
