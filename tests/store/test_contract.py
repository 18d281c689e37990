"""What the functions promise: never fewer rows than exist, the nearest ones, and each argument as documented."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest

from benchmarks.clip_like import draw_cloud, draw_texts
from pipeline.store.connect import Session
from pipeline.store.index import build_index, refresh_statistics
from tests.fixtures.store import Shop, model_spec, product, unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.store.models import StoredModel

PRODUCTS = 3000
FILTERS = [
    {},
    {"half": 1},
    {"tenth": 1},
    {"hundredth": 1},
    {"category": "none"},
    {"category": "corner"},
    {"category": ["corner", "none"], "half": 1},
    {"price": {"min": 100, "max": 120}},
]


class Crowd:
    """3,000 products of one to three images in 40 clusters; `category` corner is one cluster, far from the others."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        random = np.random.default_rng(7)
        centres = random.standard_normal((40, 32))
        images = random.integers(1, 4, PRODUCTS)
        cluster = random.integers(0, 40, PRODUCTS)
        self.rows = [
            product(
                f"P{number:04}",
                *(f"{number}-{place}.jpg" for place in range(images[number])),
                row=number,
                category="corner" if cluster[number] == 0 else "rest",
                price=number,
                attrs={
                    name: 1
                    for name, one_in in (("half", 2), ("tenth", 10), ("hundredth", 100))
                    if random.integers(one_in) == 0
                },
            )
            for number in range(PRODUCTS)
        ]
        shop.sync(*self.rows)
        model = shop.register(model_spec("crowd", dims=32))
        vectors = centres[np.repeat(cluster, images)] + 0.5 * random.standard_normal((images.sum(), 32))
        self.vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        shop.embed(model, list(self.vectors))
        refresh_statistics(shop.session.connection(), model)
        build_index(shop.session.connection(), model)
        shop.activate(model)
        self.owner = np.repeat(np.arange(PRODUCTS), images)

    def expected(self, query: NDArray[np.float32], k: int, conditions: dict[str, Any]) -> list[str]:
        """The truth, by comparing everything in numpy."""
        best = np.full(PRODUCTS, -2.0)
        np.maximum.at(best, self.owner, self.vectors @ query)
        wanted = [number for number in range(PRODUCTS) if self._passes(number, conditions)]
        return [f"P{number:04}" for number in sorted(wanted, key=lambda number: -best[number])[:k]]

    def _passes(self, number: int, conditions: dict[str, Any]) -> bool:
        row = self.rows[number]
        for key, value in conditions.items():
            if key == "category" and row.category not in ([value] if isinstance(value, str) else value):
                return False
            if key == "price" and not value["min"] <= number <= value["max"]:
                return False
            if key not in ("category", "price") and row.attrs.get(key) != value:
                return False
        return True


@pytest.mark.parametrize("k", [1, 10, 200])
def test_every_filter_gives_the_nearest_and_never_fewer_than_exist(shop: Shop, k: int) -> None:
    crowd = Crowd(shop)
    shares = []

    for conditions in FILTERS:
        for place in (5, 500, 4000):
            query = crowd.vectors[place]
            literal = str(query.tolist())
            found = [
                row[0]
                for row in shop.all(
                    "SELECT product_id FROM catvec.search_by_vector(%s, %s, %s)", literal, k, json.dumps(conditions)
                )
            ]
            expected = crowd.expected(query, k, conditions)
            assert len(found) == len(set(found)) == len(expected), (conditions, place)
            if expected:
                shares.append(len(set(found) & set(expected)) / len(expected))

    assert np.mean(shares) > 0.98
    assert min(shares) >= 0.8


@pytest.fixture
def pair(shop: Shop) -> StoredModel:
    """A has two images, at right angles; B is near to the first, C to the middle of both, D shows what B shows."""
    shop.sync(
        product("A", "a1.jpg", "a2.jpg", row=1),
        product("B", "b.jpg", row=2),
        product("C", "c.jpg", row=3),
        product("D", "d.jpg", row=4),
    )
    model = shop.register()
    shop.embed(model, [unit(1, 0, 0, 0), unit(0, 1, 0, 0), unit(1, 0.1, 0, 0), unit(1, 1, 0, 0), unit(1, 0.2, 0, 0)])
    # the same bytes under another URL
    shop.session.connection().execute(
        "UPDATE catvec_store.images d SET content_sha256 = b.content_sha256"
        "  FROM catvec_store.images b WHERE d.product_id = 'D' AND b.product_id = 'B'"
    )
    shop.activate(model)
    return model


