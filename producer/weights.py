"""The weights in a model's folder, as far as its files' names and JSON tell."""

import json
from pathlib import Path
from typing import Any

from contracts.errors import ModelRefused

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".pt2", ".h5", ".msgpack"})


def weight_files(folder: Path) -> list[str]:
    """The safetensors that transformers would load: the one file, or else every shard that the index names.

    Raises:
        ModelRefused: There are none, some are missing, or the weights are only pickled.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / INDEX).is_file():
        shards = read_object(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelRefused(f"{folder / INDEX} has no `weight_map`: it is damaged; get the folder again")
        names = sorted({str(name) for name in shards.values()})
        for name in names:
            if not name.endswith(".safetensors") or "/" in name or "\\" in name:
                raise ModelRefused(f"{folder / INDEX} names {name!r}: a shard is a .safetensors beside the index")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelRefused(
                f"{folder} lacks {len(missing)} of {len(names)} shards ({', '.join(missing[:3])}): get it again"
            )
        return names
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise pickles_refused(folder, pickled, "AutoModel.from_pretrained(folder).save_pretrained(other)")
    raise ModelRefused(f"{folder} has neither {WEIGHTS} nor {INDEX}: give a complete folder")


def has_safetensors(folder: Path) -> bool:
    """Whether a folder has weights that `weight_files` could name."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def pickles_refused(folder: Path, pickled: list[str], remedy: str) -> ModelRefused:
    """The error of a folder whose weights are only pickled; the remedy is code that writes them anew."""
    return ModelRefused(
        f"{folder} holds its weights only as {', '.join(pickled[:3])}: loading a pickle can run any code that "
        f"its author put there, so none is loaded. Where you trust it, convert it once: {remedy}, which writes "
        "safetensors"
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ModelRefused: The file is missing or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelRefused(f"{path} is not a JSON object: it is damaged; get the folder again")
    return value


def read_json(path: Path) -> Any:
    """The JSON value that a file holds.

    Raises:
        ModelRefused: The file is missing or holds something else.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelRefused(
            f"{path} is missing: give a complete folder, as save_pretrained(…) or a download from the hub leaves it"
        ) from None
    except OSError as error:
        raise ModelRefused(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{path} is not JSON ({error}): it is damaged; get the folder again") from None
