"""What a recipe may be, and what is said of one that may not."""

from typing import Any

import pytest

from contracts.errors import InvalidRequest
from contracts.models import ArtifactFile
from contracts.names import Quantization, Task
from contracts.recipes import (
    MOST_STEPS,
    Accept,
    Dataset,
    Distill,
    Export,
    PruneStructured,
    Quantize,
    check_for_task,
    parse_accept,
    parse_recipe,
    title,
    titles,
)

ROWS = Dataset(file=ArtifactFile(path="rows.jsonl", sha256="0" * 64, size=1), rows=10)
LABELLED = ROWS.model_copy(update={"labelled": True})
HALF = {"step": "prune", "method": "structured", "keep_ratio": 0.5}
DISTILL = {"step": "distill", "data": ROWS}
EXPORT = {"step": "export", "format": "onnx"}
INT8 = {"step": "quantize", "method": "int8"}
NF4 = {"step": "quantize", "method": "nf4"}


def refusal(recipe: Any, quantization: str = "none", *, onnx: bool = False) -> str:
    with pytest.raises(InvalidRequest) as raised:
        parse_recipe(recipe, Quantization(quantization), onnx=onnx)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_dicts_and_typed_objects_are_the_same() -> None:
    typed = [
        PruneStructured(method="structured", keep_ratio=0.5),
        Distill(student=(0, 2, 4), data=ROWS),
        Export(),
        Quantize(method="int8", granularity="channel"),
    ]
    dicts = [HALF, {**DISTILL, "student": [0, 2, 4]}, EXPORT, {**INT8, "granularity": "channel"}]
    assert parse_recipe(dicts) == parse_recipe(typed) == tuple(typed)
    assert parse_recipe(step.model_dump(mode="json") for step in typed) == tuple(typed)


@pytest.mark.parametrize(
    "recipe",
    [
        [{"step": "prune", "method": "magnitude", "keep_ratio": 0.3, "scope": "layer"}, HALF, DISTILL, NF4],
        [{"step": "prune", "method": "magnitude", "threshold": 0.01}],
        [HALF, DISTILL, EXPORT, INT8],
        [{"step": "quantize", "method": "bf16"}, {"step": "quantize", "method": "nf4", "double": True}],
        [{"step": "quantize", "method": "bf16"}, EXPORT, INT8],
        [{**DISTILL, "student": "another@3", "optimizer": "rmsprop", "augmentation": {"word_swap": 0.1}}],
    ],
)
def test_orders_that_can_be_run(recipe: list[dict[str, Any]]) -> None:
    assert len(parse_recipe(recipe)) == len(recipe)


