from typing import Any

import pytest

from contracts.errors import InvalidParams, UnknownTask
from contracts.names import Task
from contracts.params import MAX_NEW_TOKENS, PARAMS, SAMPLING, extra_tokens, parse_params, parse_task

DEFAULTS: dict[str, dict[str, Any]] = {
    "embed": {"precision": "float32", "truncate": True},
    "classify": {"top_k": None, "truncate": True},
    "rerank": {"top_k": None, "truncate": True},
    "generate": {"max_new_tokens": 128, "stop": [], "truncate": False},
    "score": {"per_token": False, "truncate": True},
}
OTHERS: dict[str, list[tuple[str, Any]]] = {
    "embed": [("precision", "float16"), ("precision", "ubinary"), ("truncate", False)],
    "classify": [("top_k", 1), ("top_k", 10**6), ("truncate", False)],
    "rerank": [("top_k", 1), ("top_k", 10**6), ("truncate", False)],
    "generate": [
        ("max_new_tokens", 1),
        ("max_new_tokens", MAX_NEW_TOKENS),
        ("stop", ["\n", "x" * 200]),
        ("stop", ["x"] * 16),
        ("truncate", True),
    ],
    "score": [("per_token", True), ("truncate", False)],
}
REFUSED: dict[str, list[tuple[str, Any, str]]] = {
    "embed": [
        ("precision", "int4", "'float32', 'float16' or 'ubinary'"),
        ("precision", None, "'float32'"),
        ("truncate", 1, "valid boolean"),
        ("truncate", "yes", "valid boolean"),
        ("top_k", 3, "not permitted"),
    ],
    "classify": [
        ("top_k", 0, "greater than or equal to 1"),
        ("top_k", -1, "greater than or equal to 1"),
        ("top_k", 1.0, "valid integer"),
        ("top_k", True, "valid integer"),
        ("top_k", "3", "valid integer"),
        ("truncate", None, "valid boolean"),
        ("precision", "float16", "not permitted"),
    ],
    "rerank": [
        ("top_k", 0, "greater than or equal to 1"),
        ("top_k", "3", "valid integer"),
        ("truncate", 0, "valid boolean"),
        ("return_documents", True, "not permitted"),
    ],
    "generate": [
        ("max_new_tokens", 0, "greater than or equal to 1"),
        ("max_new_tokens", MAX_NEW_TOKENS + 1, f"less than or equal to {MAX_NEW_TOKENS}"),
        ("max_new_tokens", None, "valid integer"),
        ("max_new_tokens", 2.0, "valid integer"),
        ("stop", "\n", "valid list"),
        ("stop", [""], "at least 1 character"),
        ("stop", ["x" * 201], "at most 200 characters"),
        ("stop", ["x"] * 17, "at most 16 items"),
        ("stop", [1], "valid string"),
        ("truncate", "true", "valid boolean"),
        ("max_tokens", 5, "not permitted"),
    ],
    "score": [
        ("per_token", 1, "valid boolean"),
        ("truncate", None, "valid boolean"),
        ("max_new_tokens", 5, "not permitted"),
    ],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [(task, *case) for task, listed in table.items() for case in listed]


def test_the_tables_speak_of_every_task() -> None:
    assert set(DEFAULTS) == set(OTHERS) == set(REFUSED) == set(PARAMS) == set(Task)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("given", [None, {}])
def test_what_is_not_given_has_a_default(task: Task, given: Any) -> None:
    assert parse_params(task, given) == DEFAULTS[task]


@pytest.mark.parametrize(("task", "name", "value"), cases(OTHERS))
def test_what_is_given_is_kept_up_to_its_bounds(task: str, name: str, value: Any) -> None:
    assert parse_params(Task(task), {name: value}) == DEFAULTS[task] | {name: value}


@pytest.mark.parametrize(("task", "name", "value", "said"), cases(REFUSED))
def test_what_is_wrong_is_named_with_what_the_task_takes(task: str, name: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        parse_params(Task(task), {name: value})
    message = str(refused.value)
    assert message.startswith(f"parameters of {task}: {name}")
    assert said in message
    assert message.endswith(f"(it takes {', '.join(DEFAULTS[task])})")


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(InvalidParams, match=r"top_k: .*; truncate: .*; best: .*\(it takes top_k, truncate\)"):
        parse_params(Task.CLASSIFY, {"top_k": 0, "truncate": 2, "best": True})


@pytest.mark.parametrize("params", [["top_k"], "top_k", 3])
def test_parameters_are_a_mapping(params: Any) -> None:
    with pytest.raises(
        InvalidParams, match=f"parameters of rerank: expected a mapping .*, got {type(params).__name__}"
    ):
        parse_params(Task.RERANK, params)


@pytest.mark.parametrize("name", sorted(SAMPLING))
@pytest.mark.parametrize("value", [0, None, 0.7])
def test_sampling_is_refused_with_the_reason(name: str, value: Any) -> None:
    with pytest.raises(InvalidParams) as refused:
        parse_params(Task.GENERATE, {"max_new_tokens": 5, name: value})
    message = str(refused.value)
    assert message.startswith(f"parameters of generate: {name}: only greedy decoding is offered")
    assert message.endswith("leave it out")
    assert "max_new_tokens" not in message


def test_all_sampling_is_named_at_once() -> None:
    with pytest.raises(InvalidParams, match="generate: seed, temperature, top_p: only greedy"):
        parse_params(Task.GENERATE, {"top_p": 0.9, "temperature": 0.7, "seed": 1})


def test_what_samples_texts_may_be_a_parameter_of_other_tasks() -> None:
    assert parse_params(Task.CLASSIFY, {"top_k": 2})["top_k"] == 2
    with pytest.raises(InvalidParams, match=r"temperature: .* not permitted \(it takes per_token, truncate\)"):
        parse_params(Task.SCORE, {"temperature": 0.7})


def test_tasks_have_names() -> None:
    assert [parse_task(task.value) for task in Task] == [*Task]
    with pytest.raises(UnknownTask, match="task 'translate': choose one of embed, classify, rerank, generate, score"):
        parse_task("translate")


def test_what_is_generated_costs_tokens_as_well() -> None:
    extra = {task: extra_tokens(task, parse_params(task, {})) for task in Task}
    assert extra == {"embed": 0, "classify": 0, "rerank": 0, "generate": 128, "score": 0}
    assert extra_tokens(Task.GENERATE, {"max_new_tokens": 7}) == 7
