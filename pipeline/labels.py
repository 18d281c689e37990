"""Labels that a model is asked for without training: their file, and their vectors.

    colour:
      labels:
        - red
        - navy: [navy blue, dark blue]     # words to ask for, when the label itself is not what a caption would say
      templates: ["a photo of a {} garment", "a {} product"]
      exclusive: true                      # one label fits; false: each on its own
      threshold: 0.5                       # a probability below is "unknown"

`colour: [red, navy]` says the same with defaults. docs/tags.md has the whole format.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from pipeline.errors import ConfigError, ModelError
from pipeline.names import UNKNOWN, find_fault, is_storable, plain, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder

logger = logging.getLogger(__name__)

TEMPLATES = ("a photo of {}.", "a product photo of {}.", "{}")
"""how captions in shops begin; the bare words help models that learned from titles"""
THRESHOLD = 0.5
"""more probable than everything else together"""
AGAINST = ("product", "object", "thing", "photo")
"""what a label that is judged on its own is compared with: words that fit every picture. A model puts a word that it
never learned anywhere, so several: of the labels that the demo's model gives 84 % are right, and 98 % of what there
is to find is given; with "product" alone 12 % and 100 % (benchmarks/results/independent.json)"""

EXAMPLE = "for example: colour: [red, green, navy]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One answer: the name that is stored, and the words of which any may stand for it in a caption."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A question to the pictures, and its answers, at least one.

    With `is_exclusive` exactly one label fits, and their probabilities add up to 1; else each has its own. Each
    template holds `{}` once. A label below `threshold`, 0 to 1, is not given. `against` are the words that a label
    judged on its own is compared with, under models without a sigmoid of their own.
    """

    name: str
    labels: tuple[Label, ...]
    templates: tuple[str, ...] = TEMPLATES
    is_exclusive: bool = True
    threshold: float = THRESHOLD
    against: tuple[str, ...] = AGAINST

    @property
    def label_names(self) -> list[str]:
        return [label.name for label in self.labels]


class _Pairs(list[tuple[Any, Any]]):
    """A mapping as it was written: a dict would keep the last of two equal keys and say nothing."""


def read_labels(path: Path) -> tuple[Attribute, ...]:
    """The attributes of a labels file in YAML, or in JSON when it is named .json; at least one.

    Raises ConfigError, which names the place.
    """
    parsed = _parse(path, _read_text(path))
    if not isinstance(parsed, _Pairs) or not parsed:
        raise ConfigError(f"{str(path)!r} holds {_kind(parsed)}, expected attributes with their labels", hint=EXAMPLE)
    try:
        attributes = tuple(_attribute(name, definition) for name, definition in parsed)
        _refuse_twice([attribute.name for attribute in attributes], "attribute")
    except ConfigError as error:
        raise ConfigError(f"{str(path)!r}: {error.message}", hint=error.hint) from error
    return attributes


def label_vectors(encoder: Encoder, attribute: Attribute) -> NDArray[np.float32]:
    """Unit vectors float32 [L, D], one for each label, in their order.

    Each is the mean of the unit vectors of all its words in all templates, made a unit vector again: the ensemble
    over the embedding space of Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
    Supervision", section 3.1.4.

    Raises ModelError when the model has no text side or gives no usable vector, ConfigError when two labels are the
    same to it. Says so when it does not read a text to its end.
    """
    _warn_of_cut(encoder, attribute)
    _refuse_same(encoder, attribute)
    return _mean_vectors(encoder, attribute, [label.words for label in attribute.labels])


def against_vectors(encoder: Encoder, attribute: Attribute) -> NDArray[np.float32]:
    """Unit vectors float32 [K, D] of the words that labels are compared with one by one; made as `label_vectors`."""
    return _mean_vectors(encoder, attribute, [(words,) for words in attribute.against])


def _mean_vectors(encoder: Encoder, attribute: Attribute, words: Sequence[tuple[str, ...]]) -> NDArray[np.float32]:
    texts = [_texts_of(attribute, some) for some in words]
    # all at once: a label has a handful of texts, and a batch takes dozens
    vectors = encoder.encode_texts([text for some in texts for text in some])
    ends = np.cumsum([len(some) for some in texts])
    means = np.stack([part.mean(axis=0, dtype=np.float64) for part in np.split(vectors, ends[:-1])])
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    for some, length in zip(words, lengths[:, 0], strict=True):
        if not math.isfinite(length) or length == 0:
            raise ModelError(
                f"model {encoder.spec.name!r} gives no usable vector for {some[0]!r} of attribute {attribute.name!r}",
                hint="try --precision fp32; if that does not help, the weights are damaged",
            )
    units: NDArray[np.float32] = (means / lengths).astype(np.float32)
    return units


