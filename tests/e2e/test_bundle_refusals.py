"""What is no bundle, what a bundle is not made for, and bundles that are damaged: refused, and nothing changed."""

from __future__ import annotations

import io
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psycopg
import pytest

pytest.importorskip("pyarrow", reason="needs the extra: pip install 'catvec[parquet]'")

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bundle.folder import claimed
from pipeline.bundle.format import digest_of, file_name
from tests.fixtures.bundles import Stand, counts
from tests.fixtures.catalogs import photo, write_catalog

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Catvec


def test_a_bundle_of_another_model_is_refused(
    stand: Stand, database_url: str, tiny_clip_other: Path, tmp_path: Path
) -> None:
    stand.to_bundle()
    before = stand.files()

    outcome = stand.catvec(
        "run", stand.catalog, "--to", stand.bundle, "--model", tiny_clip_other, "--model-name", "tiny_clip"
    )

    code, error, hint = outcome.complaint()
    assert code == 1
    assert error.startswith(
        f"bundle {str(stand.bundle)!r} holds vectors of another model: dimensions 48 instead of 32, weights sha256:"
    )
    assert hint == "give this model a bundle of its own"
    assert stand.files() == before
    stand.catvec("run", stand.catalog, "--db", database_url, "--model", tiny_clip_other, "--model-name", "tiny_clip")
    code, error, hint_of_load = stand.catvec("load", stand.bundle, "--db", database_url).complaint()
    assert code == 1
    assert error.startswith(
        "model 'tiny_clip' in this database was made by another model: dimensions 32 instead of 48"
    )
    assert "--model-name NAME" in str(hint_of_load)

    # the hint is true, and from then on the model is found by what it is
    assert counts(stand.load(database_url, "--model-name", "small")) == (0, 2, 12, 5, 0)
    again = stand.load(database_url)
    assert (again["model"], counts(again)) == ("small", (14, 0, 0, 5, 0))
    assert stand.catvec("load", stand.bundle, "--db", database_url, "--model-name", "third").complaint() == (
        1,
        "this model is stored already, as 'small'",
        "use it with --model-name small",
    )
    # what the database calls it is nothing to the bundle
    exported = stand.catvec("export", stand.bundle, "--db", database_url, "--model", "small", "--json")
    assert (exported.code, exported.json()["written"]) == (0, 0), exported.err


def test_another_name_for_the_model_of_a_bundle_is_told_where_it_goes(stand: Stand) -> None:
    stand.to_bundle()

    code, error, hint = stand.run("--to", stand.bundle, "--model-name", "other").complaint()

    assert code == 1
    assert error.endswith("holds vectors of another model: name other instead of tiny_clip")
    assert hint == (
        "it is the same model: leave --model-name out, and let catvec load name it with --model-name; or give this "
        "model a bundle of its own"
    )


@pytest.mark.parametrize(
    ("found", "edited"), [('"dims": 32', '"dims": 33'), ('"catalog": "default"', '"catalog": "x"')]
)
def test_an_edited_manifest_changes_nothing(stand: Stand, database_url: str, found: str, edited: str) -> None:
    stand.to_bundle()
    path = stand.bundle / "bundle.json"
    whole = path.read_text()
    assert found in whole
    path.write_text(whole.replace(found, edited))

    code, _, hint = stand.catvec("load", stand.bundle, "--db", database_url).complaint()

    assert code == 1
    assert str(hint).startswith("bundle.json was edited, or comes from another bundle")
    path.write_text(whole)
    assert counts(stand.load(database_url)) == (0, 2, 12, 5, 0)


