"""Where settings come from: one TOML file, and the environment over it.

Owns the order of the two, and what is said of a key or a value that is not allowed; never shows a secret. Names, defaults and
ranges are in settings.py.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from warehouse.errors import SettingsError
from warehouse.settings import ENV_PREFIX, ModelSettings, Settings

DEFAULT_FILE = "pipeline.toml"

_LISTS = ("tables", "hosts", "excluded_columns")


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the TOML file and lay the environment over it.

    Args:
        path: the file; where it is None, ./pipeline.toml if there is one, else the defaults.
        environ: the variables; TAILRACE__SECTION__KEY sets key of section. Default: the process' own.

    Raises:
        SettingsError: the file cannot be read, or a key or value is not allowed; names every such key at once.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, Any] = {}
    file = path if path is not None else Path(DEFAULT_FILE)
    if path is not None or file.exists():
        try:
            given = tomllib.loads(file.read_text())
        except OSError as error:
            raise SettingsError(f"the settings file cannot be read: {error.strerror}", path=str(file)) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"the settings file is not TOML: {error}", path=str(file)) from error
    for name, value in sorted(environ.items()):
        if name.startswith(ENV_PREFIX):
            _lay_over(given, name, value)
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        raise SettingsError("\n  ".join(_describe(error)), hint="See pipeline.toml for every setting.") from None


def _lay_over(given: dict[str, Any], name: str, value: str) -> None:
    section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
    if not key or "__" in key:
        raise SettingsError(
            f"{name} is not a setting",
            hint=f"The form is {ENV_PREFIX}SECTION__KEY, as in {ENV_PREFIX}SOURCE__PASSWORD.",
        )
    target = given.setdefault(section, {})
    if not isinstance(target, dict):
        raise SettingsError(f"{name}: {section} cannot be set from the environment", hint="Write it into the settings file.")
    wants_list = section == "source" and key in _LISTS
    target[key] = [part.strip() for part in value.split(",") if part.strip()] if wants_list else value


def _describe(error: ValidationError) -> list[str]:
    """One line per wrong key: the key, what was given, what is allowed."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        secret = re.search(r"password(?!_file)", key) is not None
        given = "a value that is not shown" if secret else repr(item.get("input"))
        if item["type"] == "extra_forbidden":
            lines.append(f"{key} is not a setting; allowed here: {', '.join(_allowed(item['loc']))}")
        elif item["type"] == "missing":
            lines.append(f"{key} is missing")
        else:
            lines.append(f"{key}: {given} is not allowed: {item['msg']}")
    return lines


def _allowed(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that location lies in."""
    model: Any = Settings
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        field = model.model_fields[part].annotation
        model = ModelSettings if part == "model" else field
    return sorted(model.model_fields)