def _texts_of(attribute: Attribute, words: Iterable[str]) -> list[str]:
    """The words in all templates."""
    return [template.replace("{}", word) for word in words for template in attribute.templates]


def _warn_of_cut(encoder: Encoder, attribute: Attribute) -> None:
    texts = [text for label in attribute.labels for text in _texts_of(attribute, label.words)]
    cut = [text for text in texts if encoder.tokens_kept(text) is not None]
    if cut:
        logger.warning(
            "model %s reads %d tokens of a text, so %d of the %d texts of attribute %r are cut, such as %r: use "
            "shorter words or templates",
            *(encoder.spec.name, encoder.tokens_kept(cut[0]), len(cut), len(texts), attribute.name, cut[0][:60]),
        )


def _refuse_same(encoder: Encoder, attribute: Attribute) -> None:
    """Labels may differ only where the model does not look: behind the last token that it reads, or in case."""
    by_tokens: dict[frozenset[tuple[int, ...]], str] = {}
    for label in attribute.labels:
        tokens = frozenset(encoder.tokens_of(text) for text in _texts_of(attribute, label.words))
        other = by_tokens.setdefault(tokens, label.name)
        if other != label.name:
            raise ConfigError(
                f"the labels {other!r} and {label.name!r} of attribute {attribute.name!r} are the same to model "
                f"{encoder.spec.name!r}, expected labels that it can tell apart",
                hint="use other words, or fewer: a model reads only so many",
            )


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{str(path)!r} is not UTF-8: byte {data[error.start]:#04x} at {error.start:,}",
            hint="save the labels as UTF-8",
        ) from error


def _parse(path: Path, text: str) -> Any:
    kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
    try:
        return json.loads(text, object_pairs_hook=_Pairs) if kind == "JSON" else _parse_yaml(path, text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{str(path)!r} is not {kind}: {reason or type(error).__name__}", hint=EXAMPLE if kind == "YAML" else None
        ) from error


def _parse_yaml(path: Path, text: str) -> Any:
    """Plain values, with mappings as pairs. Raises ValueError and RecursionError; ConfigError for a merge."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc] # PyYAML has no types
        """Constructors are added to a class, and must not be to PyYAML's own."""

    Loader.add_constructor(
        "tag:yaml.org,2002:map", lambda loader, node: _Pairs(loader.construct_pairs(node, deep=True))
    )

    def refuse_merge(_loader: Loader, node: Any) -> NoReturn:
        raise ConfigError(
            f"{str(path)!r} merges mappings (<<) in line {node.start_mark.line + 1}, which is not supported",
            hint="repeat single values instead: templates: &shared [...] once, then templates: *shared",
        )

    # pairs have no place to say which of two equal keys was merged, and may stand there twice
    Loader.add_constructor("tag:yaml.org,2002:merge", refuse_merge)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader: it makes plain values only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{error.problem or error.context}{place}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (LookupError, AttributeError, TypeError) as error:
        # what PyYAML's constructors stumble over, as in `!!timestamp soon`
        raise ValueError("a value is not of the kind that its tag says") from error


def _attribute(name: Any, definition: Any) -> Attribute:
    attribute = f"attribute {_name(name, 'attribute')!r}"
    if isinstance(definition, list) and not isinstance(definition, _Pairs):
        definition = _Pairs([("labels", definition)])
    if not isinstance(definition, _Pairs):
        raise ConfigError(f"{attribute} is {_kind(definition)}, expected a list of labels", hint=EXAMPLE)
    readers: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
        "labels": ("labels", _labels),
        "templates": ("templates", _templates),
        "exclusive": ("is_exclusive", _flag),
        "threshold": ("threshold", _probability),
        "against": ("against", _texts),
    }
    for key, _ in definition:
        if not isinstance(key, str) or key not in readers:
            raise ConfigError(f"{attribute} has the unknown key {key!r}, expected {', '.join(readers)}")
    _refuse_twice([key for key, _ in definition], f"{attribute}: the key")
    if "labels" not in dict(definition):
        raise ConfigError(f"{attribute} has no labels", hint=EXAMPLE)
    fields: dict[str, Any] = {
        readers[key][0]: readers[key][1](value, f"{attribute}, {key}") for key, value in definition
    }
    return _require_sense(Attribute(name=name, **fields), attribute, {key for key, _ in definition})


