"""Images that cannot be had or decoded are failures with a stage, a code and a sentence; odd ones are embedded."""

from __future__ import annotations

import shutil
import struct
import zlib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw

from tests.fixtures.catalogs import photo, write_catalog

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Catvec
    from tests.fixtures.healthy import Healthy
    from tests.fixtures.http import ImageServer

HUGE = (30_000, 30_000)


def huge_png() -> bytes:
    """A PNG of 30,000 × 30,000 pixels whose rows are missing: a decoder that begins has lost already."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *HUGE, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def huge_jpeg() -> bytes:
    """A small JPEG that says it has 30,000 × 30,000 pixels."""
    data = photo(1)
    at = data.index(b"\xff\xc0") + 5  # marker, length, precision; then height and width
    return data[:at] + struct.pack(">HH", *HUGE) + data[at + 4 :]


def test_every_bad_image_is_a_failure_with_its_reason(
    catvec: Catvec, healthy: Healthy, tmp_path: Path, image_server: ImageServer
) -> None:
    folder = shutil.copytree(healthy.folder, tmp_path / "shop")
    files = {
        "cut.jpg": photo(1)[:500],
        "zero.jpg": b"",
        "huge.png": huge_png(),
        "huge.jpg": huge_jpeg(),
        "page.jpg": b"<html>Please log in</html>",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (tmp_path / "secret.jpg").write_bytes(photo(2))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "folder.jpg").mkdir()
    url = image_server.url
    too_many = "the image has 30000 × 30000 pixels, expected at most 100000000 in all"
    expected = {
        url("/gone.jpg"): ("fetch", "http_404", "the server answered 404 (Not Found)"),
        url("/nasty/error.jpg"): ("fetch", "http_500", "the server answered 500 (Internal Server Error)"),
        url("/nasty/page.jpg"): (
            "fetch",
            "not_an_image",
            "the server sent an HTML page instead of an image: 'Shop Please log in'",
        ),
        url("/nasty/empty.jpg"): ("fetch", "empty", "the image has 0 bytes"),
        url("/nasty/endless.jpg"): (
            "fetch",
            "too_large",
            "the image has * bytes or more, expected at most 1000000",
        ),
        url("/nasty/bomb.jpg"): ("fetch", "too_large", "the image has * bytes or more, expected at most 1000000"),
        url("/nasty/slow.jpg"): ("fetch", "timeout", "no complete answer within the deadline of 1 s"),
        url("/nasty/hang.jpg"): ("fetch", "timeout", "no complete answer within the deadline of 1 s"),
        url("/nasty/loop"): (
            "fetch",
            "too_many_redirects",
            f"the redirects go in a circle, back to {url('/nasty/loop')}",
        ),
        url("/nasty/redirect/9"): (
            "fetch",
            "too_many_redirects",
            f"more than 5 redirects, the last to {url('/nasty/redirect/3')}",
        ),
        url("/nasty/to-file"): ("fetch", "bad_redirect", "redirected to file://, expected http or https"),
        url("/nasty/cut.jpg"): (
            "fetch",
            "truncated_download",
            "the connection ended before the whole image was sent",
        ),
        "http://nosuch.invalid/a.jpg": ("fetch", "dns", "no address for 'nosuch.invalid': *"),
        "http://user:s3cret@127.0.0.1:1/a.jpg": (
            "fetch",
            "connection",
            "no connection to '127.0.0.1': connection refused",
        ),
        "data:image/png;base64,@@@": (
            "fetch",
            "bad_data_uri",
            "what follows the comma of the data URI is no base64",
        ),
        "cut.jpg": ("decode", "truncated", "the JPEG file ends too early: * (500 bytes)"),
        "zero.jpg": ("fetch", "empty", "the image has 0 bytes"),
        "huge.png": ("decode", "too_many_pixels", too_many),
        "huge.jpg": ("decode", "too_many_pixels", too_many),
        "page.jpg": ("decode", "not_an_image", "the file is no image but an HTML page: 'Please log in'"),
        "missing.jpg": ("fetch", "file_not_found", "there is no file 'missing.jpg' in the image root"),
        "link.jpg": ("fetch", "outside_root", "'link.jpg' leads outside the image root"),
        "folder.jpg": ("fetch", "not_a_file", "'folder.jpg' is no regular file"),
    }
    blank = dict.fromkeys(healthy.rows[0], "")
    bad = [{**blank, "sku": f"BAD{number}", "image": image} for number, image in enumerate(expected)]
    catalog = write_catalog(folder / "catalog.csv", [*healthy.rows, *bad])
    limits = ("--timeout-s", 1, "--retries", 0, "--max-bytes", 1_000_000, "--allow-private-hosts")
    before = healthy.stored()

    outcome = catvec("run", catalog, *healthy.options, *limits, "--max-failure-rate", 1, "--json")

    assert outcome.code == 3, outcome.err
    summary = outcome.json()
    assert (summary["seen"], summary["unchanged"], summary["failed"]) == (12 + len(bad), 12, len(bad))
    assert summary["finished"] is True
    found = healthy.failures()
    wrong = {
        image: found.get(row["sku"])
        for row, (image, ends) in zip(bad, expected.items(), strict=True)
        if row["sku"] not in found or not all(map(fnmatchcase, found[row["sku"]], ends))
    }
    assert wrong == {}
    assert healthy.lost(before) == {}
    assert image_server.requests["/gone.jpg"] == 1
    listed = catvec("failures", "--db", healthy.url, "--json")
    assert "http://***@127.0.0.1:1/a.jpg" in listed.out
    assert "s3cret" not in listed.out + listed.err + outcome.out + outcome.err


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1"), ("localhost", "*"), ("[::ffff:127.0.0.1]", "*")]
)
def test_a_private_host_is_not_even_asked(
    catvec: Catvec, healthy: Healthy, tmp_path: Path, image_server: ImageServer, host: str, address: str
) -> None:
    """Whoever may write into the catalog must not reach what stands beside the machine that runs catvec."""
    catalog = write_catalog(
        tmp_path / "catalog.csv", [{"sku": "X", "image": image_server.url("/good.jpg").replace("127.0.0.1", host)}]
    )
    before = healthy.stored()

    outcome = catvec("run", catalog, *healthy.options, "--catalog-name", "private", "--json")

    assert outcome.json()["failures_by_code"] == {"private_host": 1}
    stage, code, detail = healthy.failures()["X"]
    assert (stage, code) == ("fetch", "private_host")
    plain = host.strip("[]")
    expected = f"'{plain}' leads to the private address {address}, expected a public one (--allow-private-hosts)"
    assert fnmatchcase(detail, expected)
    assert image_server.log == []
    assert healthy.lost(before) == {}

    assert catvec("run", catalog, *healthy.options, "--catalog-name", "private", "--allow-private-hosts").code == 0
    assert "X" not in healthy.failures()


def draw(size: tuple[int, int] = (120, 80)) -> Image.Image:
    image = Image.new("RGB", size, (240, 230, 210))
    drawing = ImageDraw.Draw(image)
    drawing.ellipse((5, 5, size[0] // 2, size[1] - 5), fill=(20, 40, 160))
    drawing.rectangle((size[0] // 2, 0, size[0] - 10, size[1] // 3), fill=(200, 30, 30))
    return image


def save_corpus(folder: Path) -> None:
    """One drawing in the many forms in which shops keep pictures, and what is no picture."""
    (folder / "odd").mkdir(parents=True)
    image = draw()
    image.save(folder / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90° clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", quality=95, exif=exif)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.save(folder / "really-avif.jpg", "AVIF", quality=90)
    image.save(folder / "really-png.jpg", "PNG")
    clear = image.convert("RGBA")
    clear.putpixel((0, 0), (255, 0, 0, 0))
    clear.save(folder / "alpha.webp", lossless=True)
    clear.quantize(64).save(folder / "palette.png")
    image.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", image.size)], duration=99)
    image.save(folder / "animated.webp", save_all=True, append_images=[Image.new("RGB", image.size)], lossless=True)
    image.save(folder / "scan.tiff")
    grey = image.convert("L")
    grey.save(folder / "odd" / "grey.png")
    grey.point(lambda value: value * 257, "I").convert("I;16").save(folder / "odd" / "sixteen-bit.png")
    Image.new("RGB", (1, 1), "red").save(folder / "odd" / "one-pixel.png")
    draw((400, 12)).save(folder / "odd" / "wide.jpg")
    (folder / "page.jpg").write_text("<!DOCTYPE html><p>Not found")
    (folder / "cut.png").write_bytes((folder / "upright.png").read_bytes()[:-300])
    (folder / "zero.gif").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes((folder / "upright.png").read_bytes())


TO_UPRIGHT = """
SELECT i.product_id, i.width, i.height, 1 - (e.embedding <=> u.embedding)
  FROM catvec_store.images i
  JOIN catvec_store.products p USING (product_id)
  JOIN catvec_store.emb_healthy e ON e.content_sha256 = i.content_sha256
  JOIN catvec_store.images ui ON ui.product_id = '{product}'
  JOIN catvec_store.emb_healthy u ON u.content_sha256 = ui.content_sha256
 WHERE p.catalog = 'folder'
