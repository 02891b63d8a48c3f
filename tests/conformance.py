"""The engines that the conformance suite tries: what an input of each is, and what of its output may differ."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.numpy_helper import from_array, to_array
from transformers import AutoModel, AutoModelForSequenceClassification

from contracts.fake import parse_fake
from contracts.names import Quantization, Task
from contracts.params import parse_params
from worker.engines.base import Engine
from worker.engines.classify import ClassifyEngine
from worker.engines.embed import EmbedEngine
from worker.engines.fake import FakeEngine
from worker.engines.generate import GenerateEngine
from worker.engines.rerank import RerankEngine
from worker.engines.score import ScoreEngine
from worker.onnx import load_graph

ODD = "zebra"
"""A word that stands in no other text of the suite."""


@contextmanager
def embedding_of_odd(
    engine: Engine,
    tokens: Callable[[Any], Sequence[int]],
    payload: Callable[[str], Any],
    params: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[None]:
    """The vector of the odd word is NaN."""
    odd, even = (set(tokens(engine.prepare([payload(text)], params).rows[0])) for text in (ODD, "horse"))
    [token] = odd - even
    weight = engine._module.get_input_embeddings().weight
    kept = weight[token].detach().clone()
    with torch.no_grad():
        weight[token] = torch.nan
        yield
        weight[token] = kept


@contextmanager
def graph_of_odd(engine: Engine) -> Iterator[None]:
    """The vector of the odd word is NaN in the graph."""
    odd, even = (set(engine.prepare([text], {}).rows[0]) for text in (ODD, "horse"))
    [token] = odd - even
    kept = engine._module
    file = Path(kept._session._model_path)
    model = onnx.load(str(file))
    [table] = [tensor for tensor in model.graph.initializer if tensor.dims[:1] == [kept.config.vocab_size]]
    values = to_array(table).copy()
    values[token] = np.nan
    table.CopyFrom(from_array(values, table.name))
    with TemporaryDirectory() as folder:
        spoilt = Path(folder, file.name)
        onnx.save(model, str(spoilt))
        kind = AutoModel if engine._module._output == "last_hidden_state" else AutoModelForSequenceClassification
        engine._module = load_graph(spoilt, kept.config, Quantization.NONE, str(kept.device), kind)
        yield
    engine._module = kept


@contextmanager
def fake_of_odd(engine: Engine) -> Iterator[None]:
    kept, engine._source = engine._source, parse_fake(f"fake:?nan={ODD}")
    yield
    engine._source = kept


@dataclass(frozen=True)
class Kind:
    """An engine and a task of it."""

    engine: type[Engine]
    task: str
    numbers: Callable[[Any], NDArray[Any]]
    """An output as numbers in a fixed order, for comparisons."""
    poison: Callable[[Engine], AbstractContextManager[None]]
    """While it lasts, the model computes no number for the payload of ODD."""
    payload: Callable[[str], Any] = str
    """An input made of a text."""
    folder: str = "encoder"
    """The fixture that gives the model's folder; that of a real one has `real_` before it."""
    weights: str = "model.safetensors"
    """The file that holds them."""
    limit: int = 256
    """Tokens that are left of an input that is much too long."""
    wrong: Sequence[Any] = (1, None, True, ["text"], {"text": "text"})
    """Payloads that fail by themselves; JSON values of all types."""
    message: str = "expected a text, got an object with 'text': give a string"
    """What the last of them fails with."""
    empty: bool = True
    """Whether the payload of the empty text is an input."""
    steps: Any = None
    """A payload whose pass has at least four steps, with a checkpoint between them; None where a pass has one."""
    patches: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the engine that make the steps of that pass small."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that all tests compute with."""
    tolerances: Mapping[str, float] = field(default_factory=lambda: {"none": 1e-5})
    """By quantization: the most that a number may change with the neighbours in a micro-batch."""
    tiny: Mapping[str, float] = field(default_factory=dict)
    """The same of a tiny model, where its outputs lie closer together."""
    apart: Mapping[str, float] = field(default_factory=dict)
    """By quantization: the share of pairs of inputs whose outputs differ by more than that; 0.98 where none is told."""
    tipped: Mapping[str, float] = field(default_factory=dict)
    """By quantization: the share of inputs whose output may be another with other neighbours: where two tokens are all
    but equally likely, rounding says which is generated."""


def scores_by(key: str) -> Callable[[Any], NDArray[Any]]:
    """Scores of a list of objects, in the order of what they are scores of."""
    return lambda output: np.array([entry["score"] for entry in sorted(output, key=lambda entry: str(entry[key]))])


def letters(output: Any) -> NDArray[Any]:
    """A text, and how it ended, as numbers."""
    return np.array([*map(ord, output["text"]), output["new_tokens"], output["finish_reason"] == "stop"])


def likelihoods(output: Any) -> NDArray[Any]:
    tokens = np.array(output["token_log_likelihoods"])
    assert len(tokens) == output["tokens"]
    np.testing.assert_allclose(tokens.sum(), output["log_likelihood"])
    np.testing.assert_allclose(np.exp(-tokens.mean()), output["perplexity"], rtol=1e-5)
    return tokens


