"""Text → token ids, as each family of models was trained to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.models.weights import brief, quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """A transformers tokenizer with the padding, length and case that its model expects."""

    tokenizer: Any
    max_length: int
    is_siglip: bool
    """SigLIP was trained on lower-case text filled up to 64 tokens, read them all without a mask, and pools at the
    last; the tokenizer of its second generation keeps case, and that of the first gives a mask"""

    def tokenize(self, texts: Sequence[str]) -> dict[str, Any]:
        """Tensors by name (`input_ids`, `attention_mask` …), int64 [N, tokens]; longer texts are cut."""
        with quiet():
            tokens = self.tokenizer(
                [self._prepared(text) for text in texts],
                padding="max_length" if self.is_siglip else True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
        return {"input_ids": tokens["input_ids"]} if self.is_siglip else dict(tokens)

    def fits(self, text: str) -> bool:
        """Whether `tokenize` leaves the text whole."""
        with quiet():
            return len(self.tokenizer(self._prepared(text))["input_ids"]) <= self.max_length

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts `tokenize` cuts."""
        with quiet():
            tokens = self.tokenizer([self._prepared(text) for text in texts])["input_ids"]
        return sum(len(ids) > self.max_length for ids in tokens)

    def _prepared(self, text: str) -> str:
        return text.lower() if self.is_siglip else text


def load_tokenizer(folder: Path, model: Any) -> Tokenizer:
    """The tokenizer beside the weights.

    Raises:
        ModelError: it cannot be loaded, or is not the one that the model was trained with.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers, in Rust, raises Exception itself for a damaged file
        is_absent = isinstance(error, ImportError)
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded: {brief(error)}",
            hint="install what it needs: pip install sentencepiece protobuf" if is_absent else None,
        ) from error
    text_config = getattr(model.config, "text_config", model.config)
    positions = getattr(text_config, "max_position_embeddings", None) or tokenizer.model_max_length
    _check_vocabulary(folder, tokenizer, text_config)
    _check_end_token(folder, tokenizer, model)
    return Tokenizer(
        tokenizer=tokenizer,
        max_length=min(tokenizer.model_max_length, positions),
        is_siglip=str(model.config.model_type).startswith("siglip"),
    )


def _check_vocabulary(folder: Path, tokenizer: Any, text_config: Any) -> None:
    vocabulary = getattr(text_config, "vocab_size", None)
    if vocabulary is not None and len(tokenizer) > vocabulary:
        raise ModelError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {vocabulary}",
            hint="copy the tokenizer files of this very model",
        )


def _check_end_token(folder: Path, tokenizer: Any, model: Any) -> None:
    """CLIP reads a text's features at its end token; a wrong one reads them elsewhere, without an error.

    With `eos_token_id` 2, which old configs have for a token that is not 2, transformers takes the largest id
    instead (modeling_clip.py, from before its pull request 24773).
    """
    end = getattr(getattr(model, "text_model", None), "eos_token_id", None)
    if end is None:
        return
    pooled = len(tokenizer) - 1 if end == 2 else end
    if tokenizer.eos_token_id != pooled or pooled not in tokenizer("a")["input_ids"]:
        found = "the largest id" if end == 2 else f"id {end}"
        raise ModelError(
            f"the model in {folder} reads a text at {found} (eos_token_id {end} in config.json), but its "
            f"tokenizer ends texts with id {tokenizer.eos_token_id} of {len(tokenizer)}",
            hint="set text_config.eos_token_id to the tokenizer's, which must not be 2",
        )
