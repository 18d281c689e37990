"""catvec doctor."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING

import typer

from pipeline.commands.options import Database, Home, Json, home_of
from pipeline.commands.terminal import print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.doctor.finding import Finding, State

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "skipped": "dim"}
GRAVEST_FIRST: tuple[State, ...] = ("problem", "warning", "skipped", "ok")


def doctor(json: Json = False, db: Database = None, home: Home = None) -> None:
    """Check everything that could be wrong, and say the cure. It changes nothing.

    Exit code 0 when there is no problem (warnings are allowed), else 1.
    """
    from pipeline.doctor.examination import examine

    findings = examine(db, home=home_of(home), environ=os.environ)
    counts = Counter(finding.state for finding in findings)
    if json:
        print_json({"problems": counts["problem"], "warnings": counts["warning"], "findings": findings})
    else:
        _print_findings(findings)
        _say_cures(findings)
        _say_counts(counts)
    raise typer.Exit(1 if counts["problem"] else 0)


def _print_findings(findings: Sequence[Finding]) -> None:
    from rich.text import Text

    rows = []
    # what is skipped for one reason is one row
    for (state, detail), group in itertools.groupby(findings, key=lambda finding: (finding.state, finding.detail)):
        names = [finding.name for finding in group]
        what = ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]} and {len(names) - 2} more"
        rows.append((Text(state, style=STYLES[state]), what, detail))
    print_table(("state", "what", "found"), rows)


def _say_cures(findings: Sequence[Finding]) -> None:
    """The cures, the gravest first."""
    for state in GRAVEST_FIRST:
        for finding in findings:
            if finding.state == state and finding.cure:
                say(f"hint: {finding.name}: {finding.cure}")


def _say_counts(counts: Counter[State]) -> None:
    words = []
    for state in GRAVEST_FIRST:
        is_plural = counts[state] > 1 and state in {"problem", "warning"}
        if counts[state]:
            words.append(f"{counts[state]} {state}{'s' if is_plural else ''}")
    say(("" if counts["problem"] + counts["warning"] else "all is well: ") + ", ".join(words))
