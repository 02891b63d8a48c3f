import struct
from pathlib import Path

import pytest

from benchmarks.weights import SMOLLM2
from contracts.errors import ModelRefused
from contracts.names import Quantization, Task
from producer.sources.gguf_file import inspect
from tests.weights import write_gguf


def look(file: Path, quantization: Quantization = Quantization.NONE) -> int:
    return inspect(file, Task.GENERATE, quantization)


@pytest.fixture
def tiny(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf")


def test_a_real_model():
    # 134.5 million weights, of which 106 million in linear layers; the words' vectors are both of its ends.
    sizes = [look(SMOLLM2, q) for q in (Quantization.NONE, Quantization.BF16, Quantization.INT8, Quantization.NF4)]
    assert sizes == pytest.approx([538.06e6, 269.03e6, 162.84e6, 116.38e6], rel=0.001)


def test_what_the_weights_take_dequantized(tiny):
    embeddings, linear, norm = 10 * 32, 64 * 32, 30
    assert look(tiny) == 4 * (embeddings + linear + norm)
    assert look(tiny, Quantization.NF4) == 2 * (embeddings + norm) + linear * 0.5625


def test_other_tasks_are_refused(tiny):
    for task in (Task.EMBED, Task.CLASSIFY, Task.RERANK):
        with pytest.raises(ModelRefused, match=f"serves generate and score; for {task} give a folder"):
            inspect(tiny, task, Quantization.NONE)


def test_a_file_cut_anywhere_is_refused(tiny):
    whole = tiny.read_bytes()
    # What follows the last tensor is only there to align it.
    for size in range(0, len(whole) - 8, 7):
        tiny.write_bytes(whole[:size])
        with pytest.raises(ModelRefused, match=r"tiny\.gguf is cut short or damaged .*get it again"):
            look(tiny)
    tiny.write_bytes(whole + bytes(32))
    with pytest.raises(ModelRefused, match="it should have"):
        look(tiny)


def test_a_real_file_cut_short_is_refused(tmp_path):
    cut = tmp_path / "cut.gguf"
    size = SMOLLM2.stat().st_size
    for bytes_left in (size - 1, 1_000_000):
        with open(SMOLLM2, "rb") as stream:
            cut.write_bytes(stream.read(bytes_left))
        with pytest.raises(ModelRefused, match=r"cut\.gguf is cut short"):
            look(cut)


def test_a_length_that_no_text_has_is_not_read(tmp_path):
    file = tmp_path / "huge.gguf"
    with open(file, "wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 2**34))
        stream.truncate(2**35)  # a hole, which takes no room
    with pytest.raises(ModelRefused, match=r"17,179,869,184 bytes"):
        look(file)


def test_a_damaged_header_is_refused_at_once(tiny):
    """Whatever number a byte belongs to: none is believed that leads out of the file."""
    whole = tiny.read_bytes()
    end = whole.index(b"output_norm.weight")
    for place in range(end):
        tiny.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        try:
            look(tiny)
        except ModelRefused as error:
            assert "tiny.gguf" in str(error)  # noqa: PT017 - a damaged letter of a name may pass
    for place in (8, 16):  # the counts of tensors and of values
        tiny.write_bytes(whole[:place] + struct.pack("<Q", 2**63) + whole[place + 8 :])
        with pytest.raises(ModelRefused, match="cut short or damaged"):
            look(tiny)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"GGUFx", "beyond its end"),
        (b"PK\x03\x04" + bytes(40), "begin with GGUF"),
        (b"GGUF\x01" + bytes(40), "version 1"),
    ],
)
def test_what_is_no_gguf_is_refused(tiny, content, said):
    tiny.write_bytes(content)
    with pytest.raises(ModelRefused, match=said):
        look(tiny)


def test_a_part_of_a_model_is_refused(tmp_path):
    with pytest.raises(ModelRefused, match="one of 3 parts: join them"):
        look(write_gguf(tmp_path / "part.gguf", parts=3))
    with pytest.raises(ModelRefused, match="holds no vocabulary"):
        look(write_gguf(tmp_path / "adapter.gguf", vocabulary=False))
