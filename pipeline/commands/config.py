"""catvec.toml: options written down once. An option beats the environment, which beats the file.

Keys are the options without the dashes. At the top they hold for every command that has such an option; in
a table named after a command ([run], [search], [db.psql]) they hold for that one.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "catvec.toml"


def read_config(path: Path, group: Any) -> dict[str, Any]:
    """The file as Typer's default map for this group of commands. Raises ConfigError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is no TOML: {error}") from error
    used: set[str] = set()
    defaults = _defaults(group, values, {}, used)
    unknown = sorted(set(_paths(values)) - used)
    if unknown:
        raise ConfigError(
            f"{str(path)!r} sets {', '.join(map(repr, unknown))}, which no command has",
            hint="keys are options without the dashes; see: catvec run --help",
        )
    return defaults


def _defaults(
    group: Any, values: dict[str, Any], inherited: dict[str, Any], used: set[str], prefix: str = ""
) -> dict[str, Any]:
    """The default map of a group: what it inherits, then its own keys, then those of each command's table."""
    own = {key: value for key, value in values.items() if not isinstance(value, dict)}
    shared = {**inherited, **{key: (prefix + key, value) for key, value in own.items()}}
    defaults: dict[str, Any] = {}
    for name, command in group.commands.items():
        table = values.get(name, {})
        table = table if isinstance(table, dict) else {}
        if hasattr(command, "commands"):
            defaults[name] = _defaults(command, table, shared, used, f"{prefix}{name}.")
        here = {**shared, **{key: (f"{prefix}{name}.{key}", value) for key, value in table.items()}}
        defaults[name] = {**defaults.get(name, {}), **_chosen(command, here, used)}
    return defaults


def _chosen(command: Any, available: dict[str, Any], used: set[str]) -> dict[str, Any]:
    chosen = {}
    for parameter in command.params:
        for flag in parameter.opts:
            path, value = available.get(flag.lstrip("-"), (None, None))
            if flag.startswith("-") and path is not None:
                used.add(path)
                chosen[parameter.name] = _checked(path, value, parameter)
    return chosen


def _checked(path: str, value: Any, parameter: Any) -> Any:
    """The value as the option wants it. Typer would call a wrong one an option, and leave its reader searching."""
    if parameter.multiple:
        value = [value] if isinstance(value, str) else value
        fits, expected = isinstance(value, list) and all(isinstance(item, str) for item in value), "a list of texts"
    elif getattr(parameter, "is_flag", False):
        fits, expected = isinstance(value, bool), "true or false"
    else:
        kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", str)
        expected = {int: "a whole number", float: "a number"}.get(kind, "a text")
        wanted = {int: (int,), float: (int, float)}.get(kind, (str, int, float))
        fits = isinstance(value, wanted) and not isinstance(value, bool)
    if not fits:
        raise ConfigError(f"the configuration file sets {path!r} to {value!r}, expected {expected}")
    return value


def _paths(values: dict[str, Any], prefix: str = "") -> list[str]:
    paths = []
    for key, value in values.items():
        paths += _paths(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return paths
