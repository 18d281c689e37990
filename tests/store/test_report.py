"""The page of a run: what it shows, that nothing hostile or secret gets onto it, and that it is never half written.

The state that a nightly run leaves is put together here by SQL; the pictures come from a real server.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import CatvecError, ConfigError, StoreError
from pipeline.progress import Progress
from pipeline.records import ProductChanges
from pipeline.report.page import check_report_path, write_report
from pipeline.report.pictures import MOST_CHARACTERS, fetch_pictures
from pipeline.settings import CatalogSettings, DecodeSettings, FetchSettings, RunSettings
from pipeline.store.connect import Session
from pipeline.store.models import activate_model, mark_ready, register_model
from pipeline.timeline import Timeline
from tests.fixtures.store import model_spec
from tests.fixtures.summary import run_summary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.store.models import StoredModel
    from tests.fixtures.http import ImageServer

SETTINGS = RunSettings(
    catalog=CatalogSettings(uri="catalog.csv"), fetch=FetchSettings(allow_private_hosts=True, timeout_s=2.0)
)
WORK = {
    "unchanged": 95,
    "reused": 1,
    "embedded": 3,
    "failed": 1,
    "checked": 90,
    "changed": 1,
    "removed": 1,
    "products": ProductChanges(new=2, changed=0, removed=1),
    "failures_by_code": {"http_404": 1},
    "seconds": 12.0,
    "images_per_s": 20.0,
    "device": "cpu",
    "precision": "fp32",
    "batch_size": 32,
    "stage_seconds": {"sync": 0.5, "fetch": 30.0},
}
EVIL = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>"""
VOID = {"meta", "img"}


@dataclass
class Night:
    """A database at the end of a run."""

    session: Session
    url: str
    model: StoredModel
    run_id: int

    def execute(self, query: str, *parameters: Any) -> None:
        self.session.connection().execute(query, parameters)  # type: ignore[arg-type]

    def product(
        self, product_id: str, image: str, *, title: str | None = None, vector: str = "", is_new: bool = False
    ) -> int:
        """A product with one image; without a vector it is in no search result."""
        since = "now()" if is_new else "'2020-01-01'"
        self.execute(
            "INSERT INTO catvec_store.products (product_id, catalog, title, first_seen_at)"
            f" VALUES (%s, 'default', %s, {since})",
            product_id,
            title,
        )
        sha256 = hashlib.sha256(product_id.encode()).digest()
        row = self.session.connection().execute(
            "INSERT INTO catvec_store.images (product_id, url, position, content_sha256) VALUES (%s, %s, 0, %s)"
            " RETURNING image_id",
            (product_id, image, sha256 if vector else None),
        )
        if vector:
            self.execute(
                "INSERT INTO catvec_store.emb_tiny (content_sha256, embedding, run_id) VALUES (%s, %s, %s)",
                sha256,
                vector,
                self.run_id,
            )
        [image_id] = row.fetchone() or [0]
        return int(image_id)

    def fail(self, image_id: int, code: str, detail: str, *, kind: str = "permanent", next_try: str = "NULL") -> None:
        self.execute(
            "INSERT INTO catvec_store.failures"
            " (image_id, model_id, run_id, stage, code, detail, is_retryable, kind, next_try_at)"
            f" VALUES (%s, %s, %s, 'fetch', %s, %s, false, %s, {next_try})",
            image_id,
            self.model.model_id,
            self.run_id,
            code,
            detail,
            kind,
        )

    def report(
        self, path: Path, *, settings: RunSettings = SETTINGS, timeline: Timeline | None = None, **fields: Any
    ) -> Looked:
        summary = run_summary(**{**WORK, "run_id": self.run_id, **fields})
        write_report(self.url, path, summary=summary, timeline=timeline or Timeline(), settings=settings)
        return look_at(path)


@pytest.fixture
def night(database_url: str) -> Iterator[Night]:
    with Session(database_url) as session:
        model = session.run(
            lambda connection: register_model(connection, model_spec(), "print", location="/models/tiny")
        )
        session.run(lambda connection: mark_ready(connection, model))
        session.run(lambda connection: activate_model(connection, model.name))
        [[run_id]] = session.connection().execute(
            "INSERT INTO catvec_store.runs (model_id, catalog, host, pid, version)"
            " VALUES (%s, 'default', 'here', 1, '0') RETURNING run_id",
            (model.model_id,),
        )
        yield Night(session, database_url, model, run_id)


