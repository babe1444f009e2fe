"""The demo as a person runs it: on real servers, with the real commands."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.folders import remove_folder, stop_servers
from demo.servers import Programs

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def folder(tmp_path: Path, programs: Programs) -> Iterator[Path]:
    """A folder for one demo; the programs are fetched before, which is not the demo's own time."""
    yield tmp_path / "demo"
    stop_servers(tmp_path / "demo")
    remove_folder(tmp_path / "demo")


def start_demo(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start a small demo."""
    return subprocess.Popen(
        [sys.executable, "-m", "demo", *arguments, "--folder", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_demo(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a small demo to its end: exit code, standard output, standard error."""
    process = start_demo(folder, *arguments)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def find_processes(folder: Path) -> list[str]:
    """Command lines of processes that have to do with the folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text:
            lines.append(text)
    return lines


SMALL = ("--engines", "12", "--regimes", "1", "--seconds", "4", "--rate", "50")


@pytest.mark.parametrize("source", ["mysql", "mariadb"])
def test_demo_shows_the_whole_way_and_goes_on_where_it_was(folder: Path, source: str) -> None:
    """From an empty folder to anomalies and freshness with exit 0; a second run continues; another fleet is refused."""
    code, out, err = run_demo(folder, *SMALL, "--source", source)
    assert code == 0, out + err
    for heading in ("ROWS", "WORST ENGINES", "SCORES", "DERIVED VIEWS", "FRESHNESS", "CONNECT"):
        assert f"\n{heading}" in out
    at_source, mirrored, scored, anomalies = (
        int(line.split(word)[1].split()[0].replace(",", ""))
        for word in ("at the source", "in the warehouse", "scored  ", "anomalies  ")
        for line in [next(line for line in out.splitlines() if line.startswith(f"  {word}"))]
    )
    assert at_source == mirrored > scored > anomalies > 0
    assert scored == mirrored - 12 * 50
    assert "nothing was measured" not in out.split("commit to mirror")[1].splitlines()[0]
    assert "Failed" not in out
    assert find_processes(folder) == []
    for name in ("source.password", "warehouse.password", "pgpass", "my.cnf"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    secrets = [(folder / name).read_text() for name in ("source.password", "warehouse.password")]
    shown = out + err + "".join(path.read_text() for path in folder.glob("*.log"))
    assert not any(secret in shown for secret in secrets)

    code, out, err = run_demo(folder, *SMALL)
    assert code == 0, out + err
    assert f"going on with the {at_source:,} rows" in out

    code, out, err = run_demo(folder, *SMALL, "--seed", "5")
    assert code == 2, out + err
    assert "make clean" in err
    assert find_processes(folder) == []


@pytest.mark.parametrize("moment", ["starting the servers", "replicator run", "new cycles"])
def test_interrupt_stops_every_process_and_leaves_the_data(folder: Path, moment: str) -> None:
    """Ctrl-C at any step ends with everything stopped, and the next run succeeds on what is there."""
    process = start_demo(folder, *SMALL, "--source", "mariadb")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(moment):
            break
    else:
        pytest.fail(f"the demo ended before {moment!r}: {process.stderr.read() if process.stderr else ''}")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "the data stays" in out
    # one that had only just been started ends by the signal that it gets at the demo's own end
    deadline = time.monotonic() + 60
    while find_processes(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert find_processes(folder) == []
    if moment == "new cycles":
        code, out, err = run_demo(folder, *SMALL)
        assert code == 0, out + err


def test_killed_demo_takes_its_processes_with_it(folder: Path) -> None:
    """Even SIGKILL of the demo leaves no server and no service behind."""
    process = start_demo(folder, *SMALL, "--source", "mariadb")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("scorer run"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while find_processes(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert find_processes(folder) == []


def test_ragged_data_file_is_refused_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    """A file with a wrong line exits with 2 and its number, and no folder is made."""
    (tmp_path / "ragged.txt").write_text("1 1 " + "1.0 " * 24 + "\n1 2 1.0\n")
    code, _, err = run_demo(folder, "--data", str(tmp_path / "ragged.txt"))
    assert code == 2
    assert "line 2: 3 columns, expected 26" in err
    assert not folder.exists()


def test_serve_without_data_says_what_to_run(folder: Path) -> None:
    """There is nothing to serve before the first demo."""
    code, _, err = run_demo(folder, "serve")
    assert code == 1
    assert "make demo" in err
