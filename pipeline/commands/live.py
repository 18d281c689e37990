"""A run as seen from the terminal: a bar or log lines while it goes on, and what signals mean."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from pipeline.commands.logs import is_json
from pipeline.commands.terminal import say
from pipeline.errors import CatvecError
from pipeline.limits import in_brief
from pipeline.pace import Pace, show_cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from tqdm import tqdm

    from pipeline.engine.stop import Stop
    from pipeline.pace import Outlook
    from pipeline.progress import Progress, Snapshot, Steps

LOG_EVERY_S = 10.0
BAR_EVERY_S = 0.2

# tqdm would take the time that a phase waits for others as work, and foretell too long an end
IMAGES_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}, {rate_fmt}{postfix}]"
STEPS_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}{postfix}]"
NO_BAR = "{desc} [{elapsed}]"

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Signals:
    """Which signal asked the run to stop, if any."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.received] if self.received else 0


@contextmanager
def signals_stop(stop: Stop) -> Iterator[Signals]:
    """SIGINT and SIGTERM ask the run to drain; a second one, or one while nothing drains, interrupts it."""
    signals = Signals()

    def handle(number: int, _frame: FrameType | None) -> None:
        again = stop.is_asked()
        signals.received = signal.Signals(number)
        stop.ask(signals.received.name)
        if again or not stop.is_draining:
            raise KeyboardInterrupt
        say(f"{signals.received.name}: finishing what is in flight …")

    earlier = {number: signal.signal(number, handle) for number in EXIT_CODES}
    try:
        yield signals
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(progress: Progress) -> Iterator[Stop]:
    """SIGINT and SIGTERM break off what is done inside, which cleans up; how to go on is said."""
    from pipeline.engine.stop import Stop

    stop = Stop()
    with signals_stop(stop) as signals:
        try:
            yield stop
        except (KeyboardInterrupt, CatvecError):
            # what is broken off may also fail
            if signals.received is None:
                raise
            say(f"interrupted while {progress.snapshot().phase}; to go on, run the same command again")
            raise typer.Exit(signals.exit_code) from None


@contextmanager
def progress_shown(progress: Progress, *, price: float | None = None) -> Iterator[None]:
    """A tqdm bar on a terminal, one log line every 10 s otherwise, and a line for each new phase.

    With the `price` of an hour, also what it costs.
    """
    show = _show_bar if sys.stderr.isatty() and not is_json() else _show_lines
    with beside(lambda ended: show(progress, Pace(price), ended), name="progress"):
        yield


@contextmanager
def beside(work: Callable[[threading.Event], None], *, name: str) -> Iterator[None]:
    """Do the work in a thread while the block runs; the event tells it that the block has ended, and it is waited
    for."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def say_beside_bar(text: str) -> None:
    """A line of talk while `progress_shown`: a bar makes way for it."""
    if sys.stderr.isatty() and not is_json():
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        say(text)


def _show_lines(progress: Progress, pace: Pace, ended: threading.Event) -> None:
    phase, next_line_s, before = "", LOG_EVERY_S, progress.snapshot()
    while True:
        is_over = ended.wait(BAR_EVERY_S)
        now = progress.snapshot()
        outlook = pace.look(now)
        if now.phase != phase:
            phase = now.phase
            say(f"{phase} …", **_counters(now, outlook))
            next_line_s = now.seconds + LOG_EVERY_S
        if is_over:
            return
        if now.seconds >= next_line_s:
            next_line_s = now.seconds + LOG_EVERY_S
            limits = in_brief(now.loads(before))
            say(
                ", ".join(filter(None, (_line(now, outlook), limits, _waiting(now)))),
                **_counters(now, outlook),
                limits=limits or None,
            )
            before = now


def _line(now: Snapshot, outlook: Outlook) -> str:
    if now.steps is not None:
        return ", ".join([_steps_line(now.phase, now.steps), *_costs(outlook)])
    if now.total is None:
        return f"{now.phase} … {now.seconds:.0f} s"
    line = (
        f"{now.phase}: {now.done:,} of {now.total:,}, {now.images_per_s:.1f} images/s, "
        f"{now.embedded:,} embedded, {now.reused:,} reused, {now.failed:,} failed"
    )
    return ", ".join([line, *_time_left(outlook), *_costs(outlook)])


def _waiting(now: Snapshot) -> str:
    return "" if now.away_s is None else f"waiting for the database for {now.away_s:.0f} s"


def _time_left(outlook: Outlook) -> list[str]:
    from pipeline.report.words import span

    return [f"about {span(outlook.left_s)} left"] if outlook.left_s else []


def _costs(outlook: Outlook) -> list[str]:
    if outlook.cost is None:
        return []
    whole = "" if outlook.expected_cost is None else f" of about {show_cost(outlook.expected_cost)}"
    return [f"cost {show_cost(outlook.cost)}{whole}"]


def _counters(now: Snapshot, outlook: Outlook) -> dict[str, Any]:
    """The line's numbers for --log-format json; a phase without images counts what its `unit` says."""
    left_s = None if outlook.left_s is None else round(outlook.left_s, 1)
    extra: dict[str, float | None] = {}
    if outlook.cost is not None:
        extra |= {"cost": outlook.cost, "expected_cost": outlook.expected_cost}
    if now.away_s is not None:
        extra["database_away_s"] = round(now.away_s, 1)
    if now.steps is not None:
        steps = {"unit": now.steps.unit, "done": now.steps.done, "total": now.steps.total}
        return {"phase": now.phase, **steps, "waits_for": now.steps.waits_for or None, "left_s": left_s, **extra}
    counts = {name: getattr(now, name) for name in ("done", "total", "unchanged", "reused", "embedded", "failed")}
    rate = {"images_per_s": round(now.images_per_s, 1), "left_s": left_s}
    return {"phase": now.phase, "unit": "images", **counts, **rate, **extra}