@dataclass
class Looked:
    """A page as a browser would take it apart."""

    text: str
    tags: list[str]
    links: list[str]
    pictures: list[str]
    source: str


class Reader(HTMLParser):
    """Takes a page apart, and complains about what no honest page has."""

    def __init__(self) -> None:
        super().__init__()
        self.looked = Looked(text="", tags=[], links=[], pictures=[], source="")
        self.is_open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.looked.tags.append(tag)
        if tag not in VOID:
            self.is_open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), f"<{tag} {name}={value!r}>"
            if name == "href":
                self.looked.links.append(value or "")
            elif name == "src":
                self.looked.pictures.append(value or "")
            else:
                assert name not in {"srcset", "action", "background", "data"}, f"<{tag} {name}={value!r}>"

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.is_open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.is_open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.is_open and self.is_open[-1] != "style":
            self.looked.text += " " + data


def look_at(path: Path) -> Looked:
    reader = Reader()
    reader.looked.source = path.read_text(encoding="utf-8")
    reader.feed(reader.looked.source)
    reader.close()
    assert reader.is_open == []
    reader.looked.text = " ".join(reader.looked.text.split())
    return reader.looked


def test_the_page_shows_what_the_run_did(night: Night, image_server: ImageServer, tmp_path: Path) -> None:
    image = image_server.url("/good.jpg")
    night.product("old", image, title="An old dress", vector="[1,0,0,0]")
    night.product("far", image, title="A far dress", vector="[0,0,0,1]")
    night.product("new", image + "?2", title="A new dress", vector="[0.8,0.6,0,0]", is_new=True)
    night.product("empty", image, title="No picture yet", is_new=True)
    changed = night.product("changed", image, title="A changed dress", vector="[0,1,0,0]")
    night.execute("UPDATE catvec_store.images SET changed_at = now() WHERE image_id = %s", changed)
    night.product("gone", image, title="A lost dress", vector="[0,0,1,0]")
    night.execute("UPDATE catvec_store.products SET active = false, removed_at = now() WHERE product_id = 'gone'")
    night.execute("UPDATE catvec_store.images SET active = false WHERE product_id = 'gone'")
    failed = night.product("bad", "https://cdn.example/x.jpg", title="A bad dress")
    night.fail(
        failed, "http_503", "the server answered 503", kind="transient", next_try="now() + '3 hours 5 minutes'"
    )

    looked = night.report(tmp_path / "page.html")

    assert (
        "Finished in 12 s 4 images got a vector, 1 had changed, 1 failed; 1 left the search results." in looked.text
    )
    # 0.80 to the old, 0.60 to the changed, 0 to the far one; the removed one is no neighbour
    assert re.search(r"nearest products.* 0\.80 0\.60 0\.00 A new dress new ", looked.text)
    assert (
        "Pictures that changed Other bytes behind the same URL or file, as they are now. A changed dress"
        in looked.text
    )
    assert "What left the search results Products that the catalog no longer names. A lost dress gone" in looked.text
    assert re.search(
        r"cdn\.example http_503 transient tried again in 3 h [45] min, from .* bad https://cdn\.example/x\.jpg "
        r"the server answered 503",
        looked.text,
    )
    assert looked.links.count("https://cdn.example/x.jpg") == 1
    assert "No picture yet" not in looked.text
    assert len(looked.pictures) == 5
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in looked.pictures)
    assert "Of 2 pictures, none could not be had." in looked.text
    assert "script" not in looked.tags


