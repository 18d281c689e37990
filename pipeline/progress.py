"""Counters of a run that several threads write and a terminal or log reads. No terminal code here."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.records import StageLoad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


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
class StageTimes:
    """What the workers of a stage did in the `seconds` that images were worked on; the others are their sums."""

    stage: str
    workers: int
    seconds: float
    busy_s: float
    starved_s: float
    blocked_s: float

    def load(self, earlier: StageTimes | None = None) -> StageLoad:
        """The shares of their time, since `earlier` if given."""
        names = ("busy", "starved", "blocked")
        spent = {name: max(0.0, self._since(earlier, f"{name}_s")) for name in names}
        # clocks are read one after the other, so the parts may come to a little more than the whole
        whole = max(self.workers * self._since(earlier, "seconds"), sum(spent.values())) or 1.0
        return StageLoad(
            stage=self.stage, workers=self.workers, **{name: round(spent[name] / whole, 3) for name in names}
        )

    def _since(self, earlier: StageTimes | None, name: str) -> float:
        return float(getattr(self, name) - (getattr(earlier, name) if earlier else 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The counters at one moment.

    `checked` had a vector and were asked for again, `changed` showed other bytes; both are among the other counts,
    too. `untouched` are those of `unchanged` that were not asked for. `seconds` count from the beginning,
    `work_seconds` since the total is known.

    `steps` are those of a phase that counts something else than images. `hosts` are those that images came from.
    `away_s` seconds the database has been waited for now; None while it is there.
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
    stage_times: tuple[StageTimes, ...] = ()
    hosts: int = 0
    away_s: float | None = None

    def loads(self, earlier: Snapshot | None = None) -> tuple[StageLoad, ...]:
        """How busy the stages were, in the order of an image's way; since `earlier` if given."""
        before = {times.stage: times for times in earlier.stage_times} if earlier else {}
        return tuple(times.load(before.get(times.stage)) for times in self.stage_times)

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
    hosts: set[str] = field(default_factory=set, repr=False)  # may hold a user and a password
    find_away: Callable[[], float | None] = field(default=lambda: None, repr=False)
    """tells for how long the database has been waited for; set by who has one"""
    _under_way: dict[object, tuple[str, float]] = field(default_factory=dict, repr=False)
    _workers: dict[str, int] = field(default_factory=dict)
    _noted: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    _at_work_s: float = 0.0
    _at_work_since: float | None = None
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
        visit, started = object(), time.perf_counter()
        # a key of its own needs no lock; a forward pass of seconds counts while it lasts
        self._under_way[visit] = (name, started)
        try:
            yield
        finally:
            with self._lock:
                del self._under_way[visit]
                self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + time.perf_counter() - started

    @contextmanager
    def at_work(self, workers: Mapping[str, int]) -> Iterator[None]:
        """The workers of these stages have their time to themselves inside: what they do with it is counted."""
        with self._lock:
            self._workers.update(workers)
            self._at_work_since = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._at_work_s, self._at_work_since = self._seconds_at_work(), None

    def employ(self, stage: str, workers: int) -> None:
        """How many workers a stage has, where that is known later than the others."""
        with self._lock:
            self._workers[stage] = workers

    def note(self, stage: str, *, busy_s: float = 0.0, starved_s: float = 0.0, blocked_s: float = 0.0) -> None:
        """Add what a worker waited for input or to hand over, or was busy without being inside `stage`."""
        with self._lock:
            self._noted[stage, "busy"] += busy_s
            self._noted[stage, "starved"] += starved_s
            self._noted[stage, "blocked"] += blocked_s

    def _seconds_at_work(self) -> float:
        since = self._at_work_since
        return self._at_work_s + (0.0 if since is None else time.perf_counter() - since)

    def _busy_seconds(self) -> dict[str, float]:
        """Of each stage, with what is under way at this moment."""
        busy, now = dict(self.stage_seconds), time.perf_counter()
        for name, started in list(self._under_way.values()):
            busy[name] = busy.get(name, 0.0) + max(0.0, now - started)
        return busy

    def _stage_times(self, busy: Mapping[str, float]) -> Iterator[StageTimes]:
        for stage, workers in self._workers.items():
            yield self._times(stage, workers, busy)

    def _times(self, stage: str, workers: int, busy: Mapping[str, float]) -> StageTimes:
        return StageTimes(
            stage=stage,
            workers=workers,
            seconds=self._seconds_at_work(),
            busy_s=busy.get(stage, 0.0) + self._noted[stage, "busy"],
            starved_s=self._noted[stage, "starved"],
            blocked_s=self._noted[stage, "blocked"],
        )

    def snapshot(self) -> Snapshot:
        with self._lock:
            busy = self._busy_seconds()
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
                stage_seconds={name: round(seconds, 3) for name, seconds in busy.items()},
                seconds=time.monotonic() - self.started,
                work_seconds=time.monotonic() - self.work_started if self.work_started else 0.0,
                steps=self._steps,
                stage_times=tuple(self._stage_times(busy)),
                hosts=len(self.hosts),
                away_s=self.find_away(),
            )
