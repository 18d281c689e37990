"""The command `catvec`: assembles the commands, and turns errors into words and exit codes.

Exit codes: 0 done · 1 stopped by an error · 2 usage or configuration · 3 finished, but too many images failed ·
4 the failure rate stopped a run · 75 another run holds the lock · 130 interrupted · 143 terminated.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.commands.bench import bench
from pipeline.commands.bundle import export, load
from pipeline.commands.config import FILE_NAME, read_config
from pipeline.commands.database import db_app
from pipeline.commands.demo import demo
from pipeline.commands.doctor import doctor
from pipeline.commands.evaluate import evaluate_app
from pipeline.commands.explain import explain
from pipeline.commands.failures import failures, retry
from pipeline.commands.find import search, similar
from pipeline.commands.index import index_app
from pipeline.commands.logs import LogFormat, configure_logging
from pipeline.commands.look import status
from pipeline.commands.models import models_app
from pipeline.commands.neighbours import neighbours_app
from pipeline.commands.options import path
from pipeline.commands.outcome import exit_code_of
from pipeline.commands.queries import embed_text, queries_app
from pipeline.commands.run import plan, run
from pipeline.commands.tag import tag
from pipeline.commands.terminal import print_data, say_error
from pipeline.commands.train import train
from pipeline.errors import CatvecError

app = typer.Typer(
    name="catvec",
    help="CLIP vectors of a product catalog in your own Postgres. Begin with: catvec demo",
    epilog="An option beats its environment variable (CATVEC_…), which beats catvec.toml, which beats the default.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would double the time that --help takes
)
app.command()(run)
app.command()(plan)
app.command()(load)
app.command()(export)
app.command()(search)
app.command()(similar)
app.command()(tag)
app.command()(embed_text)
app.add_typer(queries_app, name="queries")
app.command()(status)
app.command()(failures)
app.command()(retry)
app.add_typer(models_app, name="models")
app.add_typer(index_app, name="index")
app.add_typer(neighbours_app, name="neighbours")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(db_app, name="db")
app.command()(doctor)
app.command()(explain)
app.command()(bench)
app.command()(train)
app.command()(demo)


def _version(asked: bool) -> None:
    if asked:
        print_data(f"catvec {__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", parser=path, envvar="CATVEC_CONFIG", help="configuration file; else ./catvec.toml"),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="more words; tracebacks of errors")] = False,
    log_format: LogFormat = "text",
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False,
) -> None:
    configure_logging(log_format, verbose=verbose)
    path = config or Path(FILE_NAME)
    if config or path.is_file():
        context.default_map = read_config(path, context.command)


def main() -> None:
    """Run the command line; the only place where errors become exit codes."""
    try:
        app()
    except CatvecError as error:
        if _is_verbose():
            logging.getLogger("catvec").error("traceback", exc_info=error)
        say_error(error)
        sys.exit(exit_code_of(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # the reader (head, less) has gone; the rest is for nobody
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _is_verbose() -> bool:
    return logging.getLogger().isEnabledFor(logging.DEBUG)


if __name__ == "__main__":
    main()
