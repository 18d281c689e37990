"""`catvec explain` against real plans: each known reason, on a table that is large enough for the index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pipeline.errors import ConfigError
from pipeline.explain import explain_query
from pipeline.store.connect import Session
from pipeline.store.index import build_index, refresh_statistics
from tests.fixtures.database import database_copy
from tests.fixtures.store import Shop, model_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.store.explain.evidence import Explanation

VECTORS = 6_000
DIMS = 8
VECTOR = "'[1,2,3,4,5,6,7,8]'"
VIEW = "catvec.image_embeddings"
GOOD = f"SELECT product_id FROM {VIEW} ORDER BY embedding <=> {VECTOR} LIMIT 10"
INDEX = "emb_tiny_hnsw"

QUICK = "WITH (m = 4, ef_construction = 8)"
"""a poor index, but built in a second"""

# every second product is a dress; rare is 12 of 6,000
FILL = """
INSERT INTO catvec_store.products (product_id, catalog, title, category, price)
SELECT 'P' || n, 'default', 'thing ' || n,
       CASE WHEN n % 500 = 0 THEN 'rare' WHEN n % 2 = 0 THEN 'dress' ELSE 'shoe' END, n
  FROM generate_series(1, {rows}) n;
INSERT INTO catvec_store.images (product_id, url, position, content_sha256)
SELECT 'P' || n, n || '.jpg', 0, sha256(n::text::bytea)
  FROM generate_series(1, {rows}) n;
SELECT setseed(0.5);
INSERT INTO catvec_store.emb_tiny (content_sha256, embedding, run_id)
SELECT sha256(n::text::bytea),
       l2_normalize(ARRAY[random(), random(), random(), random(), random(), random(), random(), random()]::vector), 1
  FROM generate_series(1, {rows}) n;
