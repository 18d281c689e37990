"""What `catvec run --to FOLDER` does: a catalog becomes a bundle, where no database can be reached.

catalog → the bundle's own copy of it → images without an outcome → fetch → decode → encode → parts. Whatever
interrupts it, the same command goes on: the finished parts say what is done. A bundle does not look again at what it
has; what changes every night belongs into a database.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO

from pipeline.encoding import require_decoder
from pipeline.errors import BreakerError, ConfigError
from pipeline.ingest import Ended
from pipeline.inputs import read_rows
from pipeline.on_demand import ModelOnDemand
from pipeline.records import ProductChanges
from pipeline.summary import Beside, summarise
from pipeline.waiting import take_in_time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.bundle.catalog import CatalogCounts
    from pipeline.bundle.folder import Bundle
    from pipeline.bundle.format import BundleModel, Manifest
    from pipeline.bundle.parts import Contents, PartWriter
    from pipeline.engine.stop import Stop
    from pipeline.progress import Progress
    from pipeline.records import ImageRef, ModelSpec
    from pipeline.settings import RunSettings

PAGE = 2_000
"""images handed to the engine at once"""


def ingest_to_bundle(
    settings: RunSettings,
    folder: Path,
    *,
    progress: Progress,
    stop: Stop,
    wait: timedelta = timedelta(0),
    stdin: BinaryIO | None = None,
) -> Ended:
    """Bring the bundle in `folder` up to the catalog. Raises CatvecError; what was finished stays.

    Another run on the same bundle is waited for as long as `wait` says, then LockedError is raised.
    What `settings` say of a database is passed over; the command refuses it, and what would leave products out.
    """
    from pipeline.bundle.catalog import write_catalog
    from pipeline.bundle.parts import read_contents

    progress.begin("reading the catalog")
    require_decoder(settings)
    rows = read_rows(settings, stdin)  # a wrong file is told before a model is looked for
    with claimed_in_time(folder, progress=progress, stop=stop, wait=wait):
        progress.begin("checking the model")
        bundle, on_demand = _open(settings, folder, progress)
        progress.begin("reading the bundle")
        contents = read_contents(bundle)
        progress.begin("copying the catalog")
        with progress.stage("sync"):
            counts = write_catalog(bundle, rows, max_remove_rate=settings.max_remove_rate)
        return _work_off(settings, bundle, contents, counts, on_demand=on_demand, progress=progress, stop=stop)


@contextmanager
def claimed_in_time(folder: Path, *, progress: Progress, stop: Stop, wait: timedelta) -> Iterator[None]:
    """Write to the bundle alone. Raises LockedError when another run does for too long."""
    from pipeline.bundle.folder import claimed

    with ExitStack() as stack:
        take_in_time(lambda: stack.enter_context(claimed(folder)), progress=progress, stop=stop, wait=wait)
        yield


def _open(settings: RunSettings, folder: Path, progress: Progress) -> tuple[Bundle, ModelOnDemand]:
    """The bundle, made if there is none, and its model. Raises ModelError, ConfigError when it is another's."""
    from pipeline.bundle.folder import find_manifest
    from pipeline.bundle.format import Manifest

    known = find_manifest(folder)
    if known is not None:
        _check_catalog(folder, known.catalog, settings.catalog_name)  # before a model is looked for
    on_demand = ModelOnDemand(settings, known.model if known else None, progress)
    # a folder may have another name here; whoever gives a name means it
    spec = replace(on_demand.spec, name=settings.model.model_name or on_demand.spec.name)
    wanted = Manifest(catalog=settings.catalog_name, model=describe(spec, on_demand.location))
    return open_for(folder, wanted), on_demand


def open_for(folder: Path, wanted: Manifest) -> Bundle:
    """The bundle in the folder, made if there is none; the caller has claimed it.

    Raises ModelError, ConfigError when it is of another model or catalog.
    """
    from pipeline.bundle.folder import Bundle, find_manifest, write_manifest
    from pipeline.bundle.format import check_same_model

    known = find_manifest(folder)
    if known is None:
        return write_manifest(folder, wanted)
    _check_catalog(folder, known.catalog, wanted.catalog)
    check_same_model(
        wanted.model,
        known.model,
        where=f"bundle {str(folder)!r}",
        hint=_cure(wanted.model, known.model),
    )
    return Bundle(folder=folder, manifest=known)


