"""The built wheel: what it carries, and that it gives the three commands in a clean environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest

from tests.fixtures.servers import Database

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("replicator", "warehouse", "scorer")
VERBS = {
    "warehouse": {"migrate", "status", "refresh", "settings"},
    "replicator": {"check", "run", "snapshot"},
    "scorer": {"run", "train", "explain"},
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    out = tmp_path_factory.mktemp("wheel")
    run_quietly([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(CHECKOUT)], out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel in it, beside which only the dependencies can be imported."""
    root = tmp_path_factory.mktemp("environment")
    venv = root / "venv"
    run_quietly([sys.executable, "-m", "venv", "--without-pip", str(venv)], root)
    python = str(venv / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", "--quiet", str(wheel)]
    run_quietly(pip, root)
    # The dependencies are those that the tests themselves run with; paths of a .pth file come after the wheel's own.
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv


def run_quietly(command: list[str], folder: Path, variables: Mapping[str, str] | None = None) -> str:
    """Run a command in a folder without the checkout on its path; its standard output, or a failure with all it wrote."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TAILRACE__"))}
    done = subprocess.run(command, cwd=folder, env=clean | dict(variables or {}), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def read_names(wheel: Path) -> set[str]:
    """The names of all files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_carries_every_source_file(wheel: Path) -> None:
    """Code, queries and views of the three packages are in the wheel under the names that they have in the checkout."""
    expected = {
        path.relative_to(CHECKOUT).as_posix()
        for package in PACKAGES
        for path in (CHECKOUT / package).rglob("*")
        if path.suffix in (".py", ".sql")
    }
    assert any(name.startswith("warehouse/views/") for name in expected), "the checkout has no views"
    assert expected <= read_names(wheel)


def test_carries_every_migration(wheel: Path) -> None:
    """The wheel holds the checkout's migrations byte for byte: their checksums are in every ledger."""
    files = {path.name: path.read_bytes() for path in (CHECKOUT / "migrations").glob("*.sql")}
    with zipfile.ZipFile(wheel) as archive:
        inside = {
            PurePosixPath(name).name: archive.read(name)
            for name in archive.namelist()
            if name.startswith("warehouse/migrations/")
        }
    assert files
    assert inside == files


def test_carries_nothing_else(wheel: Path) -> None:
    """No tests, no demo, no compiled file and no secret is shipped; the licence is."""
    names = read_names(wheel)
    tops = {name.split("/")[0] for name in names}
    info = {top for top in tops if top.endswith(".dist-info")}
    assert tops - info == set(PACKAGES)
    assert {PurePosixPath(name).suffix for name in names if name.split("/")[0] in PACKAGES} <= {".py", ".sql", ".typed"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


@pytest.mark.parametrize("command", sorted(VERBS))
def test_gives_the_command(environment: Path, command: str, tmp_path: Path) -> None:
    """The console script runs outside of the checkout and knows its verbs."""
    text = run_quietly([str(environment / "bin" / command), "--help"], tmp_path)
    words = set(text.replace(",", " ").replace("{", " ").replace("}", " ").split())
    assert words >= VERBS[command]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_from_the_wheel(environment: Path, package: str, tmp_path: Path) -> None:
    """The packages come from the new environment, not from the checkout."""
    code = f"import {package}; print({package}.__file__)"
    where = run_quietly([str(environment / "bin" / "python"), "-c", code], tmp_path)
    assert Path(where.strip()).is_relative_to(environment)


def test_migrates_a_warehouse(environment: Path, database: Database, tmp_path: Path) -> None:
    """The installed command applies every migration that it carries, from a folder with nothing in it, once."""
    warehouse = {
        "HOST": database.host,
        "PORT": str(database.port),
        "USER": database.user,
        "PASSWORD": database.password,
        "DBNAME": database.name,
    }
    variables = {f"TAILRACE__WAREHOUSE__{key}": value for key, value in warehouse.items()}
    command = [str(environment / "bin" / "warehouse"), "migrate", "--json"]
    lines = run_quietly(command, tmp_path, variables).splitlines()
    applied = [json.loads(line)["migration"] for line in lines]
    assert applied == sorted(path.stem for path in (CHECKOUT / "migrations").glob("*.sql"))
    assert run_quietly(command, tmp_path, variables) == ""
