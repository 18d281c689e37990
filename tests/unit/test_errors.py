"""The error tree: every class explains itself and travels between processes, every message keeps the house's form."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import re
from typing import Any

import pytest

from pipeline import errors
from pipeline.errors import CatvecError, FetchError, ItemError, LockedError, StoreError
from tests.unit.sources import Source, sources

PROPER_NAMES = {
    "Alembic",
    "Docker",
    "Linux",
    "Parquet",
    "Pillow",
    "Postgres",
    "Python",
    "Retry-After",
    "Shopify",
    "Typer",
}
"""capitalised words that a message may begin with, beside those with two capitals (HTTP, PostgreSQL, CUDA)"""

SAMPLES = {"str": "text", "str | None": "more text", "bool": True, "int": 7, "float": 0.5}


def kinds(root: type[CatvecError] = CatvecError) -> list[type[CatvecError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in kinds(child))]


def sample(kind: type[CatvecError]) -> CatvecError:
    """An error with every parameter given, none left at its default."""
    parameters = list(inspect.signature(kind).parameters.values())
    values = {parameter.name: SAMPLES[str(parameter.annotation)] for parameter in parameters}
    by_position = [
        values.pop(parameter.name) for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY
    ]
    return kind(*by_position, **values)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_pickles_with_all_it_carries(kind: type[CatvecError], protocol: int) -> None:
    error = sample(kind)
    for twin in (pickle.loads(pickle.dumps(error, protocol=protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_explains_itself(kind: type[CatvecError]) -> None:
    assert vars(kind).get("__doc__"), f"{kind.__name__} has no docstring of its own"
    assert kind.__name__ in (errors.__doc__ or ""), f"{kind.__name__} is not in the tree in pipeline/errors.py"


def test_an_item_error_keeps_its_code_and_whether_trying_again_helps() -> None:
    error = pickle.loads(pickle.dumps(FetchError("http_503", "status 503, expected 200", is_retryable=True)))
    assert isinstance(error, ItemError)
    assert (error.code, str(error), error.is_retryable) == ("http_503", "status 503, expected 200", True)


def test_a_hint_travels_with_its_error() -> None:
    error = pickle.loads(pickle.dumps(LockedError("run 7 holds the lock", hint="wait for it to end")))
    assert isinstance(error, StoreError)
    assert (str(error), error.hint) == ("run 7 holds the lock", "wait for it to end")


def test_all_errors_live_in_one_module() -> None:
    names = {kind.__name__ for kind in kinds()}
    elsewhere = [
        f"{source.at(node)} {node.name}"
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) and source.name != errors.__name__
        if names & {base.id for base in node.bases if isinstance(base, ast.Name)}
    ]
    assert not elsewhere, "\n".join(["", *elsewhere])


def test_messages_begin_in_lower_case_and_end_without_a_full_stop() -> None:
    violations = []
    for source in sources():
        for call, kind in _errors_made(source):
            message = _argument(call, kind, "message")
            if message is not None and not _keeps_the_form(message):
                violations.append(f"{source.at(call)} {message!r}")
    assert not violations, "\n".join(["", *violations])


def test_codes_are_words_that_reports_can_group_by() -> None:
    violations = []
    for source in sources():
        for call, kind in _errors_made(source):
            code = _argument(call, kind, "code") if issubclass(kind, ItemError) else None
            if code is not None and not re.fullmatch(r"[a-z][a-z0-9_{}]*", code):
                violations.append(f"{source.at(call)} {code!r}")
    assert not violations, "\n".join(["", *violations])


@pytest.mark.parametrize(
    ("message", "keeps"),
    [
        ("column 'sku' is missing", True),
        ("{} is not a number", True),
        ("HTTP 404, expected 200", True),
        ("PostgreSQL 14 is too old", True),
        ("Pillow cannot read it", True),
        ("Column 'sku' is missing", False),
        ("column 'sku' is missing.", False),
        ("", False),
    ],
)
def test_the_form_is_told_apart(message: str, keeps: bool) -> None:
    assert _keeps_the_form(message) is keeps


def _errors_made(source: Source) -> list[tuple[ast.Call, type[CatvecError]]]:
    by_name = {kind.__name__: kind for kind in kinds()}
    calls = [node for node in ast.walk(source.tree) if isinstance(node, ast.Call)]
    named = [(call, getattr(call.func, "id", getattr(call.func, "attr", ""))) for call in calls]
    return [(call, by_name[name]) for call, name in named if name in by_name]


def _argument(call: ast.Call, kind: type[CatvecError], name: str) -> str | None:
    """The text of an argument with {} for each value in it; None where it is not written at the call."""
    given: dict[str, Any] = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    given |= dict(zip(inspect.signature(kind).parameters, call.args, strict=False))
    return _text(given.get(name))


def _text(node: ast.AST | None) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join("{}" if isinstance(part, ast.FormattedValue) else _text(part) or "" for part in node.values)
    if isinstance(node, ast.BinOp):
        return (_text(node.left) or "{}") + (_text(node.right) or "{}")
    return None


def _keeps_the_form(message: str) -> bool:
    first_word = re.match(r"[\w-]*", message)
    capitalised = re.fullmatch(r"[A-Z][a-z-]*", first_word.group()) if first_word else None
    is_name = capitalised is None or capitalised.group() in PROPER_NAMES
    return bool(message) and is_name and not message.endswith((".", "!")) and message == message.strip()