def _cure(wanted: BundleModel, known: BundleModel) -> str:
    own = "give this model a bundle of its own"
    if (wanted.source, wanted.revision, wanted.fingerprint) != (known.source, known.revision, known.fingerprint):
        return own
    return f"it is the same model: leave --model-name out, and let catvec load name it with --model-name; or {own}"


def _check_catalog(folder: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise ConfigError(
            f"bundle {str(folder)!r} is of catalog {found!r}, --catalog-name is {wanted!r}",
            hint="give this catalog a bundle of its own",
        )


def describe(spec: ModelSpec, location: str) -> BundleModel:
    """The model as a bundle knows it."""
    from pipeline.bundle.format import BundleModel
    from pipeline.models.preprocess import fingerprint

    return BundleModel(
        name=spec.name,
        source=spec.source,
        revision=spec.revision,
        fingerprint=fingerprint(spec.preprocess),
        dims=spec.dims,
        has_text=spec.has_text,
        location=location,
        preprocess=spec.preprocess,
    )


def _work_off(
    settings: RunSettings,
    bundle: Bundle,
    contents: Contents,
    counts: CatalogCounts,
    *,
    on_demand: ModelOnDemand,
    progress: Progress,
    stop: Stop,
) -> Ended:
    to_do = sum(map(len, _read_work(bundle, contents)))
    seen = counts.images + sum(counts.bad_rows.values())
    progress.begin_images("encoding images" if to_do else "finishing", total=seen, untouched=counts.images - to_do)
    for code, count in counts.bad_rows.items():
        progress.fail(code, count)
    breaker = None
    try:
        if to_do:
            new = to_do - contents.failed_bare()
            _encode(settings, bundle, contents, new=new, on_demand=on_demand, progress=progress, stop=stop)
    except BreakerError as error:
        breaker = error
    now = progress.snapshot()
    stopped_by = stop.reason if (now.total or 0) > now.done else None
    summary = summarise(
        progress,
        Beside(
            stopped_by="failure_rate" if breaker else stopped_by,
            products=ProductChanges(new=counts.new, changed=0, removed=counts.gone),
        ),
        run_id=None,
        model=on_demand.spec.name,
        dims=on_demand.spec.dims,
        settings=settings,
        on_demand=on_demand,
    )
    return Ended(summary=summary, breaker=breaker)


def _read_work(bundle: Bundle, contents: Contents) -> Iterator[list[ImageRef]]:
    """The images that show nothing yet, page by page; those that failed in an earlier run are among them.

    All of them: who runs into a bundle again wants it whole, and an answer of 404 costs little.
    """
    from pipeline.bundle.catalog import image_key, read_images

    missing = (
        replace(image, failed_before=contents.failed.get(key))
        for image in read_images(bundle)
        if (key := image_key(image.product_id, image.url)) not in contents.shown
    )
    while page := list(islice(missing, PAGE)):
        yield page


def _encode(
    settings: RunSettings,
    bundle: Bundle,
    contents: Contents,
    *,
    new: int,
    on_demand: ModelOnDemand,
    progress: Progress,
    stop: Stop,
) -> None:
    """Take the images to their outcomes; so many of them are `new`, never tried before."""
    from pipeline.bundle.parts import PartWriter
    from pipeline.encoding import Destination, encode_work

    if new > 0 and not stop.is_asked():
        on_demand.prepare(new)  # while nothing is under way: it will surely be needed, and may fail
    with _closing(PartWriter(bundle, contents), progress) as writer:
        encode_work(
            _read_work(bundle, contents),
            settings=settings,
            on_demand=on_demand,
            progress=progress,
            stop=stop,
            destination=Destination(find_known=writer.find_known, write=writer.write),
        )


@contextmanager
def _closing(writer: PartWriter, progress: Progress) -> Iterator[PartWriter]:
    """Whatever ends the work, what it came to is kept."""
    try:
        yield writer
    finally:
        with progress.stage("write"):
            writer.close()