def test_what_a_quantized_result_is_registered_as() -> None:
    found = [Quantize(method="nf4", double=True), Quantize(method="fp4"), Quantize(method="int8")]
    assert [step.quantization for step in found] == ["nf4-double", "fp4", "int8"]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ([{"step": "squash"}], "step 1 of the recipe (squash): there is no such step; choose one of prune, quantize, "),
        ([{"method": "nf4"}], "step 1 of the recipe (?): say what to do: step is one of prune, quantize, distill, "),
        ([{"step": "prune"}], "step 1 of the recipe (prune): give method, 'magnitude' or 'structured'"),
        ([{**HALF, "method": "random"}], "method: there is no 'random'; choose magnitude or structured"),
        ([{**HALF, "amount": 3}], "there is no option 'amount'; it takes step, method, keep_ratio, parts, norm"),
        ([{**HALF, "keep_ratio": 0}], "step 1 of the recipe (prune): keep_ratio is 0: it must be greater than 0"),
        ([{**HALF, "keep_ratio": 1.2}], "step 1 of the recipe (prune): keep_ratio is 1.2: it must be less than 1"),
        ([{**HALF, "keep_ratio": "much"}], "keep_ratio: input should be a valid number, "),
        ([{"step": "prune", "method": "structured"}], "step 1 of the recipe (prune): keep_ratio is missing"),
        ([{**HALF, "norm": "l3"}], "norm: there is no 'l3'; choose 'l1' or 'l2'"),
        ([{**HALF, "parts": ["tails"]}], "parts.0: there is no 'tails'; choose 'neurons' or 'heads'"),
        ([{"step": "prune", "method": "magnitude"}], "(prune): give either keep_ratio or threshold"),
        ([{"step": "prune", "method": "magnitude", "keep_ratio": 0.5, "threshold": 1}], "give either keep_ratio or "),
        ([{"step": "prune", "method": "magnitude", "threshold": 1, "scope": "layer"}], "the same for every layer"),
        ([NF4, {"step": "quantize", "method": "q4"}], "step 2 of the recipe (quantize): method: there is no 'q4'; cho"),
        ([{**INT8, "double": True}], "(quantize): double is an option of nf4 and fp4, not of int8"),
        ([{**NF4, "symmetric": True}], "granularity and symmetric are options of int8 behind an export, not of nf4"),
        ([{"step": "export", "format": "tflite"}], "format: there is no 'tflite'; choose 'onnx'"),
        ([{"step": "distill"}], "step 1 of the recipe (distill): data is missing"),
        ([{**DISTILL, "student": [2, 0]}], "(distill): student: list the layers that stay, ascending, each once"),
        ([{**DISTILL, "student": [0, 0]}], "(distill): student: list the layers that stay, ascending, each once"),
        ([{**DISTILL, "student": []}], "(distill): student: list the layers that stay, ascending, each once"),
        ([{**DISTILL, "student": [-1]}], "(distill): student.0 is -1: it must be greater than or equal to 0"),
        ([{**DISTILL, "optimizer": "lion"}], "optimizer: there is no 'lion'; choose 'adamw', 'sgd', 'rmsprop' or "),
        ([{**DISTILL, "augmentation": {"noise": 1}}], "there is no option 'augmentation.noise'"),
        ([{**DISTILL, "augmentation": {"word_swap": 2}}], "augmentation.word_swap is 2: it must be less than 1"),
        (["quantize"], "step 1 of the recipe: expected an object with 'step', got 'quantize'"),
        ([], f"a recipe of 0 steps: give 1 to {MOST_STEPS}"),
        ([HALF] * (MOST_STEPS + 1), f"a recipe of {MOST_STEPS + 1} steps: give 1 to {MOST_STEPS}"),
        ("nf4", "a recipe is a list of steps, such as [{'step': 'quantize', 'method': 'nf4'}]"),
        (NF4, "a recipe is a list of steps"),
        (None, "a recipe is a list of steps"),
    ],
)
def test_what_is_said_of_a_step_that_is_none(recipe: Any, said: str) -> None:
    assert said in refusal(recipe)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ([NF4, NF4], "step 2 of the recipe (quantize): the weights are nf4 already, and nothing is quantized twice"),
        ([NF4, EXPORT], "step 2 of the recipe (export): the weights are nf4 already, and nothing is exported"),
        ([INT8, HALF], "step 2 of the recipe (prune): the weights are int8 already, and nothing is changed"),
        ([INT8, DISTILL], "step 2 of the recipe (distill): the weights are int8 already, and nothing is changed"),
        ([EXPORT, NF4], "step 2 of the recipe (quantize): an ONNX graph is quantized as int8, not nf4"),
        ([EXPORT, HALF], "step 2 of the recipe (prune): an ONNX graph is only quantized; put it before the export"),
        ([EXPORT, DISTILL], "an ONNX graph is only quantized"),
        ([EXPORT, EXPORT], "an ONNX graph is only quantized"),
        (
            [{**INT8, "granularity": "tensor"}],
            "granularity and symmetric are options of ONNX Runtime; put an export bef",
        ),
        ([{"step": "quantize", "method": "fp16"}, {"step": "quantize", "method": "bf16"}], "the weights are fp16 alre"),
    ],
)
def test_what_cannot_follow(recipe: list[dict[str, Any]], said: str) -> None:
    assert said in refusal(recipe)


