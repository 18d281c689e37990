"""`catvec doctor` on this machine: what it reads of the installation, and what it makes of broken ones."""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from pipeline.doctor.examination import CONTENT, DATABASE, SERVER_CHECKS
from pipeline.doctor.finding import run_check
from pipeline.doctor.machine import check_database_space, check_device, check_proxy, examine_machine
from pipeline.doctor.server import span
from tests.unit.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_this_machine_has_no_problem(tmp_path: Path) -> None:
    findings = examine_machine({}, home=tmp_path / "not" / "made" / "yet")
    assert [finding.name for finding in findings if finding.state == "problem"] == []
    details = {finding.name: finding.detail for finding in findings}
    assert details["image formats"] == "JPEG, PNG, WebP, AVIF, TIFF, GIF, BMP"
    assert details["space for the database"].endswith(f" GB free for {tmp_path / 'not' / 'made' / 'yet'}")
    assert "images" in details["device"]
    assert not (tmp_path / "not").exists()


def test_the_own_server_s_folder_is_no_matter_with_another_database() -> None:
    assert "space for the database" not in {finding.name for finding in examine_machine({}, home=None)}


def test_a_proxy_is_named_but_its_password_is_not() -> None:
    finding = run_check(
        "proxy", lambda: check_proxy({"https_proxy": "http://me:s3cret-word@proxy:3128", "HTTP_PROXY": ""})
    )
    assert finding.state == "warning"
    assert finding.detail == (
        "https_proxy is set, but images are fetched without a proxy; only weights come through it"
    )
    assert "s3cret-word" not in repr(finding)


def test_a_torch_that_does_not_load_is_a_problem_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    finding = run_check("device", lambda: check_device({}))
    assert finding.state == "problem"
    assert finding.detail.startswith("torch does not load: ModuleNotFoundError: ")
    assert finding.cure == "install it again: pip install --force-reinstall torch"


def test_gpus_that_are_hidden_are_seen() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU, and auto picks it")
    verdict = check_device({"CUDA_VISIBLE_DEVICES": ""})
    assert (verdict.state, verdict.cure) == ("warning", "unset CUDA_VISIBLE_DEVICES")


def test_a_disk_that_is_full_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline.doctor.machine.LEAST_GB", 10.0**9)
    verdict = check_database_space(tmp_path)
    assert verdict.state == "problem"
    assert verdict.cure == (
        "free some space, set CATVEC_HOME to a folder with more, or name another database with --db"
    )


def test_every_check_is_in_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    documented = {name.removesuffix(" of MODEL") for name in re.findall(r"`([a-zA-Z ]+)`(?=, `| \|)", text)}
    machine = {finding.name for finding in examine_machine({}, home=tmp_path)}
    assert machine | {"own server", DATABASE} | {*SERVER_CHECKS, *CONTENT} <= documented


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(seconds=-3), "0 s"),
        (timedelta(seconds=119), "119 s"),
        (timedelta(minutes=2), "2 min"),
        (timedelta(hours=3), "3 h"),
        (timedelta(days=12, hours=3), "12 days"),
    ],
)
def test_spans_are_said_as_people_say_them(age: timedelta, words: str) -> None:
    assert span(age) == words
