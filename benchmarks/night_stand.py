"""What lasts longer than a night: the shop, its host and database, and the diary in which nights are told."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from benchmarks.command import CATVEC, run_process
from benchmarks.night_evidence import describe_answers, find_similar, read_state, vector_table, written_rows
from benchmarks.night_table import Line, Should, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.command import Outcome, Place
    from benchmarks.database import Database
    from benchmarks.living_shop import PhotoHost, Shop
    from benchmarks.night_evidence import Connection, State

LAST_LINES = 18
"""all that a plan prints, and a run without its bar"""


@dataclass(slots=True, kw_only=True)
class Diary:
    """What is written down: the transcript as it is read, and a line for each witness."""

    parts: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    stopped: bool = False
    """before the last night"""

    @property
    def is_ok(self) -> bool:
        return not self.stopped and all(line.is_ok for line in self.lines)

    def tell(self, text: str) -> None:
        self.parts.append(text)
        print(text, file=sys.stderr, flush=True)

    def ran(self, outcome: Outcome, code: int) -> None:
        shown = [line for line in (outcome.err + outcome.out).splitlines() if line.strip()]
        skipped = ["…"] if len(shown) > LAST_LINES else []
        last = "\n".join([*skipped, *shown[-LAST_LINES:]])
        self.tell(f"$ {outcome.command}\n{last}\n(exit code {code}, {outcome.seconds:.1f} s)\n")


@dataclass(slots=True, kw_only=True)
class Stand:
    """Everything that lasts longer than a night."""

    place: Place
    database: Database
    connection: Connection
    shop: Shop
    host: PhotoHost
    diary: Diary
    products: int
    """those that are still to come included"""
    shares_since: datetime | None = None
    """when the first run after the last look at everything began"""
    known: set[bytes] = field(default_factory=set)
    """contents that have a vector"""

    @property
    def probe(self) -> str:
        return self.shop.entries[0].product_id

    def share(self, of_all: float) -> int:
        return int(of_all * self.products)

    def catvec(
        self, command: str, *options: str, code: int = 0, watch: Any = None, database: Database | None = None
    ) -> Outcome:
        arguments = (command, "catalog.csv", "--model", self.place.model, "--allow-private-hosts", *options)
        outcome = run_process(
            [str(CATVEC), *arguments],
            folder=self.place.folder,
            environment=(database or self.database).environment,
            watch=watch,
            code=code,
        )
        self.diary.ran(outcome, code)
        return outcome

    def plan(self, *options: str) -> dict[str, Any]:
        """As a person reads it, and as a program does."""
        self.catvec("plan", *options)
        planned = self.catvec("plan", "--json", *options)
        self.diary.parts.pop()  # the same again
        return planned.json()

    def write_catalog(self, *, share: float = 1.0) -> None:
        self.shop.write(self.place.folder / "catalog.csv", self.host.base_url, share=share)

    def state(self) -> State:
        table = vector_table(self.connection)
        assert table is not None
        return read_state(self.connection, table)

    def now(self) -> datetime:
        [(moment,)] = self.connection.execute("SELECT clock_timestamp()").fetchall()
        assert isinstance(moment, datetime)
        return moment


@dataclass(slots=True, kw_only=True)
class Night:
    """One night as it is told: `should` first, then it runs, then `did`."""

    stand: Stand
    name: str
    what: str
    _should: dict[str, Should] = field(default_factory=dict)

    def should(self, **witnesses: Should) -> None:
        """What is to be seen, by witness; to be said before the command."""
        for witness, facts in witnesses.items():
            self._should[witness.replace("_", " ")] = facts
            self.stand.diary.tell(f"should, {witness.replace('_', ' ')}: {tell(facts)}")

    def did(self, **witnesses: dict[str, Any]) -> None:
        for witness, facts in witnesses.items():
            name = witness.replace("_", " ")
            line = Line(night=self.name, what=self.what, witness=name, should=self._should[name], did=facts)
            self.stand.diary.lines.append(line)
            verdict = "as it should" if line.is_ok else "NOT AS IT SHOULD"
            self.stand.diary.tell(f"did, {name}: {tell({key: facts[key] for key in line.should})}: {verdict}")

    def plan(self, should: Should, *options: str) -> dict[str, Any]:
        self.should(plan=should)
        planned = self.stand.plan(*options)
        self.did(plan=_planned(planned))
        return planned

    def run(self, *options: str, code: int = 0, watch: Any = None) -> tuple[Outcome, dict[str, Any]]:
        """Run it, and let the witnesses speak of whom something was expected; the summary is empty without one."""
        stand = self.stand
        rows = written_rows(stand.connection)
        stand.host.take_answers()
        outcome = stand.catvec("run", "--json", *options, code=code, watch=watch)
        written = {name: now - rows[name] for name, now in written_rows(stand.connection).items()}
        summary = outcome.json() if outcome.out.strip() else {}
        gone = {entry.product_id for entry in stand.shop.gone}
        hits = find_similar(stand.connection, stand.probe)
        witnesses = {
            "run": {"exit code": code} | _told(summary),
            "vector_rows": asdict(written["vectors"]),
            "image_rows": asdict(written["images"]),
            "product_rows": asdict(written["products"]),
            "image_server": describe_answers(stand.host.take_answers()),
            "tables": {name.replace("_", " "): count for name, count in asdict(stand.state()).items()},
            "search": {"hits": len(hits), "of products that left": sum(found in gone for found, _ in hits)},
        }
        self.did(**{name: facts for name, facts in witnesses.items() if name.replace("_", " ") in self._should})
        return outcome, summary


@contextmanager
def night(stand: Stand, name: str, what: str) -> Iterator[Night]:
    stand.diary.tell(f"\n==== night {name}: {what}\n")
    yield Night(stand=stand, name=name, what=what)


def _planned(plan: dict[str, Any]) -> dict[str, Any]:
    products = {f"products {name}": count for name, count in plan["products"].items()}
    images = {f"images {name}": count for name, count in plan["images"].items()}
    return products | images | {"to fetch": plan["to_fetch"], "refused": "yes" if plan["refusal"] else "no"}


def _told(summary: dict[str, Any]) -> dict[str, Any]:
    if not summary:
        return {}
    products = {f"products {name}": count for name, count in summary["products"].items()}
    counts = {name: value for name, value in summary.items() if isinstance(value, int)}
    ends = ("unchanged", "reused", "embedded", "failed", "pending")
    adds_up = summary["seen"] == sum(summary[name] for name in ends)
    return counts | products | {"adds up": "yes" if adds_up else "no"}
