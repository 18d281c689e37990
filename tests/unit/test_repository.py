"""The files around the code agree with each other and with the code."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import pipeline
from tests.unit.sources import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXTRAS = {"dev", "parquet", "siglip", "charts", "train"}
"""what `make setup` installs"""

OF_ONE_MACHINE = {
    "a package index": re.compile(r"--(?:extra-)?index-url|--find-links|https?://\S+/simple\b", re.IGNORECASE),
    "a path of one machine": re.compile(r"(?<![\w.:}/])/(?:work|Users)/\w"),
}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def yaml_file(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def committed_files() -> list[Path]:
    """What git has or would take; every file is read as text except those that are none."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    git = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip(f"no git checkout: {git.stderr.strip()}")
    return [path for name in git.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_package_index() -> None:
    violations = []
    for path in committed_files():
        if path.suffix in {".png", ".jpg", ".webp", ".parquet"} or path.samefile(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            violations += [
                f"{path.relative_to(ROOT)}:{number} names {what}: {line.strip()[:100]}"
                for what, pattern in OF_ONE_MACHINE.items()
                if pattern.search(line)
            ]
    assert not violations, "\n".join(["", *violations])


def test_the_version_is_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert headings[:1] == ["Unreleased"] or headings[:1] == [pipeline.__version__]


def test_the_first_commands_of_the_readme_set_everything_up() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    lines = [line.partition("#")[0].removeprefix("$ ").strip() for block in blocks for line in block.splitlines()]
    assert [line for line in lines if line][:2] == ["make demo", "make test"]


def test_the_targets_that_the_readme_and_ci_use_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run", ".github/workflows/ci.yml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        used = set(re.findall(r"(?:^|[`:] ?|run )make ([a-z-]+)", text, re.MULTILINE))
        assert used <= targets, f"{name} uses {sorted(used - targets)}"


def test_every_distribution_that_setup_installs_is_pinned() -> None:
    pins = {canonicalize_name(pin.name): pin.specifier for pin in constraints()}
    unpinned, unfit = [], []
    for requirement in needed("catvec", EXTRAS):
        name = canonicalize_name(requirement.name)
        if name not in pins:
            unpinned.append(f"{name}, which make constraints adds")
        elif pinned_version(pins[name]) not in requirement.specifier:
            unfit.append(f"{name}{pins[name]}, but {requirement} is wanted")
    assert (sorted(set(unpinned)), unfit) == ([], [])


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned_version(specifiers: SpecifierSet) -> str:
    [specifier] = specifiers
    assert specifier.operator == "==", f"{specifier} is no pin"
    return specifier.version


def needed(distribution: str, extras: set[str]) -> Iterator[Requirement]:
    """What is installed because of `distribution`, all the way down, on this Python and platform."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(distribution, frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        # the CUDA packages: each torch pins its own
        if (name, wanted) in seen or name.startswith(("cuda-", "nvidia-", "triton")):
            continue
        seen.add((name, wanted))
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                if not requirement.name.startswith(("cuda-", "nvidia-", "triton")):
                    yield requirement
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))


def test_the_database_of_compose_fits_postgres_18() -> None:
    database = yaml_file("docker-compose.yml")["services"]["db"]
    assert re.fullmatch(r"pgvector/pgvector:0\.8\.\d+-pg18-\w+", database["image"])
    assert database["shm_size"] == "1g"
    # PostgreSQL 18's images lose what is written to …/data
    assert [volume.partition(":")[2] for volume in database["volumes"]] == ["/var/lib/postgresql"]
    assert database["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert "start_period" in database["healthcheck"]
    assert all(port.startswith("127.0.0.1:") for port in database["ports"])


def test_the_app_of_compose_waits_for_its_database() -> None:
    services = yaml_file("docker-compose.yml")["services"]
    app, database = services["app"], services["db"]
    assert app["depends_on"] == {"db": {"condition": "service_healthy"}}
    assert app["environment"]["CATVEC_DATABASE_URL"] == "postgresql://catvec@db:5432/catvec"
    assert app["environment"]["PGPASSWORD"] == database["environment"]["POSTGRES_PASSWORD"]


def test_the_image_can_train() -> None:
    """There is no pip in it; and what a training on a GPU hands from process to process needs room."""
    assert "--extra train" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert yaml_file("docker-compose.yml")["services"]["app"]["shm_size"] == "1g"


def test_the_named_volumes_of_compose_are_where_the_image_keeps_its_data() -> None:
    compose = yaml_file("docker-compose.yml")
    mounts = [
        volume.split(":") for volume in compose["services"]["app"]["volumes"] if "/" not in volume.split(":")[0]
    ]
    named = {target: source for source, target in (mount[:2] for mount in mounts if not mount[0].startswith("$"))}
    [kept] = re.findall(r"^VOLUME (\[.*\])", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(yaml.safe_load(kept))
    assert set(named.values()) <= set(compose["volumes"])


def test_everything_the_dockerfile_copies_is_let_through() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copies = [line.split()[1:-1] for line in re.findall(r"^COPY (?!--from).*", dockerfile, re.MULTILINE)]
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {name for names in copies for name in names} == {line[1:] for line in ignore if line.startswith("!")}


def test_ci_covers_every_supported_python_and_postgres() -> None:
    jobs = yaml_file(".github/workflows/ci.yml")["jobs"]
    supported = SpecifierSet(project()["requires-python"])
    versions = [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}" in supported]
    assert jobs["python"]["strategy"]["matrix"]["python"] == versions
    assert jobs["postgres"]["strategy"]["matrix"]["postgres"] == ["15", "16", "17", "18"]
    commands = [step.get("run") for step in jobs["python"]["steps"]]
    assert [command for command in commands if command] == ["make setup", "make lint", "make test"]


def test_ci_pins_its_actions_to_a_commit() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)", workflow)
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action)] == []
