"""As whom Postgres runs: it refuses to be root, and initdb asks for a user that the system knows."""

import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import StackError

SYSTEM_STATE = Path("/var/lib/batchmill")
"""Where an unprivileged user keeps the data when it cannot reach root's home."""
_STAND_IN = "nobody"


@dataclass(frozen=True)
class Account:
    """How to run Postgres' programs, and where they find themselves and their data."""

    state: Path
    """Holds the data folder; belongs to the user that the programs run as."""
    install: Path
    """Holds `bin`, `lib` and `share`."""
    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None

    def binary(self, name: str) -> tuple[str, ...]:
        """The command line's beginning that runs one of Postgres' programs."""
        return (*self.prefix, str(self.install / "bin" / name))


def choose_account(install: Path, folder: Path) -> Account:
    """The account for the binaries in `install` and the data under `folder`.

    An ordinary user runs them as they are. Root runs them in a user namespace of its own, in which it is somebody
    else; so no system user is added and no folder opened to others. Where the kernel refuses that, they run as
    `nobody`, from copies where `nobody` cannot reach the originals. What holds data already is used again.

    Raises:
        StackError: There is no way to run Postgres here.
    """
    me = os.geteuid()
    if me != 0 and _known(me):
        return Account(folder, install)
    try:
        stand_in = pwd.getpwnam(_STAND_IN)
    except KeyError:
        raise StackError(f"Postgres refuses to run as root, and there is no user {_STAND_IN!r} to run it as") from None
    borrowed = _system_state(folder)
    moved = me == 0 and ((borrowed / "data").exists() or folder.stat().st_uid == stand_in.pw_uid)
    if not moved and (unshare := shutil.which("unshare")):
        prefix = (unshare, "--user", f"--map-user={stand_in.pw_uid}", f"--map-group={stand_in.pw_gid}")
        account = Account(folder, install, prefix)
        if _works(account, folder):
            return account
    if me != 0:
        raise StackError(
            f"user {me} has no entry in /etc/passwd, and the kernel refuses user namespaces: add an entry, or set "
            "BATCHMILL_DATABASE_URL and BATCHMILL_BROKER_URL to servers of your own"
        )
    return _borrow(stand_in, install, folder, borrowed)


def _borrow(stand_in: pwd.struct_passwd, install: Path, folder: Path, borrowed: Path) -> Account:
    """An account of an unprivileged user, with its own copies of what that user cannot reach."""
    user, group = stand_in.pw_uid, stand_in.pw_gid
    here = Account(folder, install, user=user, group=group)
    reachable = not (borrowed / "data").exists() and _runs(here, 'cd "$1"', str(folder.parent))
    state = folder if reachable else borrowed
    if not reachable:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.parent.chmod(0o755)
    os.chown(state, user, group)
    if not _works(here, folder.parent if reachable else Path("/")):
        install = _copy(install, state)
    account = Account(state, install, user=user, group=group)
    if not _works(account, state):
        raise StackError(
            f"neither a user namespace nor the user {stand_in.pw_name!r} can run {install / 'bin' / 'postgres'}: "
            "run as an ordinary user, or set BATCHMILL_DATABASE_URL and BATCHMILL_BROKER_URL to servers of your own"
        )
    return account


def _copy(install: Path, state: Path) -> Path:
    """A copy of the binaries with the libraries that the wheel keeps beside its package."""
    package = install.parent
    version = hashlib.sha256(f"{install}{(install / 'bin' / 'postgres').stat().st_mtime_ns}".encode()).hexdigest()[:16]
    target = state / f"binaries-{version}"
    if not target.exists():
        draft = Path(tempfile.mkdtemp(prefix="copying-", dir=state))
        for folder in (install, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(
                    folder,
                    draft / folder.relative_to(package.parent),
                    ignore=shutil.ignore_patterns("include", "pgxs", "*.a"),
                )
        draft.chmod(0o755)
        draft.replace(target)
    return target / install.relative_to(package.parent)


def _system_state(folder: Path) -> Path:
    return SYSTEM_STATE / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


def _known(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def _works(account: Account, folder: Path) -> bool:
    """Whether the account can enter the folder and run Postgres' binary."""
    return _runs(account, 'cd "$1" && exec "$2" --version', str(folder), str(account.install / "bin" / "postgres"))


def _runs(account: Account, script: str, *arguments: str) -> bool:
    try:
        return not subprocess.run(
            (*account.prefix, "/bin/sh", "-c", script, "sh", *arguments),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            user=account.user,
            group=account.group,
            extra_groups=None if account.group is None else [],
            timeout=20,
        ).returncode
    except (OSError, subprocess.SubprocessError):
        return False