def saying(text: str) -> str:
    """A text with a word before, which alone is not scored, and one behind, which depends on it."""
    return text and f"my {text} is"


def ranking(text: str) -> Any:
    return {"query": "close a file", "documents": [text, "closes the file", f"{text} too"]}


# How long an arithmetic's sums are shows in its tolerance; LLM.int8 also picks outliers by micro-batch. To try a new
# engine, add an entry here: every test of test_engine_conformance.py runs for each of its tolerances, with a tiny model
# whenever tests run, and with a real one in `make verify`. Both come from fixtures of conftest.py, named in `folder`.
KINDS: dict[str, Kind] = {
    "fake-embed": Kind(FakeEngine, "embed", np.asarray, fake_of_odd, limit=512, wrong=(), tolerances={"none": 0.0}),
    "fake-classify": Kind(
        FakeEngine, "classify", scores_by("label"), fake_of_odd, limit=512, wrong=(), tolerances={"none": 0.0}
    ),
    "embed": Kind(
        EmbedEngine,
        "embed",
        np.asarray,
        lambda engine: embedding_of_odd(engine, list, str),
        tolerances={"none": 1e-5, "bf16": 0.01, "nf4": 0.01, "int8": 0.03},
    ),
    "classify": Kind(
        ClassifyEngine,
        "classify",
        scores_by("label"),
        lambda engine: embedding_of_odd(engine, list, str),
        folder="classifier",
        limit=512,
        tolerances={"none": 1e-5, "bf16": 0.02, "nf4": 0.02, "int8": 0.1},
        tiny={"int8": 0.04},
        apart={"int8": 0.85},
    ),
    "onnx-embed": Kind(EmbedEngine, "embed", np.asarray, graph_of_odd, folder="onnx_embedder", weights="model.onnx"),
    "onnx-int8-embed": Kind(
        EmbedEngine,
        "embed",
        np.asarray,
        graph_of_odd,
        folder="onnx_int8_embedder",
        weights="model.onnx",
        # Activations share a scale over the whole micro-batch.
        tolerances={"int8": 0.06},
    ),
    "onnx-classify": Kind(
        ClassifyEngine,
        "classify",
        scores_by("label"),
        graph_of_odd,
        folder="onnx_classifier",
        weights="model.onnx",
        limit=512,
    ),
    "onnx-int8-classify": Kind(
        ClassifyEngine,
        "classify",
        scores_by("label"),
        graph_of_odd,
        folder="onnx_int8_classifier",
        weights="model.onnx",
        limit=512,
        tolerances={"int8": 0.2},
        tiny={"int8": 0.04},
        apart={"int8": 0.6},
    ),
    "rerank": Kind(
        RerankEngine,
        "rerank",
        scores_by("index"),
        lambda engine: embedding_of_odd(engine, lambda row: [token for ids in row.ids for token in ids], ranking),
        payload=ranking,
        folder="reranker",
        limit=512 + 512 + 9,
        wrong=(1, None, "text", [ranking("text")], {"query": "text", "documents": []}),
        message='the query comes without documents: rerank takes {"query": "…", "documents": ["…", …]}',
        steps=ranking("closes the file of that name") | {"documents": [*"abcdefgh"]},
        patches={"_alone": 16},
        tolerances={"none": 1e-5, "bf16": 0.03, "nf4": 0.03, "int8": 0.1},
        tiny={"bf16": 0.02, "nf4": 0.02, "int8": 0.03},
        # A query that has nothing to do with them ranks many documents alike.
        apart={"bf16": 0.85, "nf4": 0.85, "int8": 0.7},
    ),
    "generate": Kind(
        GenerateEngine,
        "generate",
        letters,
        lambda engine: embedding_of_odd(
            engine, lambda row: row.ids.tolist(), saying, parse_params(Task.GENERATE, {"max_new_tokens": 8})
        ),
        payload=saying,
        folder="language_model",
        limit=256,
        message="expected a prompt or a chat, got an object with 'text': generate takes a prompt, or "
        '{"messages": [{"role": "user", "content": "…"}, …]}',
        empty=False,
        steps="Once upon a time",
        params={"max_new_tokens": 8},
        tolerances={"none": 1e-5, "bf16": 1e-5},
        # A model that lost most of its layers says the same of many texts.
        apart={"none": 0.5, "bf16": 0.5},
        tipped={"bf16": 0.2},
    ),
    "score": Kind(
        ScoreEngine,
        "score",
        likelihoods,
        lambda engine: embedding_of_odd(engine, list, saying),
        payload=saying,
        folder="language_model",
        limit=256,
        empty=False,
        steps="Once upon a time, there were",
        patches={"_logits": 1},
        params={"per_token": True},
        # A model that lost most of its layers finds tokens unlikely, down to e^-50: what differs is that much larger.
        tolerances={"none": 1e-4, "bf16": 1.0, "nf4": 1.0, "int8": 2.0},
    ),
}
