"""Tags in the tables, judged by heads made by hand: which labels, what is judged anew, what apps see meanwhile."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest
from safetensors.numpy import save_file

import pipeline.tag
from pipeline.errors import ConfigError, LockedError, ModelError
from pipeline.models.head import read_head
from pipeline.models.trained import TrainedProducts
from pipeline.search import EncoderChoice
from pipeline.store.connect import Session
from pipeline.store.models import register_model
from pipeline.store.neighbours import take_lock as take_neighbours_lock
from pipeline.store.queries import put_query, put_vectors
from pipeline.store.tags import read_vectors, take_lock
from pipeline.switch import drop as drop_model
from pipeline.tag import Tagging, drop, tag
from tests.fixtures.heads import hand_made_head
from tests.fixtures.store import Shop, model_spec, product, unit

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.store.models import StoredModel

TAGS = """
SELECT product_id, attribute, label, round(probability::numeric, 2)::float8
  FROM catvec.product_tags
 ORDER BY 1, 2, 3
"""
ROWS = "SELECT xmin::text, ctid::text, product_id, attribute_id FROM catvec_store.product_tags ORDER BY 3, 4"
COLOURS = {"red": [8.0, 0, 0, 0], "green": [0.0, 8, 0, 0]}


ONE = ((np.full((2, 4), np.nan, np.float32), np.zeros(2, np.float32)),)
DAMAGES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"labels": ("red",)}, "labels is ['red'], expected at least 2 different ones"),
    ({"labels": ("red", "red")}, "labels is ['red', 'red'], expected at least 2 different ones"),
    (
        {"labels": ("red", "green", "blue")},
        "its matrices are [((2, 4), (2,))], expected [((2, 4), (2,))] for 3 labels",
    ),
    ({"labels": (1, 2)}, "label is 1, expected a text"),
    ({"labels": None}, "labels is None, expected a list"),
    ({"labels": ("red", "a\0b")}, "label 'a\\x00b' holds a character that Postgres cannot store"),
    (
        {"labels": ("red", "unknown")},
        "one of its labels is 'unknown', which is what a product is called that no label fits",
    ),
    ({"attribute": ""}, "attribute '' is empty, expected words"),
    ({"attribute": None}, "attribute is None, expected a text"),
    ({"threshold": "x"}, "threshold is 'x', expected a number"),
    ({"threshold": 5}, "threshold is 5, expected 0 to 1"),
    ({"threshold": float("nan")}, "threshold is nan, expected 0 to 1"),
    ({"threshold": True}, "threshold is True, expected a number"),
    ({"dims": 5}, "its matrices are [((2, 4), (2,))], expected [((2, 5), (2,))] for 2 labels"),
    ({"dims": "4"}, "dims is '4', expected a whole number"),
    ({"revision": 7}, "revision is 7, expected a text"),
    ({"report": []}, "report is [], expected an object"),
    ({"layers": ONE}, "its matrices hold numbers that are not finite"),
    ({"layers": ((np.zeros((2, 4)), np.zeros(2)),)}, "its matrices are not all float32"),
    ({"layers": ()}, "its matrices are [], expected ['layers.0.bias', '…']"),
    (
        {"learned": TrainedProducts(digests=np.zeros((1, 2)))},
        "learned holds float64 of 2 dimensions, expected uint64 of 1",
    ),
)


@pytest.fixture
def tagged(shop: Shop) -> StoredModel:
    """A is red, B green, C between them; D has a red picture and two green ones, E has none yet."""
    shop.sync(
        *(product(name, f"{name}.jpg", row=row, attrs={"colour": "red"}) for row, name in enumerate("ABC", 1)),
        product("D", "d1.jpg", "d2.jpg", "d3.jpg", row=4),
    )
    model = shop.register()
    red, green = unit(1, 0, 0, 0), unit(0, 1, 0, 0)
    shop.embed(model, [red, green, unit(1, 1, 0, 0), red, green, green])
    shop.sync(
        *(product(name, f"{name}.jpg", row=row, attrs={"colour": "red"}) for row, name in enumerate("ABC", 1)),
        product("D", "d1.jpg", "d2.jpg", "d3.jpg", row=4),
        product("E", "e.jpg", row=5),
    )
    shop.activate(model)
    return model


def run(url: str, source: Path, **calibrate: str) -> Tagging:
    return tag(url, source, EncoderChoice(), calibrate=calibrate)


@pytest.mark.parametrize("storage", ["halfvec", "vector"])
def test_vectors_are_read_as_they_are_stored(shop: Shop, storage: str) -> None:
    shop.sync(product("A", "a1.jpg", "a2.jpg"), product("B", "b.jpg", row=2))
    model = shop.session.run(
        lambda connection: register_model(connection, model_spec(), "print", location="/models/tiny", storage=storage)
    )
    shop.embed(model, [unit(1, 2, 0, 0), unit(1, 0, 2, 0), unit(0, 3, -1, 1)])

    found = shop.session.run(lambda connection: read_vectors(connection, model, ["A", "B", "nix"]))
    none = shop.session.run(lambda connection: read_vectors(connection, model, ["nix"]))

    assert found.product_ids == ["A", "B"]
    assert found.vectors.dtype == np.float32
    # 16 bits keep three digits
    np.testing.assert_allclose(found.vectors, [unit(2, 2, 2, 0), unit(0, 3, -1, 1)], atol=1e-3)
    assert none.vectors.shape == (0, 4)


def test_products_have_the_label_of_the_mean_of_their_images(
    shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path
) -> None:
    found = run(database_url, hand_made_head(tmp_path, tagged, COLOURS))

    assert shop.all(TAGS) == [
        ("A", "colour", "red", 1.0),
        ("B", "colour", "green", 1.0),
        ("C", "colour", "red", 0.5),
        ("D", "colour", "green", 0.97),  # softmax of 8/√5 and 16/√5
    ]
    assert (found.model, found.products, found.tagged, found.removed) == ("tiny", 4, 4, 0)
    [colour] = found.attributes
    assert (colour.attribute, colour.is_anew, colour.products_by_label) == ("colour", True, {"green": 2, "red": 2})
    assert shop.all(
        "SELECT attribute, model, is_active, labels, threshold, temperature FROM catvec.tag_attributes"
    ) == [("colour", "tiny", True, ["red", "green"], 0.5, None)]


def test_a_second_time_nothing_is_judged_or_rewritten(
    shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path
) -> None:
    head = hand_made_head(tmp_path, tagged, COLOURS)
    run(database_url, head)
    before = shop.all(ROWS)

    again = run(database_url, head)

    assert (again.products, again.tagged, again.attributes[0].is_anew) == (4, 0, False)
    assert shop.all(ROWS) == before


def test_only_what_is_new_or_changed_is_judged_and_what_left_loses_its_tags(
    shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path
) -> None:
    head = hand_made_head(tmp_path, tagged, COLOURS)
    run(database_url, head)
    kept = {row[2]: row[:2] for row in shop.all(ROWS)}
    # A leaves, B gets another picture beside, E its first, F comes
    shop.sync(
        product("B", "B.jpg", "b2.jpg"),
        product("C", "C.jpg", row=2),
        product("D", "d1.jpg", "d2.jpg", "d3.jpg", row=3),
        product("E", "e.jpg", row=4),
        product("F", "f.jpg", row=5),
        max_remove_rate=1,
    )
    # at once, before anything is judged again
    assert [row[0] for row in shop.all(TAGS)] == ["B", "C", "D"]
    waiting = {image.product_id: image for image in shop.work(tagged)}
    assert sorted(waiting) == ["B", "E", "F"]
    vectors = {"B": unit(9, -3, 0, 0), "E": unit(0, 1, 0, 0), "F": unit(0, 1, 0, 0)}
    shop.embed(tagged, [vectors[image.product_id] for image in shop.work(tagged)])

    found = run(database_url, head)

    assert [row[:3] for row in shop.all(TAGS)] == [
        ("B", "colour", "red"),
        ("C", "colour", "red"),
        ("D", "colour", "green"),
        ("E", "colour", "green"),
        ("F", "colour", "green"),
    ]
    assert (found.products, found.tagged, found.removed) == (5, 3, 1)
    now = {row[2]: row[:2] for row in shop.all(ROWS)}
    assert (now["C"], now["D"]) == (kept["C"], kept["D"])
    assert now["B"] != kept["B"]
    assert "A" not in now


def test_other_labels_take_the_place_of_the_old_ones_whole(
    shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apps see the old answers until the new ones are all there, whatever breaks off in between."""
    run(database_url, hand_made_head(tmp_path, tagged, COLOURS))
    before = shop.all(TAGS)
    other = hand_made_head(tmp_path, tagged, {"warm": [8.0, 0, 0, 0], "cold": [0.0, 8, 0, 0]})
    monkeypatch.setattr(pipeline.tag, "PAGE", 1)
    judged: list[int] = []

    def break_off(done: int, _total: int) -> None:
        judged.append(done)
        assert shop.all(TAGS) == before
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tag(database_url, other, EncoderChoice(), calibrate={}, report=break_off)
    assert shop.all(TAGS) == before

    found = run(database_url, other)

    assert judged == [0, 1, 2]
    assert (found.tagged, found.attributes[0].is_anew) == (2, True)
    assert {row[2] for row in shop.all(TAGS)} == {"warm", "cold"}
    assert shop.one("SELECT count(*) FROM catvec_store.tag_attributes") == 1
    assert shop.one("SELECT count(*) FROM catvec_store.product_tags") == 4


