from pathlib import Path

import numpy as np
import pytest

from contracts.errors import CompressionFailed
from contracts.names import Quantization, Task
from contracts.recipes import Augmentation
from tests.models import MINILM, model_spec, variant
from worker.compression.distillation.data import Tokens, batches, passes, read_rows, split
from worker.engines.embed import EmbedEngine
from worker.engines.generate import GenerateEngine
from worker.loading import load_module

NOTHING = Augmentation()


def tokens(folder: Path, task: Task = Task.EMBED, most: int = 128, augmentation: Augmentation = NOTHING) -> Tokens:
    config = load_module(folder, Quantization.NONE, "cpu").config
    return Tokens(task, folder, config, most, augmentation)


def test_rows_are_read_with_their_labels(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"input": "a", "label": "x"}\n{"input": "b", "label": "y"}\n')
    assert read_rows(file, labelled=True).labels == ["x", "y"]
    assert read_rows(file, labelled=False).inputs == ["a", "b"]
    file.write_text('{"input": "a", "label": "x"}\n{"input": "b"}\n')
    assert read_rows(file, labelled=False).labels is None
    with pytest.raises(CompressionFailed, match="line 2 of the rows is not"):
        read_rows(file, labelled=True)
    file.write_text('{"input": "a"}\nnonsense\n')
    with pytest.raises(CompressionFailed, match="line 2"):
        read_rows(file, labelled=False)


def test_a_student_reads_what_the_engine_reads(tmp_path: Path) -> None:
    """A prompt before the text, lower case first, and cut."""
    folder = variant(
        tmp_path / "prompted",
        {
            "config_sentence_transformers.json": {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
            "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": True},
        },
    )
    payloads = ["ÀN Example", "word " * 500, "short"]
    engine = EmbedEngine.load(model_spec(task="embed"), folder, "cpu")
    served = engine.prepare(payloads, {}).rows
    found = tokens(folder, most=300)
    assert found.read(payloads).tolist() == [0, 1, 2]
    assert [row.tolist() for row in found.of(np.arange(3))] == [row.tolist() for row in served]
    shorter = tokens(folder, most=16)
    shorter.read(payloads)
    assert shorter.lengths.tolist() == [min(len(row), 16) for row in served]


def test_a_language_model_reads_prompts_and_chats(language_model: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Say something about the sea."}]}
    payloads = ["Once upon a time", chat, "word " * 100]
    engine = GenerateEngine.load(model_spec(task="generate"), language_model, "cpu")
    params = {"max_new_tokens": 1, "truncate": True}
    served = [row.ids.tolist() for row in engine.prepare(payloads, params).rows]
    found = tokens(language_model, Task.GENERATE, most=64)
    assert found.read(payloads).tolist() == [0, 1, 2]
    assert [row.tolist() for row in found.of(np.arange(3))] == [row[:64] for row in served]


def test_rows_that_say_nothing_are_left_out(language_model: Path) -> None:
    assert tokens(MINILM).read(["a", 7, "b"]).tolist() == [0, 2]
    # Nothing follows a single token.
    assert tokens(language_model, Task.SCORE).read(["a", "a b"]).tolist() == [1]


def test_varied_rows_are_other_rows_of_the_same_kind() -> None:
    payloads = [f"these are some words of text number {i} of many" for i in range(20)]
    found = tokens(MINILM, augmentation=Augmentation(token_dropout=0.2, word_swap=0.2, word_deletion=0.2))
    found.read(payloads)
    places = np.arange(20)
    varied = found.varied(places, np.random.default_rng(1))
    assert all(row[0] == 101 and row[-1] == 102 and len(row) > 2 for row in varied)
    assert sum(row.tolist() != whole.tolist() for row, whole in zip(varied, found.of(places), strict=True)) > 15
    again = found.varied(places, np.random.default_rng(1))
    assert [row.tolist() for row in again] == [row.tolist() for row in varied]


def test_equal_inputs_are_on_one_side_of_the_split() -> None:
    inputs = [f"text {i % 40}" for i in range(100)]
    usable = np.arange(100)[10:]
    training, held_out = split(inputs, usable, 0.25, seed=3)
    assert sorted([*training.tolist(), *held_out.tolist()]) == usable.tolist()
    assert {inputs[i] for i in training}.isdisjoint(inputs[i] for i in held_out)
    assert len({inputs[i] for i in held_out}) == 10
    assert split(inputs, usable, 0.25, seed=3)[1].tolist() == held_out.tolist()
    assert split(inputs, usable, 0.25, seed=4)[1].tolist() != held_out.tolist()


def test_a_row_is_held_out_and_one_learned_from_however_few() -> None:
    training, held_out = split(["a", "b"], np.arange(2), 0.01, seed=0)
    assert len(training) == len(held_out) == 1
    with pytest.raises(CompressionFailed, match="1 distinct rows of 3"):
        split(["a", "a", "a"], np.arange(3), 0.5, seed=0)


def test_batches_hold_every_row_once_and_lengths_that_are_alike() -> None:
    lengths = np.random.default_rng(0).integers(5, 200, 1000).astype(np.int32)
    places = np.arange(1000)[::2]
    found = batches(places, lengths, 8, np.random.default_rng(1))
    assert sorted(np.concatenate(found).tolist()) == places.tolist()
    assert [len(batch) for batch in found].count(8) == 62
    spread = np.mean([np.ptp(lengths[batch]) for batch in found])
    assert spread < 0.1 * np.ptp(lengths)
    other = batches(places, lengths, 8, np.random.default_rng(2))
    assert {tuple(batch) for batch in other}.isdisjoint(tuple(batch) for batch in found)


def test_passes_stay_within_their_budget() -> None:
    ids = [np.zeros(length, np.int32) for length in (5, 100, 7, 30, 6, 200)]
    found = passes(ids, 64)
    assert sorted(i for part in found for i in part) == list(range(6))
    assert all(len(part) == 1 or max(len(ids[i]) for i in part) * len(part) <= 64 for part in found)
    assert found == [[5], [1], [3, 2], [4, 0]]
