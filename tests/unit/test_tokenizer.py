"""The ids that a model with a byte-pair vocabulary is given, against a plain re-computation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.random_model import clip_tokenizer
from benchmarks.tokenizer import TEXTS, expected_ids, number_tokens, tokenize

if TYPE_CHECKING:
    from pathlib import Path

# "abc" has two ways to be merged, "shred" needs a merge of merges, "é" is two bytes
MERGES = [
    *(("b", "c</w>"), ("a", "b"), ("r", "e"), ("re", "d</w>"), ("s", "h"), ("sh", "red</w>"), ("t", "-")),
    *(("Ã", "©</w>"), ("t", "h"), ("th", "e</w>"), ("o", "o"), ("oo", "o")),
]
VOCABULARY = number_tokens(MERGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def test_a_vocabulary_beside_the_weights_gives_the_ids_of_its_rules(folder: Path) -> None:
    texts = (*TEXTS, "abc ab bc", "Shred RED thered the", "cafés café é", "t-shirt's 12 - 3", "ooooo")

    found = tokenize(folder, VOCABULARY, MERGES, texts)

    assert found == {text: expected_ids(text, VOCABULARY, MERGES) for text in texts}
    assert {len(ids) for ids in found.values()} >= {2, 77}


def test_the_recomputation_follows_the_earliest_rule(folder: Path) -> None:
    """Ids by hand: bytes from 0 on (`a` is 64), the same at the end of a word from 256 on, rules from 512 on."""
    start, end = 524, 525
    by_hand = {
        "abc": [start, 64, 512, end],
        "ab": [start, 64, 321, end],
        "abd": [start, 513, 323, end],
        "shred": [start, 517, end],
        "é": [start, 519, end],
        "7!": [start, 278, 256, end],
    }
    assert {text: expected_ids(text, VOCABULARY, MERGES) for text in by_hand} == by_hand
    assert tokenize(folder, VOCABULARY, MERGES, list(by_hand)) == by_hand


def test_the_random_models_read_every_text_to_its_end() -> None:
    tokenizer = clip_tokenizer()
    for text in TEXTS:
        ids = tokenizer(text, truncation=True)["input_ids"]
        assert ids.index(tokenizer.eos_token_id) == len(ids) - 1, text
