"""What a model folder holds, what is missing from it, and the hash that identifies it (law 6).

Imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.models.preprocess import PROCESSOR_FILES
from pipeline.near import near_paths

if TYPE_CHECKING:
    from collections.abc import Iterable

# in transformers' order: the first that is there is loaded
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEXES = tuple(name for name in WEIGHTS if name.endswith(".index.json"))
SINGLE_WEIGHTS = tuple(name for name in WEIGHTS if name not in INDEXES)

# each of these sets is a whole tokenizer
_TOKENIZERS = (
    {"tokenizer.json"},
    {"vocab.json", "merges.txt"},
    {"vocab.txt"},
    {"spiece.model"},
    {"sentencepiece.bpe.model"},
    {"tokenizer.model"},
)
_TOKENIZER_FILES = frozenset().union(
    *_TOKENIZERS, {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
)
SMALL_FILES = ("config.json", *PROCESSOR_FILES, *sorted(_TOKENIZER_FILES), *INDEXES)
"""everything but the weights"""


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        ModelError: there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} has no config.json, expected a model folder as transformers saves it",
            hint="convert the model with transformers' save_pretrained",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON", hint="copy the model folder again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}, expected a JSON object")
    return config


def find_weights(folder: Path) -> list[Path] | None:
    """The weight files that transformers would load, index included; None if any of them is missing."""
    for name in WEIGHTS:
        path = folder / name
        if path.is_file():
            files = [path, *(folder / shard for shard in read_shards(path))]
            return files if all(file.is_file() for file in files) else None
    return None


def read_shards(index: Path) -> list[str]:
    """The names of the weight files that an index lists; none if `index` is the weights themselves.

    Raises:
        ModelError: it is no index, or lists files outside its folder.
    """
    if index.name not in INDEXES:
        return []
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no index of weights", hint="copy the model folder again") from error
    if not all(Path(shard).name == shard for shard in shards):
        raise ModelError(f"{index} names weights outside its folder")
    return shards


def has_tokenizer(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS)


def is_complete(folder: Path) -> bool:
    """Whether nothing is missing for images, and for text if the model reads text."""
    if not (folder / "config.json").is_file() or find_weights(folder) is None:
        return False
    has_processor = any((folder / name).is_file() for name in PROCESSOR_FILES)
    return has_processor and (has_tokenizer(folder) or "text_config" not in read_config(folder))


def find_near(path: Path) -> list[Path]:
    """Model folders whose paths are spelled nearly like this one."""
    try:
        return [other for other in near_paths(path) if (other / "config.json").is_file()]
    except OSError:
        return []  # a folder that may not be read: there is nothing to propose


def hash_folder(folder: Path, weights: Iterable[Path]) -> str:
    """`sha256:` over all that decides a vector: configuration, weights, image processor and tokenizer.

    605 MB take 0.4 s, and it is done at every start: a remembered hash would miss weights that were replaced.

    Raises:
        ModelError: a file cannot be read.
    """
    small = (folder / name for name in SMALL_FILES if name not in INDEXES)
    total = hashlib.sha256()
    for path in sorted({*weights, *(path for path in small if path.is_file())}):
        try:
            with path.open("rb") as file:
                total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    return f"sha256:{total.hexdigest()}"
