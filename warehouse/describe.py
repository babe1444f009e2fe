"""Settings as text: the effective ones, the file with every default, and the reference page.

Owns the layout; names, defaults and ranges come from warehouse/settings.py. Never shows a secret.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from warehouse.settings import ENV_PREFIX, ModelSettings, Section, Settings

MASK = "**********"

_FILE_HEAD = """\
# Every setting of Tailrace with its default. What begins with "# " has no default, or is an example.
# The environment goes over this file: {prefix}SOURCE__PASSWORD=... sets password of [source].
# Written by: warehouse settings --template
"""

_PAGE_HEAD = """\
# Settings

Settings are read from `pipeline.toml` in the current folder, or from the file given with `-c`. A variable of the
environment named `{prefix}SECTION__KEY` goes over the file; lists are separated by commas there. Keys that are not
listed here are refused. `warehouse settings` shows the values in effect, secrets masked.
This page is written by `warehouse settings --markdown`.
"""

_EXAMPLE_MODEL: dict[str, Any] = {
    "name": "turbofan",
    "relation": "plant.asset_readings_standard",
    "training_query": "SELECT * FROM plant.asset_readings_historical",
    "features": ["sensor_2", "sensor_3", "sensor_4"],
    "entity": "unit",
    "order": "cycle",
}


def to_plain(settings: Section) -> dict[str, Any]:
    """The settings as JSON values, secrets masked; None stays."""
    plain: dict[str, Any] = {}
    for key in type(settings).model_fields:
        plain[key] = _plain(getattr(settings, key))
    return plain


def _plain(value: object) -> Any:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, Section):
        return to_plain(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_toml(settings: Settings) -> str:
    """The settings in effect as TOML, secrets masked; what is not set is left out."""
    lines: list[str] = []
    for section, body in to_plain(settings).items():
        for head, entries in (
            [(f"[{section}]", body)] if isinstance(body, dict) else [(f"[[{section}]]", item) for item in body]
        ):
            lines += [head, *(f"{key} = {format_toml(value)}" for key, value in entries.items() if value is not None), ""]
    return "\n".join(lines)


def write_template() -> str:
    """pipeline.toml: every setting with its default and what it means."""
    lines = [_FILE_HEAD.format(prefix=ENV_PREFIX)]
    for name, section in sections():
        is_list = section is ModelSettings
        lines += [f"# {_first_line(section)}", "# [[model]]" if is_list else f"[{name}]"]
        for key, schema in read_properties(section).items():
            default = _EXAMPLE_MODEL.get(key, schema.get("default")) if is_list else schema.get("default")
            note = ". ".join(part for part in (describe_type(schema), schema.get("description")) if part)
            lines += textwrap.wrap(note, 118, initial_indent="# ", subsequent_indent="# ")
            unset = default is None
            lines.append(f"{'# ' if unset or is_list else ''}{key} = {'...' if unset else format_toml(default)}")
        lines.append("")
    return "\n".join(lines)


def write_markdown() -> str:
    """docs/settings.md: one table per section."""
    lines = [_PAGE_HEAD.format(prefix=ENV_PREFIX)]
    for name, section in sections():
        lines += [f"## [{'[model]' if section is ModelSettings else name}]", "", _first_line(section), ""]
        lines += ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
        for key, schema in read_properties(section).items():
            required = "default" not in schema
            default = "required" if required else "" if schema["default"] is None else f"`{format_toml(schema['default'])}`"
            cells = [f"`{key}`", describe_type(schema), default, schema.get("description", "")]
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Every section of the file: its name and its model."""
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield name, kind
        else:
            yield name, ModelSettings


def read_properties(section: type[Section]) -> Mapping[str, dict[str, Any]]:
    """The JSON schema of each key, with the kinds that allow None unwrapped."""
    properties: dict[str, dict[str, Any]] = {}
    for key, schema in section.model_json_schema()["properties"].items():
        inner: dict[str, Any] = next((kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"), {})
        properties[key] = {**schema, **inner}
    return properties


def describe_type(schema: Mapping[str, Any]) -> str:
    """What a key accepts, in words, from its JSON schema."""
    if "enum" in schema:
        names = [str(name) for name in schema["enum"]]
        return f"{', '.join(names[:-1])} or {names[-1]}"
    kind = schema.get("type")
    if kind == "array":
        return f"list of {describe_type(schema['items'])}"
    if kind in ("integer", "number"):
        return " ".join([{"integer": "whole number", "number": "number"}[kind], *_describe_range(schema)])
    if kind == "boolean":
        return "true or false"
    if schema.get("writeOnly"):
        return "secret"
    if schema.get("format") in ("path", "file-path", "directory-path"):
        return "path"
    return f"text like `{schema['pattern']}`" if "pattern" in schema else "text"


def _describe_range(schema: Mapping[str, Any]) -> Iterator[str]:
    if "minimum" in schema:
        yield f"from {schema['minimum']}"
    if "exclusiveMinimum" in schema:
        yield f"above {schema['exclusiveMinimum']}"
    if "maximum" in schema:
        yield f"to {schema['maximum']}"


def format_toml(value: object) -> str:
    """A JSON value as TOML; text and numbers are written alike in both."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _first_line(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]