@pytest.mark.usefixtures("pair")
def test_several_images_mean_the_best_pair_or_their_mean(shop: Shop) -> None:
    query = (
        "SELECT product_id, round(similarity::numeric, 3)::float8 FROM catvec.similar_products('A', 3, combine => %s)"
    )

    assert shop.all(query, "best") == [("B", 0.995), ("D", 0.995), ("C", 0.707)]
    assert shop.all(query, "mean") == [("C", 1.0), ("B", 0.774), ("D", 0.774)]
    with pytest.raises(psycopg.Error, match="combine is 'median', expected 'best' or 'mean'"):
        shop.all(query, "median")
    with pytest.raises(psycopg.Error, match="combine is NULL, expected 'best' or 'mean'"):
        shop.all(query, None)


@pytest.mark.usefixtures("pair")
def test_a_batch_answers_as_single_calls_do_in_the_order_asked(shop: Shop) -> None:
    single = {
        name: shop.all("SELECT product_id, similarity FROM catvec.similar_products(%s, 2)", name) for name in "CA"
    }

    batch = shop.all(
        "SELECT query_product, rank, product_id, similarity"
        "  FROM catvec.similar_products_batch(ARRAY['C', 'nix', 'A', NULL, 'C'], 2)"
    )

    assert batch == [(name, rank, *row) for name in "CA" for rank, row in enumerate(single[name], 1)]
    assert shop.all("SELECT * FROM catvec.similar_products_batch('{}')") == []
    with pytest.raises(psycopg.Error, match="k is 0, expected 1 to 1000"):
        shop.all("SELECT * FROM catvec.similar_products_batch(ARRAY['A'], 0)")


@pytest.mark.usefixtures("pair")
def test_min_similarity_leaves_out_what_is_less_similar(shop: Shop) -> None:
    assert shop.all("SELECT product_id FROM catvec.similar_products('A', 10, min_similarity => 0.9)") == [
        ("B",),
        ("D",),
    ]


@pytest.mark.usefixtures("pair")
def test_duplicates_are_the_same_bytes_or_nearer_than_the_threshold(shop: Shop) -> None:
    query = (
        "SELECT product_id, duplicate_id, round(similarity::numeric, 3)::float8, same_bytes"
        "  FROM catvec.duplicates(%s) ORDER BY 1, 2"
    )

    assert shop.all(query, 1.0) == [("B", "D", 1.0, True)]  # and not once for each image
    assert shop.all(query, 0.9) == [("A", "B", 0.995, False), ("B", "D", 1.0, True)]
    with pytest.raises(psycopg.Error, match=r"threshold is 1\.5, expected 0 to 1"):
        shop.all(query, 1.5)


def test_a_placeholder_is_no_flood_of_pairs(shop: Shop) -> None:
    """Each product that shows it is paired with the first, not with every other."""
    shop.sync(*(product(f"P{number:02}", f"{number}.jpg", row=number) for number in range(60)))
    model = shop.register()
    shop.embed(model, [unit(1, 0, 0, number) for number in range(60)])
    shop.session.connection().execute(
        "UPDATE catvec_store.images SET content_sha256 ="
        " (SELECT content_sha256 FROM catvec_store.images WHERE product_id = 'P00') WHERE product_id < 'P50'"
    )
    shop.activate(model)

    same = shop.all("SELECT product_id, duplicate_id FROM catvec.duplicates(1.0) WHERE same_bytes ORDER BY 2")

    assert same == [("P00", f"P{number:02}") for number in range(1, 50)]