"""


def test_a_folder_of_odd_images(catvec: Catvec, healthy: Healthy, tmp_path: Path) -> None:
    save_corpus(tmp_path / "pictures")
    before = healthy.stored()

    outcome = catvec("run", tmp_path / "pictures", *healthy.options, "--catalog-name", "folder", "--json")

    summary = outcome.json()
    assert summary["failures_by_code"] == {"not_an_image": 1, "truncated": 1, "empty": 1}
    assert (summary["seen"], summary["embedded"], summary["reused"]) == (17, 13, 1)  # upright and really-png
    assert {product: ends[:2] for product, ends in healthy.failures().items()} == {
        "page.jpg": ("decode", "not_an_image"),
        "cut.png": ("decode", "truncated"),
        "zero.gif": ("fetch", "empty"),
    }
    rows = {row[0]: row[1:] for row in healthy.execute(TO_UPRIGHT.format(product="upright.png"))}
    assert set(rows) == {
        *("upright.png", "turned.jpg", "cmyk.jpg", "really-avif.jpg", "really-png.jpg", "alpha.webp", "palette.png"),
        *("animated.gif", "animated.webp", "scan.tiff"),
        *("odd/grey.png", "odd/sixteen-bit.png", "odd/one-pixel.png", "odd/wide.jpg"),
    }
    alike = {product: row for product, row in rows.items() if not product.startswith("odd/")}
    assert {product: row[:2] for product, row in alike.items()} == dict.fromkeys(alike, (120, 80))
    assert {product: row[2] for product, row in alike.items() if row[2] < 0.99} == {}
    assert rows["odd/one-pixel.png"][:2] == (1, 1)
    assert rows["odd/wide.jpg"][2] < 0.9
    to_grey = {row[0]: row[3] for row in healthy.execute(TO_UPRIGHT.format(product="odd/grey.png"))}
    assert to_grey["odd/sixteen-bit.png"] > 0.999
    assert healthy.execute("SELECT category FROM catvec.products WHERE product_id = 'odd/wide.jpg'") == [("odd",)]
    assert healthy.lost(before) == {}
