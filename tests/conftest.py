"""Fixtures come in families: a real HTTP server, small real models, a real Postgres."""

from __future__ import annotations

pytest_plugins = [
    "tests.fixtures.http",
    "tests.fixtures.models",
    "tests.fixtures.database",
    "tests.fixtures.store",
    "tests.fixtures.doctor",
    "tests.fixtures.command",
    "tests.fixtures.catalogs",
    "tests.fixtures.bundles",
    "tests.fixtures.nights",
    "tests.fixtures.healthy",
    "tests.fixtures.roles",
    "tests.fixtures.pooler",
]
