"""Files that are replaced whole or not at all, on real file systems."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import CatvecError, ConfigError
from pipeline.files import check_writable, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMITED = """
import resource, sys
from pathlib import Path
from pipeline.errors import CatvecError
from pipeline.files import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_atomically(Path(sys.argv[1]), "x" * 100_000)
except CatvecError as error:
    print(error.message)
"""


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mount = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mount.returncode:
        pytest.skip(f"a file system of 64 kB cannot be mounted: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_atomically(path, "first – ä")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(tmp_path) == ["page.html"]


def test_a_new_file_has_the_rights_of_the_umask(tmp_path: Path) -> None:
    earlier = os.umask(0o022)
    try:
        write_atomically(tmp_path / "page.html", "text")
    finally:
        os.umask(earlier)
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o644


def test_a_link_leads_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "latest.html").symlink_to(tmp_path / "pages" / "one.html")
    write_atomically(tmp_path / "latest.html", "text")
    assert (tmp_path / "latest.html").is_symlink()
    assert (tmp_path / "pages" / "one.html").read_text() == "text"


def test_a_full_disk_leaves_the_earlier_file(small_disk: Path) -> None:
    path = small_disk / "page.html"
    write_atomically(path, "earlier")
    with pytest.raises(CatvecError) as caught:
        write_atomically(path, "x" * 200_000)
    assert caught.value.message == f"{str(path)!r} cannot be written: no space left on device"
    assert path.read_text() == "earlier"
    assert names(small_disk) == ["page.html"]


def test_a_file_that_may_not_grow_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("earlier")
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=30, check=True
    )
    assert process.stdout.strip() == f"{str(path)!r} cannot be written: file too large"
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["page.html"]


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "page.html"
    reason = f"cannot be written: there is no folder {str(path.parent)!r}"
    with pytest.raises(CatvecError) as caught:
        write_atomically(path, "text")
    assert caught.value.message == f"{str(path)!r} {reason}"
    with pytest.raises(ConfigError) as refused:
        check_writable(path, "--report")
    assert refused.value.message == f"--report is {str(path)!r}, which {reason}"


def test_a_folder_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path, "it is a folder, expected a file"),
        (Path(os.devnull), "it is no plain file, and would be replaced by one"),
    ):
        with pytest.raises(ConfigError) as refused:
            check_writable(path, "--report")
        assert refused.value.message == f"--report is {str(path)!r}, which cannot be written: {reason}"
        with pytest.raises(CatvecError, match=reason):
            write_atomically(path, "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    path = tmp_path / "page.html"
    with pytest.raises(ConfigError) as refused:
        check_writable(path, "--report")
    assert refused.value.message == f"--report is {str(path)!r}, which cannot be written: permission denied"


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"--report is '.*/a', which cannot be written: "):
        check_writable(tmp_path / "a", "--report")


def test_a_check_leaves_nothing_and_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "old.html").write_text("earlier")
    check_writable(tmp_path / "old.html", "--report")
    check_writable(tmp_path / "new.html", "--report")
    assert names(tmp_path) == ["old.html"]
    assert (tmp_path / "old.html").read_text() == "earlier"
