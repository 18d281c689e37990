"""The file for node_exporter: what stands in it, what outlives a failed run, and that nobody sees half of it."""

from __future__ import annotations

import stat
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import CatvecError, ConfigError
from pipeline.metrics import check_metrics_path, write_metrics
from pipeline.records import ProductChanges
from tests.fixtures.summary import run_summary

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.records import RunSummary

LABELS = {"catalog": 'shoes "2026"', "model": "vit_b_32"}
SUMMARY = run_summary(
    unchanged=80,
    reused=5,
    embedded=10,
    failed=4,
    pending=1,
    checked=12,
    changed=3,
    deferred=2,
    removed=6,
    forgotten=1,
    products=ProductChanges(new=1, changed=2, removed=3),
    failures_by_code={"http_404": 3, "timeout": 1},
    seconds=12.5,
    images_per_s=33.3,
)


def write(
    path: Path, told: RunSummary | None, *, exit_code: int = 0, ended_at: float = 1000.0, **labels: str
) -> None:
    names = {**LABELS, **labels}
    write_metrics(path, summary=told, exit_code=exit_code, ended_at=ended_at, **names)


def read(path: Path) -> dict[tuple[str, str], float]:
    """Name and own label of each number, as Prometheus reads them; the common labels are checked."""
    numbers = {}
    for family in text_string_to_metric_families(path.read_text(encoding="utf-8")):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            assert {name: labels.pop(name) for name in LABELS} == LABELS
            numbers[sample.name.removeprefix("catvec_run_"), "".join(labels.values())] = sample.value
    return numbers


def test_a_run_leaves_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "catvec.prom"

    write(path, SUMMARY)

    assert read(path) == {
        ("last_end_timestamp_seconds", ""): 1000.0,
        ("last_success_timestamp_seconds", ""): 1000.0,
        ("exit_code", ""): 0,
        ("finished", ""): 1,
        ("duration_seconds", ""): 12.5,
        ("images", "unchanged"): 80,
        ("images", "reused"): 5,
        ("images", "embedded"): 10,
        ("images", "failed"): 4,
        ("images", "pending"): 1,
        ("images_checked", ""): 12,
        ("images_changed", ""): 3,
        ("images_removed", ""): 6,
        ("failures", "http_404"): 3,
        ("failures", "timeout"): 1,
        ("images_per_second", ""): 33.3,
    }


@pytest.mark.parametrize(
    ("told", "exit_code"),
    [
        (None, 1),
        (None, 75),
        (replace(SUMMARY, finished=False, stopped_by="max_runtime"), 0),
        (SUMMARY, 3),
    ],
)
def test_the_last_success_outlives_runs_that_are_none(
    tmp_path: Path, told: RunSummary | None, exit_code: int
) -> None:
    path = tmp_path / "catvec.prom"
    write(path, SUMMARY, ended_at=1000)

    for ended_at in (2000, 3000):
        write(path, told, exit_code=exit_code, ended_at=ended_at)

    numbers = read(path)
    assert numbers["last_success_timestamp_seconds", ""] == 1000
    assert numbers["last_end_timestamp_seconds", ""] == 3000
    assert numbers["exit_code", ""] == exit_code
    assert numbers["finished", ""] == (told is not None and told.finished)


def test_a_run_that_died_early_has_no_counts(tmp_path: Path) -> None:
    path = tmp_path / "catvec.prom"

    write(path, None, exit_code=1)

    assert read(path) == {
        ("last_end_timestamp_seconds", ""): 1000.0,
        ("exit_code", ""): 1,
        ("finished", ""): 0,
    }


def test_the_success_of_another_catalog_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "catvec.prom"
    write(path, SUMMARY, catalog="hats")

    write(path, None, exit_code=1)

    assert ("last_success_timestamp_seconds", "") not in read(path)


def test_a_file_that_cannot_be_read_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "catvec.prom"
    path.write_bytes(b'catvec_run_last_success_timestamp_seconds{catalog="\xff\n')

    write(path, None, exit_code=1)

    assert read(path)["exit_code", ""] == 1
    assert [record.message.partition(" cannot be read")[0] for record in caplog.records] == [str(path)]


def test_node_exporter_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "catvec.prom"
    write(path, SUMMARY)
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IROTH
    assert [entry.name for entry in tmp_path.iterdir()] == ["catvec.prom"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "catvec.prom"
    codes = {f"code_{number}": number for number in range(300)}
    write(path, replace(SUMMARY, failures_by_code=codes))
    whole = len(read(path))
    seen: list[int] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.append(len(read(path)))

    reader = threading.Thread(target=look)
    reader.start()
    for ended_at in range(60):
        write(path, replace(SUMMARY, failures_by_code=codes), ended_at=ended_at)
    ended.set()
    reader.join()

    assert len(seen) > 5
    assert set(seen) == {whole}


@pytest.mark.parametrize("name", ["catvec.txt", "catvec", "catvec.prom.gz", "catvec.PROM"])
def test_names_that_node_exporter_does_not_read_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_metrics_path(tmp_path / name)

    assert caught.value.message == f"--metrics-file is {str(tmp_path / name)!r}, expected a name that ends in .prom"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("node_exporter reads no other files; name it for example catvec")


def test_a_place_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "catvec.prom"

    with pytest.raises(ConfigError) as caught:
        check_metrics_path(path)

    assert caught.value.message == (
        f"--metrics-file is {str(path)!r}, which cannot be written: there is no folder {str(path.parent)!r}"
    )
    with pytest.raises(CatvecError) as failed:
        write(path, SUMMARY)
    assert failed.value.message == f"{str(path)!r} cannot be written: there is no folder {str(path.parent)!r}"
    check_metrics_path(tmp_path / "catvec.prom")
    assert list(tmp_path.iterdir()) == []
