"""Labels files: what they may say, what is refused and how, and what the labels' vectors are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.errors import ConfigError, ModelError
from pipeline.labels import TEMPLATES, Attribute, Label, against_vectors, label_vectors, read_labels
from pipeline.models.encoder import load_encoder
from pipeline.settings import ModelSettings

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.models.encoder import Encoder

WHOLE = """
colour:
  labels:
    - red
    - navy: [navy blue, dark blue]
    - green: grass green
  templates: ["a photo of a {} garment", "a {} product"]
  threshold: 0.25
occasion:
  exclusive: false
  against: [anything, a product]
  labels:
    beach:
    office: [work, business]
season: [summer, winter]   # defaults
"""

AS_JSON = """{
\t"colour": {"labels": ["red", {"navy": ["navy blue", "dark blue"]}, {"green": "grass green"}],
\t           "templates": ["a photo of a {} garment", "a {} product"], "threshold": 0.25},
\t"occasion": {"exclusive": false, "against": ["anything", "a product"],
\t             "labels": {"beach": null, "office": ["work", "business"]}},
\t"season": ["summer", "winter"]
}"""


SHARED = """
colour: {labels: [red, navy], templates: &shared ["a {} garment"]}
season: {labels: [summer, winter], templates: *shared}
"""
MERGED = """
colour: &common {labels: [red, navy], threshold: 0.3}
season: {<<: *common, labels: [summer, winter]}
"""


def write(folder: Path, text: str | bytes, name: str = "labels.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(("text", "name"), [(WHOLE, "labels.yaml"), (AS_JSON, "labels.JSON"), (WHOLE, "labels")])
def test_a_file_says_attributes_labels_and_words(tmp_path: Path, text: str, name: str) -> None:
    assert read_labels(write(tmp_path, "\ufeff" + text, name)) == (
        Attribute(
            name="colour",
            labels=(
                Label(name="red", words=("red",)),
                Label(name="navy", words=("navy blue", "dark blue")),
                Label(name="green", words=("grass green",)),
            ),
            templates=("a photo of a {} garment", "a {} product"),
            threshold=0.25,
        ),
        Attribute(
            name="occasion",
            labels=(Label(name="beach", words=("beach",)), Label(name="office", words=("work", "business"))),
            is_exclusive=False,
            against=("anything", "a product"),
        ),
        Attribute(
            name="season",
            labels=(Label(name="summer", words=("summer",)), Label(name="winter", words=("winter",))),
            templates=TEMPLATES,
            is_exclusive=True,
            threshold=0.5,
        ),
    )


def test_values_can_be_shared_but_mappings_not_be_merged(tmp_path: Path) -> None:
    assert [attribute.templates for attribute in read_labels(write(tmp_path, SHARED))] == 2 * [("a {} garment",)]
    for text, line in ((MERGED, 3), ("colour: &c {labels: [red, navy]}\n<<: {season: *c}", 2)):
        with pytest.raises(
            ConfigError, match=rf"merges mappings \(<<\) in line {line}, which is not supported"
        ) as caught:
            read_labels(write(tmp_path, text))
        assert (
            caught.value.hint
            == "repeat single values instead: templates: &shared [...] once, then templates: *shared"
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing, expected attributes with their labels"),
        ("- red\n- green", "holds a list, expected attributes with their labels"),
        ("red", "holds the text 'red', expected attributes"),
        ("{}", "holds an empty mapping, expected attributes"),
        ("colour: [red\n", "is not YAML: expected ',' or ']', but got '<stream end>' in line 2, column 1"),
        ("colour: \x07", "is not YAML: unacceptable character #x0007"),
        ("colour: [!!timestamp soon]", "is not YAML: a value is not of the kind that its tag says"),
        ("colour: [2024-13-45]", "is not YAML: month must be in 1..12"),
        ("colour: [!!python/name:os.system x]", "is not YAML: could not determine a constructor for the tag"),
        ("colour: " + 2000 * "[", "is not YAML: "),
        ("colour: [red, green]\ncolour: [blue, green]", "attribute 'colour' stands there twice"),
        ("colour: [red, blue, red]", "attribute 'colour', labels: the label 'red' stands there twice"),
        ("colour: {labels: {red: a, red: b}}", "attribute 'colour', labels: the label 'red' stands there twice"),
        ("colour: {labels: [red], labels: [blue]}", "attribute 'colour': the key 'labels' stands there twice"),
        (
            "colour: {label: [red]}",
            "the unknown key 'label', expected labels, templates, exclusive, threshold, against",
        ),
        ("colour: {[a]: [red]}", "attribute 'colour' has the unknown key ['a'], expected labels"),
        ("colour: {threshold: 0.5}", "attribute 'colour' has no labels"),
        ("colour:", "attribute 'colour' is nothing, expected a list of labels"),
        ("colour: red", "attribute 'colour' is the text 'red', expected a list of labels"),
        ("colour: []", "attribute 'colour', labels: found an empty list, expected at least one label"),
        ("colour: {labels: {}}", "attribute 'colour', labels: found an empty mapping, expected at least one label"),
        ("colour: [{}]", "attribute 'colour', labels: found a list, expected at least one label"),
        ("colour: {labels: red}", "attribute 'colour', labels: found the text 'red', expected at least one label"),
        ("colour: [red, no]", "attribute 'colour', labels: label: found False, expected text"),
        ("size: [38]", "attribute 'size', labels: label: found 38, expected text"),
        ("38: [red]", "attribute: found 38, expected text"),
        ("colour: [[red]]", "attribute 'colour', labels: label: found a list, expected text"),
        ("colour: [' ']", "attribute 'colour', labels: label: found an empty text, expected words"),
        ("colour: ['red ']", "attribute 'colour', labels: label 'red ' begins or ends with a space"),
        ('colour: ["a\\0b"]', "label: 'a\\x00b' holds a character that Postgres cannot store"),
        (f"colour: [{201 * 'x'}]", "label 'xxxxxxxxxxxxxxxxxxxx'… has 201 characters, expected at most 200"),
        ("colour: [red, unknown]", "'unknown' is what a product is called that no label fits"),
        ("colour: [{red: []}]", "words of 'red': found an empty list, expected at least one text"),
        ("colour: [{red: [a, a]}]", "words of 'red': the text 'a' stands there twice"),
        ("colour: [{red: ''}]", "words of 'red': found an empty text, expected words"),
        ("colour: {labels: [a], templates: []}", "attribute 'colour', templates: found an empty list"),
        ("colour: {labels: [a], templates: ['']}", "attribute 'colour', templates: found an empty text"),
        ("colour: {labels: [a], templates: a photo}", "templates: 'a photo' holds 0 of {}, expected one"),
        ("colour: {labels: [a], templates: ['{} {}']}", "templates: '{} {}' holds 2 of {}, expected one"),
        ("colour: {labels: [a], exclusive: 1}", "attribute 'colour', exclusive: found 1, expected true or false"),
        ("colour: {labels: [a], threshold: 50}", "threshold: found 50, expected a number from 0 to 1"),
        ("colour: {labels: [a], threshold: yes}", "threshold: found True, expected a number from 0 to 1"),
        ("colour: {labels: [a], threshold: .nan}", "threshold: found nan, expected a number from 0 to 1"),
        ("colour: [dress]", "attribute 'colour' has one label, 'dress', which every product would get, expected at"),
        ("colour: {labels: [a, b], against: [thing]}", "attribute 'colour' has against, expected only beside"),
        ("colour: {labels: [a, b], exclusive: true, against: x}", "attribute 'colour' has against, expected only"),
        (
            "colour: [Red, red]",
            "attribute 'colour', labels: the label 'red' differs from 'Red' only by upper and lower",
        ),
        ("colour: [blé, ble\u0301]", "the label 'ble\u0301' differs from 'blé' only by upper and lower case, white"),
        (
            "colour: [light  red, light red]",
            "the label 'light red' differs from 'light  red' only by upper and lower",
        ),
        ("blé: [a, b]\nble\u0301: [a, b]", "attribute 'ble\u0301' differs from 'blé' only by"),
        ("x: [{a: red}, {b: red}]", "attribute 'x': the labels 'a' and 'b' have the same words, 'red', expected"),
        ("x: [{a: [red, wine]}, {b: [Wine, red]}]", "the labels 'a' and 'b' have the same words, 'Wine', 'red'"),
        ("colour: {labels: [a], against: {}}", "against: found an empty mapping, expected text"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_labels(write(tmp_path, text))
    assert message in caught.value.message
    assert "labels.yaml" in caught.value.message


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read '.*nothing\.yaml': No such file"):
        read_labels(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match=r"cannot read '.*': Is a directory"):
        read_labels(tmp_path)
    with pytest.raises(ConfigError, match=r"labels\.yaml' is not UTF-8: byte 0xfc at 9"):
        read_labels(write(tmp_path, "colour: gr\u00fcn".replace("gr", "g").encode("cp1252")))
    with pytest.raises(ConfigError, match=r"labels\.json' is not JSON: Expecting value"):
        read_labels(write(tmp_path, "colour: [red]", "labels.json"))
    twice = write(tmp_path, '{"colour": ["red", "blue"], "colour": ["green", "grey"]}', "labels.json")
    with pytest.raises(ConfigError, match="attribute 'colour' stands there twice"):
        read_labels(twice)


@pytest.fixture(scope="module")
def encoder(tiny_clip: Path) -> Encoder:
    return load_encoder(ModelSettings(model=str(tiny_clip), device="cpu", precision="fp32"))


def test_label_vectors_are_means_over_words_and_templates(encoder: Encoder) -> None:
    attribute = Attribute(
        name="colour",
        labels=(Label(name="red", words=("red",)), Label(name="navy", words=("navy blue", "dark blue"))),
        templates=("a photo of a {}", "{}"),
        against=("product", "thing"),
    )
    found = label_vectors(encoder, attribute)
    assert (found.shape, found.dtype) == ((2, 32), np.float32)

    def mean_of(*texts: str) -> np.ndarray:
        mean = encoder.encode_texts(texts).astype(np.float64).mean(axis=0)
        return mean / np.linalg.norm(mean)

    np.testing.assert_allclose(found[0], mean_of("a photo of a red", "red"), atol=1e-6)
    navy = mean_of("a photo of a navy blue", "navy blue", "a photo of a dark blue", "dark blue")
    np.testing.assert_allclose(found[1], navy, atol=1e-6)
    neutral = [mean_of("a photo of a product", "product"), mean_of("a photo of a thing", "thing")]
    np.testing.assert_allclose(against_vectors(encoder, attribute), neutral, atol=1e-6)


def test_words_that_the_model_does_not_read_to_their_end_are_told(
    encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    """And refused when they would make two labels one."""
    red, long = Label(name="red", words=("red",)), Label(name="long", words=(200 * "very " + "red",))
    attribute = Attribute(name="colour", labels=(red, long), templates=("a {}",))
    label_vectors(encoder, attribute)
    [record] = caplog.records
    assert record.getMessage() == (
        f"model tiny_clip reads {encoder.tokens_kept(long.words[0])} tokens of a text, so 1 of the 2 texts of "
        f"attribute 'colour' are cut, such as {('a ' + long.words[0])[:60]!r}: use shorter words or templates"
    )
    other = Label(name="other", words=(200 * "very " + "blue",))
    with pytest.raises(ConfigError) as caught:
        label_vectors(encoder, replace(attribute, labels=(red, long, other)))
    assert caught.value.message == (
        "the labels 'long' and 'other' of attribute 'colour' are the same to model 'tiny_clip', expected labels that "
        "it can tell apart"
    )


def test_a_model_without_text_has_no_label_vectors(tiny_image_only: Path) -> None:
    blind = load_encoder(ModelSettings(model=str(tiny_image_only), device="cpu", precision="fp32"))
    attribute = Attribute(name="colour", labels=(Label(name="red", words=("red",)),))
    with pytest.raises(ModelError, match="model 'tiny_image_only' has no text side"):
        label_vectors(blind, attribute)