def _require_sense(attribute: Attribute, where: str, keys: set[str]) -> Attribute:
    """Refuse what could be asked, but would answer nothing."""
    if attribute.is_exclusive and len(attribute.labels) == 1:
        raise ConfigError(
            f"{where} has one label, {attribute.labels[0].name!r}, which every product would get, expected at least "
            "2",
            hint="name what else there is, or judge the label on its own: exclusive: false",
        )
    if attribute.is_exclusive and "against" in keys:
        raise ConfigError(
            f"{where} has against, expected only beside exclusive: false",
            hint="labels of which one fits are compared with each other: leave against out",
        )
    by_words: dict[frozenset[str], str] = {}
    for label in attribute.labels:
        other = by_words.setdefault(frozenset(map(plain, label.words)), label.name)
        if other != label.name:
            words = ", ".join(map(repr, label.words))
            raise ConfigError(
                f"{where}: the labels {other!r} and {label.name!r} have the same words, {words}, expected others",
                hint="nothing tells them apart: remove one of them, or give it words of its own",
            )
    return attribute


def _labels(value: Any, where: str) -> tuple[Label, ...]:
    """From a list of names, a mapping from names to words, or a list of both."""
    entries = [value] if isinstance(value, _Pairs) else value
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where}: found {_kind(value)}, expected at least one label", hint=EXAMPLE)
    labels = [label for entry in entries for label in _label(entry, where)]
    if not labels:
        raise ConfigError(f"{where}: found {_kind(value)}, expected at least one label", hint=EXAMPLE)
    _refuse_twice([label.name for label in labels], f"{where}: the label")
    return tuple(labels)


def _label(entry: Any, where: str) -> Iterable[Label]:
    pairs = entry if isinstance(entry, _Pairs) else [(entry, None)]
    for name, words in pairs:
        if _name(name, f"{where}: label") == UNKNOWN:
            raise ConfigError(
                f"{where}: {UNKNOWN!r} is what a product is called that no label fits",
                hint="leave it out: threshold says how probable a label must be",
            )
        yield Label(name=name, words=(name,) if words is None else _texts(words, f"{where}, words of {name!r}"))


def _templates(value: Any, where: str) -> tuple[str, ...]:
    templates = _texts(value, where)
    for template in templates:
        if template.count("{}") != 1:
            raise ConfigError(
                f"{where}: {template!r} holds {template.count('{}')} of {{}}, expected one, where the label goes",
                hint='for example "a photo of a {} garment"',
            )
    return templates


def _texts(value: Any, where: str) -> tuple[str, ...]:
    """One text, or a list of them; each once."""
    texts = value if isinstance(value, list) and not isinstance(value, _Pairs) else [value]
    if not texts:
        raise ConfigError(f"{where}: found an empty list, expected at least one text")
    for text in texts:
        _text(text, where)
    _refuse_twice(texts, f"{where}: the text")
    return tuple(texts)


def _name(value: Any, what: str) -> str:
    name = _text(value, what)
    fault = find_fault(name)
    if fault is not None:
        raise ConfigError(f"{what} {shorten(name)} {fault}")
    return name


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        # YAML takes a bare no for false, and 38 for a number
        cure = None if isinstance(value, list) else 'put it in quotes, as in "no" or "38"'
        raise ConfigError(f"{what}: found {_kind(value)}, expected text", hint=cure)
    if not value.strip():
        raise ConfigError(f"{what}: found an empty text, expected words")
    if not is_storable(value):
        raise ConfigError(f"{what}: {value!r} holds a character that Postgres cannot store")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: found {_kind(value)}, expected true or false")
    return value


def _probability(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{where}: found {_kind(value)}, expected a number from 0 to 1")
    return float(value)


def _refuse_twice(names: Iterable[str], what: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        key = plain(name)
        if seen.get(key) == name:
            raise ConfigError(f"{what} {name!r} stands there twice", hint="remove one of them")
        if key in seen:
            raise ConfigError(
                f"{what} {name!r} differs from {seen[key]!r} only by upper and lower case, white space or the "
                "Unicode form of its letters, expected one of them",
                hint="remove one of them, or name it otherwise: what the catalog says is compared without these",
            )
        seen[key] = name


def _kind(value: Any) -> str:
    """What was found, for messages."""
    if value is None:
        return "nothing"
    if isinstance(value, _Pairs):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return f"the text {value[:40]!r}" if isinstance(value, str) else repr(value)
