"""A model whose identity is known at once, and whose weights are loaded when there is something to encode.

Most nights nothing is: importing torch and loading ViT-B/32 take four seconds, comparing identities half a second.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.records import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder
    from pipeline.progress import Progress
    from pipeline.settings import RunSettings
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

UNLOADED_BATCH = 32
"""images of a batch before the model, and so its device, is known: what a CPU takes"""


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
    """The model of one run. Any thread may call its methods; one at a time encodes."""

    def __init__(self, settings: RunSettings, stored: KnownModel | None, progress: Progress) -> None:
        """Raises ModelError for a model that cannot be found; one that is not known yet is loaded at once."""
        self._settings = settings
        self._stored = stored
        self._progress = progress
        self._encoder: Encoder | None = None
        self._lock = threading.Lock()
        self.spec = self._known_spec() or self.load().spec

    def load(self) -> Encoder:
        """The encoder, tested on this device. Raises ModelError and ConfigError."""
        from pipeline.models.encoder import load_encoder
        from pipeline.models.self_test import self_test

        with self._lock:
            if self._encoder is None:
                with self._progress.stage("model"):
                    revision = self._stored.revision if self._stored else None
                    encoder = load_encoder(self._settings.model, registered_revision=revision)
                    self_test(encoder)
                self._encoder = encoder
            return self._encoder

    @property
    def loaded(self) -> Encoder | None:
        return self._encoder

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.load().encode_images(pixels)

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
