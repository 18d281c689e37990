"""psql on a database, without the password on its command line, where `ps` would show it."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pipeline.errors import StoreError
from pipeline.store.connect import normalise_url

if TYPE_CHECKING:
    from collections.abc import Sequence


def run_psql(url: str, arguments: Sequence[str]) -> int:
    """Run psql in the foreground and return its exit code. Raises StoreError when there is none."""
    program = find_psql()
    parts = conninfo_to_dict(normalise_url(url))
    password = parts.pop("password", None)
    environment = {**os.environ, "PGPASSWORD": str(password)} if password else dict(os.environ)
    command = [program, make_conninfo("", **parts), *arguments]
    return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 - psql, as asked for


def find_psql() -> str:
    """The system's psql, else the one that came with the embedded server."""
    found = shutil.which("psql")
    if found:
        return found
    from pipeline.store.embedded.binaries import find_programs

    bundled = find_programs() / "psql"
    if bundled.is_file():
        return str(bundled)
    raise StoreError("no psql found", hint="install a PostgreSQL client, or use: catvec db url")
