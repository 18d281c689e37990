"""The examples in README and docs/ do what they say."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

import cli
from pipeline.store.neighbours import build_neighbours
from tests.fixtures.catalogs import photo, write_catalog
from tests.fixtures.store import product, unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.command import Catvec
    from tests.fixtures.store import Shop

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Page and text of every code block of a language."""
    for page in PAGES:
        for text in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            yield page.name, text


@cache
def program() -> Any:
    """catvec with its commands, put together once: 26 ms, and there are hundreds of calls in the docs."""
    return typer.main.get_command(cli.app)


def commands() -> list[str]:
    """Every call of catvec that stands in a block or in a line's code."""
    texts = [page.read_text(encoding="utf-8").replace("\\\n", " ") for page in PAGES]
    call = r"(?m)(?:^(?: {4})?|`|\\?\| )(catvec [a-z][^`\n]*)"
    return sorted({found.rstrip() for text in texts for found in re.findall(call, text) if _is_call(found)})


def _is_call(text: str) -> bool:
    # a line of prose may begin with the word
    return text.split()[1].rstrip(".,;") in program().commands


def test_there_are_examples_to_test() -> None:
    assert len(list(blocks("sql"))) >= 4
    assert len(commands()) >= 15


@pytest.fixture
def docs_shop(shop: Shop, database_url: str) -> Shop:
    """What the examples of the docs speak of."""
    attrs = {"colour": "navy"}
    shop.sync(
        product("SKU-1", "1.jpg", category="dress", price=10, attrs=attrs),
        product("SKU-2", "2.jpg", row=2, category="dress", price=20, attrs=attrs),
        product("SKU-3", "3.jpg", row=3, category="skirt", price=30, attrs=attrs),
    )
    model = shop.register()
    shop.embed(model, [unit(1, 0, 0, 0), unit(1, 1, 0, 0), unit(0, 1, 1, 0)])
    shop.activate(model)
    build_neighbours(database_url, model, k=20)
    shop.session.connection().execute(
        "INSERT INTO catvec_store.queries (name, text) VALUES ('summer dresses', 'a light dress for summer');"
        "INSERT INTO catvec_store.query_vectors (name, model_id, embedding)"
        " SELECT 'summer dresses', model_id, '[1,0,0,0]'"
        "  FROM catvec_store.models"
    )
    shop.tag(model, "colour", {"SKU-1": "navy", "SKU-2": "navy", "SKU-3": "red"})
    return shop


@pytest.mark.parametrize(("page", "text"), list(blocks("sql")))
def test_every_statement_of_the_docs_answers(docs_shop: Shop, page: str, text: str) -> None:
    for statement in filter(str.strip, text.split(";")):
        rows = docs_shop.all(statement)

        assert 1 <= len(rows) <= 10, f"{page}: {statement}"


@pytest.mark.usefixtures("docs_shop")
@pytest.mark.parametrize(("page", "text"), [block for block in blocks("python") if block[0] != "bundle.md"])
def test_every_python_example_of_the_docs_runs(
    page: str, text: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    names: dict[str, Any] = {}

    exec(compile(text, page, "exec"), names)

    assert names["hits"]
    assert names["near"]


@pytest.mark.parametrize("text", [text for page, text in blocks("python") if page == "bundle.md"])
def test_every_example_reads_a_bundle(
    text: str, catvec: Catvec, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in re.findall(r"^import (pyarrow|pandas|duckdb)", text, re.M):
        pytest.importorskip(module, reason=f"needs: pip install {module}")
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(photo(ord(name)))
    (tmp_path / "d.jpg").write_bytes(photo(ord("a")))
    (tmp_path / "e.jpg").write_bytes(b"no image")
    rows = [{"id": name, "title": f"thing {name}", "image": f"{name}.jpg"} for name in "abcde"]
    write_catalog(tmp_path / "catalog.csv", rows)
    outcome = catvec("run", "catalog.csv", "--to", "bundle", "--model", tiny_clip, "--tolerate-failures", 1)
    assert outcome.code == 0, outcome.err
    names: dict[str, Any] = {}

    exec(compile(text, "bundle.md", "exec"), names)

    # the bytes of a are those of d, and either may have come first
    assert {"b", "c"} < set(names["found"]) <= {"a", "b", "c", "d"}


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_docs_exists_with_its_options(line: str) -> None:
    command = program()
    words = shlex.split(line.partition(" #")[0].partition(" | ")[0])
    words = words[words.index("catvec") + 1 :]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]!r} in: {line}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}

    used = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]

    assert set(used) <= known | {"--help"}, line


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
