"""Counters of a run that several threads write and a terminal or log reads. No terminal code here."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How far a phase is that is not about images: rows of an index, queries of a measurement.

    `total` 0 means not known. `waits_for` says what holds it up. `seconds` count since the first step.
    """

    done: int
    total: int
    unit: str
    waits_for: str
    seconds: float

    @property
    def left_s(self) -> float | None:
        """Seconds to go, at the rate so far."""
        return self.seconds * (self.total - self.done) / self.done if 0 < self.done <= self.total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The counters at one moment.

    `checked` had a vector and were asked for again, `changed` showed other bytes; both are among the other counts,
    too. `untouched` are those of `unchanged` that were not asked for. `seconds` count from the beginning,
    `work_seconds` since the total is known.

    `steps` are those of a phase that counts something else than images.
    """

    phase: str
    total: int | None
    unchanged: int
    reused: int
    embedded: int
    failed: int
    checked: int
    changed: int
    untouched: int
    failures_by_code: Mapping[str, int]
    stage_seconds: Mapping[str, float]
    seconds: float
    work_seconds: float
    steps: Steps | None = None

    @property
    def images_per_s(self) -> float:
        """Images brought to a good end, over the time that images were worked on."""
        worked_s = self.stage_seconds.get("images", self.work_seconds)
        return (self.unchanged - self.untouched + self.embedded + self.reused) / worked_s if worked_s else 0.0

    @property
    def done(self) -> int:
        return self.unchanged + self.reused + self.embedded + self.failed


@dataclass(slots=True)
class Progress:
    """Counters of one run. Every method may be called from any thread."""

    phase: str = "starting"
    total: int | None = None
    unchanged: int = 0
    reused: int = 0
    embedded: int = 0
    checked: int = 0
    changed: int = 0
    untouched: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    work_started: float | None = None
    _steps: Steps | None = None
    _steps_started: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self, phase: str) -> None:
        """Say what happens now: syncing, encoding, indexing …"""
        with self._lock:
            self.phase = phase
            self._steps = None

    def begin_images(self, phase: str, *, total: int, untouched: int) -> None:
        """Work on so many images begins; `untouched` of them are as they should be and need none."""
        self.begin(phase)
        with self._lock:
            self.total = total
            self.unchanged = self.untouched = untouched
            self.work_started = time.monotonic()

    def add(
        self, *, unchanged: int = 0, reused: int = 0, embedded: int = 0, checked: int = 0, changed: int = 0
    ) -> None:
        with self._lock:
            self.unchanged += unchanged
            self.reused += reused
            self.embedded += embedded
            self.checked += checked
            self.changed += changed

    def settle(self) -> None:
        """All is done: what another run did meanwhile, or added, is no work of this one."""
        with self._lock:
            rest = (self.total or 0) - self.unchanged - self.reused - self.embedded - self.failures.total()
            self.unchanged += max(0, rest)
            if self.total is not None:
                self.total -= min(0, rest)

    def step(self, done: int, total: int, *, unit: str, waits_for: str = "") -> None:
        """Say how far the phase is in something else than images; the next `begin` ends it."""
        with self._lock:
            if self._steps is None or self._steps.done > done or not done:
                self._steps_started = time.monotonic()
            seconds = time.monotonic() - self._steps_started
            self._steps = Steps(done=done, total=total, unit=unit, waits_for=waits_for, seconds=seconds)

    def fail(self, code: str, failures: int = 1) -> None:
        with self._lock:
            self.failures[code] += failures

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the stage's busy seconds, summed over all threads."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + time.perf_counter() - started

    def snapshot(self) -> Snapshot:
        with self._lock:
            return Snapshot(
                phase=self.phase,
                total=self.total,
                unchanged=self.unchanged,
                reused=self.reused,
                embedded=self.embedded,
                failed=self.failures.total(),
                checked=self.checked,
                changed=self.changed,
                untouched=self.untouched,
                failures_by_code=dict(self.failures.most_common()),
                stage_seconds={name: round(seconds, 3) for name, seconds in self.stage_seconds.items()},
                seconds=time.monotonic() - self.started,
                work_seconds=time.monotonic() - self.work_started if self.work_started else 0.0,
                steps=self._steps,
            )
