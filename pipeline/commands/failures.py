"""catvec failures, retry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.commands.options import Database, Home, Json, open_database, place_of
from pipeline.commands.terminal import print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.status import Retry
    from pipeline.store.failures import FailureGroup, FailureSample, StoredFailure

SHOWN_URL = 100
SHOWN_DETAIL = 200

Code = Annotated[str | None, typer.Option("--code", help="only failures with this code, such as http_404")]
Host = Annotated[str | None, typer.Option("--host", help="only images of this host, with its port or without")]
Kind = Annotated[
    Literal["permanent", "transient", "ours"] | None,
    typer.Option(
        "--kind",
        help="only these: transient may pass by itself, permanent is the catalog's or shop's, ours is catvec's",
    ),
]
ProductId = Annotated[str | None, typer.Option("--product", metavar="ID", help="only images of this product")]
OfModel = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="only under this model, by its name in the database")
]


def failures(
    code: Code = None,
    host: Host = None,
    kind: Kind = None,
    product: ProductId = None,
    one_by_one: Annotated[bool, typer.Option("--list", help="one by one instead of by code and host")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="lines to show; with --json single failures")] = 50,
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Show the images and catalog rows that could not be used, and why: by code and host, or one by one."""
    from pipeline.status import read_failures
    from pipeline.store.failures import FailureFilter

    wanted = FailureFilter(code=code, host=host, kind=kind, product_id=product)
    with open_database(db, home) as url:
        found = read_failures(url, wanted, limit=limit)
    if json:
        print_json(found)
    elif not found.groups:
        say(
            "nothing has failed" if wanted == FailureFilter() else "no failure is like that; without options all show"
        )
    elif one_by_one:
        _print_list(found.failures, of=sum(group.failures for group in found.groups))
    else:
        _print_groups(found.groups[:limit], of=len(found.groups), place=place_of(db, home))


def _print_groups(groups: Sequence[FailureGroup], *, of: int, place: str) -> None:
    rows = [
        (
            *(group.code, group.host, group.kind, group.failures, _tried(group)),
            *(_next_try(group.next_try_at, is_due=group.due > 0, stage=group.stage), _sample(group.samples[0])),
        )
        for group in groups
    ]
    headers = ("code", "host", "kind", "count", "tried", "next try", "for example")
    print_table(headers, rows, right=(3, 4), spare=(2, 4, 5), long=(6,))
    if len(groups) < of:
        say(f"{len(groups):,} of {of:,} groups; more with --limit")
    say(f"one by one: catvec failures --list{place}; to try them in the next run: catvec retry --code CODE{place}")


def _tried(group: FailureGroup) -> str:
    least, most = group.attempts_least, group.attempts_most
    return f"{least:,}" if least == most else f"{least:,}–{most:,}"


def _next_try(at: datetime | None, *, is_due: bool, stage: str) -> str:
    """When it is tried again; without a time that is when its row, URL or validator changes."""
    if is_due or stage == "catalog":
        return "next run"
    return "on change" if at is None else f"{at.astimezone():%Y-%m-%d %H:%M}"


def _sample(sample: FailureSample) -> str:
    return f"{sample.product_id or '–'} {sample.url[:SHOWN_URL]}\n{sample.detail[:SHOWN_DETAIL]}"


def _print_list(found: Sequence[StoredFailure], *, of: int) -> None:
    rows = [
        (
            *(entry.product_id, entry.code, entry.stage, entry.kind, entry.attempts),
            _next_try(entry.next_try_at, is_due=entry.is_due, stage=entry.stage),
            *(entry.url[:SHOWN_URL], entry.detail[:SHOWN_DETAIL]),
        )
        for entry in found
    ]
    headers = ("product", "code", "stage", "kind", "tries", "next try", "image", "why")
    print_table(headers, rows, right=(4,), spare=(2, 4, 3, 5), long=(6, 7))
    if len(found) < of:
        say(f"the newest {len(found):,} of {of:,}; more with --limit")


def retry(
    code: Code = None,
    host: Host = None,
    kind: Kind = None,
    product: ProductId = None,
    model: OfModel = None,
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Let the next run try failed images again, whenever they would be due; without an option all of them."""
    from pipeline.status import retry as retry_failures
    from pipeline.store.failures import FailureFilter

    wanted = FailureFilter(code=code, host=host, kind=kind, product_id=product, model=model)
    with open_database(db, home) as url:
        result = retry_failures(url, wanted)
    if json:
        print_json(result)
    for line in _result_lines(result, place=place_of(db, home)):
        say(line)


def _result_lines(result: Retry, *, place: str) -> list[str]:
    lines = []
    if result.catalog_rows:
        rows = "1 catalog row is" if result.catalog_rows == 1 else f"{result.catalog_rows:,} catalog rows are"
        lines.append(f"{rows} among them: every run reads the catalog anew")
    if not result.due:
        return [*lines, f"no failed image is like that; see: catvec failures{place}"]
    images = "1 image is" if result.due == 1 else f"{result.due:,} images are"
    return [*lines, f"{images} due in the next run; next: catvec run CATALOG{place}"]
