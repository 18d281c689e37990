"""What the size of a model's table and index is foretold to be, beside what the server makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.store.index import build_index
from pipeline.store.models import register_model
from pipeline.store.size import predict_size
from tests.fixtures.store import model_spec

if TYPE_CHECKING:
    from tests.fixtures.store import Shop

ROWS = 3000
FILL = """
INSERT INTO catvec_store.emb_tiny (content_sha256, embedding, run_id)
SELECT sha256(convert_to(n::text, 'UTF8')),
       (SELECT l2_normalize(array_agg(sin(n * (1 + d) * 0.37))::vector)
          FROM generate_series(1, %(dims)s) AS d)::{storage},
       1
  FROM generate_series(1, %(rows)s) AS n
"""


@pytest.mark.parametrize(
    ("dims", "storage"), [(512, "halfvec"), (768, "halfvec"), (1152, "halfvec"), (512, "vector")]
)
def test_sizes_are_as_foretold(shop: Shop, dims: int, storage: str) -> None:
    spec = model_spec(dims=dims)
    model = shop.session.run(
        lambda connection: register_model(connection, spec, "print", location="/models/tiny", storage=storage)
    )
    connection = shop.session.connection()
    connection.execute(FILL.format(storage=storage), {"dims": dims, "rows": ROWS})  # type: ignore[arg-type]
    build_index(connection, model)
    index = shop.one("SELECT pg_relation_size('catvec_store.emb_tiny_hnsw')")
    table = shop.one("SELECT pg_total_relation_size('catvec_store.emb_tiny')") - index

    predicted = predict_size(ROWS, dims=dims, storage=storage)

    assert predicted.index_bytes == pytest.approx(index, rel=0.1)
    assert predicted.table_bytes == pytest.approx(table, rel=0.1)
