"""Where servers' folders are placed and how they are cleared away."""

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from demo import folders


@pytest.fixture
def account() -> pwd.struct_passwd:
    """An account that owns nothing here."""
    return pwd.getpwnam("nobody")


@pytest.fixture
def sheltered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the folder below /var/tmp."""
    place = tmp_path / "shelter"
    monkeypatch.setattr(folders, "shelter", lambda: place)
    return place


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder that only its owner can enter."""
    path = tmp_path / "closed"
    path.mkdir(mode=0o700)
    return path


def test_reachable_folder_stays(tmp_path: Path, sheltered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an account to think of, a folder is made where it was asked for."""
    folder = tmp_path / "a" / "b"
    assert folders.place_folder(folder, None) == folder.resolve()
    assert not sheltered.exists()


def test_closed_folder_moves_and_is_linked(closed: Path, sheltered: Path, account: pwd.struct_passwd) -> None:
    """The same folder is found again the next time, and removing it removes what the link leads to."""
    folder = closed / "data"
    assert not folders.can_enter(folder, account)
    real = folders.place_folder(folder, account)
    assert real.parent == sheltered
    assert folder.resolve() == real
    (real / "file").write_text("kept")
    assert folders.place_folder(folder, account) == real
    assert (folder / "file").read_text() == "kept"
    folders.remove_folder(closed)
    assert not real.exists()
    assert not closed.exists()
    assert not sheltered.exists()


def test_lost_place_is_made_again(closed: Path, sheltered: Path, account: pwd.struct_passwd) -> None:
    """A link whose target somebody cleared away is not an error."""
    folder = closed / "data"
    folders.remove_folder(folders.place_folder(folder, account))
    (sheltered).mkdir(exist_ok=True)
    real = folders.place_folder(folder, account)
    assert real.is_dir()


def test_content_in_the_way_is_kept(closed: Path, sheltered: Path, account: pwd.struct_passwd) -> None:
    """A folder with content is neither moved nor replaced."""
    folder = closed / "data"
    folder.mkdir()
    (folder / "file").write_text("mine")
    with pytest.raises(folders.UnsafeFolder, match="not empty"):
        folders.place_folder(folder, account)
    assert (folder / "file").read_text() == "mine"


def test_planted_link_is_refused(closed: Path, tmp_path: Path, sheltered: Path, account: pwd.struct_passwd) -> None:
    """A link put where the shelter goes, as another user of the machine could, is not followed."""
    (tmp_path / "elsewhere").mkdir()
    sheltered.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(folders.UnsafeFolder, match="another user"):
        folders.place_folder(closed / "data", account)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_links_out_are_not_followed_by_removal(tmp_path: Path, sheltered: Path) -> None:
    """Removing a folder leaves alone what links in it lead to, unless that is in the shelter."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "precious")
    folders.remove_folder(tmp_path / "folder")
    assert (tmp_path / "precious").is_dir()
    assert not (tmp_path / "folder").exists()


def test_long_socket_paths_get_a_short_one(tmp_path: Path) -> None:
    """A path beyond the system's limit is replaced by one that fits."""
    assert folders.place_socket(Path("/a/b"), "s") == Path("/a/b/s")
    short = folders.place_socket(Path("/" + "x" * 100), "s")
    assert len(os.fsencode(short)) < 96
    short.parent.rmdir()


def test_clean_stops_only_servers_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process whose command line does not name the folder is left alone, though a pid file there names it."""
    folder = tmp_path / "state"
    (folder / "server").mkdir(parents=True)
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    ours = subprocess.Popen([*sleep, str(folder / "server" / "data")], stdout=subprocess.PIPE)
    other = subprocess.Popen(sleep, stdout=subprocess.PIPE)
    try:
        for process in (ours, other):
            # until then the command line may not be there to be read
            assert process.stdout is not None
            process.stdout.readline()
        (folder / "server" / "server.pid").write_text(f"{ours.pid}\n")
        (folder / "other").mkdir()
        (folder / "other" / "server.pid").write_text(f"{other.pid}\n")
        assert folders.find_servers(folder) == {ours.pid: signal.SIGTERM}
        (folder / "server" / "server.pid").unlink()
        (folder / "server" / "server.pid").write_text(f"{ours.pid}\n")
        assert folders.main(["clean", str(folder)]) == 0
        assert ours.wait(10) == -signal.SIGTERM
        assert other.poll() is None
        assert "stopped 1 server" in capsys.readouterr().out
        assert not folder.exists()
    finally:
        for process in (ours, other):
            process.kill()
            process.communicate()


def test_clean_of_nothing_is_fine(tmp_path: Path) -> None:
    """A folder that is not there is clean; wrong arguments are a usage error."""
    assert folders.main(["clean", str(tmp_path / "none")]) == 0
    assert folders.main(["wipe"]) == 2
