"""Unpacks server programs from Debian packages into a folder.

Owns: reading the machine's own apt sources, fetching packages with an apt state of its own, unpacking them into a tree.
Never: installs a package, changes a file of the system, or asks for another user's rights.
"""

import dataclasses
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

Say = Callable[[str], None]

APT_FOLDER = Path("/etc/apt")
_DEBIAN_SUITES = {"bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"}
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_LIBRARY = re.compile(r"(lib|zlib|openssl-provider).*")
# Pulled in by maintainer scripts, which are never run here, or for just-in-time compilation, which stays off.
_UNUSED = re.compile(r"lib(perl|llvm|z3-|audit|pam-modules|semanage|sepol).*|lib.*-perl|libc-bin|libc-l10n")
# Part of every Debian since bookworm. A tree without them runs with the machine's own loader and C library.
_C_LIBRARY = {"libc6", "libgcc-s1", "libstdc++6", "libcrypt1", "libc-gconv-modules-extra"}


class FetchFailed(Exception):
    """Packages could not be fetched or unpacked; the message says at which step and what apt answered."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One package archive of the machine: its address, the suites and components taken from it, its signing key."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""
    trusted: bool = False

    def line(self, suite: str) -> str:
        """Return the one-line form that apt reads, for component main of another suite of the same archive."""
        options = [f"signed-by={self.signed_by}"] if self.signed_by else []
        options += ["trusted=yes"] if self.trusted else []
        return f"deb {'[' + ' '.join(options) + '] ' if options else ''}{self.uri} {suite} main\n"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to unpack: `packages` of `suite` with the libraries they need, with the suite's own C library or without."""

    packages: tuple[str, ...]
    suite: str
    own_c_library: bool = False

    def wants(self, package: str) -> bool:
        """Say whether a package of the dependency closure is needed to run the programs."""
        if package in self.packages:
            return True
        if package in _C_LIBRARY:
            return self.own_c_library
        return _LIBRARY.fullmatch(package) is not None and _UNUSED.fullmatch(package) is None


