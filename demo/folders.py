"""Places folders where the servers' account can enter them, and clears them away: `python -m demo.folders clean FOLDER`.

Owns: the choice of the account that Postgres runs as, folders below /var/tmp with their links, stopping servers left behind.
Never: deletes what lies outside a folder it was given and the shelter below /var/tmp; needs more than the standard library.
"""

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path


class UnsafeFolder(Exception):
    """A folder that private data would be put into belongs to somebody else."""


def find_account() -> pwd.struct_passwd | None:
    """Return the account that Postgres runs as when the caller is root (it refuses root), else None."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise UnsafeFolder("Postgres does not run as root, and this machine has neither an account 'postgres' nor 'nobody'")


def can_enter(folder: Path, account: pwd.struct_passwd) -> bool:
    """Say whether `account` may pass through `folder` and everything above it, as far as it exists."""
    groups = set(os.getgrouplist(account.pw_name, account.pw_gid))
    for path in (folder, *folder.parents):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if status.st_uid == account.pw_uid:
            bit = 0o100
        elif status.st_gid in groups:
            bit = 0o010
        else:
            bit = 0o001
        if not status.st_mode & bit:
            return False
    return True


def shelter() -> Path:
    """Return the folder below /var/tmp that stands in for folders that the servers' account cannot enter."""
    return Path("/var/tmp") / f"tailrace-{os.geteuid()}"


def place_folder(folder: Path, account: pwd.struct_passwd | None) -> Path:
    """Make `folder` and return where it really lies.

    Where `account` cannot enter it (a checkout below /root), it is made below /var/tmp and `folder` becomes a link to it.

    Raises:
        UnsafeFolder: The place below /var/tmp is a link or belongs to another user, or `folder` is in the way with content.
    """
    if folder.is_symlink() and folder.exists():
        return folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if account is None or can_enter(folder.absolute(), account):
        folder.mkdir(exist_ok=True)
        return folder.resolve()
    above = shelter()
    above.mkdir(mode=0o711, exist_ok=True)
    status = above.lstat()
    if not above.is_dir() or above.is_symlink() or status.st_uid != os.geteuid():
        raise UnsafeFolder(
            f"{above} belongs to another user; move it away, or keep the checkout where '{account.pw_name}' can enter"
        )
    above.chmod(0o711)
    name = f"{folder.name}-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]}"
    real = above / name
    real.mkdir(mode=0o755, exist_ok=True)
    if folder.is_dir() and not folder.is_symlink():
        try:
            folder.rmdir()
        except OSError as error:
            raise UnsafeFolder(f"'{account.pw_name}' cannot enter {folder}, which is not empty; remove it first") from error
    folder.unlink(missing_ok=True)
    folder.symlink_to(real)
    return real


def place_socket(folder: Path, name: str) -> Path:
    """Return a path for a Unix socket: in `folder`, or in a new short folder where the path would pass the system's limit."""
    # sun_path holds 108 bytes; servers add suffixes such as .lock.
    if len(os.fsencode(folder / name)) <= 95:
        return folder / name
    return Path(tempfile.mkdtemp(prefix="tailrace-")) / name


def _is_below(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def find_servers(folder: Path) -> dict[int, signal.Signals]:
    """Return the servers that run from data below `folder` (links followed into the shelter): process id to stop signal."""
    folder = folder.resolve()
    roots = [folder, *(link.resolve() for link in folder.rglob("*") if link.is_symlink() and _is_sheltered(link))]
    found = {}
    for root in roots:
        for path in (*root.rglob("server.pid"), *root.rglob("postmaster.pid")):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int(path.read_text().split()[0])
                # The id may have gone to another process since: the command line must name the same data.
                if os.fsencode(path.parent.resolve()) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    # SIGTERM would make Postgres wait for its clients
                    found[pid] = signal.SIGINT if path.name == "postmaster.pid" else signal.SIGTERM
    return found


def _is_sheltered(link: Path) -> bool:
    return _is_below(link.resolve(), shelter())


def stop_servers(folder: Path, timeout_s: float = 30.0) -> int:
    """Stop servers that still run from `folder`; return how many there were."""
    found = find_servers(folder)
    for pid, stop_signal in found.items():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, stop_signal)
    deadline = time.monotonic() + timeout_s
    left = find_servers(folder)
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = find_servers(folder)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def remove_folder(folder: Path) -> None:
    """Remove `folder` and the sheltered folders that it or links in it lead to."""
    links = [folder] if folder.is_symlink() else [path for path in folder.rglob("*") if path.is_symlink()]
    for link in links:
        if _is_sheltered(link):
            shutil.rmtree(link.resolve(), ignore_errors=True)
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        shelter().rmdir()  # only when nothing else is in it


def main(arguments: list[str]) -> int:
    """Run `python -m demo.folders clean FOLDER`: stop the servers that run from it, then remove it; return the exit code."""
    if len(arguments) != 2 or arguments[0] != "clean":
        print("usage: python -m demo.folders clean FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[1])
    if not folder.exists() and not folder.is_symlink():
        return 0
    stopped = stop_servers(folder)
    if stopped:
        print(f"stopped {stopped} server{'s' if stopped > 1 else ''} that ran from {folder}")
    remove_folder(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