def test_hostile_words_stay_words_and_secrets_stay_secret(
    night: Night, image_server: ImageServer, tmp_path: Path
) -> None:
    night.product(EVIL, "javascript:alert(3)", title=EVIL, vector="[1,0,0,0]", is_new=True)
    night.product("quote", image_server.url("""/a"onload="alert(4)'.jpg"""), vector="[0,1,0,0]", is_new=True)
    night.product("token", image_server.url("/good.jpg") + "?token=SECRET", vector="[0,0,1,0]", is_new=True)
    bad = night.product("bad", "https://user:SECRET@cdn.example/x.jpg?key=SECRET", title=EVIL)
    night.fail(bad, EVIL, EVIL + "\u202e")
    night.execute(
        "INSERT INTO catvec_store.bad_rows (catalog, row_number, product_id, code, detail)"
        " VALUES ('default', 7, %s, 'no_image', %s)",
        EVIL,
        EVIL,
    )
    night.execute("UPDATE catvec_store.runs SET error = %s", EVIL)

    looked = night.report(tmp_path / "page.html")

    assert "SECRET" not in looked.source
    assert "script" not in looked.tags
    assert EVIL in looked.text
    assert [link for link in looked.links if not link.startswith("http://127.0.0.1")] == []
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in looked.pictures)
    assert "rows of the catalog no_image permanent" in looked.text
    assert "row 7" in looked.text
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in looked.source
    assert re.search(r"(?i)@import|url\(|<link|https?://(?!127\.0\.0\.1|cdn\.example)", looked.source) is None


def test_a_picture_that_cannot_be_had_is_a_box_with_the_reason(
    night: Night, image_server: ImageServer, tmp_path: Path
) -> None:
    for number, name in enumerate(("/nowhere.jpg", "/nasty/page.jpg", "/nasty/hang.jpg", "/good.jpg")):
        vector = f"[{1 if number == 0 else 0},{1 if number == 1 else 0},{1 if number == 2 else 0},0.5]"
        values = [float(value) for value in vector.strip("[]").split(",")]
        norm = sum(value**2 for value in values) ** 0.5
        unit = str([value / norm for value in values])
        night.product(name, image_server.url(name), vector=unit, is_new=True)
    fast = RunSettings(
        catalog=SETTINGS.catalog, fetch=FetchSettings(allow_private_hosts=True, timeout_s=0.5, retries=0)
    )
    looked = night.report(tmp_path / "page.html", settings=fast)
    for code in ("http_404", "not_an_image", "timeout"):
        assert looked.text.count(f" {code} ") == 4, code  # its own card, and as neighbour of three others
    assert "Of 4 pictures, 3 could not be had; a grey box says why." in looked.text


def test_pictures_that_take_too_long_are_not_waited_for(image_server: ImageServer) -> None:
    locations = [image_server.url("/good.jpg"), *(image_server.url(f"/nasty/hang.jpg?{i}") for i in range(40))]
    began = time.monotonic()
    pictures = fetch_pictures(locations, SETTINGS, within_s=0.7)
    assert time.monotonic() - began < 3
    assert [picture.code for picture in pictures.values()] == [None, *["timeout"] * 40]


