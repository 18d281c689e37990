"""The page itself: one HTML file without scripts that needs nothing from anywhere, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import check_writable, write_atomically

if TYPE_CHECKING:
    from pipeline.records import RunSummary
    from pipeline.settings import RunSettings
    from pipeline.timeline import Timeline


def check_report_path(path: Path) -> None:
    """Raise ConfigError when no page can be written there; to be asked before the run starts."""
    check_writable(path, "--report")


def write_report(url: str, path: Path, *, summary: RunSummary, timeline: Timeline, settings: RunSettings) -> None:
    """Show what the run did, in a page at `path`; an earlier one is replaced in one step, or stays as it was.

    Takes up to half a minute, as pictures are fetched for it. Raises CatvecError.
    """
    from pipeline.report.data import gather

    page = gather(url, summary=summary, timeline=timeline, settings=settings)
    # names of files may hold bytes that are no text
    write_atomically(path, render(page).encode("utf-8", "replace"))


def render(page: object, template: str = "page.html.j2") -> str:
    """What a template shows of a page as HTML. Titles and URLs are anybody's words, so everything is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(page=page)
