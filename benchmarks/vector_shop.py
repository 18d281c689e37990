"""A shop of drawn vectors, written straight into catvec's tables: for questions about SQL alone."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
from pgvector import HalfVector

from pipeline.store.index import refresh_statistics
from pipeline.store.migrate import migrate, open_current
from pipeline.store.models import find_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.clip_like import Cloud
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

SHARES = (0.5, 0.1, 0.01, 0.001)
"""of the products that a filter keeps: the attribute "share" of a product lists those it belongs to"""

INSERT_MODEL = """
INSERT INTO catvec_store.models (name, source, revision, location, preprocess, fingerprint, dims, has_text, state)
VALUES (%s, 'drawn', %s, '/nowhere', '{}', 'none', %s, false, 'ready')
"""


def fill_shop(url: str, cloud: Cloud, *, models: Sequence[str] = ("drawn",), seed: int = 1) -> None:
    """One product with one image for each vector, its category `c…` the cluster; the first model is active.

    Further models get the same vectors with as many dimensions less as they come later, 128 each.
    """
    migrate(url)
    with open_current(url) as session:
        connection = session.connection()
        _copy_products(connection, cloud, seed)
        _copy_images(connection, len(cloud.vectors))
        for place, name in enumerate(models):
            vectors = cloud.vectors[:, : cloud.vectors.shape[1] - 128 * place]
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            connection.execute(INSERT_MODEL, (name, name, vectors.shape[1]))
            connection.execute("SELECT catvec_store.create_model_table(%s)", (name,))
            model = stored(connection, name)
            _copy_vectors(connection, model, vectors)
            refresh_statistics(connection, model)
        connection.execute("SELECT catvec_store.activate_model(%s)", (models[0],))


def stored(connection: Connection, name: str) -> StoredModel:
    model = find_model(connection, name)
    assert model is not None
    return model


def content_of(place: int) -> bytes:
    """The SHA-256 that stands for the bytes of image `place`."""
    return hashlib.sha256(str(place).encode()).digest()


def _copy_products(connection: Connection, cloud: Cloud, seed: int) -> None:
    generator = np.random.default_rng(seed)
    lots, prices = generator.random(len(cloud.vectors)), generator.random(len(cloud.vectors))
    columns = "product_id, catalog, title, category, price, attrs"
    with connection.cursor().copy(f"COPY catvec_store.products ({columns}) FROM STDIN") as copy:
        for place, cluster in enumerate(cloud.clusters):
            attrs = json.dumps({"share": [f"{share:g}" for share in SHARES if lots[place] < share]})
            price = round(float(100 * prices[place]), 2)
            copy.write_row((f"P{place}", "default", f"product {place}", f"c{cluster}", price, attrs))


def _copy_images(connection: Connection, images: int) -> None:
    columns = "product_id, url, position, content_sha256"
    with connection.cursor().copy(f"COPY catvec_store.images ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["text", "text", "int4", "bytea"])
        for place in range(images):
            copy.write_row((f"P{place}", f"https://shop.example/{place}.jpg", 0, content_of(place)))


def _copy_vectors(connection: Connection, model: StoredModel, vectors: np.ndarray) -> None:
    statement = f"COPY catvec_store.{model.table} (content_sha256, embedding, run_id) FROM STDIN (FORMAT BINARY)"
    with connection.cursor().copy(statement) as copy:
        copy.set_types(["bytea", "halfvec", "int8"])
        for place, vector in enumerate(vectors):
            copy.write_row((content_of(place), HalfVector(vector), 0))
