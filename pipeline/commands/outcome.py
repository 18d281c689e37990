"""How a command ended, for schedulers and monitoring: exit codes, and the metrics of a run."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from pipeline.commands.terminal import say
from pipeline.errors import BreakerError, CatvecError, ConfigError, LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.records import RunSummary
    from pipeline.settings import RunSettings

EX_TEMPFAIL = 75
"""sysexits.h: try again later"""


def exit_code_of(error: BaseException) -> int:
    """0 done · 1 error · 2 usage or configuration · 4 too many failures · 75 another run · 130 interrupted."""
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    codes = ((ConfigError, 2), (BreakerError, 4), (LockedError, EX_TEMPFAIL), (KeyboardInterrupt, 130))
    return next((code for kind, code in codes if isinstance(error, kind)), 1)


def end_now(exit_code: int) -> NoReturn:
    """End the process although a thread is inside the model yet.

    Python's own end would stop that thread when it comes back from there, in the middle of C++ that then aborts (exit
    code 134).
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)


@contextmanager
def metrics_of_failure(path: Path | None, settings: RunSettings) -> Iterator[None]:
    """Write the metrics of a run that does not get to a summary."""
    if path is not None:
        from pipeline.metrics import check_metrics_path

        check_metrics_path(path)
    try:
        yield
    except BaseException as error:
        write_metrics_file(path, settings, None, exit_code_of(error))
        raise


def write_metrics_file(path: Path | None, settings: RunSettings, summary: RunSummary | None, exit_code: int) -> None:
    """Write them where `path` says, if it does; what cannot be written does not undo the run."""
    if path is None:
        return
    from pipeline.metrics import write_metrics
    from pipeline.models.registry import model_name

    try:
        write_metrics(
            path,
            summary=summary,
            exit_code=exit_code,
            ended_at=time.time(),
            catalog=settings.catalog_name,
            model=model_name(settings.model),
        )
    except CatvecError as error:
        say(f"warning: no metrics: {error.message}", level="warning")
