"""What keeps the rate of a run down, in words: from how busy its stages were, one sentence and the option to turn.

In a row of stages with bounded queues between them, the slowest is busy throughout; those before it wait to hand
over, those behind it wait for input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.progress import Snapshot
    from pipeline.records import StageLoad
    from pipeline.settings import RunSettings

LEAST_S: Final = 10.0
LEAST_IMAGES: Final = 200
"""below either, filling and emptying the queues is most of what was measured"""
CLEARLY: Final = 0.6
"""busy share from which on a stage is the one that limits; it would be 1 without the first and last images"""
COPY_WORTH_A_WORD: Final = 0.2
"""share of the device's busy time from which on copying to it is mentioned"""
LOOP_CLEARLY: Final = 0.85
"""of one processor core, from which on the event loop and not the network makes downloads take long"""

NAMES: Final = {
    "network": "network",
    "event loop": "download thread",
    "look up": "database",
    "decode": "decoding",
    "encode": "model",
    "write": "database",
}
"""of each stage that can limit, as the sentences say it; copying is a part of encoding"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What limits: a stage, or none of them alone. `option` is the one that would move it, if one would."""

    stage: str | None
    sentence: str
    option: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a sentence has to know besides the loads. `device` and `precision` are None when nothing was encoded."""

    settings: RunSettings
    device: str | None
    precision: str | None
    hosts: int
    cores: int


def limiting(loads: Sequence[StageLoad]) -> StageLoad | None:
    """The stage that was busy throughout; None when there is none."""
    by_name = {load.stage: load for load in loads if load.stage in NAMES}
    loop = by_name.pop("event loop", None)
    busiest = max(by_name.values(), key=lambda load: load.busy, default=None)
    if busiest is None or busiest.busy < CLEARLY:
        return None
    if busiest.stage == "network" and loop is not None and loop.busy >= LOOP_CLEARLY:
        return loop
    return busiest


def in_brief(loads: Sequence[StageLoad]) -> str:
    """`network limits (98 % busy)`, for a line about what goes on; empty when no stage does."""
    found = limiting(loads)
    return f"{NAMES[found.stage]} limits ({found.busy:.0%} busy)" if found else ""


def name_limit(snapshot: Snapshot, circumstances: Circumstances) -> Limit | None:
    """What limited a run, at its end. None when it was too short, or did too little, to say."""
    worked_s = max((times.seconds for times in snapshot.stage_times), default=0.0)
    worked_on = snapshot.done - snapshot.untouched
    if worked_s < LEAST_S or worked_on < LEAST_IMAGES:
        return None
    return explain(snapshot.loads(), circumstances)


def explain(loads: Sequence[StageLoad], circumstances: Circumstances) -> Limit:
    """The sentence about these loads."""
    found = limiting(loads)
    if found is None:
        busiest = max((load for load in loads if load.stage in NAMES), key=lambda load: load.busy)
        name, busy = NAMES[busiest.stage], busiest.busy
        return Limit(
            stage=None, sentence=f"no stage limits by itself: the busiest, {name}, was so {busy:.0%} of the time"
        )
    by_name = {load.stage: load for load in loads}
    return _EXPLAIN[found.stage](found, by_name, circumstances)


def _waiting(by_name: dict[str, StageLoad], circumstances: Circumstances) -> str:
    """How long the device waited because of it; a night that encoded nothing has none."""
    if circumstances.device is None:
        return "nothing had to be encoded"
    return f"{circumstances.device} waited for pictures {by_name['encode'].starved:.0%} of the time"


def _network(load: StageLoad, by_name: dict[str, StageLoad], circumstances: Circumstances) -> Limit:
    fetch, hosts = circumstances.settings.fetch, circumstances.hosts
    waiting = _waiting(by_name, circumstances)
    if not hosts:
        option = "--concurrency 32" if fetch.concurrency < 32 else None
        cure = "a faster disk" + (f", or {option}" if option else "")
        sentence = f"reading files limits: it was under way {load.busy:.0%} of the time, and {waiting}; try {cure}"
        return Limit(stage=load.stage, sentence=sentence, option=option)
    is_by_host = hosts * fetch.per_host <= fetch.concurrency
    option = f"--per-host {2 * fetch.per_host}" if is_by_host else f"--concurrency {2 * fetch.concurrency}"
    if is_by_host and 2 * hosts * fetch.per_host > fetch.concurrency:
        option += f" --concurrency {2 * hosts * fetch.per_host}"
    sentence = (
        f"the network limits: downloads were under way or in line {load.busy:.0%} of the time, and {waiting}; "
        f"try {option}, if {'its server bears' if hosts == 1 else 'the servers bear'} it"
    )
    return Limit(stage=load.stage, sentence=sentence, option=option)


def _download_thread(load: StageLoad, by_name: dict[str, StageLoad], circumstances: Circumstances) -> Limit:
    return Limit(
        stage=load.stage,
        sentence=f"the download thread limits: it computed {load.busy:.0%} of the time, and "
        f"{_waiting(by_name, circumstances)}; try a second process beside this one, --shard 1/2 and --shard 2/2",
        option="--shard",
    )


def _decoding(load: StageLoad, by_name: dict[str, StageLoad], circumstances: Circumstances) -> Limit:
    threads = "the decode thread was" if load.workers == 1 else f"all {load.workers} decode threads were"
    if not circumstances.settings.decode.reduced:
        option, cure = "--reduced", "--reduced"
    elif load.workers < circumstances.cores:
        option = cure = f"--decode-threads {circumstances.cores}"
    else:
        option, cure = None, "more cores, or smaller pictures" + (" from the server" if circumstances.hosts else "")
    waiting = _waiting(by_name, circumstances)
    sentence = f"decoding limits: {threads} busy {load.busy:.0%} of the time, and {waiting}; try {cure}"
    return Limit(stage=load.stage, sentence=sentence, option=option)


def _model(load: StageLoad, by_name: dict[str, StageLoad], circumstances: Circumstances) -> Limit:
    device = circumstances.device or "the device"
    option = "--precision bf16" if circumstances.precision == "fp32" else None
    cures = ["a GPU" if device == "cpu" else "a faster or a second device", "a smaller model"]
    cures += [f"{option} where the hardware computes in it"] if option else []
    copying = by_name["copy"].busy / load.busy
    told = f", {copying:.0%} of that with copying pictures to it" if copying >= COPY_WORTH_A_WORD else ""
    sentence = (
        f"the model on {device} limits, as it should: it was busy {load.busy:.0%} of the time{told}; "
        f"what would help: {', '.join(cures[:-1])} or {cures[-1]}"
    )
    return Limit(stage=load.stage, sentence=sentence, option=option)


def _writing(load: StageLoad, _: dict[str, StageLoad], __: Circumstances) -> Limit:
    return Limit(
        stage=load.stage,
        sentence=f"the database limits: writing was busy {load.busy:.0%} of the time; an index that is kept up "
        "meanwhile is the usual reason (catvec index drop, the run builds it again), else its disk or its distance "
        "(--to FOLDER, then catvec load beside it)",
        option="--to",
    )


def _looking_up(load: StageLoad, _: dict[str, StageLoad], __: Circumstances) -> Limit:
    return Limit(
        stage=load.stage,
        sentence=f"the database limits: asking it which pictures are known was busy {load.busy:.0%} of the time; try "
        "a machine nearer to it, or --to FOLDER and catvec load beside it",
        option="--to",
    )


_EXPLAIN: Final = {
    "network": _network,
    "event loop": _download_thread,
    "look up": _looking_up,
    "decode": _decoding,
    "encode": _model,
    "write": _writing,
}
