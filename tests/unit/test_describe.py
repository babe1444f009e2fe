"""Settings as text: generated files are up to date and no secret is shown."""

import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr

from warehouse import describe
from warehouse.settings import Settings, WarehouseSettings
from warehouse.settings_file import load_settings

ROOT = Path(__file__).parent.parent.parent


def test_pipeline_toml_is_up_to_date() -> None:
    """The file of the checkout is what `warehouse settings --template` writes."""
    assert (ROOT / "pipeline.toml").read_text() == describe.write_template(), (
        "run: warehouse settings --template > pipeline.toml"
    )


def test_settings_page_is_up_to_date() -> None:
    """The page is what `warehouse settings --markdown` writes."""
    expected = describe.write_markdown()
    assert (ROOT / "docs/settings.md").read_text() == expected, "run: warehouse settings --markdown > docs/settings.md"


def test_template_sets_nothing_but_defaults() -> None:
    """Loading the template gives the same settings as no file at all."""
    assert load_settings(ROOT / "pipeline.toml", {}) == Settings()


def test_template_names_every_setting() -> None:
    """Every key of every section stands in the template, set or as a comment."""
    lines = [line.removeprefix("# ") for line in describe.write_template().splitlines()]
    for name, section in describe.sections():
        for key in section.model_fields:
            assert any(line.startswith(f"{key} = ") for line in lines), f"{name}.{key}"


def test_example_model_of_the_template_is_valid() -> None:
    """Taking the comment signs off the example model gives a file that loads."""
    _, _, example = describe.write_template().partition("# [[model]]\n")
    body = [
        line.removeprefix("# ") for line in example.partition("\n\n")[0].splitlines() if " = " in line and "..." not in line
    ]
    settings = Settings.model_validate(tomllib.loads("[[model]]\n" + "\n".join(body)))
    assert settings.model[0].name == "turbofan"


@pytest.mark.parametrize("write", [describe.write_toml, lambda settings: str(describe.to_plain(settings))])
def test_secrets_are_masked(write: object) -> None:
    """Neither form of the effective settings shows the password."""
    settings = Settings(warehouse=WarehouseSettings(password=SecretStr("hunter2")))
    assert callable(write)
    text = write(settings)
    assert "hunter2" not in text
    assert describe.MASK in text


def test_effective_settings_can_be_loaded_again(tmp_path: Path) -> None:
    """What is printed as TOML is a settings file for the same settings."""
    settings = load_settings(None, {"TAILRACE__SOURCE__TABLES": "a.b, c.%", "TAILRACE__SOURCE__PASSWORD_FILE": "/run/secret"})
    (tmp_path / "again.toml").write_text(describe.write_toml(settings))
    assert load_settings(tmp_path / "again.toml", {}) == settings
