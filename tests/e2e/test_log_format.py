"""--log-format json: every line on standard error is one object, whatever speaks."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict

from pipeline.commands.logs import JsonFormatter

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Starter

NOISE = """
import logging, sys, threading, warnings
from pipeline.commands.logs import configure_logging
from pipeline.commands.terminal import say

configure_logging("json", verbose=False)
logging.getLogger("somebody").warning("two\\nlines of %s", "a log")
logging.getLogger("somebody").info("not for everybody")
warnings.warn("old news", DeprecationWarning, stacklevel=1)
say("r\\u00e9sum\\u00e9", done=3)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("nobody caught this")
"""


def objects(text: str) -> list[dict[str, Any]]:
    """Each line as the object it is, without its time, which is UTC."""
    found = [json.loads(line) for line in text.splitlines()]
    for entry in found:
        assert list(entry)[:4] == ["time", "level", "logger", "message"]
        assert datetime.fromisoformat(entry.pop("time")).utcoffset() == timedelta(0)
        assert entry["level"] in {"debug", "info", "warning", "error", "critical"}
    return found


def test_every_line_of_a_run_is_an_object(
    catvec_process: Starter, shop_catalog: ShopCatalog, tiny_clip: Path, database_url: str
) -> None:
    catalog = shop_catalog(8, wait_s=1.0)  # phases of less than 0.2 s are not worth a line
    with catalog.open("a", encoding="utf-8") as file:
        file.write(",no id,odd,x.jpg,1,red\n")
    options = ("--db", database_url, "--model", tiny_clip, "--allow-private-hosts")

    process = catvec_process("-v", "--log-format", "json", "run", catalog, *options, "--json", LC_ALL="C")
    out, err = process.communicate(timeout=120)

    said = objects(err)
    assert process.returncode == 3, err
    assert json.loads(out)["embedded"] == 8
    phases = [entry for entry in said if "phase" in entry]
    images = next(entry for entry in phases if entry["unit"] == "images" and entry["total"])
    assert set(images) - {"level", "logger", "message"} == {
        *("phase", "unit", "done", "total", "unchanged", "reused", "embedded", "failed", "images_per_s"),
        "left_s",
    }
    assert (images["total"], images["failed"]) == (9, 1)
    assert {entry["logger"] for entry in said} >= {"catvec"}
    assert any(entry["message"].startswith("9 images seen: ") for entry in said)
    assert f":{conninfo_to_dict(database_url)['password']}@" not in err


def test_an_error_is_one_object_with_its_hint(catvec_process: Starter) -> None:
    url = "postgresql://user:s3cret@127.0.0.1:1/x"
    process = catvec_process("status", "--db", url, CATVEC_LOG_FORMAT="json")
    _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert objects(err) == [
        {
            "level": "error",
            "logger": "catvec",
            "message": "database postgresql://user@127.0.0.1:1/x is not listening",
            "error": "StoreError",
            "hint": "is the server running? check host and port in --db",
        }
    ]


def test_logs_warnings_and_what_nobody_caught_are_objects(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-W", "default", "-c", NOISE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )

    record, warning, talk, thread, error = objects(process.stderr)
    assert record == {"level": "warning", "logger": "somebody", "message": "two\nlines of a log"}
    assert (warning["level"], warning["logger"]) == ("warning", "py.warnings")
    assert warning["message"] == "DeprecationWarning: old news (<string>:9)"
    assert talk == {"level": "info", "logger": "catvec", "message": "résumé", "done": 3}
    assert thread["message"] == "ZeroDivisionError: division by zero"
    assert (error["level"], error["message"]) == ("critical", "RuntimeError: nobody caught this")
    assert error["traceback"].startswith("Traceback (most recent call last):\n")


def test_a_terminal_gets_no_bar_with_json(
    catvec_process: Starter, shop_catalog: ShopCatalog, tiny_clip: Path, database_url: str
) -> None:
    leader, follower = pty.openpty()
    catalog = shop_catalog(2)
    command = ["run", catalog, "--db", database_url, "--model", tiny_clip, "--allow-private-hosts"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "--log-format", "json", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=follower,
    )
    os.close(follower)
    written = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux: the other side has closed
            break
        if not chunk:
            break
        written += chunk
    os.close(leader)

    assert process.wait(60) == 0, written
    assert len(objects(written.decode())) > 3


def test_a_format_that_does_not_exist_is_a_usage_error(catvec_process: Starter) -> None:
    process = catvec_process("--log-format", "xml", "status")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "'xml' is not one of 'text', 'json'" in err


def test_a_record_tells_its_own_time() -> None:
    record = logging.makeLogRecord({"name": "a", "levelname": "INFO", "msg": "x", "created": 0.5})
    assert json.loads(JsonFormatter().format(record)) == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "info",
        "logger": "a",
        "message": "x",
    }
