"""Where a model's files come from: a local folder, or a snapshot of the Hub.

The Hub's cache comes before the network: what is there needs no Hub, and a Hub that is down harms nobody. The
weights are fetched last, so that a snapshot with weights has everything else. Imports neither torch nor
transformers.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import CatvecError, ConfigError, ModelError
from pipeline.models import folder as model_folder
from pipeline.models.preprocess import PROCESSOR_FILES
from pipeline.models.registry import hub_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.settings import ModelSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A folder to load one model from, and what identifies it (see ModelSpec)."""

    folder: Path
    source: str
    revision: str


def find_model(settings: ModelSettings, *, registered_revision: str | None = None) -> ModelFiles:
    """The model's files, downloaded if the Hub's cache lacks them.

    `registered_revision` is what the database knows this model by: a Hub commit in it is used when no revision
    is asked for, so that a `main` that moved changes no vectors.

    Raises:
        ConfigError: no such model, or none that this machine is allowed to have.
        ModelError: the files cannot be had, or are incomplete.
    """
    repository = hub_id(settings.model)
    if repository is None:
        return _open_folder(Path(settings.model).expanduser(), settings.revision)
    if registered_revision is not None and registered_revision.startswith("sha256:"):
        registered_revision = None  # a folder had this name; whoever compares identities will say so
    revision = settings.revision or registered_revision or "main"
    folder = _find_cached(repository, revision) or _download(repository, revision)
    return ModelFiles(folder=folder, source=repository, revision=folder.name)


def _open_folder(folder: Path, revision: str | None) -> ModelFiles:
    if not folder.exists():
        near = model_folder.find_near(folder)
        raise ConfigError(
            f"there is no model folder {str(folder)!r}",
            hint=_did_you_mean(near) or "a Hub id has the form owner/name, for example openai/clip-vit-base-patch32",
        )
    if not folder.is_dir():
        raise ConfigError(
            f"{str(folder)!r} is a file, expected a model folder", hint=f"give its folder, {str(folder.parent)!r}"
        )
    if revision is not None:
        raise ConfigError(
            f"--revision is {revision!r}, but a folder such as {str(folder)!r} has no revisions",
            hint="leave --revision out: a folder is identified by its weights",
        )
    model_folder.read_config(folder)
    weights = model_folder.find_weights(folder)
    if weights is None:
        expected = " or ".join(model_folder.SINGLE_WEIGHTS)
        raise ModelError(
            f"{folder} has no weights, expected {expected}, or an index with all its shards",
            hint="copy the whole model folder; if it is a Git clone of the Hub, run git lfs pull in it",
        )
    return ModelFiles(folder=folder, source="folder", revision=model_folder.hash_folder(folder, weights))


def _did_you_mean(near: Sequence[Path]) -> str | None:
    return f"did you mean the folder {' or '.join(repr(str(path)) for path in near)}?" if near else None


def _find_cached(repository: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository, revision=revision, local_files_only=True, allow_patterns=["config.json"]
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ConfigError(f"{repository!r} is no Hub id, expected owner/name") from error
    return Path(folder) if model_folder.is_complete(Path(folder)) else None


def _download(repository: str, revision: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    # the base of what the Hub's HTTP client raises; huggingface_hub changed clients twice
    http_error: type[Exception] = getattr(errors, "HTTPError", OSError)
    logger.info("downloading %s at %s from the Hub", repository, revision)
    try:
        with _quiet_hub():
            small = list(model_folder.SMALL_FILES)
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=small))
            _download_weights(repository, folder)
    except (OSError, ValueError, http_error) as error:
        raise _explain(repository, revision, error) from error
    if not model_folder.is_complete(folder):
        raise ModelError(
            f"{repository} at {folder.name} is no complete transformers model, expected config.json, "
            f"{PROCESSOR_FILES[1]}, {' or '.join(model_folder.SINGLE_WEIGHTS)}, and a tokenizer if it reads text"
        )
    return folder


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the Hub's bars and retry messages off stderr: they show addresses, a mirror's with its password."""
    from huggingface_hub import utils

    hub: Any = utils  # which exports these without saying so to type checkers
    had_bars, verbosity = not hub.are_progress_bars_disabled(), hub.logging.get_verbosity()
    hub.disable_progress_bars()
    hub.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        hub.logging.set_verbosity(verbosity)
        if had_bars:
            hub.enable_progress_bars()


def _download_weights(repository: str, folder: Path) -> None:
    """Fetch the first kind of weights that the repository has, and no other: they are the same, twice as large."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in model_folder.WEIGHTS:
        if (folder / name).is_file():
            shards = model_folder.read_shards(folder / name)
            if shards:
                snapshot_download(repository, revision=folder.name, allow_patterns=shards)
            return
        if name in model_folder.INDEXES:
            continue
        try:
            hf_hub_download(repository, name, revision=folder.name)
        except LocalEntryNotFoundError:
            raise  # not absent there, but out of reach
        except EntryNotFoundError:
            continue
        return


def _explain(repository: str, revision: str, error: Exception) -> CatvecError:
    """What went wrong, without the Hub's own text: it holds addresses, and a mirror's may hold a password."""
    from huggingface_hub import constants

    reason, is_wrong = _find_reason(error)
    near = model_folder.find_near(Path(repository))
    hint = _did_you_mean(near) or (
        f"on a machine with access run `hf download {repository} --revision {revision} --local-dir FOLDER` "
        "and give the copied FOLDER as --model; or point HF_HOME at a cache that has it, or HF_ENDPOINT at a mirror"
    )
    kind = ConfigError if is_wrong or near else ModelError
    return kind(
        f"model {repository!r} at revision {revision!r} cannot be had: {reason}; "
        f"searched the cache {constants.HF_HUB_CACHE}",
        hint=hint,
    )


def _find_reason(error: Exception) -> tuple[str, bool]:
    """Why the Hub gave nothing; and whether what was asked for is wrong, so that asking again is of no use."""
    from huggingface_hub import constants, errors

    if isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the Hub did answer; "not found locally" is only what followed
    is_wrong = True
    # subclasses first
    if isinstance(error, errors.GatedRepoError):
        reason = "the Hub gives it only to accounts that accepted its terms: accept them, and set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = "the model has no such revision"
    elif isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 404):
        reason = "the Hub has no such model, or it is private and HF_TOKEN does not open it"
    elif isinstance(error, errors.HfHubHTTPError):
        reason, is_wrong = f"the Hub answered with status {error.response.status_code}", False
    elif constants.HF_HUB_OFFLINE:
        reason = "it is not in the cache, and HF_HUB_OFFLINE is set"
    elif isinstance(error, OSError) and error.errno is not None:
        reason, is_wrong = f"its files cannot be written: {error.strerror}", False
    else:
        reason, is_wrong = "it is not in the cache, and the Hub cannot be reached", False
    return reason, is_wrong