def parse_sources_list(text: str) -> list[Source]:
    """Parse the one-line format (sources.list, *.list): `deb [options] uri suite component...`; see sources.list(5)."""
    sources = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+[^#\s]+)*)", line)
        if match is None:
            continue
        options = dict(option.split("=", 1) for option in (match[1] or "").split() if "=" in option)
        signed_by = options.get("signed-by", "")
        sources.append(Source(match[2], (match[3],), tuple(match[4].split()), signed_by, options.get("trusted") == "yes"))
    return sources


def parse_deb822_sources(text: str) -> list[Source]:
    """Parse the stanza format (*.sources); see sources.list(5).

    A key that stands in the stanza itself is left out: apt then falls back on the keys that it trusts anyway.
    """
    sources = []
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and name:
                fields[name] += "\n" + line.strip()
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        signed_by = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split():
            sources.append(
                Source(
                    uri,
                    tuple(fields.get("suites", "").split()),
                    tuple(fields.get("components", "").split()),
                    signed_by if signed_by.startswith("/") and "\n" not in signed_by else "",
                    fields.get("trusted", "").lower() in ("yes", "true"),
                )
            )
    return sources


def read_sources(folder: Path = APT_FOLDER) -> list[Source]:
    """Read every source that apt on this machine would use, in apt's order."""
    paths = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    sources: list[Source] = []
    for path in paths:
        if not path.is_file():
            continue
        if path.suffix == ".list":
            sources += parse_sources_list(path.read_text())
        elif path.suffix == ".sources":
            sources += parse_deb822_sources(path.read_text())
    return sources


def choose_archives(sources: list[Source]) -> list[Source]:
    """Choose the sources that are archives of Debian itself: component main of a Debian suite, security archives left out."""
    archives: dict[str, Source] = {}
    for source in sources:
        suites = {suite.rstrip("/").split("-")[0] for suite in source.suites if not suite.endswith("-security")}
        if suites & _DEBIAN_SUITES and "main" in source.components and not re.search(r"security|^cdrom:", source.uri):
            archives.setdefault(source.uri.rstrip("/"), source)
    return list(archives.values())


def parse_closure(text: str) -> dict[str, int]:
    """Parse `apt-get install --print-uris`: package name to size in bytes."""
    closure = {}
    for line in text.splitlines():
        match = re.match(r"'[^']*' ([^_\s]+)_\S+\.deb (\d+)", line)
        if match is not None:
            closure[match[1]] = int(match[2])
    return closure


def _write_state(state: Path, source: Source, suite: str) -> None:
    """Write an apt configuration whose every folder lies below `state`."""
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").write_text("")
    (state / "sources.list").write_text(source.line(suite))
    settings = {
        "Dir::State": state,
        "Dir::State::Lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Acquire::Languages": "none",
        "Acquire::PDiffs": "false",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Acquire::Check-Valid-Until": "false",  # a mirror that lags behind is as good; signatures are still checked
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
        "APT::Install-Recommends": "false",
        "APT::Update::Error-Mode": "any",
        "APT::Sandbox::User": "root",  # apt's download user could not enter a folder below /root
        "Debug::NoLocking": "true",
    }
    # Hooks of the machine's configuration work on the system's own apt folders.
    hooks = ["APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "DPkg::Post-Invoke"]
    lines = [f"#clear {hook};" for hook in hooks] + [f'{key} "{value}";' for key, value in settings.items()]
    (state / "apt.conf").write_text("\n".join(lines) + "\n")


def _run_apt(state: Path, *arguments: str) -> str:
    command = ["apt-get", "-c", str(state / "apt.conf"), "-q", *arguments]
    done = subprocess.run(command, cwd=state / "debs", capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        answer = " / ".join(done.stderr.strip().splitlines()[-3:]) or f"exit status {done.returncode}"
        raise FetchFailed(f"apt-get {arguments[0]}: {answer}")
    return done.stdout


def _update(state: Path, suite: str, archives: list[Source]) -> Source:
    """Fetch the suite's package list from the first archive that has it."""
    failure = FetchFailed("no Debian archive in this machine's apt sources")
    for archive in archives:
        keyring = archive.signed_by
        # The newest keyring of the machine knows the suites that are newer than the machine.
        candidates = (
            [archive]
            if not keyring or keyring == str(_KEYRING) or not _KEYRING.exists()
            else [archive, dataclasses.replace(archive, signed_by=str(_KEYRING))]
        )
        for candidate in candidates:
            shutil.rmtree(state, ignore_errors=True)
            _write_state(state, candidate, suite)
            try:
                _run_apt(state, "update")
            except FetchFailed as error:
                failure = error
            else:
                return candidate
    raise failure


def _show_progress(folder: Path, total_bytes: int) -> None:
    there = sum(path.stat().st_size for path in folder.rglob("*.deb") if path.is_file())
    print(f"\r  {there / 1e6:.1f} of {total_bytes / 1e6:.1f} MB", end="", file=sys.stderr, flush=True)


def _download(state: Path, packages: dict[str, int]) -> None:
    """Fetch the packages into `state`/debs, with progress on a terminal."""
    on_terminal = sys.stderr.isatty()
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(_run_apt, state, "download", *packages)
        while not fetching.done():
            if on_terminal:
                _show_progress(state, sum(packages.values()))
            time.sleep(0.2)
        if on_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        fetching.result()


def _unpack(path: Path, tree: Path) -> None:
    done = subprocess.run(["dpkg-deb", "-x", str(path), str(tree)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FetchFailed(f"dpkg-deb -x {path.name}: {done.stderr.strip()}")


def fetch_tree(request: Request, tree: Path, say: Say) -> None:
    """Fetch the packages of `request` and unpack them into the new folder `tree`.

    The tree appears under its name only when it is whole. The caller holds a lock on it.

    Raises:
        FetchFailed: apt is missing, no archive answers, or a package cannot be fetched or unpacked.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise FetchFailed(f"{' and '.join(missing)} not found: this is no Debian system")
    state, part = tree.with_name(f"{tree.name}.apt"), tree.with_name(f"{tree.name}.part")
    try:
        _update(state, request.suite, choose_archives(read_sources()))
        closure = parse_closure(_run_apt(state, "install", "-qq", "--print-uris", *request.packages))
        wanted = {name: size for name, size in closure.items() if request.wants(name)}
        if not set(request.packages) <= set(wanted):
            raise FetchFailed(f"{', '.join(request.packages)}: not in {request.suite}")
        size = f"{len(wanted)} packages, {sum(wanted.values()) / 1e6:.0f} MB"
        say(f"fetching {' and '.join(request.packages)} from {request.suite} ({size}) into {tree}")
        _download(state, wanted)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o755)
        part.chmod(0o755)  # the servers' account must get in whatever the caller's umask is
        debs = sorted((state / "debs").glob("*.deb"))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(_unpack, debs, [part] * len(debs)))
        part.rename(tree)
    except OSError as error:
        raise FetchFailed(f"{error.filename or tree}: {error.strerror}") from error
    finally:
        shutil.rmtree(state, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)