def test_what_cannot_be_done_to_the_model_that_it_begins_with() -> None:
    assert "the weights are nf4-double already, and nothing is quantized twice" in refusal([INT8], "nf4-double")
    assert "the weights are int8 already, and nothing is exported" in refusal([EXPORT], "int8")
    assert "an ONNX graph is only quantized" in refusal([HALF], onnx=True)
    assert "the weights are int8 already" in refusal([INT8], "int8", onnx=True)
    assert parse_recipe([INT8], onnx=True) == (Quantize(method="int8"),)
    assert parse_recipe([HALF, NF4], Quantization.BF16)


def no_task(step: dict[str, Any], task: Task) -> str:
    with pytest.raises(InvalidRequest, match=r"^step 1 of the recipe") as raised:
        check_for_task(parse_recipe([step]), task)
    return str(raised.value)


def test_what_cannot_be_done_to_a_model_of_a_task() -> None:
    assert "register it with task='score' to export it" in no_task(EXPORT, Task.GENERATE)
    assert "nothing teaches a model that reranks: prune, quantize or export it" in no_task(DISTILL, Task.RERANK)
    assert "loss cosine compares vectors, and the model does classify" in no_task(
        {**DISTILL, "loss": "cosine"}, Task.CLASSIFY
    )
    assert "the model gives vectors: choose cosine or mse" in no_task({**DISTILL, "loss": "kl"}, Task.EMBED)
    assert "has neither" in no_task({**DISTILL, "hard_weight": 0.5}, Task.EMBED)
    assert "hard_weight is 0.5, the share of the loss on labels, and the data has no label" in no_task(
        {**DISTILL, "hard_weight": 0.5}, Task.CLASSIFY
    )


def test_what_can() -> None:
    check_for_task(parse_recipe([HALF, {**DISTILL, "data": LABELLED, "hard_weight": 0.5}]), Task.CLASSIFY)
    check_for_task(parse_recipe([{**DISTILL, "hard_weight": 0}]), Task.CLASSIFY)
    check_for_task(parse_recipe([{**DISTILL, "hard_weight": 0.5, "loss": "kl"}]), Task.GENERATE)
    for task in Task:
        check_for_task(parse_recipe([HALF, NF4]), task)
    for task in (Task.EMBED, Task.CLASSIFY, Task.RERANK, Task.SCORE):
        check_for_task(parse_recipe([EXPORT, INT8]), task)


def test_what_a_result_must_reach() -> None:
    assert parse_accept(None) == Accept()
    assert parse_accept({"fidelity": 0.98, "speedup": 1}) == Accept(fidelity=0.98, speedup=1)
    assert parse_accept(Accept(size_ratio=0.5)) == Accept(size_ratio=0.5)
    for given, said in (
        ({"fidelty": 1}, "accept: nobody measures 'fidelty'; choose among fidelity, size_ratio, speedup"),
        ({"fidelity": 98}, "accept: fidelity is 98: it must be less than or equal to 1"),
        ({"speedup": 0}, "accept: speedup is 0: it must be greater than 0"),
        ({"speedup": "fast"}, "accept: speedup: input should be a valid number"),
        (0.98, "accept 0.98: give a mapping"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            parse_accept(given)
        assert said in str(raised.value)


def test_steps_in_words() -> None:
    recipe = [
        {"step": "prune", "method": "magnitude", "threshold": 0.01},
        {"step": "prune", "method": "magnitude", "keep_ratio": 0.3},
        HALF,
        DISTILL,
        {**DISTILL, "student": [0, 3]},
        {**DISTILL, "student": "tiny@2"},
        {"step": "quantize", "method": "fp4", "double": True},
    ]
    said = [title(step) for step in parse_recipe(recipe)]
    assert said == [
        "prune magnitude, below 0.01",
        "prune magnitude, keep 30%",
        "prune structured, keep 50%",
        "distill",
        "distill into 2 layers",
        "distill into tiny@2",
        "quantize fp4-double",
    ]
    assert titles([EXPORT, INT8]) == ["export onnx", "quantize int8"]
