"""Titles → byte-pair tokens: a tokenizer of CLIP's kind that is made from them, and all of them tokenized once."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.models.weights import quiet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.models.text import Tokenizer

WORD_END, START, END = "</w>", "<|startoftext|>", "<|endoftext|>"
MOST_TOKENS, FEWEST_TOKENS = 77, 16
"""that a text of a new model may have: what CLIP reads, and what leaves room for a search"""
VOCABULARY: Final = 4000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Titles:
    """`tokens` int64 [T, length] of each different title by name, and which of them each pair has: int64 [N].

    Titles are the same when their tokens are: a model cannot tell them apart.
    """

    tokens: dict[str, Tensor]
    of_pairs: NDArray[np.int64]

    def __len__(self) -> int:
        return len(next(iter(self.tokens.values())))

    def keep(self, rows: NDArray[np.int64]) -> Titles:
        """Those of the pairs in these rows."""
        return replace(self, of_pairs=self.of_pairs[rows])

    def select(self, numbers: NDArray[np.int64]) -> dict[str, Tensor]:
        """The tokens of some titles, without the columns that are padding in all of them."""
        chosen = {name: tensor[numbers] for name, tensor in self.tokens.items()}
        mask = chosen.get("attention_mask")
        if mask is None or not bool(mask[:, 0].all()):
            return chosen
        longest = int(mask.sum(dim=1).max())
        return {name: tensor[:, :longest] for name, tensor in chosen.items()}


def tokenize_titles(tokenizer: Tokenizer, titles: Sequence[str]) -> Titles:
    """Each different title once; longer ones are cut to what the model reads."""
    words, of_pairs = np.unique(np.array(titles, dtype=object).astype(str), return_inverse=True)
    tokens = tokenizer.tokenize(words.tolist())
    _, first, of_words = np.unique(tokens["input_ids"].numpy(), axis=0, return_index=True, return_inverse=True)
    kept = {name: tensor[first] for name, tensor in tokens.items()}
    return Titles(tokens=kept, of_pairs=of_words.reshape(-1)[of_pairs].astype(np.int64))


def train_tokenizer(titles: Iterable[str], vocabulary: int) -> Any:
    """A CLIP tokenizer whose merges are the most frequent byte pairs of the titles."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    raw = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    reader = CLIPTokenizer().backend_tokenizer  # reads text as CLIP does: lower case, words, digits one by one
    raw.normalizer, raw.pre_tokenizer = reader.normalizer, reader.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        # without the bytes that end no word in these titles, and START and END, which come later
        vocab_size=max(len(alphabet), vocabulary - len(alphabet) - 2),
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    raw.train_from_iterator(titles, trainer)
    merges = [tuple(pair) for pair in json.loads(raw.to_str())["model"]["merges"]]
    return make_tokenizer(merges)


def make_tokenizer(merges: Sequence[tuple[str, str]]) -> Any:
    """CLIP's tokenizer with these merges, its tokens numbered as OpenAI's.

    Every byte is a token, inside a word and at its end: one that is unknown would become END, where the model stops
    reading. END is the last token: 2, which means something else to transformers (models/text.py), it cannot be.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = dict.fromkeys("".join(pair) for pair in merges)
    words = [*alphabet, *(byte + WORD_END for byte in alphabet)]
    words += [word for word in joined if word not in set(words)]
    vocabulary = {word: number for number, word in enumerate([*words, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=MOST_TOKENS)


def room_for(tokenizer: Any, titles: Sequence[str]) -> int:
    """Tokens that a text of a new model may have, so that the longest title fits."""
    with quiet():  # it warns of texts that are longer
        longest = max(len(tokens) for tokens in tokenizer(list(titles))["input_ids"])
    return min(MOST_TOKENS, max(FEWEST_TOKENS, -(-longest // 8) * 8))
