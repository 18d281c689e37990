"""A model whose identity is known at once, and whose weights are loaded when there is something to encode.

Most nights nothing is: importing torch and loading ViT-B/32 take four seconds, comparing identities half a second.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.records import ModelSpec

if TYPE_CHECKING:
    from pipeline.models.encoder import Encoder
    from pipeline.progress import Progress
    from pipeline.settings import RunSettings
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

UNLOADED_BATCH = 32
"""images of a batch before the model, and so its device, is known: what a CPU takes"""
WORTH_TRYING = 10_000
"""images for which several batch sizes are tried, once: on a CPU that takes as long as 360 of them"""


class KnownModel(Protocol):
    """A model as a database or a bundle knows it: its name there, and its identity."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dims(self) -> int: ...
    @property
    def has_text(self) -> bool: ...


class ModelOnDemand:
    """The model of one run, once on each of its devices. Any thread may call its methods."""

    def __init__(self, settings: RunSettings, stored: KnownModel | None, progress: Progress) -> None:
        """One that is not known yet is loaded at once. Raises ConfigError for one that does not exist, ModelError."""
        from pipeline.models.batch import BatchSizes

        self._settings = settings
        self._batch_sizes = BatchSizes(settings.home / "batch_sizes.json" if settings.home else None)
        self._stored = stored
        self._progress = progress
        self._encoder: Encoder | None = None
        self._others: list[Encoder] | None = None
        self._is_compiled = False
        self._lock = threading.Lock()
        self.spec = self._known_spec() or self.load().spec

    def load(self) -> Encoder:
        """The encoder on the first device, tested there. Raises ModelError and ConfigError."""
        from pipeline.models.encoder import load_encoder

        with self._lock:
            if self._encoder is None:
                with self._progress.stage("model"):
                    revision = self._stored.revision if self._stored else None
                    encoder = load_encoder(self._settings.model, registered_revision=revision)
                    self._make_ready(encoder)
                self._encoder = encoder
            return self._encoder

    def encoders(self) -> list[Encoder]:
        """One encoder for each device, compiled if --compile says on. Raises ModelError and ConfigError."""
        encoders = self._placed()
        if self._settings.model.compile == "on":
            self._compile(encoders, is_optional=False)
        return encoders

    def _placed(self) -> list[Encoder]:
        from pipeline.models.device import choose_placements

        first = self.load()
        with self._lock:
            if self._others is None:
                with self._progress.stage("model"):
                    others = [first.replicate(place) for place in choose_placements(self._settings.model)[1:]]
                    for encoder in others:
                        self._make_ready(encoder)
                self._others = others
            return [first, *self._others]

    def devices(self) -> list[str]:
        """Where it runs, or will run once it is loaded. Raises ModelError."""
        from pipeline.models.device import choose_placements

        return [place.device for place in choose_placements(self._settings.model)]

    def devices_beside(self) -> int:
        """How many of these add the rate of the first one."""
        from pipeline.models.device import choose_placements, count_beside

        return count_beside(choose_placements(self._settings.model))

    def prepare(self, images: int) -> None:
        """Load the model for so many images that will surely be encoded, and find how they are encoded best.

        Raises ModelError and ConfigError.
        """
        from pipeline.models.compilation import pays_back

        if images < WORTH_TRYING:
            self.encoders()
            return
        encoders = self._placed()
        if not self._settings.model.batch_size:
            self._find_batch_sizes(encoders)
        wanted = self._settings.model.compile
        if wanted == "on" or (wanted == "auto" and pays_back(encoders, images)):
            self._compile(encoders, is_optional=wanted == "auto")

    def _find_batch_sizes(self, encoders: list[Encoder]) -> None:
        from pipeline.models.batch import find_batch_size

        with self._progress.stage("model"):
            for encoder in encoders:
                if (known := self._batch_sizes.recall(encoder)) is None:
                    find_batch_size(encoder)
                    self._batch_sizes.remember(encoder)
                else:
                    encoder.batch_size = known

    def _compile(self, encoders: list[Encoder], *, is_optional: bool) -> None:
        """Once, for the batch sizes that were found."""
        from pipeline.models.compilation import compile_images

        with self._lock:
            if self._is_compiled:
                return
            self._is_compiled = True
            before = self._progress.phase
            self._progress.begin("compiling the model")
            with self._progress.stage("compile"):
                compile_images(encoders, is_optional=is_optional)
            self._progress.begin(before)

    def remember(self) -> None:
        """Keep in mind for later runs which batches did not fit into a device's memory."""
        for encoder in self.loaded:
            if encoder.was_halved:
                self._batch_sizes.remember(encoder)

    def _make_ready(self, encoder: Encoder) -> None:
        from pipeline.models.self_test import self_test

        if not self._settings.model.batch_size:
            encoder.batch_size = self._batch_sizes.recall(encoder) or encoder.batch_size
        self_test(encoder)

    @property
    def loaded(self) -> list[Encoder]:
        """The encoders that were needed so far."""
        return [self._encoder, *(self._others or [])] if self._encoder else []

    @property
    def device(self) -> str | None:
        """The devices that were needed so far, with commas."""
        return ", ".join(encoder.device for encoder in self.loaded) or None

    @property
    def precision(self) -> str | None:
        """None when the model was not needed."""
        return self._encoder.precision if self._encoder else None

    def batch_size(self) -> int:
        """Images to encode at once; it shrinks when the device's memory does not suffice."""
        if self._encoder is not None:
            return self._encoder.batch_size
        return self._settings.model.batch_size or UNLOADED_BATCH

    @property
    def location(self) -> str:
        """Where the model comes from: its alias or Hub id, or the path of its folder."""
        from pipeline.models.registry import hub_id

        wanted = self._settings.model.model
        return wanted if hub_id(wanted) else str(Path(wanted).expanduser().resolve())

    def register(self, connection: Connection) -> StoredModel:
        """The row of this model, made or checked. Raises ModelError when it is another than it was."""
        from pipeline.models.preprocess import fingerprint
        from pipeline.store.models import register_model

        return register_model(
            connection,
            self.spec,
            fingerprint(self.spec.preprocess),
            location=self.location,
            storage=self._settings.storage,
        )

    def _known_spec(self) -> ModelSpec | None:
        """What is known of exactly these weights with this preprocessing; None if it is not the same."""
        from pipeline.models.folder import read_config
        from pipeline.models.preprocess import fingerprint, read_preprocess
        from pipeline.models.source import find_model

        stored = self._stored
        if stored is None:
            return None
        files = find_model(self._settings.model, registered_revision=stored.revision)
        preprocess = read_preprocess(files.folder, model_type=str(read_config(files.folder).get("model_type")))
        identity = (files.source, files.revision, fingerprint(preprocess))
        if identity != (stored.source, stored.revision, stored.fingerprint):
            return None
        return ModelSpec(
            name=stored.name,
            source=stored.source,
            revision=stored.revision,
            dims=stored.dims,
            preprocess=preprocess,
            has_text=stored.has_text,
        )
