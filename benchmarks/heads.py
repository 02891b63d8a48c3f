"""Classifiers and a cross-encoder to measure and test with: real weights, with heads trained in seconds.

All stand on the encoder of all-MiniLM-L6-v2 and learn from docstrings. Two of those of the standard library: which
package a docstring is of, and which of two docstrings is that of a name; one in seven examples is held back to judge
them by. One, larger, of those of installed packages: which it is; one in three examples is held back.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.texts import named_docstrings, package_docstrings
from benchmarks.weights import MINILM

PACKAGES = ["asyncio", "email", "logging", "multiprocessing", "unittest"]
TOKENS = 24
HELD_BACK = 7
TOPICS = ["matplotlib", "networkx", "pandas", "scipy", "sklearn", "sympy", "torch", "transformers"]
"""Packages with many docstrings, which are installed wherever this is measured."""
TOPIC_TEXTS, TOPIC_TOKENS, TOPICS_HELD_BACK = 800, 48, 3
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class Labelled(NamedTuple):
    text: str
    label: str


class Match(NamedTuple):
    query: str
    document: str
    other: str
    """The docstring of another name."""


@cache
def labelled() -> list[Labelled]:
    """The first paragraphs of docstrings, with the package that each is of: 100 a package."""
    found: dict[str, list[Labelled]] = {package: [] for package in PACKAGES}
    for name, text in named_docstrings():
        of = found.get(name.partition(".")[0])
        if of is not None and len(of) < 100 and len(text) > 30:
            of.append(Labelled(_paragraph(text), name.partition(".")[0]))
    return [examples[i] for i in range(100) for examples in found.values() if i < len(examples)]


@cache
def matches() -> list[Match]:
    """Names in words, each with its docstring's first paragraph, and with that of another name."""
    found = [
        (" ".join(WORD.findall(" ".join(name.partition("#")[0].split(".")[-2:]))), _paragraph(text))
        for name, text in named_docstrings()
        if len(text) > 40 and name.count(".") >= 2
    ][::9]
    return [Match(name, text, found[i - 37][1]) for i, (name, text) in enumerate(found)]


@cache
def topics() -> list[Labelled]:
    """First paragraphs of docstrings of large packages, with the package that each is of: as many of each, in turns."""
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for package in TOPICS:
        fresh: list[str] = []
        for text in map(_paragraph, package_docstrings(package)):
            if len(fresh) == TOPIC_TEXTS:
                break
            if len(text) > 30 and text not in seen:
                seen.add(text)
                fresh.append(text)
        else:
            raise ValueError(f"{package} has {len(fresh)} texts for a topic, and {TOPIC_TEXTS} are needed")
        found[package] = fresh
    return [Labelled(texts[i], package) for i in range(TOPIC_TEXTS) for package, texts in found.items()]


def held_back(examples: Sequence[Any], one_in: int = HELD_BACK) -> list[Any]:
    """Those that nothing is trained on."""
    return list(examples[::one_in])


def save_classifier(folder: Path) -> Path:
    """Train and save a classifier of five labels: a logistic regression on what the frozen encoder's pooler gives."""
    module, tokenizer = _start(num_labels=len(PACKAGES), id2label=dict(enumerate(PACKAGES)))
    examples = [example for i, example in enumerate(labelled()) if i % HELD_BACK]
    tokens = tokenizer(
        [e.text for e in examples], truncation=True, max_length=TOKENS, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        features = torch.cat([module.bert(**part).pooler_output for part in _parts(tokens, 50)])
    wanted = torch.tensor([PACKAGES.index(example.label) for example in examples])
    head = module.classifier
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = (
            torch.nn.functional.cross_entropy(head(features), wanted) + 3e-4 * head.weight.square().sum()
        )
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return _save(module, tokenizer, folder)


def save_reranker(folder: Path) -> Path:
    """Train and save a cross-encoder: the encoder's last layer and a head, on what the frozen layers below give."""
    module, tokenizer = _start(num_labels=1)
    examples = [example for i, example in enumerate(matches()) if i % HELD_BACK]
    queries = [example.query for example in examples] * 2
    documents = [example.document for example in examples] + [example.other for example in examples]
    tokens = tokenizer(
        queries, documents, truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt"
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hidden = torch.cat(
            [module.bert(**part, output_hidden_states=True).hidden_states[-2].float() for part in _parts(tokens, 50)]
        )
    mask = (1 - tokens["attention_mask"][:, None, None].float()) * -1e4
    layer = module.bert.encoder.layer[-1]
    head = [*module.bert.pooler.parameters(), *module.classifier.parameters()]
    optimizer = torch.optim.AdamW([{"params": layer.parameters(), "lr": 1e-4}, {"params": head, "lr": 1e-3}])
    for _ in range(3):
        for part in torch.randperm(len(examples)).split(32):  # type: ignore[no-untyped-call]
            both = torch.cat([part, part + len(examples)])
            with torch.autocast("cpu", torch.bfloat16):
                state = layer(hidden[both], attention_mask=mask[both])
                scores = module.classifier(module.bert.pooler(state))[:, 0].float()
            right, wrong = scores.chunk(2)
            softplus = torch.nn.functional.softplus
            # The right one above the other, and, a little, the one above zero and the other below.
            loss = softplus(wrong - right).mean() + 0.1 * (softplus(-right) + softplus(wrong)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return _save(module, tokenizer, folder)


def save_topics(folder: Path, epochs: int = 2) -> Path:
    """Train and save a classifier of topics: the whole encoder learns, from all but those that are held back."""
    module, tokenizer = _start(num_labels=len(TOPICS), id2label=dict(enumerate(TOPICS)))
    examples = [example for i, example in enumerate(topics()) if i % TOPICS_HELD_BACK]
    wanted = torch.tensor([TOPICS.index(example.label) for example in examples])
    updates = epochs * -(-len(examples) // 32)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-4, total_steps=updates, pct_start=0.1)
    module.train()
    for _ in range(epochs):
        for part in torch.randperm(len(examples)).split(32):  # type: ignore[no-untyped-call]
            texts = [examples[i].text for i in part]
            tokens = tokenizer(texts, truncation=True, max_length=TOPIC_TOKENS, padding=True, return_tensors="pt")
            with torch.autocast("cpu", torch.bfloat16):
                logits = module(**tokens).logits
            loss = torch.nn.functional.cross_entropy(logits.float(), wanted[part])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return _save(module.eval(), tokenizer, folder)


def _start(**config: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    module = AutoModelForSequenceClassification.from_pretrained(MINILM, local_files_only=True, **config)
    return module.eval(), AutoTokenizer.from_pretrained(MINILM, local_files_only=True)


def _parts(tokens: Any, size: int) -> list[dict[str, torch.Tensor]]:
    splits = {key: value.split(size) for key, value in tokens.items()}
    return [dict(zip(splits, values, strict=True)) for values in zip(*splits.values(), strict=True)]


def _save(module: Any, tokenizer: Any, folder: Path) -> Path:
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())
