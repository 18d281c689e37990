"""catvec train: a model learns the language of a catalog."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.live import interruptible, progress_shown, say_beside_bar
from pipeline.commands.options import Json, take, with_settings
from pipeline.commands.terminal import print_json, print_table, say
from pipeline.progress import Progress
from pipeline.settings import CatalogSettings, DecodeSettings, FetchSettings, NewModelSettings, TrainSettings

if TYPE_CHECKING:
    from pipeline.train.record import Trained

Output = Annotated[
    Path, typer.Option("--output", metavar="FOLDER", help="where the model is put; must not exist yet")
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="the model to go on with: vit-b-32 and the like, a Hub id, or a folder; without it a new one",
    ),
]
Restart = Annotated[bool, typer.Option("--restart", help="forget a training that was begun in FOLDER.training")]


@with_settings(CatalogSettings, FetchSettings, DecodeSettings, NewModelSettings, TrainSettings)
def train(output: Output, base: From = None, restart: Restart = False, json: Json = False, **options: Any) -> None:
    """Train a model on the catalog's own images and titles, from scratch or from another model.

    The output is a folder for catvec run --model. What interrupts it costs little: the same command goes on.
    """
    from pipeline.train.card import shown_command
    from pipeline.train.job import Surroundings
    from pipeline.train.training import train as train_model

    settings = take(
        TrainSettings,
        options,
        catalog=take(CatalogSettings, options),
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
    done = f"trained in {trained.seconds:,.0f} s" if trained.is_new else "was trained already"
    say(f"{trained.folder}: {done}, {trained.steps:,} steps, the best one {trained.best_step:,}")
    say(f"to use it: catvec run CATALOG --model {trained.folder}")
