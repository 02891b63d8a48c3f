"""Generated texts are those of `transformers.generate` for each prompt alone; then the same through a worker."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from contracts.errors import JobCancelled
from contracts.params import parse_params
from contracts.states import JobState
from producer import Client
from tests.conftest import Mill
from tests.models import SMOLLM2, model_spec
from worker.engines.decoding import Decoder
from worker.engines.generate import GenerateEngine

NEW_TOKENS = 32
TIE = 1e-4
QUESTIONS = (
    "What is the capital of France?",
    "Tell me a story about a dragon who is afraid of fire and meets a small girl with a red hat.",
    "Explain how a hash table works to a child.",
    "List five uses of a paper clip.",
    "Write a short poem about the sea, the moon, and a ship that was lost in a storm near the coast of Norway.",
    "How do I make bread at home with only flour, water, salt and yeast? Describe each step in detail.",
)
PROMPTS = [
    *({"messages": [{"role": "user", "content": question}]} for question in QUESTIONS),
    "Once upon a time",
    "def fibonacci(n):",
]
PARAMS = parse_params("generate", {"max_new_tokens": NEW_TOKENS})


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.verify)])
def engine(request: pytest.FixtureRequest) -> GenerateEngine:
    folder = request.getfixturevalue("real_smollm2" if request.param == "real" else "language_model")
    return GenerateEngine.load(model_spec(engine="generate", task="generate"), folder, "cpu")


@pytest.fixture(scope="module")
def expected(engine: GenerateEngine) -> list[tuple[list[int], torch.Tensor]]:
    """For each prompt alone: the tokens that follow, and the logits of each."""
    found = []
    for row in engine.prepare(PROMPTS, PARAMS).rows:
        ids = torch.tensor([row.ids.tolist()])
        out = engine._module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found.append((out.sequences[0, len(row.ids) :].tolist(), torch.cat(out.logits)))
    return found


@pytest.mark.parametrize("slots", [8, 3])
def test_eight_at_once_say_what_each_says_alone(
    engine: GenerateEngine,
    expected: list[tuple[list[int], torch.Tensor]],
    slots: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = engine.prepare(PROMPTS, PARAMS).rows
    assert len({len(row.ids) for row in rows}) > 4
    ties = 0
    for row, (tokens, logits) in zip(
        Decoder(engine._module, engine._ends, slots).continued(rows), expected, strict=True
    ):
        if row.tokens == tokens:
            continue
        first = next(place for place, pair in enumerate(zip(row.tokens, tokens, strict=False)) if pair[0] != pair[1])
        best, second = logits[first].topk(2).values.tolist()
        assert best - second < TIE
        ties += 1
    with capsys.disabled():
        sys.stdout.write(f" {ties} of {len(rows)} texts part where two logits tie within {TIE} ")
    assert ties < len(rows) / 2


def test_outputs_are_what_the_tokens_say(
    engine: GenerateEngine, expected: list[tuple[list[int], torch.Tensor]]
) -> None:
    rows = engine.prepare(PROMPTS[:1], PARAMS).rows
    tokens, _ = expected[0]
    ended = tokens[-1] == 2
    assert ended == (len(tokens) < NEW_TOKENS)
    assert engine.run(rows, PARAMS) == [
        {
            "text": engine._tokenizer._tokenizer.decode(tokens, skip_special_tokens=True),
            "finish_reason": "stop" if ended else "length",
            "prompt_tokens": len(rows[0].ids),
            "new_tokens": len(tokens),
        }
    ]


def test_a_worker_says_what_the_engine_says(running_mill: Mill, language_model: Path) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 300}]}
    prompts = [PROMPTS[0], PROMPTS[-1]]
    params = parse_params("generate", {"max_new_tokens": 12})
    with running_mill.client() as client:
        client.models.add("speaker", str(language_model), task="generate")
        job = client.submit("speaker", [prompts[0], long, prompts[1]], params={"max_new_tokens": 12}).wait(timeout=240)
        chat, failed, prompt = job.results()
    assert failed.error.code == "too_long"
    spec = model_spec(engine="generate", task="generate")
    own = GenerateEngine.load(spec, language_model, "cpu")
    assert [chat.output, prompt.output] == [*own.run(own.prepare(prompts, params).rows, params)]


@pytest.fixture(scope="module")
def speaking(running_mill: Mill) -> Iterator[Client]:
    with running_mill.client() as client:
        client.models.add("smollm2", str(SMOLLM2), task="generate", quantization="bf16")
        client.models.add("other", "fake:")
        yield client


@pytest.mark.verify
def test_a_worker_generates(speaking: Client) -> None:
    too_long = {"messages": [{"role": "user", "content": "word " * 9000}]}
    job = speaking.submit("smollm2", [PROMPTS[0], too_long, "1 2 3 4 5 6 7"], params={"max_new_tokens": 12})
    job.wait(timeout=240)
    chat, failed, prompt = job.results()
    assert "Paris" in chat.output["text"]
    assert chat.output["new_tokens"] < 12
    assert chat.output["finish_reason"] == "stop"
    assert failed.error.code == "too_long"
    assert "8" in prompt.output["text"]
    assert prompt.output["finish_reason"] == "length"
    assert prompt.output["new_tokens"] == 12


@pytest.mark.verify
def test_a_long_generation_is_cancelled_between_its_steps(
    running_mill: Mill, speaking: Client, eventually: Callable[..., None]
) -> None:
    # Some minutes of work, of which nobody waits for the end.
    prompts = [f"{number} times upon a time" for number in range(4)]
    job = speaking.submit("smollm2", prompts, params={"max_new_tokens": 8000})
    eventually(lambda: job.refresh().state is JobState.RUNNING, 240)
    idle = computed(running_mill)
    eventually(lambda: computed(running_mill) > idle + 1, 60)
    job.cancel()
    begun = time.monotonic()
    # The other model is served once the device is free.
    speaking.submit("other", ["text"]).wait(timeout=300)
    assert time.monotonic() - begun < 20
    with pytest.raises(JobCancelled):
        job.wait(timeout=300)
    assert any("in the middle of a pass are let go" in log.read_text() for log in running_mill._logs.values())


def computed(mill: Mill) -> float:
    """Seconds of processor time of the mill's processes."""
    parents = [psutil.Process(pid) for pid in mill._logs]
    found = [process for parent in parents for process in (parent, *parent.children(recursive=True))]
    return sum(process.cpu_times().user for process in found)
