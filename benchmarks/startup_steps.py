"""One first run with a clock around each step before the first image; startup.py runs it as a process.

    DATABASE_URL=… python benchmarks/startup_steps.py CATALOG MODEL_FOLDER TIME_AT_START

Prints the seconds of each step as JSON. Libraries are imported one after the other first, so that none is part of
another step; a step that is renamed in `pipeline/` ends this with an AttributeError.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

IMPORTS = {
    "import cli": ("cli",),
    "import psycopg, pgvector": ("psycopg", "pgvector.psycopg"),
    "import sqlalchemy, alembic": ("sqlalchemy", "alembic.command", "alembic.config"),
    "import torch": ("torch",),
    "import transformers": ("transformers", "transformers.models.clip.modeling_clip"),
    "import aiohttp, PIL": ("aiohttp", "PIL.Image"),
    "import pipeline": (
        "pipeline.ingest",
        "pipeline.engine.local",
        "pipeline.images.fetch",
        "pipeline.models.encoder",
    ),
}

STEPS = {
    "make the tables": ("pipeline.store.migrate", "migrate"),
    "hash the weights": ("pipeline.models.encoder", "find_model"),
    "read the weights": ("pipeline.models.encoder", "load_model"),
    "encode the reference in fp32": ("pipeline.models.encoder", "_encode_reference"),
    "convert to the device's precision": ("pipeline.models.encoder", "Encoder"),
    "self-test": ("pipeline.models.self_test", "self_test"),
    "sync the catalog": ("pipeline.store.sync", "sync_catalog"),
}


class Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

        return timed


def main() -> None:
    catalog, model, started = sys.argv[1], sys.argv[2], float(sys.argv[3])
    clock = Clock()
    clock.seconds["start Python"] = time.time() - started
    for name, modules in IMPORTS.items():
        clock.around(name, lambda modules=modules: [importlib.import_module(module) for module in modules])()
    for name, (module_name, attribute) in STEPS.items():
        module = importlib.import_module(module_name)
        setattr(module, attribute, clock.around(name, getattr(module, attribute)))
    before_images = run(catalog, model) - started
    rest = before_images - sum(clock.seconds.values())
    print(json.dumps(clock.seconds | {"anything else": rest, "all before the first image": before_images}))


def run(catalog: str, model: str) -> float:
    """Ingest; returns `time.time()` at the beginning of the images."""
    from pipeline.engine.stop import Stop
    from pipeline.ingest import ingest
    from pipeline.progress import Progress
    from pipeline.settings import CatalogSettings, FetchSettings, ModelSettings, RunSettings

    begun: dict[str, float] = {}

    class Phases(Progress):
        def begin(self, phase: str) -> None:
            begun.setdefault(phase, time.time())
            super().begin(phase)

    settings = RunSettings(
        catalog=CatalogSettings(uri=catalog),
        fetch=FetchSettings(allow_private_hosts=True),
        model=ModelSettings(model=model),
    )
    ingest(settings, url=os.environ["DATABASE_URL"], progress=Phases(), stop=Stop())
    return begun["encoding images"]


if __name__ == "__main__":
    main()
