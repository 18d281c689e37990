"""What limits, said from how busy the stages were; and how busy they were, measured where they wait."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from pipeline.engine.channel import Channel
from pipeline.limits import Circumstances, explain, in_brief, limiting, name_limit
from pipeline.progress import Progress, Snapshot, StageTimes
from pipeline.records import StageLoad
from pipeline.settings import CatalogSettings, DecodeSettings, FetchSettings, RunSettings
from tests.fixtures.workshop import Device, Numbered, Workshop, pages


def loads(**busy: float) -> list[StageLoad]:
    """Stages with these shares, `event_loop` and `look_up` among them; what waited did so for input."""
    workers = {"network": 1, "event_loop": 1, "look_up": 1, "decode": 2, "copy": 1, "encode": 1, "write": 1}
    return [
        StageLoad(
            stage=name.replace("_", " "), workers=count, busy=busy.get(name, 0.1), starved=1 - busy.get(name, 0.1),
            blocked=0.0,
        )
        for name, count in workers.items()
    ]  # fmt: skip


def circumstances(**fields: Any) -> Circumstances:
    plain: dict[str, Any] = {"device": "cpu", "precision": "bf16", "hosts": 1, "cores": 2, "settings": settings()}
    return Circumstances(**{**plain, **fields})


def settings(**fields: Any) -> RunSettings:
    return RunSettings(catalog=CatalogSettings(uri="c.csv"), **fields)


def said(shares: dict[str, float], **fields: Any) -> tuple[str | None, str, str | None]:
    limit = explain(loads(**shares), circumstances(**fields))
    return limit.stage, limit.sentence, limit.option


def test_the_network_limits() -> None:
    assert said({"network": 0.98, "encode": 0.39}) == (
        "network",
        "the network limits: downloads were under way or in line 98% of the time, and cpu waited for pictures 61% of "
        "the time; try --per-host 32, if its server bears it",
        "--per-host 32",
    )
    # many hosts: not how many at once from each of them
    assert said({"network": 0.98}, hosts=40)[2] == "--concurrency 128"
    # what is asked for must be reachable
    fetch = FetchSettings(per_host=64)
    assert said({"network": 0.98}, settings=settings(fetch=fetch))[2] == "--per-host 128 --concurrency 128"


def test_a_night_of_answers_without_bytes_says_nothing_of_a_device() -> None:
    _, sentence, option = said({"network": 0.97, "encode": 0.0}, device=None, precision=None)

    assert sentence == (
        "the network limits: downloads were under way or in line 97% of the time, and nothing had to be encoded; "
        "try --per-host 32, if its server bears it"
    )
    assert option == "--per-host 32"


def test_files_are_no_network() -> None:
    _, sentence, option = said({"network": 0.9}, hosts=0)

    assert sentence == (
        "reading files limits: it was under way 90% of the time, and cpu waited for pictures 90% of the time; "
        "try a faster disk"
    )
    assert option is None
    fetch = FetchSettings(concurrency=4)
    assert said({"network": 0.9}, hosts=0, settings=settings(fetch=fetch))[2] == "--concurrency 32"


def test_the_thread_that_downloads_is_told_from_the_network() -> None:
    stage, sentence, _ = said({"network": 0.98, "event_loop": 0.93})

    assert stage == "event loop"
    assert sentence.startswith("the download thread limits: it computed 93% of the time, and cpu waited")
    # but not when something else does
    assert said({"network": 0.3, "event_loop": 0.93, "decode": 0.97})[0] == "decode"


def test_decoding_limits() -> None:
    assert said({"network": 0.2, "decode": 0.97, "encode": 0.4}) == (
        "decode",
        "decoding limits: all 2 decode threads were busy 97% of the time, and cpu waited for pictures 60% of the "
        "time; try more cores, or smaller pictures from the server",
        None,
    )
    assert said({"decode": 0.97}, hosts=0)[1].endswith("; try more cores, or smaller pictures")
    assert said({"decode": 0.97}, cores=16)[2] == "--decode-threads 16"
    whole = settings(decode=DecodeSettings(reduced=False))
    assert said({"decode": 0.97}, settings=whole)[2] == "--reduced"


def test_the_model_limits() -> None:
    assert said({"encode": 0.96, "decode": 0.5}) == (
        "encode",
        "the model on cpu limits, as it should: it was busy 96% of the time; what would help: a GPU or a "
        "smaller model",
        None,
    )
    _, sentence, option = said({"encode": 0.96}, precision="fp32", device="cuda")
    assert option == "--precision bf16"
    assert sentence.endswith(
        "what would help: a faster or a second device, a smaller model or --precision bf16 where the hardware "
        "computes in it"
    )


def test_copying_to_the_device_is_mentioned_where_it_takes_long() -> None:
    assert said({"encode": 0.96, "copy": 0.48}, device="cuda") == (
        "encode",
        "the model on cuda limits, as it should: it was busy 96% of the time, 50% of that with copying pictures to "
        "it; what would help: a faster or a second device or a smaller model",
        None,
    )
    # as part of another stage it is never the busiest
    assert limiting(loads(encode=0.9, copy=0.9)) == loads(encode=0.9)[5]
    assert said({"encode": 0.5, "copy": 0.5})[1].startswith("no stage limits by itself: the busiest, model,")


def test_the_database_limits() -> None:
    stage, sentence, _ = said({"write": 0.9, "encode": 0.4})
    assert (stage, sentence.partition(";")[0]) == ("write", "the database limits: writing was busy 90% of the time")
    stage, sentence, _ = said({"look_up": 0.9})
    assert (stage, sentence.partition(";")[0]) == (
        "look up",
        "the database limits: asking it which pictures are known was busy 90% of the time",
    )


def test_when_none_is_busy_throughout_none_is_blamed() -> None:
    assert said({"network": 0.4, "decode": 0.55}) == (
        None,
        "no stage limits by itself: the busiest, decoding, was so 55% of the time",
        None,
    )
    assert in_brief(loads(decode=0.55)) == ""
    assert in_brief([]) == ""
    assert limiting([]) is None
    assert in_brief(loads(network=0.98)) == "network limits (98% busy)"


@pytest.mark.parametrize(
    ("seconds", "images", "is_said"), [(60.0, 500, True), (9.0, 500, False), (60.0, 150, False), (0.0, 0, False)]
)
def test_what_was_too_short_says_nothing(seconds: float, images: int, is_said: bool) -> None:
    times = StageTimes(stage="encode", workers=1, seconds=seconds, busy_s=0.9 * seconds, starved_s=0.0, blocked_s=0.0)
    copies = replace(times, stage="copy", busy_s=0.0)
    counters: dict[str, Any] = dict.fromkeys(("reused", "failed", "checked", "changed"), 0)
    snapshot = Snapshot(
        phase="", total=1000 + images, unchanged=1000, untouched=1000, embedded=images, failures_by_code={},
        stage_seconds={}, seconds=seconds, work_seconds=seconds, stage_times=(copies, times), **counters,
    )  # fmt: skip

    assert (name_limit(snapshot, circumstances()) is not None) is is_said


# ---- how busy they were


def test_shares_are_those_since_an_earlier_look_and_never_more_than_the_whole() -> None:
    earlier = StageTimes(stage="decode", workers=2, seconds=10.0, busy_s=20.0, starved_s=0.0, blocked_s=0.0)
    now = StageTimes(stage="decode", workers=2, seconds=20.0, busy_s=21.0, starved_s=14.0, blocked_s=5.0)
    over = StageTimes(stage="network", workers=1, seconds=1.0, busy_s=1.5, starved_s=0.5, blocked_s=0.0)

    assert now.load(earlier) == StageLoad(stage="decode", workers=2, busy=0.05, starved=0.7, blocked=0.25)
    assert (over.load().busy, over.load().starved) == (0.75, 0.25)


def test_a_forward_pass_counts_while_it_lasts() -> None:
    progress = Progress()
    with progress.at_work({"encode": 1}):
        before = progress.snapshot()
        with progress.stage("encode"):
            time.sleep(0.2)
            [load] = progress.snapshot().loads(before)
    time.sleep(0.2)
    [after] = progress.snapshot().loads()

    assert load.busy > 0.8
    assert after.busy > 0.8  # what follows the work is not counted


def test_a_channel_tells_who_waited_for_what() -> None:
    progress = Progress()
    channel: Channel[int] = Channel(1, threading.Event(), progress=progress, receiver="encode")
    with progress.at_work({"decode": 1, "encode": 1}):
        channel.put(1, sender="decode")
        threading.Timer(0.3, channel.receive).start()
        channel.put(2, sender="decode")  # waits until the first is taken
        assert channel.receive() == 2
        threading.Timer(0.3, channel.put, (3,), {"sender": "decode"}).start()
        assert channel.receive_many(1, wait_s=0.0) == [3]
    decode, encode = progress.snapshot().loads()

    assert 0.3 < decode.blocked < 0.7
    assert decode.starved == encode.blocked == 0
    assert 0.3 < encode.starved < 0.7


def measured(workshop: Workshop, images: int, **options: Any) -> dict[str, StageLoad]:
    progress = Progress()
    workshop.run(work=pages(range(images)), progress=progress, **options)
    found = {load.stage: load for load in progress.snapshot().loads()}
    assert all(0 <= load.busy + load.starved + load.blocked <= 1.01 for load in found.values()), found
    return found


def test_a_slow_network_is_seen() -> None:
    found = measured(Workshop(Numbered(), fetch_wait_s=lambda _: 0.2), 400)

    assert limiting(list(found.values())) == found["network"]
    assert found["decode"].starved > 0.7
    assert found["encode"].starved > 0.7


def test_slow_decoding_is_seen() -> None:
    found = measured(Workshop(Numbered(), on_decode=lambda _: time.sleep(0.01)), 300)

    assert limiting(list(found.values())) == found["decode"]
    assert found["network"].blocked > 0.5
    assert found["encode"].starved > 0.5


def test_a_slow_device_is_seen() -> None:
    found = measured(Workshop(Numbered(), on_encode=lambda: time.sleep(0.05)), 300)

    assert limiting(list(found.values())) == found["encode"]
    assert found["decode"].blocked > 0.4
    assert found["copy"].busy == 0


def test_copying_to_a_device_is_told_apart() -> None:
    shop = Workshop(Numbered(), on_encode=lambda: time.sleep(0.05))
    found = measured(shop, 200, devices=[Device(shop, "cuda:0", 8, threads=2, copy_s=0.02)])

    assert (found["copy"].workers, found["encode"].workers) == (2, 2)
    assert found["copy"].busy == pytest.approx(0.4 * found["encode"].busy, rel=0.3)


def test_a_slow_database_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.local.WRITE_IMAGES", 8)
    monkeypatch.setattr("pipeline.engine.local.OUTCOMES", 32)
    found = measured(Workshop(Numbered(), on_write=lambda: time.sleep(0.05)), 300)

    assert limiting(list(found.values())) == found["write"]
    assert found["encode"].blocked > 0.3
