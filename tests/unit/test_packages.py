"""Reading the machine's apt sources and choosing what to fetch from them."""

import stat
import subprocess
import threading
from pathlib import Path

import pytest

from demo import packages, programs
from demo.packages import FetchFailed, Request, Source

DEB822 = """\
# written by the installer
Types: deb deb-src
URIs: http://mirror.invalid/debian http://other.invalid/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.invalid/debian
Suites: sid
Components: main

Types: deb
URIs: http://inline.invalid/debian
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
"""


def test_deb822_sources() -> None:
    """Each URI of an enabled binary stanza is a source; a key that stands in the stanza is left to apt."""
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert packages.parse_deb822_sources(DEB822) == [
        Source("http://mirror.invalid/debian", ("bookworm", "bookworm-updates"), ("main", "contrib"), key),
        Source("http://other.invalid/debian/", ("bookworm", "bookworm-updates"), ("main", "contrib"), key),
        Source("http://mirror.invalid/debian-security", ("bookworm-security",), ("main",)),
        Source("http://inline.invalid/debian", ("trixie",), ("main",)),
    ]


def test_one_line_sources() -> None:
    """Options, comments, source packages and a missing option block."""
    text = """
        # deb http://commented.invalid/debian bookworm main
        deb http://mirror.invalid/debian bookworm main contrib # trailing
        deb-src http://mirror.invalid/debian bookworm main
        deb [arch=amd64 signed-by=/etc/key.gpg trusted=yes] http://vendor.invalid/apt stable main
    """
    assert packages.parse_sources_list(text) == [
        Source("http://mirror.invalid/debian", ("bookworm",), ("main", "contrib")),
        Source("http://vendor.invalid/apt", ("stable",), ("main",), "/etc/key.gpg", True),
    ]


def test_archives_are_debians_own() -> None:
    """Security archives, vendors' suites and other components are no place to find Debian's packages."""
    sources = [
        Source("http://mirror.invalid/debian-security", ("bookworm-security",), ("main",)),
        Source("http://vendor.invalid/apt", ("vendor-bookworm",), ("main",)),
        Source("http://docker.invalid/debian", ("bookworm",), ("stable",)),
        Source("cdrom:[Debian]/", ("bookworm",), ("main",)),
        Source("http://mirror.invalid/debian", ("bookworm-updates",), ("main",), "/a.gpg"),
        Source("http://mirror.invalid/debian/", ("bookworm",), ("main",)),
    ]
    assert packages.choose_archives(sources) == [sources[4]]


def test_sources_are_read_in_order_and_left_alone(tmp_path: Path) -> None:
    """sources.list first, then the folder by name; files with other endings are not apt's."""
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.invalid/debian bookworm main\n")
    (tmp_path / "sources.list.d" / "b.sources").write_text(
        "Types: deb\nURIs: http://b.invalid/debian\nSuites: sid\nComponents: main\n"
    )
    (tmp_path / "sources.list.d" / "c.list").write_text("deb http://c.invalid/debian bookworm main\n")
    (tmp_path / "sources.list.d" / "d.list.disabled").write_text("deb http://d.invalid/debian bookworm main\n")
    found = [source.uri for source in packages.read_sources(tmp_path)]
    assert found == ["http://a.invalid/debian", "http://b.invalid/debian", "http://c.invalid/debian"]
    assert packages.read_sources(tmp_path / "none") == []


def test_line_keeps_key_and_trust() -> None:
    """The line for another suite of the archive keeps the archive's own key."""
    assert Source("http://a.invalid", ("bookworm",), ("main",)).line("sid") == "deb http://a.invalid sid main\n"
    line = Source("http://a.invalid", ("bookworm",), ("main",), "/k.gpg", True).line("sid")
    assert line == "deb [signed-by=/k.gpg trusted=yes] http://a.invalid sid main\n"


def test_closure_and_choice() -> None:
    """Libraries and the named packages are unpacked; tools of maintainer scripts are not, the C library only on request."""
    answer = """\
'http://a.invalid/libc6_2.36_amd64.deb' libc6_2.36_amd64.deb 2759320 SHA256:00
'http://a.invalid/perl_5.deb' perl_5.36_amd64.deb 238900 SHA256:00
'http://a.invalid/libperl5.36.deb' libperl5.36_5.36_amd64.deb 4195924 SHA256:00
'http://a.invalid/zlib1g.deb' zlib1g_1%3a1.2.13_amd64.deb 86684 SHA256:00
'http://a.invalid/server.deb' server-15_15.18_amd64.deb 16909124 SHA256:00
"""
    closure = packages.parse_closure(answer)
    assert closure["zlib1g"] == 86684
    assert [name for name in closure if Request(("server-15",), "x").wants(name)] == ["zlib1g", "server-15"]
    assert [name for name in closure if Request(("server-15",), "x", own_c_library=True).wants(name)] == [
        "libc6",
        "zlib1g",
        "server-15",
    ]


def test_no_apt_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is found and nothing can be fetched, the message names the programs and the other way."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "_SYSTEM_FOLDERS", ())
    with pytest.raises(programs.ProgramsMissing) as caught:
        programs.provide(["mysql", "mariadb"], tmp_path / "cache", lambda line: None)
    message = str(caught.value)
    for part in ("apt-get", "mysqld (MySQL 9)", "mariadbd", "on PATH", "docker compose up"):
        assert part in message
    assert "\n" not in message


