"""--log-format: what goes to standard error is text for people, or one JSON object a line for a log collector.

With json that holds for everything said after the options are read: talk, progress, log records, warnings, errors and
their tracebacks. A usage error (exit code 2, a wrong option) comes before that and stays text.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

if TYPE_CHECKING:
    from types import TracebackType

LogFormat = Annotated[
    Literal["text", "json"],
    typer.Option(
        "--log-format",
        envvar="CATVEC_LOG_FORMAT",
        help="standard error as text, or as one JSON object a line: time, level, logger, message …",
    ),
]

TEXT = "%(levelname)s %(name)s: %(message)s"

logger = logging.getLogger("catvec")


@dataclass(slots=True)
class _Talk:
    is_json: bool = False


_talk = _Talk()


def is_json() -> bool:
    """Whether standard error is for a program: then there are no bars on it."""
    return _talk.is_json


def configure_logging(log_format: str, *, verbose: bool) -> None:
    """Set how this process talks; once, before any command."""
    level = logging.DEBUG if verbose else logging.WARNING
    _talk.is_json = log_format == "json"
    if not _talk.is_json:
        logging.basicConfig(level=level, format=TEXT)
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    warnings.showwarning = _log_warning
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def json_line(
    message: str, *, level: str = "info", name: str = "catvec", at: float | None = None, **fields: Any
) -> str:
    """One line of the log, without its end; `at` is seconds since 1970, else now."""
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    time = moment.isoformat(timespec="milliseconds")
    # ASCII: under LANG=C standard error would write an é as \xe9, which is no JSON
    return json.dumps({"time": time, "level": level, "logger": name, "message": message, **fields}, default=str)


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON, with its traceback in a field."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        message = record.getMessage()
        return json_line(message, level=record.levelname.lower(), name=record.name, at=record.created, **fields)


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - the signature is Python's
    line: str | None = None,  # noqa: ARG001
) -> None:
    logging.getLogger("py.warnings").warning("%s: %s (%s:%d)", category.__name__, message, filename, lineno)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logger.critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