def test_a_smaller_bundle_is_refused_with_hints_that_load_can_follow(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    stand.load(database_url)
    write_catalog(stand.catalog, [{"id": "P00", "title": "thing 0", "price": "1", "image": "0.jpg"}])
    stand.to_bundle("--max-remove-rate", 1)

    code, error, hint = stand.catvec("load", stand.bundle, "--db", database_url).complaint()

    assert (code, "more than --max-remove-rate 0.1 allows" in error) == (1, True)
    assert "--partial" in str(hint)
    assert "catvec run CATALOG --to FOLDER --catalog-name NAME" in str(hint)


def test_load_and_export_wait_for_whoever_is_at_it(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    stand.load(database_url)
    lock = "SELECT pg_advisory_lock(hashtextextended('catvec:run:' || current_database() || ':tiny_clip', 0))"
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute(lock)
        code, _, hint = stand.catvec("load", stand.bundle, "--db", database_url).complaint()
        assert (code, hint) == (75, "wait until it is done (--wait 30m does), or stop it")
        threading.Timer(1.0, other.close).start()
        assert stand.load(database_url, "--wait", "30s")["finished"] is True
    with claimed(stand.bundle):
        code, _, hint = stand.catvec("export", stand.bundle, "--db", database_url).complaint()
        assert (code, hint) == (75, "wait until it is done (--wait 30m does), or stop it")
    held = ExitStack()
    held.enter_context(claimed(stand.bundle))
    threading.Timer(1.0, held.close).start()
    assert stand.catvec("export", stand.bundle, "--db", database_url, "--wait", "30s").code == 0


def test_an_export_that_fails_leaves_no_folder(stand: Stand, database_url: str) -> None:
    stand.run("--db", database_url)

    outcome = stand.catvec("export", stand.bundle, "--db", database_url, "--catalog-name", "winter")

    assert (outcome.code, stand.bundle.exists()) == (2, False)


def test_a_bundle_of_another_catalog_is_refused(stand: Stand, tmp_path: Path) -> None:
    stand.to_bundle()
    before = stand.files()

    code, error, hint = stand.run("--to", stand.bundle, "--catalog-name", "winter").complaint()

    assert (code, hint) == (2, "give this catalog a bundle of its own")
    assert error == f"bundle {str(stand.bundle)!r} is of catalog 'default', --catalog-name is 'winter'"
    write_catalog(stand.catalog, [{"id": "X", "title": "x", "price": "1", "image": "0.jpg"}])
    code, error, _ = stand.run("--to", stand.bundle).complaint()
    assert code == 1
    assert "16 of the 16 products in bundle" in error
    assert stand.files() == before


@pytest.mark.parametrize("damage", ["cut", "edited"])
def test_a_damaged_part_is_named_and_only_its_images_are_made_again(
    stand: Stand, database_url: str, damage: str
) -> None:
    stand.to_bundle()
    with stand.catalog.open("a") as file:
        file.write("NEW,new,3,new.jpg\n")
    (stand.folder / "new.jpg").write_bytes(photo(77))
    stand.to_bundle()
    [_, part] = sorted((stand.bundle / "parts").iterdir())
    whole = part.read_bytes()
    part.write_bytes(whole[:-100] if damage == "cut" else whole[:500] + b"\0" + whole[501:])

    code, error, hint = stand.run("--to", stand.bundle).complaint()

    assert code == 1
    assert error == f"part {str(part)!r} is cut off or was edited: its bytes are not those that its name stands for"
    assert "remove it" in str(hint)
    code, load_error, _ = stand.catvec("load", stand.bundle, "--db", database_url).complaint()
    assert (code, load_error) == (1, error)
    part.unlink()
    # what is there can be loaded
    assert counts(stand.load(database_url)) == (0, 2, 12, 5, 1)
    assert counts(stand.to_bundle()) == (14, 0, 1, 5, 0)
    assert counts(stand.load(database_url)) == (14, 0, 1, 5, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--db", "postgresql://x/y"), "--db cannot go with --to: a bundle is made without a database"),
        (("--report", "r.html"), "--report cannot go with --to: a bundle is made without a database"),
        (("--dry-run",), "--dry-run cannot go with --to: a bundle is made without a database"),
        (
            (
                "--recheck",
                "1d",
            ),
            "--recheck cannot go with --to: a bundle is made without a database",
        ),
        (
            (
                "--full-check",
                "always",
            ),
            "--full-check cannot go with --to: a bundle is made without a database",
        ),
        (("--ignore-validators",), "--ignore-validators cannot go with --to: a bundle is made without a database"),
        (
            (
                "--storage",
                "vector",
            ),
            "--storage cannot go with --to: a bundle is made without a database",
        ),
        (("--no-build-index",), "--no-build-index cannot go with --to: a bundle is made without a database"),
        (
            (
                "--forget-after",
                "1d",
            ),
            "--forget-after cannot go with --to: a bundle is made without a database",
        ),
        (("--partial",), "--partial cannot go with --to: a bundle holds a whole catalog"),
        (("--shard", "1/2"), "--shard cannot go with --to: a bundle holds a whole catalog"),
    ],
)
def test_options_that_make_no_sense_are_refused(stand: Stand, options: tuple[str, ...], message: str) -> None:
    code, error, _ = stand.run("--to", stand.bundle, *options).complaint()

    assert (code, error, stand.bundle.exists()) == (2, message, False)


@pytest.mark.parametrize(
    "command",
    [
        ("run", "c.csv", "--to", ""),
        ("run", "c.csv", "--image-root", ""),
        ("run", "c.csv", "--report", ""),
        ("plan", "c.csv", "--bench", ""),
        ("load", ""),
        ("export", ""),
        ("status", "--home", ""),
    ],
)
def test_an_empty_path_is_not_the_folder_that_one_is_in(
    catvec: Catvec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)

    outcome = catvec(*command)

    assert (outcome.code, outcome.out, list(tmp_path.iterdir())) == (2, "", [])
    assert "it is empty, expected a file or folder" in outcome.err


def test_a_bundle_without_vectors_says_so(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    for path in (stand.bundle / "parts").iterdir():
        path.unlink()

    empty = stand.catvec("load", stand.bundle, "--db", database_url)
    stand.to_bundle()
    whole = stand.catvec("load", stand.bundle, "--db", database_url)

    assert (empty.code, empty.err.splitlines()[-1]) == (
        0,
        "the bundle has no vectors yet; the same catvec run … --to makes them, then load it again",
    )
    assert "model tiny_clip (32 dimensions) from the bundle: " in whole.err


def test_a_part_with_what_postgres_refuses_is_named(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    [path] = (stand.bundle / "parts").iterdir()
    table = pq.read_table(path)
    column = pa.array([None, *table.column("mime").to_pylist()[1:-1], "image/\0"], pa.string())
    data = io.BytesIO()
    pq.write_table(table.set_column(table.schema.get_field_index("mime"), "mime", column), data)
    path.unlink()
    edited = path.with_name(file_name("part", 1, digest_of(data.getvalue())))
    edited.write_bytes(data.getvalue())

    code, error, hint = stand.catvec("load", stand.bundle, "--db", database_url).complaint()

    assert (code, error) == (1, f"part {str(edited)!r} holds a NUL character in mime")
    assert hint == "remove the part and run the same catvec run … --to again, which makes anew only what it held"


def test_a_database_in_the_environment_is_not_asked(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATVEC_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nowhere")

    assert stand.to_bundle()["embedded"] == 12


def test_options_in_the_environment_are_passed_over_unless_they_leave_products_out(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CATVEC_SHARD", "1/2")
    code, error, hint = stand.run("--to", stand.bundle).complaint()

    assert (code, error) == (2, "--shard cannot go with --to: a bundle holds a whole catalog")
    assert hint == "split the catalog, or run into a database with --db"
    monkeypatch.delenv("CATVEC_SHARD")
    monkeypatch.setenv("CATVEC_RECHECK", "1d")
    assert stand.to_bundle()["embedded"] == 12


def test_what_is_no_bundle_is_told(stand: Stand, empty_database_url: str) -> None:
    code, error, hint = stand.catvec("load", stand.folder, "--db", empty_database_url).complaint()

    assert (code, error) == (2, f"there is no bundle.json in {str(stand.folder)!r}, expected a bundle")
    assert hint == "one is made by: catvec run CATALOG --to FOLDER"
    code, error, _ = stand.catvec("export", stand.bundle, "--db", empty_database_url).complaint()
    assert code == 1
    assert "has no catvec tables" in error
