"""The wheel is whole: installed into an empty environment, away from the checkout, it helps and migrates."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed. Nothing of the checkout or the session reaches it."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CATVEC_", "PYTHON", "VIRTUAL_"))
    }
    process = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=600, check=False)
    assert process.returncode == 0, f"{' '.join(map(str, command))}\n{process.stdout}{process.stderr}"
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The `catvec` command of an environment that holds nothing but the wheel and what the wheel asks for."""
    environment = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(environment)
    python = environment / "bin" / "python"
    constraints = ("--constraint", ROOT / "constraints.txt")
    backend = os.environ.get("TORCH_BACKEND")
    install: tuple[str | Path, ...]
    if backend:  # the build of torch that this checkout was set up with, which pip cannot choose
        install = ("uv", "pip", "install", "--python", python, "--torch-backend", backend)
    else:
        # without bytecode, because these few commands need little of it
        install = ("pip", "--python", python, "install", "-qq", "--no-compile")
    run(sys.executable, "-m", *install, *constraints, wheel, cwd=environment)
    yield environment / "bin" / "catvec"
    shutil.rmtree(environment)  # pytest would keep the last three, of 1 GB each


def test_the_wheel_carries_the_command_the_rooms_the_migrations_and_the_demos_model(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        carried = set(archive.namelist())
    folders = [ROOT / "pipeline", ROOT / "migrations"]
    files = [
        path for folder in folders for path in folder.rglob("*") if path.suffix in {".py", ".sql", ".mako", ".j2"}
    ]
    model = ROOT / "pipeline" / "demo" / "model"
    expected = {"cli.py", *(path.relative_to(ROOT).as_posix() for path in (*files, *model.iterdir()))}
    assert expected <= carried
    others = {name for name in carried - expected if ".dist-info/" not in name}
    assert others == set()


@pytest.mark.slow
def test_the_installed_wheel_helps_and_migrates(installed: Path, empty_database_url: str, tmp_path: Path) -> None:
    where = run(installed.parent / "python", "-c", "import cli, pipeline; print(cli.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(installed.parents[1]), "the checkout leaked into the empty environment"

    assert "Usage" in run(installed, "--help", cwd=tmp_path)

    run(installed, "db", "migrate", "--db", empty_database_url, cwd=tmp_path)
    run(installed, "db", "migrate", "--db", empty_database_url, cwd=tmp_path)  # the second finds nothing to do
    with psycopg.connect(empty_database_url) as connection:
        schemas = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname IN ('catvec', 'catvec_store') ORDER BY nspname"
        ).fetchall()
    assert schemas == [("catvec",), ("catvec_store",)]
