"""catvec status, failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import Database, Home, Json, open_database
from pipeline.commands.terminal import print_data, print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.status import ModelStatus, Status
    from pipeline.store.failures import StoredFailure


def status(json: Json = False, db: Database = None, home: Home = None) -> None:
    """Show products, models, indexes, the last runs and what failed."""
    from pipeline.status import read_status

    with open_database(db, home) as url:
        found = read_status(url)
    if json:
        print_json(found)
    else:
        _print_status(found)


def _print_status(found: Status) -> None:
    print_data(f"{found.products:,} products")
    if not found.runs:
        say("no run yet; begin with: catvec run CATALOG")
        return
    _print_models(found.models)
    print_table(
        ("run", "state", "started", "ended", "seen", "unchanged", "reused", "embedded", "failed", "removed"),
        [
            (
                *(run.run_id, run.state, run.started_at, run.finished_at),
                *(run.seen, run.unchanged, run.reused, run.embedded, run.failed, run.removed),
            )
            for run in found.runs
        ],
        right=(4, 5, 6, 7, 8, 9),
        spare=(3, 9, 6, 5),
    )
    if found.failures:
        rows = [(count.code, count.stage, count.failures, count.sample) for count in found.failures]
        print_table(("failure", "stage", "count", "for example"), rows, right=(2,))


def _print_models(models: Sequence[ModelStatus]) -> None:
    rows = []
    for entry in models:
        index = "valid" if entry.index.is_valid else "broken" if entry.index.exists else "none"
        size = f"{entry.index.size_bytes / 2**20:,.1f} MB" if entry.index.exists else ""
        covered = f"{entry.coverage.embedded:,} of {entry.coverage.images:,}"
        rows.append((entry.model.name, entry.model.state, entry.model.dims, covered, f"{index} {size}".strip()))
    print_table(("model", "state", "dims", "images embedded", "index"), rows, right=(2, 3))


def failures(
    code: Annotated[str | None, typer.Option("--code", help="only failures with this code")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="failures to show")] = 50,
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """List the images and catalog rows that could not be used, and why."""
    from pipeline.status import read_failures

    with open_database(db, home) as url:
        found = read_failures(url, code=code, limit=limit)
    if json:
        print_json({"failures": found})
    elif not found:
        say("nothing has failed")
    else:
        _print_failures(found)
        if len(found) == limit:
            say(f"the newest {limit:,}; more with --limit")


def _print_failures(found: Sequence[StoredFailure]) -> None:
    rows = [
        (entry.product_id, entry.code, entry.stage, entry.attempts, entry.url[:80], entry.detail) for entry in found
    ]
    print_table(("product", "code", "stage", "tries", "image", "why"), rows, right=(3,), spare=(2, 3))
