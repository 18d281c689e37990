"""What a training keeps beside its output until it is done: FOLDER.training.

settings.json      what decides the outcome; the same command goes on, another is refused once there is a checkpoint
start/             the model it began with, when that is a new one
pixels/            of both parts
checkpoints/       the best and the last
spent.json         how long the commands took that were interrupted
model/             the output while it is written; renamed when it is whole
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import CatvecError, ConfigError, LockedError
from pipeline.files import write_atomically
from pipeline.train.record import RECORD, read_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pipeline.train.record import Record


CATALOG = "the catalog"
HASHED = {CATALOG: f"{CATALOG} has changed since, or is read otherwise", "--from": "--from means another model now"}
"""what is known by a hash, which tells people nothing"""


class Clock:
    """How long a training has taken, with the commands before that were interrupted.

    What a kill or a power cut leaves out is the time since the checkpoint before it.
    """

    def __init__(self, path: Path, began: float) -> None:
        """`began` is when this command did, by time.monotonic()."""
        self._path = path
        self._began = began
        self._before = float(_read_object(path).get("seconds", 0)) if path.is_file() else 0.0

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def keep(self) -> None:
        """Let a command that goes on know; on a full disk it does not."""
        with suppress(CatvecError):
            write_atomically(self._path, json.dumps({"seconds": round(self.seconds, 1)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The output and what belongs to it while it is made."""

    output: Path

    @property
    def folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.training")

    @property
    def start(self) -> Path:
        return self.folder / "start"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def pixels(self) -> Path:
        return self.folder / "pixels"

    @property
    def _spent(self) -> Path:
        return self.folder / "spent.json"

    @contextmanager
    def begun(self, decisive: Mapping[str, Any], *, restart: bool, began: float) -> Iterator[Clock]:
        """Take up the training that was begun here, or begin one, and keep others away meanwhile.

        `began` is when the command did, by time.monotonic(). Raises ConfigError when it is another training,
        LockedError when another command is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder):
            self._begin(decisive, restart=restart)
            clock = Clock(self._spent, began)
            try:
                yield clock
            finally:
                if self.folder.is_dir():  # it is not finished
                    clock.keep()

    def _begin(self, decisive: Mapping[str, Any], *, restart: bool) -> None:
        note = self.folder / "settings.json"
        known = _read_object(note) if note.is_file() else None
        if not restart and known is not None and last_checkpoint(self.checkpoints) is not None:
            hint = "the command it was begun with goes on; --restart forgets it, or choose another --output"
            refuse_others(known, decisive, f"the training in {str(self.folder)!r} was begun", hint)
        elif restart or known != decisive:  # without a step there is nothing to lose but pixels, and these stay
            for gone in (self.start, self.checkpoints, self.model):
                shutil.rmtree(gone, ignore_errors=True)
            self._spent.unlink(missing_ok=True)
        write_atomically(note, json.dumps(decisive, indent=2, ensure_ascii=False))

    def keep_pixels(self, *names: str) -> None:
        """Forget those of other images: they take as much room, and nobody comes back for them."""
        self.pixels.mkdir(exist_ok=True)
        for path in self.pixels.iterdir():
            if path.name not in names:
                shutil.rmtree(path)

    def finish(self) -> None:
        """Put the whole model where it belongs, in one step, and forget the rest."""
        if self.output.is_dir():
            self.output.rmdir()  # empty, or it would have been refused
        self.model.rename(self.output)
        shutil.rmtree(self.folder)


def refuse_others(known: Mapping[str, Any], decisive: Mapping[str, Any], what: str, hint: str) -> None:
    """Raise ConfigError that names the first thing that was otherwise when `what` happened."""
    for name in sorted({*known, *decisive}, key=str):
        if known.get(name) != decisive.get(name):
            if name in HASHED:
                raise ConfigError(f"{what}, and {HASHED[name]}", hint=hint)
            raise ConfigError(f"{what} with {name} {known.get(name)!r}, now it is {decisive.get(name)!r}", hint=hint)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl

    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(
                f"another training is at work in {str(folder)!r}", hint="wait for it, or choose another --output"
            ) from error
        yield


def find_finished(output: Path) -> Record | None:
    """What a finished training says of itself; None when there is nothing yet.

    Raises ConfigError when something else is there, or it is damaged.
    """
    if not output.exists():
        return None
    if not output.is_dir():
        raise ConfigError(f"--output is {str(output)!r}, which is a file, expected a folder that does not exist yet")
    names = sorted(path.name for path in output.iterdir())
    if RECORD in names:
        return read_record(output / RECORD)
    if names:
        shown = ", ".join(map(repr, names[:3])) + (" …" if len(names) > 3 else "")
        raise ConfigError(
            f"--output is {str(output)!r}, which holds {shown}, expected a folder that does not exist yet",
            hint="nothing is overwritten: choose another --output",
        )
    return None


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one when it is damaged, which equals nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: what the Trainer writes last is its state."""
    found = sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)
    return next((checkpoint for checkpoint in found if _is_whole(checkpoint)), None)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was made at."""
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
