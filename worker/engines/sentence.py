"""What a folder says about turning hidden states into one vector a text: the layout of sentence-transformers.

Read from `modules.json`, the pooling's `config.json`, `sentence_bert_config.json` and
`config_sentence_transformers.json`, as sentence-transformers 6.2 does. What is not computed here is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.errors import ModelLoadFailed

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "lasttoken")
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How poolings were named before one key held them, in the order in which several are joined."""
TRANSFORMER_CONFIGS = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
ALLOWED: dict[str, Any] = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}
"""Keys of the transformer's file that may be there, with the one value that is computed here."""
WITHOUT_EFFECT = ("max_seq_length", "do_lower_case", "unpad_inputs", "query_length", "document_length")


@dataclass(frozen=True)
class SentenceModel:
    """How texts become vectors."""

    transformer: Path
    """The folder of the weights and the tokenizer."""
    poolings: tuple[str, ...]
    """Vectors of several poolings stand behind one another."""
    normalize: bool = False
    max_tokens: int | None = None
    """Overrides what tokenizer and model say."""
    lower_case: bool = False
    prompt: str = ""
    """Put before every text."""


def read_sentence_model(folder: Path) -> SentenceModel:
    """What the folder says; one without `modules.json` is pooled by the mean and not normalized.

    Raises:
        ModelLoadFailed: It asks for what is not computed here; the message names the file.
    """
    modules = read_json(folder / "modules.json", list)
    if modules is None:
        architectures = (read_json(folder / "config.json", dict) or {}).get("architectures") or [""]
        if architectures[0].endswith("ForCausalLM"):
            raise ModelLoadFailed(f"{folder}: {architectures[0]} needs a modules.json that says how to pool it")
        return SentenceModel(folder, ("mean",))
    kinds = [_kind(folder, module) for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelLoadFailed(
            f"{folder / 'modules.json'}: {' > '.join(kinds) or 'nothing'}; "
            "what is computed is Transformer > Pooling, and Normalize where it follows"
        )
    paths = [_inside(folder, module.get("path", "")) for module in modules]
    poolings, include_prompt = _pooling(paths[1] / "config.json")
    normalized = (read_json(paths[2] / "config.json", dict) or {}) if len(paths) == 3 else {}
    if normalized.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise ModelLoadFailed(f"{paths[2] / 'config.json'}: only the sentence embedding is normalized")
    prompt = default_prompt(folder / "config_sentence_transformers.json")
    if prompt and not include_prompt:
        raise ModelLoadFailed(f"{paths[1] / 'config.json'}: pooling that leaves out the prompt is not computed")
    max_tokens, lower_case = read_transformer(paths[0], ALLOWED)
    return SentenceModel(paths[0], poolings, len(paths) == 3, max_tokens, lower_case, prompt)


def _kind(folder: Path, module: dict[str, Any]) -> str:
    """The module's class, without where in sentence-transformers it stands: that changed over versions."""
    package, _, name = str(module.get("type", "")).rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise ModelLoadFailed(f"{folder / 'modules.json'}: {module.get('type')!r} is code that is not run here")
    return name


def _inside(folder: Path, path: str) -> Path:
    found = (folder / path).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise ModelLoadFailed(f"{folder / 'modules.json'}: path {path!r} leads out of the folder")
    return folder / path


def _pooling(file: Path) -> tuple[tuple[str, ...], bool]:
    """The poolings, and whether the prompt's tokens are pooled too."""
    config = read_json(file, dict)
    if config is None:
        raise ModelLoadFailed(f"{file} is missing: it says how to pool")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in OLD_POOLINGS.items() if config.get(key)] or ["mean"]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise ModelLoadFailed(f"{file}: pooling {unknown[0]!r} is not computed, only {', '.join(POOLINGS)}")
    return modes, config.get("include_prompt", True)


def read_transformer(folder: Path, allowed: Mapping[str, Any]) -> tuple[int | None, bool]:
    """The longest input in tokens, where it is said, and whether texts are made lower case.

    Args:
        folder: Where the transformer's own file is, if it has one.
        allowed: Keys that it may hold, with the one value that is computed.

    Raises:
        ModelLoadFailed: It asks for something else.
    """
    for name in TRANSFORMER_CONFIGS:
        if config := read_json(folder / name, dict):
            break
    else:
        return None, False
    for key, value in config.items():
        # What is empty or null asks for nothing.
        if key not in WITHOUT_EFFECT and value and value != allowed.get(key):
            raise ModelLoadFailed(f"{folder / name}: {key} {json.dumps(value)} is not computed")
    return config.get("max_seq_length"), bool(config.get("do_lower_case"))


def default_prompt(file: Path) -> str:
    """The prompt that is used where none is chosen."""
    config = read_json(file, dict) or {}
    name = config.get("default_prompt_name")
    return str((config.get("prompts") or {}).get(name) or "") if name else ""


def read_json(file: Path, kind: type) -> Any:
    """What the JSON file holds, or nothing where there is none.

    Raises:
        ModelLoadFailed: It holds no JSON of this kind.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelLoadFailed(f"{file}: {error}") from error
    if not isinstance(content, kind):
        raise ModelLoadFailed(f"{file}: expected a JSON {kind.__name__}")
    return content