def test_half_made_tree_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When unpacking fails, neither the tree nor its parts are left."""
    monkeypatch.setattr(packages, "_update", lambda state, suite, archives: (state / "debs").mkdir(parents=True))
    answers = {"install": "'x' server_1_all.deb 10 SHA256:00\n", "download": ""}

    def run_apt(state: Path, verb: str, *rest: str) -> str:
        if verb == "download":
            (state / "debs" / "server_1_all.deb").write_bytes(b"no package")
        return answers[verb]

    monkeypatch.setattr(packages, "_run_apt", run_apt)
    monkeypatch.setattr(packages.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(packages, "_unpack", _fail_to_unpack)
    with pytest.raises(FetchFailed, match="server_1_all"):
        packages.fetch_tree(Request(("server",), "x"), tmp_path / "tree", lambda line: None)
    assert list(tmp_path.iterdir()) == []


def _fail_to_unpack(path: Path, tree: Path) -> None:
    (tree / "half").write_text("")
    raise FetchFailed(f"dpkg-deb -x {path.name}: not a package")


def test_unknown_suite_of_archives_is_said(tmp_path: Path) -> None:
    """A machine whose apt knows no Debian archive gets that as the reason."""
    with pytest.raises(FetchFailed, match="no Debian archive"):
        packages._update(tmp_path / "state", "sid", [])


def test_two_processes_take_turns(tmp_path: Path) -> None:
    """While one holds the lock of a tree, another waits for it."""
    path = tmp_path / "mysql.lock"
    entered = threading.Event()

    def enter() -> None:
        with programs._locked(path):
            entered.set()

    with programs._locked(path):
        other = threading.Thread(target=enter)
        other.start()
        assert not entered.wait(0.2)
    other.join(10)
    assert entered.is_set()


@pytest.mark.parametrize(
    ("name", "text", "good"),
    [
        ("mysql", "/usr/sbin/mysqld  Ver 9.7.4-2 for Linux on x86_64 ((Debian))", True),
        ("mysql", "mysqld  Ver 8.4.3 for Linux on x86_64 (MySQL Community Server - GPL)", False),
        ("mysql", "mysqld  Ver 10.11.18-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)", False),
        ("mariadb", "mariadbd  Ver 10.11.18-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)", True),
        ("mariadb", "mariadbd  Ver 10.5.29-MariaDB for debian-linux-gnu on x86_64", False),
        ("mariadb", "mariadbd  Ver 11.8.2-MariaDB for debian-linux-gnu on x86_64", True),
        ("postgres", "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", True),
        ("postgres", "postgres (PostgreSQL) 14.2", False),
        ("postgres", "postgres (PostgreSQL) 18beta1", True),
        ("postgres", "error while loading shared libraries", False),
    ],
)
def test_versions(name: str, text: str, good: bool) -> None:
    """Which server programs of the machine are taken and which are passed over."""
    assert programs.is_good(name, text) is good


def test_found_program_must_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program on PATH is taken for what it prints; one that fails is passed over."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(programs, "_SYSTEM_FOLDERS", ())
    monkeypatch.setattr(programs, "_APPARMOR_PROFILE", tmp_path / "none")
    path = tmp_path / "mysqld"
    path.write_text("#!/bin/sh\necho 'mysqld  Ver 9.7.4 for Linux on x86_64'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    found = programs.find_program("mysql")
    assert found is not None
    assert (found.version, found.tree, found.command("mysqld")) == ("9.7.4", None, [str(path)])
    path.write_text("#!/bin/sh\necho 'mysqld  Ver 9.7.4 for Linux on x86_64'; exit 127\n")
    assert programs.find_program("mysql") is None


def test_apparmor_profile_rules_the_system_mysqld_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a profile confines the system's mysqld to its own data folder, it is not taken."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    path = tmp_path / "mysqld"
    path.write_text("#!/bin/sh\necho 'mysqld  Ver 9.7.4 for Linux on x86_64'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    profile = tmp_path / "usr.sbin.mysqld"
    profile.write_text("profile")
    monkeypatch.setattr(programs, "_APPARMOR_PROFILE", profile)
    assert programs.find_program("mysql") is None


def test_nothing_of_the_settings_reaches_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that would steer a server or hold a secret are left out of its environment."""
    monkeypatch.setenv("PGDATA", "/somewhere")
    monkeypatch.setenv("TAILRACE__SOURCE__PASSWORD", "secret")
    monkeypatch.setenv("MYSQL_HOME", "/somewhere")
    environment = programs.Program("postgres", "15", Path("/x")).environment()
    assert not {"PGDATA", "MYSQL_HOME", "TAILRACE__SOURCE__PASSWORD"} & set(environment)
    assert "PATH" in environment


def test_real_apt_configuration_is_read_by_apt(tmp_path: Path) -> None:
    """The written configuration is valid for apt where there is one, and keeps apt out of the system's folders."""
    source = Source("http://a.invalid/debian", ("bookworm",), ("main",))
    packages._write_state(tmp_path / "state", source, "sid")
    text = (tmp_path / "state" / "apt.conf").read_text()
    assert "/var/" not in text
    assert "#clear APT::Update::Post-Invoke;" in text
    if packages.shutil.which("apt-config") is not None:
        done = subprocess.run(
            ["apt-config", "-c", str(tmp_path / "state" / "apt.conf"), "shell", "LISTS", "Dir::State::Lists/d"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == f"LISTS='{tmp_path}/state/lists/'"
