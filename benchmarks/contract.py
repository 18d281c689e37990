"""The SQL contract on real photos: two models of different dimensions, the switch forth and back, psql as a reader.

    python -m benchmarks.contract CATALOG.CSV [--photos N] [--model FOLDER] [--other FOLDER]

Runs the commands as an owner would and the queries as an app would, whose login has a reader's rights and nothing
else. Writes all that they printed to results/contract.txt and what it comes to to results/contract.json; ends with 1
when anything is not as promised.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from benchmarks.catalog import describe_sizes, write_catalog
from benchmarks.command import run_catvec, run_process, working_folder
from benchmarks.conditions import RESULTS, write_result
from benchmarks.database import describe_server, embedded_server, empty_database
from benchmarks.random_model import save_clip_b32
from pipeline.store.psql import find_psql

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.command import Outcome

READER = "shop_app"
OTHER_DIMS = 768
K = 5

WHO = "SELECT name, dims, state, index_kind, vectors FROM catvec.models ORDER BY model_id"
SIMILAR = (
    "SELECT product_id, category, round(similarity::numeric, 3) AS similarity"
    "  FROM catvec.similar_products('{id}', {k}{rest})"
)
CATEGORY = ', \'{{"category": "{category}"}}\''
SEEN_DIMS = "SELECT DISTINCT vector_dims(embedding) FROM catvec.image_embeddings"
FORBIDDEN = ("SELECT count(*) FROM catvec_store.products", "SELECT catvec_store.activate_model('{other}')")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """Runs commands and keeps what they printed."""

    folder: Path
    owner: Mapping[str, str]
    reader: Mapping[str, str]
    parts: list[str] = field(default_factory=list)

    def catvec(self, *arguments: str) -> Outcome:
        return self._keep(run_catvec(*arguments, folder=self.folder, environment=self.owner))

    def psql(self, statement: str) -> list[list[str]]:
        """The rows of a statement that the reader sends."""
        return list(csv.reader(self._psql(statement, code=0).out.splitlines()))[1:]

    def is_refused(self, statement: str) -> bool:
        """Whether the reader lacks the right."""
        return "permission denied" in self._psql(statement, code=1).err

    def _psql(self, statement: str, *, code: int) -> Outcome:
        command = [find_psql(), "-v", "ON_ERROR_STOP=1", "--csv", "-c", statement]
        return self._keep(run_process(command, folder=self.folder, environment=self.reader, code=code))

    def _keep(self, outcome: Outcome) -> Outcome:
        self.parts.append(f"$ {outcome.command}\n{outcome.err}{outcome.out}\n")
        return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", type=Path, help="a CSV file with the columns product_id, category and image")
    parser.add_argument("--photos", type=int, help="so many rows of the catalog; default: all")
    parser.add_argument("--model", type=Path, help="a model folder; default: random weights of ViT-B/32's size")
    parser.add_argument("--other", type=Path, help="another, of other dimensions; default: the same with 768")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    with (
        working_folder(arguments.model) as place,
        embedded_server() as server,
        empty_database(server) as database,
    ):
        if arguments.other is None:
            other = save_clip_b32(place.folder / "clip-b32-wide", dims=OTHER_DIMS).name
        else:
            other = arguments.other.name
            (place.folder / other).symlink_to(arguments.other.resolve(), target_is_directory=True)
        photos = write_catalog(arguments.catalog, place.folder / "catalog.csv", ".", photos=arguments.photos)
        (place.folder / "photos").symlink_to(arguments.catalog.parent.resolve(), target_is_directory=True)
        with psycopg.connect(server.admin_url(), autocommit=True) as admin:
            admin.execute(f"DROP ROLE IF EXISTS {READER}; CREATE ROLE {READER} LOGIN PASSWORD '{READER}'")
        transcript = Transcript(
            folder=place.folder, owner=database.environment, reader=reader_environment(database.url)
        )
        checks = tell(transcript, place.model, other)
        result: dict[str, Any] = {
            "models": [place.model, other],
            "photos": describe_sizes(photos),
            "server": describe_server(database.url),
            "checks": checks,
        }
    for name, met in checks.items():
        print("yes" if met else "NO ", name)
    text = "".join(transcript.parts)
    path = arguments.results / "contract.txt"
    path.write_text("".join(line.rstrip() + "\n" for line in text.splitlines()), encoding="utf-8")
    print(path, write_result("contract", result, arguments.results), sep="\n")
    sys.exit(0 if all(checks.values()) else 1)


def reader_environment(url: str) -> dict[str, str]:
    """What psql reads, so that no address stands on its command line."""
    parts = psycopg.conninfo.conninfo_to_dict(url)
    return {
        "PGHOST": str(parts["host"]),
        "PGPORT": str(parts["port"]),
        "PGDATABASE": str(parts["dbname"]),
        "PGUSER": READER,
        "PGPASSWORD": READER,
    }


def tell(transcript: Transcript, first: str, second: str) -> dict[str, bool]:
    """The whole story, and what it shows."""
    run = ("run", "catalog.csv", "--image-root", "photos", "--json")
    transcript.catvec(*run, "--model", first)
    transcript.catvec("db", "grant", "--reader", READER)
    old, product_id, category = _first_look(transcript)
    before = _ask(transcript, product_id, category)

    transcript.catvec(*run, "--model", second)
    [_, new] = [row[0] for row in transcript.psql(WHO)]
    beside = _ask(transcript, product_id, category)
    transcript.catvec("models", "activate", new)
    switched, pinned = _ask(transcript, product_id, category), _ask(transcript, product_id, category, model=old)
    transcript.catvec("models", "rollback")
    back = _ask(transcript, product_id, category)
    transcript.catvec("models", "activate", new)
    again = _ask(transcript, product_id, category)
    refused = [transcript.is_refused(statement.replace("{other}", old)) for statement in FORBIDDEN]
    transcript.catvec("models")
    transcript.catvec("index", "status", new)
    transcript.catvec("explain", product_id)

    answers = (before, beside, switched, pinned, back, again)
    return {
        "the reader is kept from private tables and functions": all(refused),
        f"every answer has {K} rows": all(len(rows) == K for answer in answers for rows in answer.lists),
        "a category filter keeps that category only": all(
            {row[1] for row in answer.filtered} == {category} for answer in answers
        ),
        "a run with another model changes no answer": beside == before,
        "activation switches the dimensions": (before.dims, switched.dims) == ("512", str(OTHER_DIMS)),
        "and the answers": switched.unfiltered != before.unfiltered,
        "a pinned model goes on answering": pinned.lists == before.lists,
        "rollback brings the answers back": back == before,
        "and activation again": again == switched,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Neighbours of one product, with and without a category, and the dimensions of the view at that moment."""

    unfiltered: list[list[str]]
    filtered: list[list[str]]
    dims: str

    @property
    def lists(self) -> tuple[list[list[str]], list[list[str]]]:
        return self.unfiltered, self.filtered


def _first_look(transcript: Transcript) -> tuple[str, str, str]:
    """The active model, a product, and a category that is not the product's own."""
    [[model, *_]] = transcript.psql(WHO)
    [[product_id, own]] = transcript.psql("SELECT product_id, category FROM catvec.products ORDER BY 1 LIMIT 1")
    counted = "SELECT category, count(*) FROM catvec.products GROUP BY 1 ORDER BY 2 DESC"
    category = next(name for name, _ in transcript.psql(counted) if name != own)
    return model, product_id, category


def _ask(transcript: Transcript, product_id: str, category: str, *, model: str | None = None) -> Answer:
    pin = f", model => '{model}'" if model else ""
    only = CATEGORY.format(category=category)
    return Answer(
        unfiltered=transcript.psql(SIMILAR.format(id=product_id, k=K, rest=pin)),
        filtered=transcript.psql(SIMILAR.format(id=product_id, k=K, rest=only + pin)),
        dims=transcript.psql(SEEN_DIMS)[0][0],
    )


if __name__ == "__main__":
    main()