"""


def fill(shop: Shop, rows: int) -> None:
    model = shop.register(model_spec(dims=DIMS))
    shop.session.connection().execute(FILL.replace("{rows}", str(rows)))  # type: ignore[call-overload]
    build_index(shop.session.connection(), model)
    refresh_statistics(shop.session.connection(), model)
    shop.activate(model)


@pytest.fixture(scope="module")
def large(postgres: str, database_owner: str | None, migrated_template: str) -> Iterator[str]:
    """The URL of a database with 6,000 vectors and their index; nobody changes it."""
    with database_copy(postgres, database_owner, template=migrated_template) as url:
        with Session(url) as session:
            fill(Shop(session), VECTORS)
            for table in ("products", "images", "emb_tiny"):
                # a vacuum in between would let queries read fewer rows
                change(Shop(session), f"ALTER TABLE catvec_store.{table} SET (autovacuum_enabled = off)")
        yield url


@pytest.fixture
def changed(postgres: str, database_owner: str | None, large: str) -> Iterator[Shop]:
    """A copy of it, to be changed."""
    template = str(conninfo_to_dict(large)["dbname"])
    with database_copy(postgres, database_owner, template=template) as url, Session(url) as session:
        yield Shop(session)


def look(url: str, query: str, **options: Any) -> Explanation:
    given: dict[str, Any] = {"is_sql": None, "analyze": False, "k": 10, "conditions": {}, "model": None}
    return explain_query(url, query, **{**given, **options})


def keys(found: Explanation) -> list[str]:
    return [reason.key for reason in found.reasons]


def settled(found: Explanation) -> tuple[str, list[str]]:
    return found.verdict, keys(found)


OF_PRODUCT = f"(SELECT embedding FROM {VIEW} WHERE product_id = 'P7')"


@pytest.mark.parametrize(
    "query",
    [
        GOOD,
        f"{GOOD};",
        f"EXPLAIN ANALYZE {GOOD}",
        f"-- the nearest\n{GOOD}",
        GOOD.replace(VECTOR, f"{VECTOR}::vector"),
        GOOD.replace(VECTOR, "ARRAY[1,2,3,4,5,6,7,8]::real[]::halfvec"),
        GOOD.replace(VECTOR, OF_PRODUCT),
        GOOD.replace("LIMIT", ", image_id LIMIT"),
        GOOD.replace("LIMIT 10", "FETCH FIRST 10 ROWS ONLY"),
        GOOD.replace("ORDER", f"WHERE embedding <=> {VECTOR} < 0.3 ORDER"),
        f"SELECT q.product_id, n.product_id FROM {VIEW} q, LATERAL (SELECT e.product_id FROM {VIEW} e"
        " ORDER BY e.embedding <=> q.embedding LIMIT 3) n WHERE q.product_id < 'P2'",
        f"WITH near AS MATERIALIZED (SELECT product_id, embedding <=> {VECTOR} AS d FROM {VIEW} ORDER BY d LIMIT 20)"
        " SELECT * FROM near ORDER BY d LIMIT 5",
        "SELECT product_id FROM catvec.image_embeddings_tiny ORDER BY embedding <=> $1 LIMIT $2",
        f"SELECT product_id FROM {VIEW} ORDER BY embedding <=> %s LIMIT 5",
        f"SELECT product_id FROM {VIEW} ORDER BY embedding <=> %(vector)s LIMIT %(k)s OFFSET %(skip)s",
    ],
)
def test_what_uses_the_index_is_said_to(large: str, query: str) -> None:
    found = look(large, query)
    assert (found.verdict, found.summary, found.reasons) == ("index", f"uses the index {INDEX}", ())
    assert (found.model, found.index, found.vectors) == ("tiny", INDEX, VECTORS)
    assert found.plan
    assert INDEX in found.plan


def distance(operator: str = "<=>") -> str:
    return f"embedding {operator} {VECTOR}"


FROM = f"SELECT product_id FROM {VIEW}"


@pytest.mark.parametrize(
    ("key", "query", "better"),
    [
        ("expression", f"{FROM} ORDER BY 1 - ({distance()}) DESC LIMIT 10", GOOD),
        (
            "expression",
            f"SELECT product_id, 1 - ({distance()}) AS similarity FROM {VIEW} ORDER BY similarity DESC LIMIT 3",
            f"SELECT product_id, 1 - ({distance()}) AS similarity FROM {VIEW} ORDER BY {distance()} LIMIT 3",
        ),
        ("expression", f"{FROM} ORDER BY ({distance()}) + 0 LIMIT 10", GOOD),
        ("descending", f"{FROM} ORDER BY {distance()} DESC LIMIT 10", GOOD),
        ("other_operator", f"{FROM} ORDER BY {distance('<->')} LIMIT 10", GOOD),
        ("other_operator", f"{FROM} ORDER BY {distance('<#>')} LIMIT 10", GOOD),
        ("other_operator", f"{FROM} ORDER BY {distance('<+>')} LIMIT 10", GOOD),
        ("distance_function", f"{FROM} ORDER BY cosine_distance(embedding, {VECTOR}) LIMIT 10", None),
        ("cast", f"{FROM} ORDER BY embedding::vector <=> {VECTOR}::vector LIMIT 10", None),
        ("no_limit", f"{FROM} ORDER BY {distance()}", GOOD),
        ("large_limit", f"{FROM} ORDER BY {distance()} LIMIT 5500", None),
        ("large_offset", f"{FROM} ORDER BY {distance()} LIMIT 10 OFFSET 5500", None),
        ("grouped", f"{FROM} GROUP BY 1 ORDER BY min({distance()}) LIMIT 10", None),
        (
            "grouped",
            f"SELECT DISTINCT ON (product_id) product_id, {distance()} AS d FROM {VIEW} ORDER BY product_id, d",
            None,
        ),
        (
            "cross_join",
            f"SELECT a.product_id FROM {VIEW} a, {VIEW} b WHERE b.product_id = 'P7'"
            " ORDER BY a.embedding <=> b.embedding LIMIT 10",
            None,
        ),
        ("distance_filter", f"{FROM} WHERE {distance()} < 0.1", None),
        ("distance_filter", f"SELECT count(*) FROM {VIEW} WHERE {distance()} < 0.1", None),
        ("no_order", f"SELECT product_id, {distance()} FROM {VIEW}", None),
        (
            "materialized",
            f"WITH d AS MATERIALIZED (SELECT product_id, {distance()} AS d FROM {VIEW})"
            " SELECT * FROM d ORDER BY d LIMIT 3",
            None,
        ),
        ("not_first", f"{FROM} ORDER BY position, {distance()} LIMIT 10", None),
    ],
)
def test_each_reason_is_named_with_its_cure(large: str, key: str, query: str, better: str | None) -> None:
    found = look(large, query)
    assert settled(found) == ("scan", [key])
    assert found.summary == f"does NOT use the index {INDEX}: reads all 6,000 vectors"
    [reason] = found.reasons
    if better:
        assert (reason.sql, reason.is_checked) == (better, True)
        assert look(large, better).verdict == "index"


# beware of too few rows


def test_a_filter_that_leaves_too_few_rows_is_warned_of(large: str) -> None:
    query = f"SELECT e.product_id FROM {VIEW} e JOIN catvec.products p USING (product_id) WHERE p.category = 'dress'"
    query += f" ORDER BY {distance()} LIMIT 10"
    found = look(large, query)
    assert settled(found) == ("index", ["few_rows"])
    assert found.reasons[0].why == (
        "the index gives 40 candidates (hnsw.ef_search) and stops, the conditions are applied to these: fewer rows "
        "than the LIMIT may come, without a word"
    )
    assert settled(look(with_settings(large, "hnsw.iterative_scan=strict_order"), query)) == ("index", [])


@pytest.mark.parametrize(
    ("bounds", "asked"), [("LIMIT 60", "LIMIT 60"), ("LIMIT 5 OFFSET 50", "LIMIT 5 after OFFSET 50")]
)
def test_more_rows_than_the_index_gives_are_warned_of(large: str, bounds: str, asked: str) -> None:
    found = look(large, f"{FROM} ORDER BY {distance()} {bounds}", analyze=True)
    assert settled(found) == ("index", ["ef_search"])
    assert found.reasons[0].why == f"{asked} is more than the 40 candidates (hnsw.ef_search) that the index gives"
    # it is true
    assert found.rows == (40 if bounds == "LIMIT 60" else 0)


def with_settings(url: str, *settings: str) -> str:
    return make_conninfo(url, options=" ".join(f"-c {setting}" for setting in settings))


# costs


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["enable_indexscan=off"], "enable_indexscan = off"),
        (["enable_nestloop=off"], "enable_nestloop = off"),
        (
            ["enable_indexscan=off", "enable_nestloop=off", "enable_hashagg=off"],
            "enable_indexscan = off, enable_nestloop = off it",
        ),
        (["hnsw.ef_search=1000"], "hnsw.ef_search = 1000"),
    ],
)
def test_settings_that_forbid_the_index_are_named(large: str, given: list[str], told: str) -> None:
    found = look(with_settings(large, *given), GOOD)
    assert settled(found) == ("scan", ["settings"])
    assert f"with {told}" in found.reasons[0].why
    assert found.reasons[0].cure.startswith(f"RESET {told.split(maxsplit=1)[0]}")


def test_a_filter_that_leaves_few_is_rightly_compared_exactly(large: str) -> None:
    found = look(
        large,
        f"SELECT e.product_id FROM {VIEW} e JOIN catvec.products p USING (product_id) WHERE p.category = 'rare'"
        f" ORDER BY {distance()} LIMIT 10",
    )
    assert settled(found) == ("exact", ["few"])
    assert found.summary == f"does not use the index {INDEX}, and need not: compares about 12 vectors"


def test_one_product_is_rightly_compared_exactly(large: str) -> None:
    found = look(large, f"{FROM} WHERE product_id = 'P7' ORDER BY 1 - ({distance()}) DESC")
    assert settled(found) == ("exact", ["few"])
    assert found.summary == f"does not use the index {INDEX}, and need not: compares about 1 vector"


def test_the_value_of_a_sub_select_is_no_offset(large: str) -> None:
    found = look(large, GOOD.replace(VECTOR, OF_PRODUCT).replace("LIMIT 10", "LIMIT 60"))
    assert found.reasons[0].why.startswith("LIMIT 60 is more than the 40 candidates")


def test_a_small_table_needs_no_index(shop: Shop, database_url: str) -> None:
    fill(shop, 50)
    assert settled(look(database_url, GOOD)) == ("exact", ["small"])
    wrong = look(database_url, GOOD.replace("<=>", "<->"))
    assert settled(wrong) == ("exact", ["small", "other_operator"])
    assert wrong.reasons[1].sql == GOOD
    change(shop, f"DROP INDEX catvec_store.{INDEX}")
    found = look(database_url, GOOD)
    assert settled(found) == ("exact", ["small"])
    assert found.summary == "does not use an index, and need not: reads all 50 vectors"


def change(shop: Shop, statement: str) -> None:
    # workers take ten times as long to start as the index takes to build
    shop.session.connection().execute("SET max_parallel_maintenance_workers = 0")
    shop.session.connection().execute(statement)  # type: ignore[call-overload]


def url_of(shop: Shop) -> str:
    info = shop.session.connection().info
    return make_conninfo(info.dsn, password=info.password)


def test_missing_statistics_are_seen(shop: Shop, database_url: str) -> None:
    shop.register(model_spec(dims=DIMS))
    for table in ("images", "emb_tiny"):
        change(shop, f"ALTER TABLE catvec_store.{table} SET (autovacuum_enabled = off)")
    # as after a first small run: what came since is guessed from one row a page
    change(shop, FILL.replace("{rows}", "1") + "ANALYZE catvec_store.images, catvec_store.emb_tiny")
    change(shop, f"CREATE INDEX {INDEX} ON catvec_store.emb_tiny USING hnsw (embedding halfvec_cosine_ops) {QUICK}")
    change(shop, FILL.replace("series(1,", "series(2,").replace("{rows}", str(VECTORS)))
    change(shop, "UPDATE catvec_store.models SET state = 'ready'; SELECT catvec_store.activate_model('tiny')")
    found = look(database_url, GOOD)
    assert settled(found) == ("scan", ["no_statistics"])
    assert found.reasons[0].cure == (
        "an owner of the tables runs: ANALYZE catvec_store.emb_tiny, catvec_store.images, catvec_store.products"
    )


# the index itself


def test_a_dropped_index_is_named(changed: Shop) -> None:
    change(changed, f"DROP INDEX catvec_store.{INDEX}")
    found = look(url_of(changed), GOOD)
    assert settled(found) == ("scan", ["no_index"])
    assert found.summary == "does NOT use an index: reads all 6,000 vectors"
    assert found.reasons[0].cure == "run: catvec index build"
    assert settled(look(url_of(changed), "P7")) == ("scan", ["no_index"])


def test_an_index_of_another_operator_is_named(changed: Shop) -> None:
    change(changed, f"DROP INDEX catvec_store.{INDEX}")
    change(changed, f"CREATE INDEX {INDEX} ON catvec_store.emb_tiny USING hnsw (embedding halfvec_l2_ops) {QUICK}")
    found = look(url_of(changed), GOOD)
    assert settled(found) == ("scan", ["other_operator"])
    assert found.reasons[0].why == "it orders by <=>, the index answers <-> only"


def test_a_binary_index_is_for_the_functions(changed: Shop) -> None:
    change(changed, f"DROP INDEX catvec_store.{INDEX}")
    change(
        changed,
        f"CREATE INDEX {INDEX} ON catvec_store.emb_tiny"
        " USING hnsw ((binary_quantize(embedding::halfvec)::bit(8)) bit_hamming_ops)"
        f" {QUICK}",
    )
    change(changed, "UPDATE catvec_store.models SET index_kind = 'binary'")
    found = look(url_of(changed), GOOD)
    assert settled(found) == ("scan", ["binary_index"])
    assert found.reasons[0].sql == "SELECT product_id, title, similarity FROM catvec.search_by_vector('[…]', 10)"
    assert look(url_of(changed), "P7").summary == f"catvec.similar_products uses the index {INDEX} (1 scan when run)"


def test_an_invalid_index_is_named(changed: Shop, superuser_of: str) -> None:
    change_as(
        superuser_of,
        changed,
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'catvec_store.{INDEX}'::regclass",
    )
    assert settled(look(url_of(changed), GOOD)) == ("scan", ["invalid_index"])


def test_an_index_that_is_being_built_is_named(changed: Shop, superuser_of: str) -> None:
    change_as(
        superuser_of,
        changed,
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'catvec_store.{INDEX}'::regclass",
    )
    with psycopg.connect(url_of(changed)) as builder:
        builder.execute("LOCK TABLE catvec_store.emb_tiny IN SHARE UPDATE EXCLUSIVE MODE")
        assert settled(look(url_of(changed), GOOD)) == ("scan", ["index_being_built"])


@pytest.fixture
def superuser_of(postgres: str) -> str:
    with psycopg.connect(postgres) as connection:
        if connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() != (True,):
            pytest.skip("CATVEC_TEST_DATABASE_URL names no superuser")
    return postgres


def change_as(admin: str, shop: Shop, statement: str) -> None:
    name = shop.session.connection().info.dbname
    with psycopg.connect(make_conninfo(admin, dbname=name), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]


def test_a_security_barrier_is_named(changed: Shop) -> None:
    change(changed, f"ALTER VIEW {VIEW} SET (security_barrier)")
    found = look(url_of(changed), GOOD)
    assert settled(found) == ("scan", ["security_barrier"])
    assert found.reasons[0].cure.startswith(f"ALTER VIEW {VIEW} RESET (security_barrier)")


def test_a_volatile_query_vector_is_named(changed: Shop) -> None:
    change(
        changed,
        "CREATE FUNCTION public.encode_words(text) RETURNS halfvec LANGUAGE plpgsql"
        f" AS $$BEGIN RETURN {VECTOR}; END$$",
    )
    query = GOOD.replace(VECTOR, "public.encode_words('red dress')")
    found = look(url_of(changed), query)
    assert settled(found) == ("scan", ["volatile"])
    assert found.reasons[0].sql == GOOD.replace(VECTOR, "(SELECT public.encode_words('red dress'))")


def test_vectors_stored_in_full_are_compared_by_the_right_column(shop: Shop, database_url: str) -> None:
    shop.register(model_spec(dims=DIMS))
    change(shop, "DROP VIEW catvec.image_embeddings_tiny; DROP TABLE catvec_store.emb_tiny")
    change(shop, "UPDATE catvec_store.models SET storage = 'vector'; SELECT catvec_store.create_model_table('tiny')")
    change(shop, FILL.replace("{rows}", str(VECTORS)))
    change(
        shop,
        f"CREATE INDEX {INDEX} ON catvec_store.emb_tiny"
        f" USING hnsw ((embedding::halfvec(8)) halfvec_cosine_ops) {QUICK}",
    )
    change(shop, "ANALYZE catvec_store.emb_tiny, catvec_store.images")
    good = GOOD.replace(VIEW, "catvec.image_embeddings_tiny")
    assert look(database_url, good).verdict == "index"
    found = look(database_url, good.replace("embedding <=>", "embedding_fp32 <=>"))
    assert settled(found) == ("scan", ["cast"])
    assert found.reasons[0].cure == "order by the column embedding, not by embedding_fp32"


# what PostgreSQL refuses


@pytest.mark.parametrize(
    ("key", "vector", "better"),
    [
        ("missing_cast", "ARRAY[1,2,3,4,5,6,7,8]::real[]", "ARRAY[1,2,3,4,5,6,7,8]::real[]::halfvec"),
        ("missing_cast", f"{VECTOR}::text", f"{VECTOR}::text::halfvec"),
        ("missing_cast", "$1::float8[]", "$1::float8[]::halfvec"),
        ("wrong_dimensions", "'[1,2,3]'", None),
        ("wrong_dimensions", "'[1,2,3]'::halfvec(8)", None),
    ],
)
def test_a_query_vector_that_is_refused_is_named(large: str, key: str, vector: str, better: str | None) -> None:
    found = look(large, GOOD.replace(VECTOR, vector))
    assert settled(found) == ("refused", [key])
    assert found.reasons[0].sql == (GOOD.replace(VECTOR, better) if better else None)


def test_the_refusal_says_what_was_found_and_expected(large: str) -> None:
    found = look(large, GOOD.replace(VECTOR, "'[1,2,3]'"))
    assert found.summary == "is refused by PostgreSQL when it runs"
    assert found.reasons[0].why == "the query vector has 3 dimensions, model 'tiny' has 8"
    found = look(large, GOOD.replace(VECTOR, "ARRAY[1]::real[]"))
    assert found.summary == "is refused by PostgreSQL: operator does not exist: halfvec <=> real[]"
    assert found.reasons[0].why == (
        "the query vector comes as real[], and no operator compares that with an embedding"
    )


def test_a_vector_for_a_function_without_a_cast_is_named(large: str) -> None:
    found = look(large, "SELECT * FROM catvec.search_by_vector(ARRAY[1,2]::real[], 5)")
    assert settled(found) == ("refused", ["missing_cast"])
    assert found.reasons[0].cure == "cast it: ::halfvec; or call catvec.search_by_array, which takes float8[]"


def test_an_extension_off_the_search_path_is_named(large: str) -> None:
    bare = with_settings(large, "search_path=catvec")
    found = look(bare, GOOD)
    assert settled(found) == ("refused", ["search_path"])
    assert found.reasons[0].why == "the vector extension lives in schema public, which is not on the search_path"
    better = found.reasons[0].sql
    assert better == GOOD.replace("<=>", "OPERATOR(public.<=>)").replace(VECTOR, f"{VECTOR}::public.halfvec")
    assert look(bare, better).verdict == "index"
    assert settled(look(bare, better.replace("public.<=>", "public.<->"))) == ("scan", ["other_operator"])
    assert settled(look(bare, GOOD.replace(VECTOR, f"{VECTOR}::halfvec"))) == ("refused", ["search_path"])
    assert look(bare, "P7").verdict == "index"


@pytest.mark.parametrize(
    ("query", "message", "hint"),
    [
        ("SELECT 1; DROP SCHEMA catvec", "there are several statements, expected one", "explain them one by one"),
        (
            "SELEC 1 FROM x",
            'it is no statement that PostgreSQL can explain: syntax error at or near "SELEC"',
            "expected one SELECT, WITH, TABLE or VALUES, placeholders as $1, %s or %(name)s; an id with spaces goes "
            "with --product",
        ),
        (
            "SELECT * FROM image_embeddings",
            'it names what is not there: relation "image_embeddings" does not exist',
            "the views are catvec.image_embeddings, …",
        ),
        (
            "SELECT nothing FROM catvec.products",
            'PostgreSQL refuses the statement: column "nothing" does not exist',
            None,
        ),
        ("EXPLAIN ;", "the statement is empty", 'for example: catvec explain "SELECT …"'),
        ("SELECT '\0'", "the query holds a NUL or bytes that are no UTF-8, which PostgreSQL does not take", None),
        (
            "SELECT * FROM catvec.similar_products('P7', 0)",
            "PostgreSQL refuses the statement: k is 0, expected 1 to 1000",
            None,
        ),
        ("no_such_product", "no product 'no_such_product'", None),
    ],
)
def test_what_cannot_be_explained_is_an_error(large: str, query: str, message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        look(large, query)
    assert (caught.value.message, caught.value.hint) == (message, hint)


# running


@pytest.mark.parametrize("analyze", [False, True])
@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO catvec_store.queries (name, text) VALUES ('a', 'b')",
        "WITH gone AS (DELETE FROM catvec_store.images RETURNING *) SELECT * FROM gone",
        "COMMIT",
    ],
)
def test_nothing_is_ever_written(changed: Shop, query: str, analyze: bool) -> None:
    before = changed.all("SELECT count(*) FROM catvec_store.images")
    try:
        found = look(url_of(changed), query, is_sql=True, analyze=analyze)
    except ConfigError as error:
        assert error.message.startswith(("the statement writes: cannot execute", "it is no statement"))  # noqa: PT017
    else:
        assert (found.verdict, analyze) == ("nothing", False)
    assert changed.all("SELECT count(*) FROM catvec_store.images") == before
    assert changed.all("SELECT * FROM catvec_store.queries") == []


def test_running_measures_rows_and_time(large: str) -> None:
    found = look(large, GOOD, analyze=True)
    assert (found.verdict, found.rows) == ("index", 10)
    assert found.milliseconds is not None
    assert 0 < found.milliseconds < 1000
    assert look(large, GOOD).milliseconds is None


def test_placeholders_are_not_run(large: str) -> None:
    with pytest.raises(ConfigError, match="a statement with placeholders cannot be run"):
        look(large, GOOD.replace(VECTOR, "$1"), analyze=True)
    found = look(large, GOOD.replace("10", "$1"))
    assert found.notes == ("explained with LIMIT 10, OFFSET 0 in place of the placeholders of LIMIT",)


def test_what_asks_for_no_neighbours_is_said_so(large: str) -> None:
    for query in ("SELECT 1 FROM catvec.products", f"SELECT count(*) FROM {VIEW}", "TABLE catvec.models"):
        assert settled(look(large, query)) == ("nothing", [])


# functions and products


def test_functions_are_run_and_their_scans_counted(large: str) -> None:
    found = look(large, f"SELECT * FROM catvec.search_by_vector({VECTOR}, 5)")
    assert settled(found) == ("index", [])
    assert (found.summary, found.rows) == (f"catvec.search_by_vector uses the index {INDEX} (1 scan when run)", 5)
    batch = look(large, "SELECT * FROM catvec.similar_products_batch(ARRAY['P1', 'P2', 'P3'], 2)")
    assert batch.summary == f"catvec.similar_products_batch uses the index {INDEX} (3 scans when run)"
    listed = look(large, "SELECT catvec.similar_products('P7', 4)")
    assert (listed.verdict, listed.rows) == ("index", 4)


def test_a_function_that_compared_exactly_is_not_blamed(large: str) -> None:
    found = look(large, f'SELECT * FROM catvec.search_by_vector({VECTOR}, 5, \'{{"category": "rare"}}\')')
    assert settled(found) == ("exact", ["few"])
    assert found.summary == (
        "does not use the index, and need not: catvec.search_by_vector read about 17 vectors when run"
    )


def test_a_function_with_placeholders_is_not_run(large: str) -> None:
    found = look(large, "SELECT * FROM catvec.similar_products(%s, %s)")
    assert (found.verdict, found.summary) == (
        "unknown",
        "calls catvec.similar_products, which uses the index by itself",
    )


def test_a_function_of_others_is_run_only_when_asked(changed: Shop) -> None:
    change(
        changed,
        "CREATE FUNCTION public.mine(q halfvec) RETURNS SETOF text LANGUAGE plpgsql STABLE AS $$BEGIN RETURN QUERY"
        f" SELECT product_id FROM {VIEW} ORDER BY embedding <=> q LIMIT 3; END$$",
    )
    query = f"SELECT * FROM public.mine({VECTOR})"
    found = look(url_of(changed), query)
    assert (found.verdict, found.summary) == ("unknown", "calls public.mine, and no plan shows what a function does")
    assert found.notes == ("to see what it reads, run it, with --analyze",)
    found = look(url_of(changed), query, analyze=True)
    assert (found.summary, found.rows) == (f"public.mine uses the index {INDEX} (1 scan when run)", 3)
    assert look(url_of(changed), "SELECT * FROM catvec.duplicates()").verdict == "unknown"
    assert look(url_of(changed), "SELECT * FROM generate_series(1, 3)", analyze=True).verdict == "nothing"


def test_a_filter_around_a_function_is_warned_of(large: str) -> None:
    found = look(large, "SELECT * FROM catvec.similar_products('P7', 10) WHERE category = 'rare'")
    assert settled(found) == ("index", ["filter_outside"])


def test_a_product_is_explained_as_apps_ask_for_it(large: str) -> None:
    found = look(large, "P7", k=3)
    assert settled(found) == ("index", [])
    assert found.summary == f"catvec.similar_products uses the index {INDEX} (1 scan when run)"
    assert found.notes == ("product 'P7' has 1 image with a vector",)
    assert (found.rows, found.model, found.plan) == (3, "tiny", None)
    filtered = look(large, "P7", conditions={"category": "rare"})
    assert (settled(filtered), filtered.rows) == (("exact", ["few"]), 10)


def test_a_product_without_vectors_has_nothing_to_compare(changed: Shop) -> None:
    change(changed, "UPDATE catvec_store.images SET content_sha256 = NULL WHERE product_id = 'P7'")
    found = look(url_of(changed), "P7")
    assert settled(found) == ("nothing", ["no_vector"])
    assert found.rows == 0


# rights


@pytest.fixture
def reader(changed: Shop, superuser_of: str) -> Iterator[str]:
    """The URL of a role that has only a reader's rights."""
    role = sql.Identifier(name := f"catvec_test_reader_{changed.session.connection().info.dbname[-6:]}")
    with psycopg.connect(superuser_of, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(name)))
    connection = changed.session.connection()
    connection.execute(sql.SQL("GRANT USAGE ON SCHEMA catvec TO {}").format(role))
    connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA catvec TO {}").format(role))
    database = connection.info.dbname
    yield make_conninfo(url_of(changed), user=name, password=name)
    with psycopg.connect(make_conninfo(superuser_of, dbname=database), autocommit=True) as admin:
        admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


def test_a_reader_can_ask(reader: str, changed: Shop) -> None:
    assert look(reader, GOOD).verdict == "index"
    assert look(reader, GOOD, analyze=True).rows == 10
    assert look(reader, "P7").verdict == "index"
    assert settled(look(reader, GOOD.replace("<=>", "<->"))) == ("scan", ["other_operator"])
    with pytest.raises(ConfigError) as caught:
        look(reader, "SELECT * FROM catvec_store.emb_tiny")
    assert caught.value.message == "this user may not do what it says: permission denied for schema catvec_store"
    change(changed, f"DROP INDEX catvec_store.{INDEX}")
    assert settled(look(reader, GOOD)) == ("scan", ["no_index"])
