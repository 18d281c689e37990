"""catvec db: the database's server, address, console, version and users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import Database, Home, Json, home_of, open_database
from pipeline.commands.terminal import print_data, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.store.embedded import EmbeddedServer

db_app = typer.Typer(help="The database: catvec's own server, its address, console, version and users.")

Roles = Annotated[list[str] | None, typer.Option(metavar="ROLE", help="a user; may be given several times")]


def _server(home: Home) -> EmbeddedServer:
    from pipeline.store.embedded import EmbeddedServer

    return EmbeddedServer(home=home_of(home))


@db_app.command()
def start(home: Home = None) -> None:
    """Start catvec's own PostgreSQL and leave it running."""
    _server(home).start(explicit=True)
    say("started; it runs until: catvec db stop. Its address: catvec db url")


@db_app.command()
def stop(home: Home = None) -> None:
    """Stop catvec's own PostgreSQL."""
    server = _server(home)
    users = server.status().users
    was_running = server.stop()
    say("stopped" if was_running else "it was not running")
    if was_running and users:
        say(f"{users:,} processes were using it: a run among them waits a minute for it, then ends with an error")


@db_app.command()
def status(json: Json = False, home: Home = None) -> None:
    """Show whether catvec's own PostgreSQL runs, where, and for whom."""
    found = _server(home).status()
    if json:
        print_json(found)
        return
    rows = [
        ("running", found.running),
        ("stays until `catvec db stop`", found.explicit),
        ("processes using it", found.users),
        ("version", found.version),
        ("port", str(found.port) if found.port else None),
        ("socket", found.socket),
        ("data", found.data),
        ("log", found.log),
    ]
    print_table(("server", ""), rows)


@db_app.command()
def url(db: Database = None, home: Home = None) -> None:
    """Print the connection URL, for psql, psycopg and everything else. It holds the password."""
    print_data(db or _server(home).url())


@db_app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context, db: Database = None, home: Home = None) -> None:
    """Open psql on the database; what follows is handed to psql, such as: catvec db psql -c "SELECT 1"."""
    from pipeline.store.psql import run_psql

    with open_database(db, home) as address:
        raise typer.Exit(run_psql(address, context.args))


@db_app.command()
def migrate(
    db: Database = None,
    home: Home = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="say nothing when all is well")] = False,
) -> None:
    """Bring the tables, views and functions up to this release; `run` does it too."""
    from pipeline.store.migrate import migrate as migrate_database
    from pipeline.store.migrate import newest_version

    with open_database(db, home) as address:
        migrate_database(address)
    if not quiet:
        say(f"the database is at version {newest_version()}")


@db_app.command()
def grant(
    reader: Roles = None, writer: Roles = None, json: Json = False, db: Database = None, home: Home = None
) -> None:
    """Let other users of the database search (reader), or search and run (writer). For the owner of the tables."""
    from pipeline.store.migrate import open_current
    from pipeline.store.roles import grant_roles

    with open_database(db, home) as address, open_current(address) as session:
        granted = session.run(lambda connection: grant_roles(connection, readers=reader or (), writers=writer or ()))
    if json:
        print_json(granted)
    for role in granted.readers:
        say(f"{role} may read the views and call the functions of schema catvec")
    for role in granted.writers:
        say(f"{role} may do so too, and run known models; new models, indexes and switches are {granted.owner}'s")
    for statement in granted.left:
        say(f"still missing; an administrator runs: {statement}")