def test_heavy_pictures_do_not_make_a_heavy_page(image_server: ImageServer, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(130):
        Image.effect_noise((200, 200), 120).convert("RGB").save(tmp_path / f"{number}.jpg", quality=95)
    base = image_server.serve_folder("/noise", tmp_path)
    pictures = fetch_pictures([f"{base}/{number}.jpg" for number in range(130)], SETTINGS, within_s=20)
    shown = [picture.data for picture in pictures.values() if picture.data]
    assert 60 < len(shown) < 130
    assert sum(map(len, shown)) <= MOST_CHARACTERS
    assert {picture.code for picture in pictures.values() if not picture.data} == {"left out"}


def test_pictures_of_files_are_found_beside_the_catalog(image_server: ImageServer, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(image_server.jpeg)
    (tmp_path / "catalog.csv").write_text("sku,image\na,photos/a.jpg\n")
    settings = RunSettings(catalog=CatalogSettings(uri=str(tmp_path / "catalog.csv")))
    pictures = fetch_pictures(["photos/a.jpg", "photos/b.jpg", "../secret.jpg"], settings, within_s=5)
    assert [picture.code for picture in pictures.values()] == [None, "file_not_found", "outside_root"]
    gone = RunSettings(catalog=CatalogSettings(uri="-", image_root=tmp_path / "gone"))
    assert fetch_pictures(["photos/a.jpg"], gone, within_s=5)["photos/a.jpg"].code == "no_image_root"


def test_the_limits_of_the_run_hold_for_its_pictures(image_server: ImageServer) -> None:
    small = RunSettings(catalog=SETTINGS.catalog, fetch=SETTINGS.fetch, decode=DecodeSettings(max_pixels=60 * 40 - 1))
    closed = RunSettings(catalog=SETTINGS.catalog)
    location = image_server.url("/good.jpg")
    assert fetch_pictures([location], small, within_s=5)[location].code == "too_many_pixels"
    assert fetch_pictures([location], closed, within_s=5)[location].code == "private_host"


def test_a_run_in_which_nothing_happened_has_a_short_page(night: Night, tmp_path: Path) -> None:
    nothing = {
        "unchanged": 100, "reused": 0, "embedded": 0, "failed": 0, "changed": 0, "removed": 0, "stage_seconds": {},
    }  # fmt: skip
    looked = night.report(tmp_path / "page.html", **nothing)
    assert "Finished in 12 s no image needed a new vector, none failed." in looked.text
    assert looked.tags.count("section") == 0
    assert looked.pictures == []


def test_a_stopped_run_says_why(night: Night, tmp_path: Path) -> None:
    night.execute("UPDATE catvec_store.runs SET state = 'failed', error = 'cdn.example is down'")
    looked = night.report(
        tmp_path / "page.html", finished=False, stopped_by="failure_rate", failed=60, pending=36, unchanged=0
    )
    assert "Stopped after 12 s, because too many images failed" in looked.text
    assert "36 wait for the next run. cdn.example is down" in looked.text
    assert '<body class="bad">' in looked.source


def test_the_time_is_drawn(night: Night, tmp_path: Path) -> None:
    timeline, progress = Timeline(), Progress()
    progress.begin_images("encoding images", total=100, untouched=0)
    for _ in range(3):
        progress.add(embedded=10)
        time.sleep(0.01)
        timeline.add(progress.snapshot())
    looked = night.report(tmp_path / "page.html", timeline=timeline)
    assert looked.tags.count("svg") == 1
    assert "embedded images per second" in looked.text
    assert "encoding images 0.0 s" in looked.text
    assert "fetch 30 s sync 0.5 s" in looked.text


def test_the_page_of_a_model_without_searches_has_no_neighbours(
    night: Night, image_server: ImageServer, tmp_path: Path
) -> None:
    night.product("one", image_server.url("/good.jpg"), vector="[1,0,0,0]", is_new=True)
    night.execute("UPDATE catvec_store.models SET state = 'retired'")
    assert "no neighbours were found" in night.report(tmp_path / "page.html").text


def test_failures_of_other_catalogs_are_not_shown(night: Night, tmp_path: Path) -> None:
    image_id = night.product("other", "https://cdn.example/x.jpg")
    night.fail(image_id, "http_404", "the server answered 404")
    night.execute("UPDATE catvec_store.products SET catalog = 'other'")
    assert "cdn.example" not in night.report(tmp_path / "page.html").source


def test_many_groups_of_failures_are_cut_with_a_count(night: Night, tmp_path: Path) -> None:
    for number in range(30):
        image_id = night.product(f"p{number}", f"https://host{number}.example/x.jpg")
        night.fail(image_id, "dns", "no address")
    looked = night.report(tmp_path / "page.html")
    assert "30 that stand at the end of this run" in looked.text
    assert "and 5 more in smaller groups" in looked.text
    assert looked.tags.count("article") == 25


def test_a_page_that_cannot_be_written_leaves_the_earlier_one(night: Night, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("earlier")
    with pytest.raises(StoreError, match=f"run {night.run_id + 1} is not in the database"):
        night.report(path, run_id=night.run_id + 1)
    assert path.read_text() == "earlier"
    with pytest.raises(CatvecError, match="there is no folder"):
        night.report(tmp_path / "gone" / "page.html")
    assert list(tmp_path.iterdir()) == [path]


def test_an_impossible_path_is_refused_before_the_run(tmp_path: Path) -> None:
    check_report_path(tmp_path / "page.html")
    with pytest.raises(ConfigError) as refused:
        check_report_path(tmp_path / "gone" / "page.html")
    assert refused.value.message == (
        f"--report is {str(tmp_path / 'gone' / 'page.html')!r}, which cannot be written: "
        f"there is no folder {str(tmp_path / 'gone')!r}"
    )


def test_a_database_that_is_gone_is_named(night: Night, tmp_path: Path) -> None:
    night.url = "postgresql://127.0.0.1:1/nowhere"
    with pytest.raises(StoreError, match="is not listening"):
        night.report(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
