"""catvec train: a model learns the language of a catalog."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.head import train_head_command
from pipeline.commands.live import interruptible, progress_shown, say_beside_bar
from pipeline.commands.options import Database, Home, Json, ModelName, refuse_given, take, with_settings
from pipeline.commands.terminal import print_json, print_table, say
from pipeline.errors import ConfigError
from pipeline.progress import Progress
from pipeline.settings import (
    CatalogSettings,
    DecodeSettings,
    FetchSettings,
    HeadSettings,
    NewModelSettings,
    TrainSettings,
)

if TYPE_CHECKING:
    from pipeline.train.record import Trained

Catalog = Annotated[
    str | None, typer.Argument(metavar="CATALOG", help="file, folder, SQLAlchemy URL, or -; none with --head")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="PATH",
        help="folder of the model, which must not exist yet; with --head a file, else ATTRIBUTE.safetensors here",
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="the model to go on with: vit-b-32 and the like, a Hub id, or a folder; without it a new one",
    ),
]
Restart = Annotated[bool, typer.Option("--restart", help="forget a training that was begun in PATH.training")]
HeadOf = Annotated[
    str | None,
    typer.Option(
        "--head",
        metavar="ATTRIBUTE",
        help="train a classifier of this attribute on the vectors in the database, for catvec tag, and no model",
    ),
]
Hidden = Annotated[int | None, typer.Option("--hidden", help="with --head: units of a hidden layer; else none")]
Threshold = Annotated[
    float, typer.Option("--threshold", help="with --head: probability below which catvec tag says unknown, 0 to 1")
]

_OWN = dict.fromkeys((NewModelSettings, TrainSettings), "TRAIN")
"""whose variables are CATVEC_TRAIN_…: CATVEC_BATCH_SIZE and CATVEC_DEVICE are what a run encodes with"""
_OF_A_HEAD = ("hidden", "threshold", "model", "db", "home")


@with_settings(CatalogSettings, FetchSettings, DecodeSettings, *_OWN, variables=_OWN)
def train(
    context: typer.Context,
    uri: Catalog = None,
    output: Output = None,
    base: From = None,
    restart: Restart = False,
    head: HeadOf = None,
    hidden: Hidden = None,
    threshold: Threshold = 0.5,
    model: ModelName = None,
    json: Json = False,
    db: Database = None,
    home: Home = None,
    **options: Any,
) -> None:
    """Train a model on the catalog's own images and titles, or with --head a classifier on stored vectors.

    The model is a folder for catvec run --model. What interrupts its training costs little: the same command goes on.
    """
    if head is None:
        refuse_given(context, _OF_A_HEAD, "goes with --head only", hint="leave it out, or add --head ATTRIBUTE")
        _train_model(uri, output, base, options, restart=restart, json=json)
        return
    others = ["uri", "base", "restart", *(name for name in options if name != "seed")]
    refuse_given(
        context, others, "cannot go with --head: a head learns from the vectors in the database", hint="leave it out"
    )
    settings = HeadSettings(attribute=head, output=output, hidden=hidden, threshold=threshold, seed=options["seed"])
    train_head_command(settings, model=model, json=json, db=db, home=home)


def _train_model(
    uri: str | None, output: Path | None, base: str | None, options: dict[str, Any], *, restart: bool, json: bool
) -> None:
    from pipeline.train.card import shown_command
    from pipeline.train.job import Surroundings
    from pipeline.train.training import train as train_model

    if uri is None or output is None:
        missing = "CATALOG" if uri is None else "--output FOLDER"
        raise ConfigError(f"{missing} is missing", hint="for example: catvec train catalog.csv --output models/shop")
    settings = take(
        TrainSettings,
        options,
        catalog=take(CatalogSettings, options | {"uri": uri}),
        fetch=take(FetchSettings, options),
        decode=take(DecodeSettings, options),
        new=take(NewModelSettings, options),
        base=base,
    )
    progress = Progress()
    with interruptible(progress) as stop, progress_shown(progress):
        around = Surroundings(
            progress=progress,
            stop=stop,
            tell=say_beside_bar,
            command=shown_command(sys.argv[1:]),
            restart=restart,
            stdin=sys.stdin.buffer,
        )
        trained = train_model(settings, output, around)
    if json:
        print_json(trained)
    else:
        _print(trained)


def _print(trained: Trained) -> None:
    print_table(("metric", "value"), trained.metrics.items(), right=(1,))
    done = f"trained in {trained.seconds:,.0f} s" if trained.is_new else "was trained already and is as it was"
    say(f"{trained.folder}: {done}, {trained.steps:,} steps, the best one {trained.best_step:,}")
    say(f"to use it: catvec run CATALOG --model {trained.folder}")
