"""Which options of `catvec run` cannot go with --to: what would do nothing there is refused, not passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.commands.options import option_of, refuse_given
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import typer

OF_A_DATABASE = (
    *("db", "home", "report", "dry_run", "recheck", "full_check", "ignore_validators", "storage", "build_index"),
    "forget_after",
)
"""they speak of a database; in the environment, where they are set for all commands, they do no harm"""
SHARES = {
    "partial": ("a bundle holds a whole catalog", "give the whole catalog, or run into a database with --db"),
    "shard": ("a bundle holds a whole catalog", "split the catalog, or run into a database with --db"),
}
"""they would leave products out, wherever they are set: why each is refused, and what to do"""


def refuse_beside_bundle(context: typer.Context) -> None:
    """Raise ConfigError for options that a run into a bundle cannot follow."""
    refuse_given(
        context,
        OF_A_DATABASE,
        "cannot go with --to: a bundle is made without a database",
        hint="leave one of the two out; catvec load brings a bundle into a database",
    )
    for name, (reason, cure) in SHARES.items():
        if context.params[name]:
            raise ConfigError(f"{option_of(context, name)} cannot go with --to: {reason}", hint=cure)
