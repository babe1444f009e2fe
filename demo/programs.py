"""Finds the programs of MySQL, MariaDB and Postgres on this machine, or fetches them into a folder.

Owns: which versions are good enough, where they are looked for, how a program of an unpacked tree is run.
Never: starts a server (see `demo.servers`), installs anything into the system.
"""

import contextlib
import dataclasses
import fcntl
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from demo import folders, packages

Say = Callable[[str], None]

NAMES = ("mysql", "mariadb", "postgres")
_CHECKOUT = Path(__file__).resolve().parent.parent
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin")
_APPARMOR_PROFILE = Path("/etc/apparmor.d/usr.sbin.mysqld")

# The mysqld of sid needs a newer C library than Debian 12 has, so it runs by its own loader. MariaDB and Postgres come from
# Debian 12, whose C library every later Debian can stand in for.
_REQUESTS = {
    "mysql": packages.Request(("mysql-server-core",), "sid", own_c_library=True),
    "mariadb": packages.Request(("mariadb-server-core",), "bookworm"),
    "postgres": packages.Request(("postgresql-15", "postgresql-client-15"), "bookworm"),
}
_WANTED = {
    "mysql": "mysqld (MySQL 9)",
    "mariadb": "mariadbd (MariaDB 10.11 or later)",
    "postgres": "initdb and postgres (Postgres 15 or later with the contrib extension cube)",
}


class ProgramsMissing(Exception):
    """Server programs are neither on this machine nor could they be fetched; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The programs of one server: `version` as it gives it, `folder` of its executables, `tree` where it was unpacked."""

    name: str
    version: str
    folder: Path
    tree: Path | None = None

    def command(self, tool: str) -> list[str]:
        """Return the start of the command line that runs `tool` ("mysqld", "initdb", "psql")."""
        path = str(self.folder / tool)
        if self.tree is None or not _REQUESTS[self.name].own_c_library:
            return [path]
        loader = next(iter(sorted(self.tree.glob("usr/lib/*/ld-linux*.so.*")) + sorted(self.tree.glob("lib/*/ld-linux*.so.*"))))
        return [str(loader), "--library-path", ":".join(_library_folders(self.tree)), path]

    def environment(self) -> dict[str, str]:
        """Return the environment that the programs run in: the caller's, without what would lead them elsewhere."""
        kept = {key: value for key, value in os.environ.items() if not re.match(r"PG|MYSQL|MARIADB|TAILRACE__|LD_PRELOAD", key)}
        if self.tree is not None and not _REQUESTS[self.name].own_c_library:
            kept["LD_LIBRARY_PATH"] = ":".join(_library_folders(self.tree))
        return kept

    def shell_line(self, tool: str) -> str:
        """Return what a person types to run `tool`: its path, with the library path before it where it needs one."""
        line = shlex.join(self.command(tool))
        if self.tree is not None and not _REQUESTS[self.name].own_c_library:
            line = f"LD_LIBRARY_PATH={shlex.quote(':'.join(_library_folders(self.tree)))} {line}"
        return line


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs that `provide` found; those that were not asked for are None."""

    mysql: Program | None = None
    mariadb: Program | None = None
    postgres: Program | None = None

    def get(self, name: str) -> Program:
        """Return the programs of one server.

        Raises:
            ProgramsMissing: They were not asked for when this was made.
        """
        program: Program | None = getattr(self, name)
        if program is None:
            raise ProgramsMissing(f"{name} was not provided; call provide(['{name}'], ...) first")
        return program


def cache_folder() -> Path:
    """Return the folder for fetched programs: $TAILRACE_CACHE, else `.tailrace/programs` in the checkout."""
    return Path(os.environ.get("TAILRACE_CACHE") or _CHECKOUT / ".tailrace" / "programs").absolute()


def parse_version(text: str) -> tuple[int, int, str]:
    """Parse what `mysqld --version`, `mariadbd --version` or `postgres --version` prints: major, minor, the whole number.

    Raises:
        ValueError: There is no version number in the text.
    """
    match = re.search(r"(?:Ver|\(PostgreSQL\))\s+((\d+)(?:\.(\d+))?[.\w]*)", text)
    if match is None:
        raise ValueError(f"no version in {text.strip()!r}")
    return int(match[2]), int(match[3] or 0), match[1]


def is_good(name: str, text: str) -> bool:
    """Say whether the server whose `--version` prints `text` is the one meant by `name`, and new enough."""
    try:
        major, minor, _ = parse_version(text)
    except ValueError:
        return False
    if name == "mysql":
        return major == 9 and "MariaDB" not in text
    if name == "mariadb":
        return (major, minor) >= (10, 11) and "MariaDB" in text
    return major >= 15


def _inspect(program: Program) -> Program | None:
    """Return `program` with its version filled in, or None if it does not run or is not good enough."""
    tool = {"mysql": "mysqld", "mariadb": "mariadbd", "postgres": "postgres"}[program.name]
    if not (program.folder / tool).exists():
        return None
    try:
        done = subprocess.run(
            [*program.command(tool), "--version"],
            env=program.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return None
    if done.returncode != 0 or not is_good(program.name, done.stdout):
        return None
    return dataclasses.replace(program, version=parse_version(done.stdout)[2])


def _has_cube(folder: Path) -> bool:
    """Say whether the Postgres whose programs lie in `folder` has the extension cube and everything to make a database."""
    if not (folder / "initdb").exists():
        return False
    version = folder.parent.name
    shares = [f"../../../../share/postgresql/{version}", "../share/postgresql", "../share/pgsql", "../share"]
    return any((folder / share / "extension" / "cube.control").exists() for share in shares)


def find_program(name: str) -> Program | None:
    """Look for a good enough server on this machine; None if there is none."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_FOLDERS])
    candidates: list[Path] = []
    if name == "postgres":
        versions = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if folder.parent.name.isdigit()]
        candidates += sorted(versions, key=lambda folder: int(folder.parent.name), reverse=True)
    found = shutil.which({"mysql": "mysqld", "mariadb": "mariadbd", "postgres": "postgres"}[name], path=path)
    if found is not None:
        candidates.append(Path(found).resolve().parent)
    if name == "mysql" and _APPARMOR_PROFILE.exists():
        candidates = []  # confined to /var/lib/mysql: it could not open a data folder of ours
    if name == "postgres":
        candidates = [folder for folder in candidates if _has_cube(folder)]
    for folder in candidates:
        program = _inspect(Program(name, "", folder))
        if program is not None:
            return program
    return None


