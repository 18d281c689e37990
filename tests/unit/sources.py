"""The project's own source files, parsed, for the tests that hold the house style. Nothing is imported."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One Python file. `name` is what an import statement calls it."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """`importer` imports `target`, the longest name that can be a module; `where` is path:line.

    `for_types` says that it stands under TYPE_CHECKING and so is not executed.
    """

    importer: str
    target: str
    where: str
    for_types: bool

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]


@cache
def sources() -> tuple[Source, ...]:
    """cli.py, pipeline/ and migrations/: what the wheel carries."""
    files = [ROOT / "cli.py", *sorted(ROOT.glob("pipeline/**/*.py")), *sorted(ROOT.glob("migrations/**/*.py"))]
    return tuple(_parse(path) for path in files)


def _parse(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Source(name=name, path=path, text=text, tree=ast.parse(text, filename=str(path)))


def imports(source: Source) -> Iterator[Import]:
    """Every import, also inside functions and under TYPE_CHECKING: a type is a dependency too."""
    modules = {other.name for other in sources()}
    for_types = {child for node in ast.walk(source.tree) if _guards_types(node) for child in ast.walk(node)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.at(node)} imports relatively; write the whole name"
            # `from pipeline.store import connect` names a module, `from pipeline.errors import ItemError` not
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [member if member in modules else str(node.module) for member in members]
        else:
            continue
        for target in dict.fromkeys(targets):
            yield Import(importer=source.name, target=target, where=source.at(node), for_types=node in for_types)


def _guards_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
