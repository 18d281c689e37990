"""What `catvec export FOLDER` does: a catalog's vectors under one model leave a database as a bundle.

The bundle is what `catvec run --to` would have made. All is read as of one moment, beside whatever runs. An export
that is broken off goes on; one into a bundle that is there adds what changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.bundling import claimed_in_time, describe, open_for
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.bundle.catalog import CatalogCounts
    from pipeline.bundle.folder import Bundle
    from pipeline.bundle.parts import Contents
    from pipeline.engine.stop import Stop
    from pipeline.progress import Progress
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

ANY = 1.0
"""the database was guarded against cut-off catalogs; what is gone there is gone"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What a bundle holds after an export; its fields are the keys of `catvec export --json`.

    `written` rows are new in it: images with a vector or a failure. `pending` images have neither in the database.
    """

    bundle: Path
    catalog: str
    model: str
    dims: int
    products: int
    images: int
    written: int
    failed: int
    pending: int


def export(
    folder: Path,
    *,
    url: str,
    model: str | None,
    catalog: str,
    progress: Progress,
    stop: Stop,
    wait: timedelta = timedelta(0),
) -> Exported:
    """Bring the bundle in `folder` up to the database at `url`. Raises CatvecError; what was finished stays.

    `model` None is the active one. Whoever writes to the bundle is waited for as long as `wait` says.
    """
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model

    progress.begin("opening the bundle")
    with claimed_in_time(folder, progress=progress, stop=stop, wait=wait), open_current(url) as session:
        connection = session.connection()
        with connection.transaction():
            # one moment for the catalog and its images
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            chosen = choose_model(connection, model)
            _require_catalog(connection, catalog)
            return _fill(connection, _open(connection, folder, chosen, catalog), chosen, progress)


def _require_catalog(connection: Connection, catalog: str) -> None:
    from pipeline.store.bundle import list_catalogs

    known = list_catalogs(connection)
    if catalog not in known:
        shown = ", ".join(map(repr, known)) or "none"
        raise ConfigError(
            f"there is no catalog {catalog!r} in this database, there are: {shown}",
            hint="name one with --catalog-name" if known else "fill it first: catvec run CATALOG",
        )


def _open(connection: Connection, folder: Path, model: StoredModel, catalog: str) -> Bundle:
    """The bundle, made if there is none. Raises ModelError, ConfigError when it is another's.

    What a database calls the model is no part of its identity: a bundle that is there keeps the name that it has.
    """
    from pipeline.bundle.folder import find_manifest
    from pipeline.bundle.format import Manifest
    from pipeline.store.models import read_spec

    spec, known = read_spec(connection, model), find_manifest(folder)
    if known is not None:
        spec = replace(spec, name=known.model.name)
    return open_for(folder, Manifest(catalog=catalog, model=describe(spec, model.location)))


def _fill(connection: Connection, bundle: Bundle, model: StoredModel, progress: Progress) -> Exported:
    from pipeline.bundle.catalog import write_catalog
    from pipeline.bundle.parts import read_contents
    from pipeline.store.bundle import read_catalog

    contents = read_contents(bundle)
    progress.begin("exporting the catalog")
    rows = read_catalog(connection, bundle.manifest.catalog)
    counts = write_catalog(bundle, rows, max_remove_rate=ANY)
    written, failed, seen = _write_images(connection, bundle, contents, model, counts, progress)
    return Exported(
        bundle=bundle.folder,
        catalog=bundle.manifest.catalog,
        model=model.name,
        dims=model.dims,
        products=counts.products,
        images=counts.images,
        written=written,
        failed=failed,
        pending=counts.images - seen,
    )


def _write_images(
    connection: Connection,
    bundle: Bundle,
    contents: Contents,
    model: StoredModel,
    counts: CatalogCounts,
    progress: Progress,
) -> tuple[int, int, int]:
    """How many rows were written, how many images have failed, and how many came by."""
    from pipeline.bundle.parts import PartWriter
    from pipeline.store.bundle import read_images

    progress.begin("exporting vectors")
    writer = PartWriter(bundle, contents)
    failed = seen = 0
    for seen, image in enumerate(read_images(connection, model, bundle.manifest.catalog), start=1):
        failed += image.failed is not None
        if image.found and image.failed:
            writer.add_failing(*image.found, *image.failed)
        elif only := image.found or image.failed:
            writer.add(*only)
        progress.step(seen, counts.images, unit="images")
    writer.close()
    return writer.written, failed, seen
