"""Names: short ones for the usual models, and the one a model gets in the database. Imports nothing heavy."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.models.folder import find_near

if TYPE_CHECKING:
    from pipeline.settings import ModelSettings

ALIASES = {
    "vit-b-32": "openai/clip-vit-base-patch32",
    "vit-b-16": "openai/clip-vit-base-patch16",
    "vit-l-14": "openai/clip-vit-large-patch14",
    "vit-l-14-336": "openai/clip-vit-large-patch14-336",
}

# 40, because tables and indexes are named after the model and PostgreSQL cuts names at 63 bytes
_DATABASE_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def hub_id(model: str) -> str | None:
    """The Hub id behind an alias or Hub id; None for a local folder.

    A folder that exists comes before a Hub id of the same spelling, as in transformers; an alias before both.

    Raises:
        ConfigError: neither an alias, nor a folder, nor spelled like a Hub id.
    """
    if model in ALIASES:
        return ALIASES[model]
    if _is_path(model):
        return None
    if _HUB_ID.fullmatch(model):
        return model
    known = ", ".join(ALIASES)
    near = [*difflib.get_close_matches(model, ALIASES, n=1), *map(str, find_near(Path(model)))]
    raise ConfigError(
        f"unknown model {model!r}, expected {known}, a Hub id such as google/siglip-base-patch16-224, "
        "or a model folder that exists",
        hint=f"did you mean {' or '.join(near)}?" if near else None,
    )


def model_name(settings: ModelSettings) -> str:
    """The model's name in the database: what was asked for, or made from alias, Hub id or folder.

    The Hub id behind an alias gets the alias's name: it is the same model. Two models that get the same name
    are told apart by their identity, and the second is refused.

    Raises:
        ConfigError: `settings.model_name` is no name, or none can be made.
    """
    if settings.model_name is not None:
        return check_name(settings.model_name)
    repository = hub_id(settings.model)
    plain = next((alias for alias, known in ALIASES.items() if known == repository), None)
    if plain is None:
        plain = repository.rpartition("/")[2] if repository else Path(settings.model).expanduser().resolve().name
    name = _slug(plain)
    if not name:
        raise ConfigError(
            f"no name for the database can be made from {settings.model!r}",
            hint="choose one with --model-name",
        )
    return name


def check_name(name: str) -> str:
    """The name that --model-name gives a model in the database. Raises ConfigError when it is none."""
    if _DATABASE_NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"--model-name is {name!r}, expected a lower-case letter "
        "and then up to 39 lower-case letters, digits or underscores",
        hint=_suggestion(name),
    )


def _is_path(model: str) -> bool:
    is_spelled_so = model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1
    return is_spelled_so or (model != "" and Path(model).exists())


def _slug(text: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    if slug and not slug[0].isalpha():
        slug = f"m_{slug}"
    return slug[:40].rstrip("_")


def _suggestion(name: str) -> str | None:
    slug = _slug(name)
    return f"for example --model-name {slug}" if slug else None
