"""The files of the container stack agree with each other and with the code."""

import re
import runpy
import stat
import subprocess
from pathlib import Path

from demo.fleet import MEASUREMENTS
from warehouse.settings_file import load_settings

CHECKOUT = Path(__file__).resolve().parents[2]


def make_secrets(file: Path) -> str:
    """Run tools/make-secrets for a file; what it says."""
    done = subprocess.run([CHECKOUT / "tools" / "make-secrets", str(file)], capture_output=True, text=True, check=True)
    return done.stdout


def test_pipeline_loads_and_its_model_fits_the_tables() -> None:
    """deploy/pipeline.toml has no unknown key, and its model uses every measurement of the fleet."""
    settings = load_settings(CHECKOUT / "deploy" / "pipeline.toml", environ={})
    (model,) = settings.model
    assert model.features == MEASUREMENTS
    assert (settings.source.host, settings.warehouse.host) == ("mysql", "postgres")
    assert settings.source.password is None
    assert settings.warehouse.password is None


def test_first_start_creates_the_columns_of_the_fleet() -> None:
    """The table that MySQL's first start creates has the fleet's columns, in order."""
    text = (CHECKOUT / "deploy" / "mysql" / "10-plant.sql").read_text()
    columns = re.findall(r"^    (\w+) +(?:BIGINT|INT|TIMESTAMP|DOUBLE)", text, re.MULTILINE)
    assert columns == ["id", "unit", "cycle", "read_at", *MEASUREMENTS]


def test_kernels_can_be_compiled_without_servers() -> None:
    """The script that fills the image's numba cache calls the kernels with arguments that they take."""
    runpy.run_path(str(CHECKOUT / "deploy" / "warm.py"), run_name="__main__")


def test_secrets_are_those_that_compose_asks_for(tmp_path: Path) -> None:
    """Every password that docker-compose.yml refuses to start without is made, and no other one."""
    make_secrets(tmp_path / "env")
    made = set(re.findall(r"^(\w+)=", (tmp_path / "env").read_text(), re.MULTILINE))
    text = (CHECKOUT / "docker-compose.yml").read_text()
    assert made == set(re.findall(r"\$\{(\w+):\?", text))
    assert not re.search(r"PASSWORD(\}|:-|-)", text), "a password with a default"


def test_secrets_are_private_and_differ(tmp_path: Path) -> None:
    """The file is its owner's only, and no two passwords are alike, within a file and between files."""
    for name in ("one", "two"):
        make_secrets(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    values = re.findall(r"^\w+=(.+)$", (tmp_path / "one").read_text() + (tmp_path / "two").read_text(), re.MULTILINE)
    assert len(values) == len(set(values)) == 8
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in values)


def test_secrets_are_not_made_twice(tmp_path: Path) -> None:
    """A file that is there is left as it is: servers have taken its passwords over."""
    file = tmp_path / "env"
    file.write_text("MYSQL_ROOT_PASSWORD=mine\n")
    assert "left as it is" in make_secrets(file)
    assert file.read_text() == "MYSQL_ROOT_PASSWORD=mine\n"