def test_what_another_question_left_unfinished_goes(
    shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.tag, "PAGE", 1)

    def break_off(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tag(
            database_url,
            hand_made_head(tmp_path, tagged, COLOURS),
            EncoderChoice(),
            calibrate={},
            report=break_off,
        )
    assert shop.all(TAGS) == []

    run(database_url, hand_made_head(tmp_path, tagged, {"warm": [8.0, 0, 0, 0], "cold": [0.0, 8, 0, 0]}))

    assert shop.one("SELECT count(*) FROM catvec_store.tag_attributes") == 1
    assert {row[2] for row in shop.all(TAGS)} == {"warm", "cold"}


def test_attributes_stand_beside_each_other_until_one_is_dropped(
    shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path
) -> None:
    run(database_url, hand_made_head(tmp_path, tagged, COLOURS))
    run(database_url, hand_made_head(tmp_path, tagged, {"old": [8.0, 0, 0, 0], "new": [0, 0, 0, 0]}, attribute="age"))
    assert {row[1] for row in shop.all(TAGS)} == {"colour", "age"}

    assert drop(database_url, ["colour"], None) == "tiny"

    assert {row[1] for row in shop.all(TAGS)} == {"age"}
    assert shop.one("SELECT count(*) FROM catvec_store.product_tags") == 4
    with pytest.raises(ConfigError, match="no attribute 'colour' is tagged under model 'tiny', there are: 'age'"):
        drop(database_url, ["age", "colour"], None)
    assert {row[1] for row in shop.all(TAGS)} == {"age"}


def test_attributes_that_were_not_asked_for_are_told_when_they_are_behind(
    shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path
) -> None:
    """A catalog that was cut off for a night and is whole again, and another labels file."""
    colour = hand_made_head(tmp_path, tagged, COLOURS)
    age = hand_made_head(tmp_path, tagged, {"old": [8.0, 0, 0, 0], "new": [0, 0, 0, 0]}, attribute="age")
    assert run(database_url, colour).behind == {}
    assert run(database_url, age).behind == {}
    shop.session.connection().execute("UPDATE catvec_store.products SET active = false WHERE product_id < 'C'")
    assert (run(database_url, age).removed, run(database_url, age).behind) == (2, {})
    shop.session.connection().execute("UPDATE catvec_store.products SET active = true")
    # C shows another picture, too
    shop.session.connection().execute(
        "UPDATE catvec_store.product_tags SET contents = '' WHERE product_id = 'C' AND attribute_id ="
        " (SELECT attribute_id FROM catvec.tag_attributes WHERE attribute = 'colour')"
    )

    assert run(database_url, age).behind == {"colour": 3}
    assert run(database_url, colour).behind == {}
    assert run(database_url, age).behind == {}


def test_two_at_once_are_refused(shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path) -> None:
    head = hand_made_head(tmp_path, tagged, COLOURS)
    with (
        Session(database_url, on_connect=lambda connection: take_lock(connection, tagged)),
        pytest.raises(LockedError, match="products are being tagged under model 'tiny' already"),
    ):
        run(database_url, head)
    run(database_url, head)


def test_a_head_of_another_model_is_refused(
    shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path
) -> None:
    for changes in ({"revision": "sha256:2"}, {"fingerprint": "other"}, {"source": "openai/clip"}):
        head = hand_made_head(tmp_path, tagged, COLOURS, **changes)
        with pytest.raises(ModelError, match=r"the head of 'colour' was trained on another model .* than 'tiny'"):
            run(database_url, head)
    assert shop.one("SELECT count(*) FROM catvec_store.tag_attributes") == 0


def test_a_model_that_is_dropped_takes_its_tags_along(
    shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path
) -> None:
    run(database_url, hand_made_head(tmp_path, tagged, COLOURS))
    other = shop.register(model_spec("other", dims=2, revision="sha256:2"))
    shop.embed(other, [unit(1, number) for number in range(len(shop.work(other)))])
    shop.activate(other)
    assert {row[0] for row in shop.all("SELECT is_active FROM catvec.product_tags")} == {False}
    with pytest.raises(psycopg.errors.InvalidParameterValue, match='model "other" has tagged no such attribute'):
        shop.all("""SELECT * FROM catvec.similar_products('A', 5, '{"tag:colour": "red"}')""")

    drop_model(database_url, "tiny", wait_s=5, is_sure=lambda _dropped: True)

    assert shop.one("SELECT count(*) FROM catvec_store.product_tags") == 0
    # those who had chosen it a moment before
    for take in (take_lock, take_neighbours_lock):
        with pytest.raises(ConfigError, match=r"model 'tiny' was retired on .*, its vectors are gone"):
            Session(database_url, on_connect=partial(take, model=tagged)).connection()


def test_forgotten_products_take_their_tags_along(
    shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path
) -> None:
    run(database_url, hand_made_head(tmp_path, tagged, COLOURS))

    shop.session.connection().execute("DELETE FROM catvec_store.products WHERE product_id = 'A'")

    assert shop.one("SELECT count(*) FROM catvec_store.product_tags WHERE product_id = 'A'") == 0


def test_searches_filter_by_tag(shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path) -> None:
    run(database_url, hand_made_head(tmp_path, tagged, COLOURS))
    run(database_url, hand_made_head(tmp_path, tagged, {"old": [9.0, 1, 0, 0], "new": [0, 3, 0, 0]}, attribute="age"))
    expected = {
        '{"tag:colour": "red"}': "AC",
        '{"tag:colour": ["red", "green"]}': "ABCD",
        '{"tag:colour": "unknown"}': "",
        '{"tag:colour": []}': "",
        '{"tag:colour": "green", "tag:age": "old"}': "D",
        '{"tag:colour": "green", "colour": "red"}': "B",
    }

    found = {
        conditions: "".join(
            row[0]
            for row in shop.all("SELECT product_id FROM catvec.search_by_vector('[1,1,0,0]', 10, %s)", conditions)
        )
        for conditions in expected
    }

    assert {conditions: "".join(sorted(names)) for conditions, names in found.items()} == expected


NAMED = {
    "similar_products": "similar_products('A', 9, %s, %s)",
    "similar_products_batch": "similar_products_batch('{A}', 9, %s, %s)",
    "search_by_vector": "search_by_vector('[1,1,0,0]', 9, %s, %s)",
    "search_by_array": "search_by_array('{1,1,0,0}', 9, %s, %s)",
    "search_by_query": "search_by_query('any', 9, %s, %s)",
}


def test_a_filter_goes_by_the_tags_of_the_model_that_is_searched(shop: Shop, tagged: StoredModel) -> None:
    """An app that names its model goes on to find the same while others are switched to the next one."""
    other = shop.register(model_spec("other", revision="sha256:2"))
    shop.embed(other, [unit(1, number, 0, 0) for number in range(len(shop.work(other)))])
    query = put_query(shop.session.connection(), "any", "anything", replace=False)
    for model in (tagged, other):
        put_vectors(shop.session.connection(), model, [query], unit(1, 1, 0, 0)[None])
    shop.tag(tagged, "colour", {"A": "red", "B": "red", "C": "green"})

    def found(call: str, model: StoredModel | None) -> set[str]:
        conditions = '{"tag:colour": "red"}'
        rows = shop.all(f"SELECT product_id FROM catvec.{call}", conditions, model.name if model else None)
        return {row[0] for row in rows} - {"A"}

    assert {name: found(call, tagged) for name, call in NAMED.items()} == {name: {"B"} for name in NAMED}
    with pytest.raises(
        psycopg.errors.InvalidParameterValue, match='model "other" has tagged no such attribute, there are: none'
    ):
        found(NAMED["similar_products"], other)

    shop.tag(other, "colour", {"D": "red"})
    shop.activate(other)

    for model, expected in ((tagged, {"B"}), (other, {"D"}), (None, {"D"})):
        assert {name: found(call, model) for name, call in NAMED.items()} == dict.fromkeys(NAMED, expected)
    [(condition,)] = shop.all("SELECT catvec.filter_condition('{\"tag:colour\": \"red\"}', 'tiny')")
    assert shop.all(f"SELECT product_id FROM catvec.products p WHERE true {condition} ORDER BY 1") == [("A",), ("B",)]


def test_a_filter_by_an_unknown_tag_is_refused(
    shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path
) -> None:
    run(database_url, hand_made_head(tmp_path, tagged, COLOURS))
    for conditions, message in (
        ('{"tag:color": "red"}', 'model "tiny" has tagged no such attribute, there are: tag:colour'),
        ('{"tag:": "red"}', 'filter key "tag:": model "tiny" has tagged no such attribute'),
        ('{"tag:colour": "blue"}', 'filter key "tag:colour" has the label "blue", there are: red, green'),
        ('{"tag:colour": 3}', r'filter key "tag:colour" is \[3\], expected a label or a list of labels'),
        ('{"tag:colour": {"is": "red"}}', "expected a label or a list of labels"),
        ('{"tag:colour": "x\'); DROP TABLE catvec_store.runs --"}', "has the label"),
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
            shop.all("SELECT * FROM catvec.similar_products('A', 5, %s)", conditions)


def test_a_temperature_is_fitted_on_the_catalog_kept_and_used(shop: Shop, database_url: str, tmp_path: Path) -> None:
    """A judge that is far too sure: right 3 times of 4, and 20 times as certain as that."""
    places = range(80)
    shop.sync(
        *(
            product(
                f"P{place:02}", f"{place}.jpg", row=place, attrs={"farbe": " Dark  RED" if place % 4 else "green"}
            )
            for place in places
        ),
        product("other", "o.jpg", row=90, attrs={"farbe": "blue"}),
        product("both", "b.jpg", row=91, attrs={"farbe": ["dark red", "green"]}),
        product("none", "n.jpg", row=92, attrs={"farbe": []}),
    )
    model = shop.register()
    shop.embed(model, [unit(1, 0, 0, place / 1000) for place in range(83)])
    shop.activate(model)
    head = hand_made_head(tmp_path, model, {"dark red": [20.0, 0, 0, 0], "green": [0.0, 0, 0, 0]})

    [found] = run(database_url, head, colour="farbe").calibrations

    assert (found.attribute, found.truth, found.products, found.left_out) == ("colour", "farbe", 80, 2)
    assert found.accuracy == 0.75
    # 60 of 80 and doubts of 1/82 are 0.744: softmax(1.0664)
    assert found.temperature == pytest.approx(20 / 1.0664, rel=0.001)
    assert found.ece_before == pytest.approx(0.25, abs=0.01)
    assert found.ece_after < 0.12  # the halves have not quite as many of each
    assert {row[3] for row in shop.all(TAGS)} == {0.74}

    again = run(database_url, head)

    assert (again.tagged, again.calibrations) == (0, ())
    assert {row[3] for row in shop.all(TAGS)} == {0.74}
    threshold = run(
        database_url,
        hand_made_head(tmp_path, model, {"dark red": [20.0, 0, 0, 0], "green": [0.0, 0, 0, 0]}, threshold=0.8),
    )
    assert (threshold.tagged, {row[2:] for row in shop.all(TAGS)}) == (83, {("unknown", 0.74)})
    run(database_url, hand_made_head(tmp_path, model, {"dark red": [20.0, 0, 0, 0], "blue": [0.0, 0, 0, 0]}))
    assert {row[3] for row in shop.all(TAGS)} == {1.0}  # another question: the model's own again
    # with 80 products a quarter is open: one that is known otherwise says nothing against a temperature, 15 do
    hand_made_head(tmp_path, model, {"dark red": [20.0, 0, 0, 0], "green": [0.0, 0, 0, 0]})
    [found] = run(database_url, head, colour="farbe").calibrations
    change = """UPDATE catvec_store.products SET attrs = '{"farbe": "green"}' WHERE product_id < %s RETURNING 1"""
    shop.all(change, "P02")
    night = run(database_url, head, colour="farbe")
    [kept] = night.calibrations
    assert (night.tagged, kept.temperature) == (0, found.temperature)
    assert kept.fitted == pytest.approx(20 / 1.0033, rel=0.001)
    assert kept.uncertainty == pytest.approx(0.2515, rel=0.01)
    shop.all(change, "P20")
    assert run(database_url, head, colour="farbe").tagged == 83


def test_too_few_known_labels_are_refused(shop: Shop, tagged: StoredModel, database_url: str, tmp_path: Path) -> None:
    head = hand_made_head(tmp_path, tagged, COLOURS)
    with pytest.raises(
        ConfigError,
        match=r"3 products have one of the labels of 'colour' as their 'colour' in the catalog, expected at least 20",
    ):
        run(database_url, head, colour="colour")
    with pytest.raises(
        ConfigError, match=r"--calibrate names the attribute 'size', which '.*' does not have, expected colour"
    ):
        run(database_url, head, size="size")


def test_a_head_that_is_damaged_or_none_is_refused(tagged: StoredModel, tmp_path: Path, database_url: str) -> None:
    head = hand_made_head(tmp_path, tagged, COLOURS)
    whole = head.read_bytes()
    head.write_bytes(whole[:-5])
    with pytest.raises(ModelError, match="cannot read the head"):
        run(database_url, head)
    save_file({"a": np.zeros(3)}, head)
    with pytest.raises(ModelError, match="holds no head of catvec's"):
        run(database_url, head)
    with pytest.raises(ModelError, match=r"cannot read the head '.*nothing.safetensors'"):
        run(database_url, tmp_path / "nothing.safetensors")
    for changes, message in DAMAGES:
        hand_made_head(tmp_path, tagged, COLOURS, **changes).replace(head)
        with pytest.raises(ModelError) as error:
            read_head(head)
        assert error.value.message == f"the head {str(head)!r} is damaged: {message}"
        assert error.value.hint == "train it again"


def test_vectors_are_combined_by_their_directions(shop: Shop, tagged: StoredModel) -> None:
    combined = "SELECT round(n::numeric, 3)::float8 FROM unnest(catvec.combine_vectors(%s, %s)::real[]) n"
    half = 0.707
    assert shop.all(combined, ["[2,0]", "[0,9]"], None) == [(half,), (half,)]
    assert shop.all(combined, ["[2,0]", "[0,9]"], [3, -4]) == [(0.6,), (-0.8,)]
    assert shop.all(combined, ["[2,2]"], None) == [(half,), (half,)]
    for size in (1e-6, 1e6):
        assert shop.all(combined, ["[2,0]", "[0,9]"], [size, -size]) == [(half,), (-half,)]
    assert shop.one("SELECT vector_dims(catvec.combine_vectors(ARRAY['[1,2]'::vector, '[2,1]']))") == 2


def test_vectors_that_cannot_be_combined_are_refused(shop: Shop) -> None:
    for arguments, message in (
        ("'{}'", "there is no vector to combine"),
        ("NULL", "there is no vector to combine"),
        ("ARRAY['[1,2]'::halfvec], ARRAY[1, 2]", "there are 1 vectors and 2 weights, expected one for each"),
        ("ARRAY['[1,2]'::halfvec], ARRAY['NaN'::float8]", "the weights are {NaN}, expected numbers"),
        (
            "ARRAY['[1,2]'::halfvec], ARRAY[1e300]",
            r"the weights are {1e\+300}, expected numbers of a size from 0.000001 to 1000000, or 0",
        ),
        (
            "ARRAY['[1,2]'::halfvec, '[2,1]'], ARRAY[1, -1e-300]",
            "the weights are {1,-1e-300}, expected numbers of a size from",
        ),
        ("ARRAY['[1,2]'::halfvec], ARRAY[NULL::float8]", "the weights are {NULL}, expected numbers"),
        ("ARRAY['[1,2]'::halfvec, NULL]", "vector 2 is null"),
        (
            "ARRAY['[1,2]'::halfvec, '[1,2,3]']",
            "vector 1 has 2 dimensions and vector 2 has 3, expected vectors of one model",
        ),
        ("ARRAY['[1,2]'::halfvec, '[0,0]']", "vector 2 is zero, which has no direction"),
        ("ARRAY['[1,2]'::halfvec, '[2,4]'], ARRAY[1, -1]", "the vectors cancel each other out"),
        ("ARRAY['[1,2]'::halfvec], ARRAY[0]", "the vectors cancel each other out"),
    ):
        with pytest.raises(psycopg.Error, match=message):
            shop.all(f"SELECT catvec.combine_vectors({arguments})")


def test_a_product_has_the_mean_of_its_images(shop: Shop, tagged: StoredModel) -> None:
    numbers = "SELECT round(n::numeric, 2)::float8 FROM unnest(catvec.product_vector(%s)::real[]) n"
    assert shop.all(numbers, "D") == [(0.45,), (0.89,), (0.0,), (0.0,)]
    assert shop.one("SELECT catvec.product_vector('E') IS NULL")
    with pytest.raises(psycopg.errors.NoDataFound, match="no product 'nix'"):
        shop.all(numbers, "nix")
    found = shop.all(
        "SELECT product_id FROM catvec.search_by_vector("
        " catvec.combine_vectors(ARRAY[catvec.product_vector('A'), catvec.product_vector('B')], ARRAY[1, -0.5]), 2)"
    )
    assert found == [("A",), ("D",)]  # one picture of D is red
