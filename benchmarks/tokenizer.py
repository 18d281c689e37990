"""Token ids under a byte-pair vocabulary: those of a model's folder beside a plain re-computation, text by text.

python -m benchmarks.tokenizer FOLDER [--results FOLDER]

FOLDER holds the vocabulary that OpenAI published with CLIP, bpe_simple_vocab_16e6.txt.gz. It is written as vocab.json
and merges.txt beside a model, as OpenAI's models on the Hub have it, and read from there as a run reads it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.conditions import RESULTS, write_result
from pipeline.models.text import load_tokenizer
from pipeline.models.weights import quiet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILE = "bpe_simple_vocab_16e6.txt.gz"
TOKENS = 49_408
STATED = {"a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407]}
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 77
TEXTS = (
    *STATED,
    "",
    "Navy   STRIPED\tt-shirt, size XL (100% cotton)",
    "it's the dog's — they'll love what we'd say, I'm sure you've seen",
    "40x60 cm, №1234567890, 3.5 mm",
    "größe 38, naïve façade, smörgåsbord; É À Ç",
    "日本語のドレス 红色 연필 кофта φόρεμα",
    "🎉 ❤️ ½ © ™ … “quoted” <tag> & co_op_under",
    "donaudampfschifffahrtsgesellschaft " * 4,
    "a red mug beside another red mug, " * 20,
)

# CLIP's own rule of what is a word: letters, one digit, or a row of anything else but white space
_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)


def main() -> None:
    parser = argparse.ArgumentParser(description="Check token ids under OpenAI's vocabulary of CLIP.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    result = compare(read_merges(arguments.folder / FILE))
    print(write_result("tokenizer", result, arguments.results))
    if result["differing"]:
        raise SystemExit(f"{len(result['differing'])} of {result['texts']} texts have other ids")


def read_merges(path: Path) -> list[tuple[str, str]]:
    """As openai/CLIP's simple_tokenizer.py reads them: as many as 49,408 tokens leave room for."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return [(first, second) for first, second in (line.split() for line in lines[1 : TOKENS - 512 - 2 + 1])]


def compare(merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Which texts get other ids than they should, and what was compared."""
    vocabulary = number_tokens(merges)
    with tempfile.TemporaryDirectory() as folder:
        found = tokenize(Path(folder), vocabulary, merges, TEXTS)
    expected = {text: expected_ids(text, vocabulary, merges) for text in TEXTS} | STATED
    return {
        "tokens": len(vocabulary),
        "merges": len(merges),
        "stated": STATED,
        "texts": len(TEXTS),
        "ids": sum(map(len, found.values())),
        "differing": {text: ids for text, ids in found.items() if ids != expected[text]},
    }


def tokenize(
    folder: Path, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], texts: Sequence[str]
) -> dict[str, list[int]]:
    """The ids of each text, as a run gives them to a model whose tokenizer is `vocab.json` and `merges.txt`."""
    model = save_model(folder, vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokens = load_tokenizer(folder, model).tokenize(texts)
    lengths = tokens["attention_mask"].sum(dim=1).tolist()
    rows = zip(texts, tokens["input_ids"].tolist(), lengths, strict=True)
    return {text: ids[:length] for text, ids, length in rows}


def save_model(folder: Path, vocabulary: Mapping[str, int]) -> Any:
    """A CLIP with that many tokens and as few other weights as possible."""
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    tokens = {"vocab_size": len(vocabulary), "bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END]}
    config = CLIPConfig(
        projection_dim=8,
        text_config=shape | tokens | {"pad_token_id": vocabulary[END], "max_position_embeddings": LENGTH},
        vision_config=shape | {"image_size": 16, "patch_size": 16},
    )
    model = CLIPModel(config).eval()
    with quiet():
        model.save_pretrained(folder)
    return model


def number_tokens(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """As OpenAI numbers them: bytes, bytes that end a word, merges, the two special ones."""
    characters = list(byte_characters().values())
    words = [*characters, *(character + WORD_END for character in characters), *map("".join, merges), START, END]
    return {word: number for number, word in enumerate(words)}


def expected_ids(text: str, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> list[int]:
    """Byte pairs merged one by one, the earliest rule first, as in Sennrich et al. (2016), algorithm 1."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    characters = byte_characters()
    ids = [vocabulary[START]]
    for word in _WORDS.findall(" ".join(text.lower().split())):
        parts = [characters[byte] for byte in word.encode()]
        parts[-1] += WORD_END
        while known := [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]:
            _, place = min(known)
            parts[place : place + 2] = ["".join(parts[place : place + 2])]
        ids += [vocabulary[part] for part in parts]
    return [*ids[: LENGTH - 1], vocabulary[END]]


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte, in OpenAI's order: printable ones for themselves, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


if __name__ == "__main__":
    main()
