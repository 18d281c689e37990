"""What is no bundle, what a bundle is not made for, and bundles that are damaged: refused, and nothing changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("pyarrow", reason="needs the extra: pip install 'catvec[parquet]'")

from tests.fixtures.bundles import Stand, counts
from tests.fixtures.catalogs import photo, write_catalog

if TYPE_CHECKING:
    from pathlib import Path


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
    code, error, _ = stand.catvec("load", stand.bundle, "--db", database_url).complaint()
    assert code == 1
    assert error.startswith(
        "model 'tiny_clip' in this database was made by another model: dimensions 32 instead of 48"
    )


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