def _open_tree(name: str, tree: Path) -> Program | None:
    """Return the programs of an unpacked tree, or None if it is not there or does not run."""
    if not tree.is_dir():
        return None
    tree = tree.resolve()
    folder = tree / ("usr/lib/postgresql/15/bin" if name == "postgres" else "usr/sbin")
    return _inspect(Program(name, "", folder, tree))


def _library_folders(tree: Path) -> list[str]:
    folders_ = [path.parent for pattern in ("lib/*/*.so*", "usr/lib/*/*.so*") for path in tree.glob(pattern)]
    private = list(tree.glob("usr/lib/*/mysql"))
    return [str(folder) for folder in dict.fromkeys([*folders_, *private]) if "-linux-" in str(folder)]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch_program(name: str, cache: Path, say: Say) -> Program:
    """Return the programs unpacked below `cache`, fetching them first where they are not there yet.

    Raises:
        packages.FetchFailed: They cannot be fetched, or do not run once they are there.
    """
    cache.mkdir(parents=True, exist_ok=True)
    # Postgres runs as an account of its own when the caller is root, and that account must reach its programs.
    above = folders.place_folder(cache / "shared", folders.find_account()) if name == "postgres" else cache
    tree = above / name
    with _locked(cache / f"{name}.lock"):
        program = _open_tree(name, tree)
        if program is not None:
            return program
        shutil.rmtree(tree, ignore_errors=True)
        packages.fetch_tree(_REQUESTS[name], tree, say)
        program = _open_tree(name, tree)
    if program is None:
        raise packages.FetchFailed(f"the {name} in {tree} does not run here, or is not {_WANTED[name]}")
    return program


def provide(names: Iterable[str], cache: Path, say: Say) -> Programs:
    """Find the programs of the named servers ("mysql", "mariadb", "postgres") on this machine, or fetch them below `cache`.

    `say` gets one plain line per step that takes time. Two processes may do this at once.

    Raises:
        ProgramsMissing: Some are neither here nor to be fetched: which ones, why, and what to do instead.
        ValueError: A name that is none of the three.
    """
    names = list(dict.fromkeys(names))
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise ValueError(f"no such server: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    account = folders.find_account() if "postgres" in names else None
    if account is not None and not folders.can_enter(cache, account):
        say(f"'{account.pw_name}' cannot enter {cache}: folders of Postgres lie in {folders.shelter()}, with links to them")
    found: dict[str, Program] = {}
    failures: dict[str, str] = {}
    for name in names:
        program = find_program(name)
        if program is None:
            try:
                program = fetch_program(name, cache, say)
            except (packages.FetchFailed, folders.UnsafeFolder, OSError) as error:
                failures[name] = str(error)
                continue
        found[name] = program
    if failures:
        wanted = "; ".join(_WANTED[name] for name in failures)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise ProgramsMissing(
            f"cannot fetch server programs ({reasons}). Put these on PATH and try again: {wanted}. "
            "Or run the whole in containers: docker compose up."
        )
    return Programs(**found)
