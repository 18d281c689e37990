"""Options that commands share, and options made out of settings records. See `catvec --help` for precedence."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
from contextlib import contextmanager
from dataclasses import MISSING, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_origin, get_type_hints

import typer

from pipeline.durations import parse_age, show_duration
from pipeline.errors import ConfigError
from pipeline.settings import plain_fields
from pipeline.shard import Shard, parse_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Record = TypeVar("Record")


def path(text: str | Path) -> Path:
    """A path that was typed in. An empty one would stand for the folder that one is in."""
    if str(text):
        return Path(text)
    raise typer.BadParameter("it is empty, expected a file or folder")


Database = Annotated[
    str | None,
    typer.Option(
        "--db",
        envvar="CATVEC_DATABASE_URL",
        metavar="URL",
        help="postgresql://user:password@host/database; without it catvec starts a PostgreSQL of its own",
        show_envvar=True,
    ),
]
Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        parser=path,
        envvar="CATVEC_HOME",
        help="folder of catvec's own PostgreSQL; else ~/.local/share/catvec, for root /var/lib/catvec",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
ActiveModel = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="name of a model in the database; else the active one")
]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        min=0,
        metavar="SECONDS",
        envvar="CATVEC_LOCK_WAIT",
        help="seconds to go on trying while others hold on to what is switched; readers never wait that long",
    ),
]
WaitForRun = Annotated[
    str,
    typer.Option(
        "--wait",
        metavar="DURATION",
        envvar="CATVEC_WAIT",
        help="how long to wait for another run with this model, such as 30m, before the exit code becomes 75",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]
Count = Annotated[int, typer.Option("-k", min=1, max=1000, envvar="CATVEC_K", help="products to show")]
Conditions = Annotated[
    str,
    typer.Option(
        "--filter",
        metavar="JSON",
        help='such as {"category": "dress", "price": {"max": 50}, "colour": "navy"}',
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model", envvar="CATVEC_SEARCH_MODEL", help="name of a model in the database; else the active one"
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="where the model's weights are now, when they are no longer where run found them"),
]
Device = Annotated[str, typer.Option("--device", envvar="CATVEC_DEVICE", help="auto, cuda, cuda:N, mps or cpu")]
Precision = Annotated[str, typer.Option("--precision", envvar="CATVEC_PRECISION", help="auto, fp32, bf16 or fp16")]


@contextmanager
def open_database(db: str | None, home: Path | None) -> Iterator[str]:
    """The URL of the database to use; catvec's own server runs inside the block when no other is named."""
    if db is not None:
        yield db
        return
    from pipeline.store.embedded import lease

    with lease(home_of(home)) as url:
        yield url


def home_of(home: Path | None) -> Path:
    """The folder of catvec's own server."""
    from pipeline.store.embedded import default_home

    named = os.environ.get("CATVEC_HOME")
    return home or (Path(named) if named else default_home(is_root=os.geteuid() == 0, environ=os.environ))


def place_of(db: str | None, home: Path | None) -> str:
    """The options that lead another command to the same database, without its password; with a space before."""
    if db is not None:
        return "" if db == os.environ.get("CATVEC_DATABASE_URL") else " --db …"
    if home is not None and str(home) != os.environ.get("CATVEC_HOME"):
        return f" --home {shlex.quote(str(home))}"
    return ""


def refuse_given(context: typer.Context, names: Iterable[str], words: str, *, hint: str) -> None:
    """Raise ConfigError for the first of these parameters that stands on the command line.

    In the environment or the configuration file, where options are set for all commands, they do no harm.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"{option_of(context, name)} {words}", hint=hint)


def option_of(context: typer.Context, name: str) -> str:
    """How the parameter is written on the command line."""
    parameter = next(entry for entry in context.command.params if entry.name == name)
    spellings = parameter.secondary_opts if context.params[name] is False else parameter.opts
    return str(spellings[0] if spellings[0].startswith("-") else "CATALOG")  # the one argument that records have


def with_settings(
    *kinds: type, variables: Mapping[type, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these settings records.

    The command takes `**settings`; `take` turns them into the records again. A field without a default is an
    argument. A parameter that the command declares itself stands in place of the record's. Option `--batch-size` is
    also the environment variable CATVEC_BATCH_SIZE; `variables` gives a kind a word of its own in them, such as TRAIN
    for CATVEC_TRAIN_BATCH_SIZE, where the name without it means something else to other commands. A field whose type
    is an option already, such as `Database`, is that option: so commands share those that no use case knows.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(*arguments: Any, **options: Any) -> None:
            command(*arguments, **options)

        own = [
            entry
            for entry in inspect.signature(command, eval_str=True).parameters.values()
            if entry.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        named = {entry.name for entry in own}
        made = [
            entry
            for kind in kinds
            for entry in _parameters(kind, (variables or {}).get(kind))
            if entry.name not in named
        ]
        arguments = [entry for entry in made if entry.default is inspect.Parameter.empty]
        options = [entry for entry in made if entry.default is not inspect.Parameter.empty]
        merged = [entry.replace(kind=inspect.Parameter.KEYWORD_ONLY) for entry in (*arguments, *own, *options)]
        wrapper.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {entry.name: entry.annotation for entry in merged}
        return wrapper

    return decorate


_PARSED: dict[Any, tuple[str, Callable[[str], Any]]] = {
    timedelta: ("AGE", parse_age),
    Shard | None: ("I/N", parse_shard),
}
"""what stands for a value in --help, and how its text is read"""


def take(kind: type[Record], options: Mapping[str, Any], **more: Any) -> Record:
    """Build a settings record from the options that `with_settings` made for it."""
    hints = get_type_hints(kind)
    values = {entry.name: _read(options[entry.name], hints[entry.name]) for entry in _parameters(kind)}
    return kind(**values, **more)


def _read(value: Any, hint: Any) -> Any:
    if hint in _PARSED and value is not None:
        return _PARSED[hint][1](value)
    return tuple(value) if isinstance(value, list) else value


def _parameters(kind: type, word: str | None = None) -> Iterator[inspect.Parameter]:
    hints, plain = get_type_hints(kind, include_extras=True), set(plain_fields(kind))
    for entry in fields(kind):
        if get_origin(hints[entry.name]) is Annotated:
            option = hints[entry.name]
            yield inspect.Parameter(
                entry.name, inspect.Parameter.KEYWORD_ONLY, default=entry.default, annotation=option
            )
        elif entry.name in plain:
            yield _option(entry.name, hints[entry.name], entry.default, entry.metadata["help"], word)
        elif entry.default is MISSING and entry.default_factory is MISSING and hints[entry.name] is str:
            annotation = Annotated[str, typer.Argument(metavar="CATALOG", help="file, folder, SQLAlchemy URL, or -")]
            yield inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)


def _option(name: str, hint: Any, default: Any, help_text: str, word: str | None) -> inspect.Parameter:
    is_several = default == ()
    option = name.removesuffix("s") if is_several else name
    flag = "--" + option.replace("_", "-")
    if hint is bool and default:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    kind: Any = list[str] if is_several else hint
    metavar, parser = None, path if hint == Path | None else None
    if hint in _PARSED:
        metavar, _ = _PARSED[hint]
        kind = str if default is not None else str | None
    variable = "_".join(filter(None, ("CATVEC", word, option.upper())))
    annotation = Annotated[kind, typer.Option(flag, envvar=variable, help=help_text, metavar=metavar, parser=parser)]
    shown = list(default) if is_several else show_duration(default) if hint is timedelta else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=annotation)
