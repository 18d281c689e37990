"""catvec load and catvec export: a bundle into a database, and out of one. The third way is `catvec run --to`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.live import interruptible, progress_shown
from pipeline.commands.options import (
    Database,
    Home,
    Json,
    ModelName,
    WaitForRun,
    open_database,
    path,
    place_of,
    take,
    with_settings,
)
from pipeline.commands.summary import summary_lines
from pipeline.commands.terminal import print_json, say
from pipeline.durations import parse_duration
from pipeline.progress import Progress
from pipeline.settings import LoadSettings

if TYPE_CHECKING:
    from pipeline.exporting import Exported
    from pipeline.records import RunSummary
    from pipeline.store.models import StoredModel

BundleFolder = Annotated[Path, typer.Argument(parser=path, metavar="BUNDLE", help="folder of the bundle")]
CatalogName = Annotated[
    str,
    typer.Option(
        "--catalog-name", envvar="CATVEC_CATALOG_NAME", help="name of the catalog, when the database holds several"
    ),
]


@with_settings(LoadSettings)
def load(
    bundle: BundleFolder,
    db: Database = None,
    home: Home = None,
    wait: WaitForRun = "0s",
    json: Json = False,
    **options: Any,
) -> None:
    """Bring a bundle into a database: its products, images, vectors and failures. No model is needed.

    Run it again at any time: it goes on where it stopped, and writes only what is missing.
    """
    from pipeline.loading import load as load_bundle
    from pipeline.status import read_models

    settings, progress = take(LoadSettings, options), Progress()
    longest = parse_duration(wait)
    with open_database(db, home) as url, interruptible(progress) as stop:
        with progress_shown(progress):
            summary = load_bundle(settings, bundle, url=url, progress=progress, stop=stop, wait=longest)
        active = next((model for model in read_models(url) if model.is_active), None)
    for line in load_lines(summary, active=active, place=place_of(db, home)):
        say(line)
    if json:
        print_json(summary)


def load_lines(summary: RunSummary, *, active: StoredModel | None, place: str) -> list[str]:
    """What a load did, in words; the last line says what to type next."""
    lines = summary_lines(summary, active=active, place=place, source="from the bundle")
    if summary.pending and not summary.unchanged + summary.reused + summary.embedded:
        lines[-1] = "the bundle has no vectors yet; the same catvec run … --to makes them, then load it again"
    elif summary.pending:
        lines.insert(-1, f"{summary.pending:,} images have no outcome in the bundle yet: catvec run makes them")
    return lines


def export(
    bundle: BundleFolder,
    model: ModelName = None,
    catalog_name: CatalogName = "default",
    db: Database = None,
    home: Home = None,
    wait: WaitForRun = "0s",
    json: Json = False,
) -> None:
    """Write a bundle from a database: a catalog's products, images, vectors and failures under one model.

    Run it again at any time: it goes on where it stopped, or adds what changed since.
    """
    from pipeline.exporting import export as export_bundle

    progress, longest = Progress(), parse_duration(wait)
    with open_database(db, home) as url, interruptible(progress) as stop, progress_shown(progress):
        exported = export_bundle(
            bundle, url=url, model=model, catalog=catalog_name, progress=progress, stop=stop, wait=longest
        )
    for line in export_lines(exported):
        say(line)
    if json:
        print_json(exported)


def export_lines(exported: Exported) -> list[str]:
    """What an export did, in words."""
    pending = f", {exported.pending:,} images without a vector are left out" if exported.pending else ""
    return [
        f"{exported.images:,} images of {exported.products:,} products: {exported.written:,} rows written, "
        f"{exported.failed:,} failed{pending}",
        f"model {exported.model} ({exported.dims} dimensions), catalog {exported.catalog!r}",
        f"next, where it is wanted: catvec load {shlex.quote(str(exported.bundle))} --db …",
    ]