@pytest.mark.usefixtures("pair")
def test_functions_leave_every_setting_as_it_was(shop: Shop) -> None:
    query = (
        "SELECT name, setting FROM pg_settings WHERE name LIKE 'hnsw.%' OR name LIKE 'enable_%' OR name ~ 'cost|jit'"
    )
    with shop.session.connection().transaction():
        shop.session.connection().execute("SET LOCAL hnsw.ef_search = 77; SET LOCAL enable_hashjoin = on")
        before = shop.all(query)
        for call in (
            "catvec.similar_products('A')",
            "catvec.similar_products_batch(ARRAY['A', 'B'])",
            "catvec.search_by_vector('[1,0,0,0]', 3, '{\"category\": \"x\"}')",
            "catvec.duplicates(0.5)",
        ):
            shop.all(f"SELECT * FROM {call}")

            assert shop.all(query) == before, call


@pytest.mark.usefixtures("pair")
def test_the_extension_may_be_upgraded_underneath(shop: Shop, postgres: str, database_url: str) -> None:
    """A newer pgvector arrives while an app has its connection open and its plans cached."""
    call = "SELECT product_id FROM catvec.similar_products('A', 3)"
    expected = shop.all(call)
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as name,
        psycopg.connect(f"{postgres.rsplit('/', 1)[0]}/{database_url.rsplit('/', 1)[1]}", autocommit=True) as admin,
    ):
        if admin.info.server_version < 180000:
            pytest.skip("extensions outside the server's own folder need PostgreSQL 18")
        folder = Path(name) / "extension"
        folder.mkdir()
        Path(name).chmod(0o755)
        (folder / "vector.control").write_text("default_version = '0.99.0'\nrelocatable = true\n")
        [(found,)] = admin.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchall()
        (folder / f"vector--{found}--0.99.0.sql").write_text(
            "ALTER FUNCTION cosine_distance(halfvec, halfvec) COST 2;\n"
            "CREATE FUNCTION halfvec_is_new() RETURNS text LANGUAGE sql AS 'SELECT ''yes''';\n"
        )
        admin.execute(f"SET extension_control_path = '{name}:$system'")
        admin.execute("ALTER EXTENSION vector UPDATE")

    assert shop.all(call) == expected
    with Session(database_url) as later:
        assert later.rows(call) == expected
        assert later.rows("SELECT extversion FROM pg_extension WHERE extname = 'vector'") == [("0.99.0",)]


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    "arguments",
    ["k => -1", "k => 0", "k => 1001", "k => 2147483647", "k => -2147483648", "k => NULL", "min_similarity => 'NaN'"],
)
@pytest.mark.parametrize(
    "function",
    [
        "similar_products('A', ",
        "similar_products_batch(ARRAY['nix'], ",
        "search_by_vector('[1,0,0,0]', ",
        "search_by_array(ARRAY[1,0,0,0], ",
    ],
)
def test_numbers_that_mean_nothing_are_refused(shop: Shop, function: str, arguments: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"k is|min_similarity is NaN"):
        shop.all(f"SELECT * FROM catvec.{function}{arguments})")


@pytest.mark.usefixtures("pair")
def test_only_the_direction_of_an_array_matters(shop: Shop) -> None:
    query = "SELECT product_id, round(similarity::numeric, 3)::float8 FROM catvec.search_by_array(%s::float8[], 3)"
    expected = shop.all(query, [1.0, 0.0, 0.0, 0.0])

    for factor in (1e5, 1e-9):
        assert shop.all(query, [factor, 0.0, 0.0, 0.0]) == expected
    for bad in ([float("nan"), 0.0, 0.0, 0.0], [0.0] * 4, []):
        with pytest.raises(psycopg.Error, match=r"NaN not allowed|query vector is zero|at least 1 dimension"):
            shop.all(query, bad)


@pytest.mark.usefixtures("pair")
def test_nulls_mean_the_default_or_are_refused(shop: Shop) -> None:
    usual = shop.all("SELECT product_id FROM catvec.similar_products('A', 3)")

    call = "SELECT product_id FROM catvec.similar_products('A', 3, {})"
    assert shop.all(call.format("filter => NULL, model => NULL, min_similarity => NULL")) == usual
    with pytest.raises(psycopg.Error, match="no product NULL"):
        shop.all("SELECT * FROM catvec.similar_products(NULL)")


