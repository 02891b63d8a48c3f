"""Files of weights that hold little but their headers, and how to put one in place of another."""

import json
import struct
from pathlib import Path

import numpy as np


def safetensors(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A file of zeros; each tensor is given as type, shape and bytes."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(offset)


def put(folder: Path, name: str, content: bytes | str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)  # never write through the link
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_gguf(path: Path, *, architecture: str = "llama", vocabulary: bool = True, parts: int = 1) -> Path:
    """A small GGUF file, by the library: a row of ten words' vectors, a quantized layer and a norm."""
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, architecture)
    writer.add_bool("llama.odd", True)
    writer.add_array("llama.numbers", [1, 2, 3])
    if parts > 1:
        writer.add_uint16("split.count", parts)
    if vocabulary:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"word{number}" for number in range(10)])
    layer = quantize(np.ones((64, 32), np.float32), GGMLQuantizationType.Q4_0)
    writer.add_tensor("token_embd.weight", np.zeros((10, 32), np.float16))
    writer.add_tensor("blk.0.attn_q.weight", layer, raw_dtype=GGMLQuantizationType.Q4_0)
    writer.add_tensor("output_norm.weight", np.ones(30, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