def _steps_line(phase: str, steps: Steps) -> str:
    line = f"{phase}: {steps.done:,} of {steps.total:,} {steps.unit}"
    if steps.waits_for:
        return f"{line}, {steps.waits_for}"
    return line if steps.left_s is None else f"{line}, about {steps.left_s:,.0f} s left"


def _show_bar(progress: Progress, pace: Pace, ended: threading.Event) -> None:
    """One bar for the images, and one for each phase that counts something else, or nothing."""
    is_over, now = False, progress.snapshot()
    before, limits = now, ""
    while not is_over:
        what = _counted(now)
        with _bar(now) as bar:
            while not is_over and what == _counted(now):
                if now.seconds - before.seconds >= LOG_EVERY_S:
                    before, limits = now, in_brief(now.loads(before))
                _refresh(bar, now, pace.look(now), limits)
                is_over = ended.wait(BAR_EVERY_S)
                now = progress.snapshot()


def _counted(now: Snapshot) -> tuple[str, str]:
    """What the bar counts, and the phase if the next one begins from 0."""
    if now.steps is not None:
        return now.steps.unit, now.phase
    return ("images", "") if now.total is not None else ("", now.phase)


def _bar(now: Snapshot) -> tqdm[NoReturn]:
    from tqdm import tqdm

    unit, _ = _counted(now)
    layout = IMAGES_BAR if unit == "images" else STEPS_BAR if unit else NO_BAR
    return tqdm(unit=f" {unit}", bar_format=layout, dynamic_ncols=True, smoothing=0.1, leave=False, file=sys.stderr)


def _refresh(bar: tqdm[NoReturn], now: Snapshot, outlook: Outlook, limits: str) -> None:
    steps = now.steps
    if steps is not None:
        bar.set_description_str(f"{now.phase}, {steps.waits_for}" if steps.waits_for else now.phase, refresh=False)
        bar.total, bar.n = steps.total, steps.done
        is_known = steps.left_s is not None and not steps.waits_for
        bar.set_postfix_str(f"about {steps.left_s:,.0f} s left" if is_known else "", refresh=False)
    else:
        bar.set_description_str(", ".join(filter(None, (now.phase, _waiting(now)))), refresh=False)
        if now.total is not None:
            if bar.total is None:
                # what needed no work is not part of the rate
                bar.initial = bar.n = now.unchanged
                bar.total = now.total
                bar.unpause()
            bar.n = now.done
            counts = [f"failed={now.failed}", f"reused={now.reused}"]
            told = filter(None, (*counts, *_time_left(outlook), *_costs(outlook), limits))
            bar.set_postfix_str(", ".join(told), refresh=False)
    bar.refresh()