def test_images_that_cancel_each_other_out_have_no_mean(shop: Shop) -> None:
    shop.sync(product("A", "a1.jpg", "a2.jpg"), product("B", "b.jpg", row=2))
    model = shop.register()
    shop.embed(model, [unit(1, 0, 0, 0), unit(-1, 0, 0, 0), unit(1, 1, 0, 0)])
    shop.activate(model)

    batch = (
        "SELECT query_product, product_id FROM catvec.similar_products_batch(ARRAY['A', 'B'], 1, combine => 'mean')"
    )
    assert shop.all(batch) == [("B", "A")]


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ({"colour": "red"}, "AB"),
        ({"colour": ["red", "blue"]}, "ABC"),
        ({"colour": []}, ""),
        ({"sizes": "38"}, "AC"),
        ({"sizes": ["38", "42"]}, "ABC"),
        ({"sizes": "38", "colour": "red"}, "A"),
        ({"made": {"by": "hand"}}, "B"),
        ({"weight": 5}, "C"),
        ({"weight": "5"}, ""),
        ({"new": True}, "A"),
        ({"colour": None}, "D"),
        ({"nobody's": "x' OR true --"}, ""),
    ],
)
def test_a_list_in_a_filter_means_any_and_an_attribute_that_is_a_list_is_met_by_what_it_holds(
    shop: Shop, conditions: dict[str, Any], found: str
) -> None:
    attrs: dict[str, dict[str, Any]] = {
        "A": {"colour": "red", "sizes": ["38", "40"], "new": True},
        "B": {"colour": "red", "sizes": ["42"], "made": {"by": "hand", "in": "Rome"}},
        "C": {"colour": "blue", "sizes": "38", "weight": 5},
        "D": {"colour": None},
    }
    shop.sync(*(product(name, f"{name}.jpg", row=row, attrs=attrs[name]) for row, name in enumerate(attrs)))
    model = shop.register()
    shop.embed(model, [unit(1, 0, 0, number) for number in range(4)])
    shop.activate(model)

    rows = shop.all(
        "SELECT product_id FROM catvec.search_by_vector('[1,0,0,0]', 10, %s) ORDER BY 1", json.dumps(conditions)
    )

    assert "".join(row[0] for row in rows) == found


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("key", ["title", "product_id", "active"])
def test_a_filter_by_what_is_no_attribute_is_refused(shop: Shop, key: str) -> None:
    with pytest.raises(psycopg.Error, match=f'filter key "{key}" is not one to filter by'):
        shop.all("SELECT * FROM catvec.similar_products('A', 5, %s)", json.dumps({key: "x"}))


def test_what_lies_off_the_images_is_found_as_well(shop: Shop) -> None:
    """Words do: their vectors stand in a cone of their own, where the index leads nowhere in particular."""
    cloud = draw_cloud(10_000, dims=64, clusters=100)
    shop.sync(*(product(f"P{place:05}", f"{place}.jpg", row=place) for place in range(len(cloud.vectors))))
    model = shop.register(model_spec("cloud", dims=64))
    shop.embed(model, list(cloud.vectors))
    refresh_statistics(shop.session.connection(), model)
    build_index(shop.session.connection(), model)
    shop.activate(model)
    shares = []

    for text in draw_texts(cloud, 20):
        found = {row[0] for row in shop.all("SELECT product_id FROM catvec.search_by_array(%s)", text.tolist())}
        truth = {f"P{place:05}" for place in np.argpartition(-(cloud.vectors @ text), 10)[:10]}
        shares.append(len(found & truth) / 10)

    assert np.mean(shares) >= 0.95


@pytest.mark.usefixtures("pair")
def test_a_model_dropped_under_a_transaction_that_does_not_see_it_is_told_as_retired(
    shop: Shop, database_url: str
) -> None:
    other = shop.register(model_spec("other", dims=2, revision="sha256:2"))
    shop.embed(other, [unit(1, 0)] * 5)
    with psycopg.connect(database_url) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM catvec.products")
        shop.all("SELECT catvec_store.retire_model('other')")

        with pytest.raises(psycopg.errors.InvalidParameterValue, match='model "other" was retired on'):
            reader.execute("SELECT * FROM catvec.similar_products('A', model => 'other')")
