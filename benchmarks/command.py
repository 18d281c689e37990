"""`catvec` as a process, in a folder of its own, so that its command line names no path of this machine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.random_model import save_clip_b32, save_tiny_clip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CATVEC = Path(sys.executable).with_name("catvec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where commands run; `model` is the name of a model folder in `folder`."""

    folder: Path
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One command that succeeded; `seconds` is the whole process."""

    command: str
    out: str
    err: str
    seconds: float

    def json(self) -> dict[str, Any]:
        """The last line of standard output."""
        value: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return value


@contextmanager
def working_folder(model: Path | None, *, tiny: bool = False) -> Iterator[Place]:
    """A temporary folder with the model in it; None: random weights, of ViT-B/32's size if not `tiny`."""
    with tempfile.TemporaryDirectory(prefix="catvec-bench-") as scratch:
        folder = Path(scratch)
        if model is not None:
            name = link_model(folder, model)
        elif tiny:
            name = save_tiny_clip(folder / "clip-tiny-random").name
        else:
            name = save_clip_b32(folder / "clip-b32-random").name
        yield Place(folder=folder, model=name)


def link_model(folder: Path, model: Path) -> str:
    """Make it reachable by its name alone, which is returned."""
    (folder / model.name).symlink_to(model.resolve(), target_is_directory=True)
    return model.name


def run_catvec(
    *arguments: str,
    folder: Path,
    environment: Mapping[str, str],
    watch: Callable[[subprocess.Popen[bytes]], None] | None = None,
    code: int = 0,
) -> Outcome:
    """Run a command to its end; `watch` sees the process while it runs. Ends this program when its exit code is not
    `code`.
    """
    return run_process([str(CATVEC), *arguments], folder=folder, environment=environment, watch=watch, code=code)


def run_process(
    command: list[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    watch: Callable[[subprocess.Popen[bytes]], None] | None = None,
    code: int = 0,
) -> Outcome:
    """Any program, as `run_catvec`; it is to end with `code`."""
    shown = shlex.join([Path(command[0]).name, *command[1:]])
    # nobody's own CATVEC_… settings; offline, so that no look at the Hub is part of a time
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CATVEC_")}
    clean |= {"HF_HUB_OFFLINE": "1"} | dict(environment)
    # files and not pipes: whoever watches does not read, and a full pipe would stop the process
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        with subprocess.Popen(
            command, cwd=folder, env=clean, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        ) as ran:
            if watch is not None:
                watch(ran)
            ended = ran.wait()
        seconds = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        outcome = Outcome(command=shown, out=out.read().decode(), err=err.read().decode(), seconds=seconds)
    if ended != code:
        raise SystemExit(f"$ {shown}\n{outcome.err}{outcome.out}exit code {ended}")
    return outcome
