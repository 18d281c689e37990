"""Fixtures come in families: a real HTTP server, small real models, a real Postgres."""

from __future__ import annotations

import os

import pytest

# One thread computes as quickly as two with models this small. Beside other workers, threads that wait for each
# other at every layer cost twice the processor time. Read when torch is imported, here and in processes of tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: while a test waits, for a server or a kill, another has its core."""
    return (os.cpu_count() or 1) + 1


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
    "tests.fixtures.judged",
    "tests.fixtures.roles",
    "tests.fixtures.pooler",
]
