"""The documentation is complete where the code can say what belongs into it, and its links lead somewhere."""

import argparse
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import demo
import replicator
import scorer
import warehouse
from replicator.__main__ import build_parser as replicator_parser
from replicator.typemap import Column, Kind
from scorer.__main__ import build_parser as scorer_parser
from warehouse import describe
from warehouse.__main__ import build_parser as warehouse_parser
from warehouse.errors import TailraceError

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
DECISIONS = sorted(ROOT.glob("docs/decisions/*.md"))
OPERATIONS = (ROOT / "docs/operations.md").read_text()
CONTRACTS = (ROOT / "docs/contracts.md").read_text()
# Single words in code marks, as `wait_for` or `wait_for(source, ...)`.
NAMED = {name for code in re.findall(r"`([^`\n]+)`", CONTRACTS) for name in re.findall(r"^\w+", code)}

LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def find_errors() -> list[type[TailraceError]]:
    """Every error class of all packages that says that an operator must act."""
    for package in (warehouse, replicator, scorer, demo):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)

    def descend(kind: type[TailraceError]) -> Iterator[type[TailraceError]]:
        for child in kind.__subclasses__():
            yield child
            yield from descend(child)

    ours = tuple(package.__name__ + "." for package in (warehouse, replicator, scorer, demo))
    found = {kind for kind in descend(TailraceError) if kind.exit_code == 3 and kind.__module__.startswith(ours)}
    return sorted(found, key=lambda kind: kind.__name__)


def find_made(kind: str) -> list[str]:
    """The names of all tables, views or functions that the migrations create."""
    pattern = rf"^CREATE (?:OR REPLACE )?{kind} (?:IF NOT EXISTS )?(?:warehouse|scorer|analytics)\.(\w+)"
    texts = [path.read_text() for path in sorted(ROOT.glob("migrations/*.sql"))]
    return sorted({name for text in texts for name in re.findall(pattern, text, re.MULTILINE)})


def find_verbs() -> list[tuple[str, str]]:
    """Every command with each of its verbs."""
    verbs = []
    for parser in (warehouse_parser(), replicator_parser(), scorer_parser()):
        actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        verbs += [(parser.prog, verb) for action in actions for verb in action.choices]
    return verbs


def make_anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = HEADING.findall(FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("error", find_errors(), ids=lambda kind: kind.__name__)
def test_every_error_for_an_operator_has_a_section(error: type[TailraceError]) -> None:
    """Whoever meets exit code 3, or a table's reason, finds the class as a heading with text below it."""
    match = re.search(rf"^#+ {error.__name__}\n+(?!#)\S", OPERATIONS, re.MULTILINE)
    assert match, f"docs/operations.md needs a section '#### {error.__name__}': what it means, what is safe, what to do"


def test_every_error_section_is_of_an_error() -> None:
    """A section does not outlive its class."""
    sections = re.findall(r"^#### (\w+)$", OPERATIONS, re.MULTILINE)
    assert sorted(sections) == [error.__name__ for error in find_errors()]


@pytest.mark.parametrize("kind", ["TABLE", "VIEW", "FUNCTION"])
def test_contracts_name_all_that_migrations_make(kind: str) -> None:
    """Every table, view and function of the schema is named in docs/contracts.md, be it as internal."""
    made = find_made(kind)
    assert made, "the migrations make none: the pattern is wrong"
    assert not set(made) - NAMED, "docs/contracts.md must name them"


def test_contracts_name_every_channel() -> None:
    """Every NOTIFY channel that SQL sends to is named."""
    texts = [path.read_text() for folder in ("migrations", "replicator", "scorer") for path in ROOT.glob(f"{folder}/*.sql")]
    channels = {name for text in texts for name in re.findall(r"pg_notify\('(\w+)'", text)}
    assert {"anomalies", "tailrace_rows"} <= channels
    assert not channels - NAMED


@pytest.mark.parametrize(("command", "verb"), find_verbs())
def test_contracts_name_every_verb(command: str, verb: str) -> None:
    """Every verb of the three commands stands in the table of commands."""
    row = re.search(rf"^\| `{command} [^|]*`.*$", CONTRACTS, re.MULTILINE)
    assert row, f"no row of {command}"
    assert re.search(rf"`(?:{command} )?{verb}\b", CONTRACTS), f"docs/contracts.md must name {command} {verb}"


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.UNSUPPORTED], ids=lambda kind: kind.name)
def test_contracts_name_every_mirror_type(kind: Kind) -> None:
    """The type that a column gets in the mirror stands in the table of types."""
    for unsigned in (False, True):
        mirror_type = Column("c", kind, unsigned=unsigned, width=3, precision=5, scale=2).mirror_type
        assert mirror_type is not None
        assert re.search(rf"(?<!\w){re.escape(mirror_type.partition('(')[0])}(?!\w)", CONTRACTS), mirror_type


def test_every_setting_is_documented() -> None:
    """Every key of every section has its row in the section's table of docs/settings.md."""
    page = (ROOT / "docs/settings.md").read_text()
    parts = dict(re.findall(r"^## \[+(\w+)\]+\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for name, section in describe.sections():
        for key in section.model_fields:
            assert f"| `{key}` |" in parts[name.strip("[]")], f"{name}.{key}"


def test_every_exit_code_is_documented() -> None:
    """The codes that errors have are all in the table of exit codes."""
    find_errors()
    pending, codes = [TailraceError], {0}
    while pending:
        kind = pending.pop()
        codes.add(kind.exit_code)
        pending += kind.__subclasses__()
    missing = {code for code in codes if f"\n| {code} | " not in OPERATIONS}
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link leads to a file of the project, and its anchor to a heading there."""
    text = FENCE.sub("", page.read_text())
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in make_anchors(file.read_text()), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_text_exist(page: Path) -> None:
    """A path with a folder of the project in code marks is there; patterns and placeholders are left out."""
    folders = "replicator|warehouse|scorer|migrations|demo|docs|deploy|tools|tests"
    for path in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", page.read_text()):
        assert "NNNN" in path or (ROOT / path).exists(), path


def test_decisions_are_short_and_numbered() -> None:
    """Decisions are numbered without gaps and have their four parts on at most 25 lines."""
    assert [path.name[:4] for path in DECISIONS] == [f"{number:04}" for number in range(1, len(DECISIONS) + 1)]
    for path in DECISIONS:
        text = path.read_text()
        assert len(text.splitlines()) <= 25, path.name
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Context", "Decision", "Reason", "Consequences"], (
            path.name
        )


def test_faults_are_shown_by_what_there_is() -> None:
    """Each test and script that the page of faults names exists."""
    page = (ROOT / "docs/faults.md").read_text()
    named = re.findall(r"`((?:faults|integration|unit)/\w+\.py)`(?: \(((?:`\w+`(?:, )?)+)\))?", page)
    assert len(named) > 30
    for path, words in named:
        text = (ROOT / "tests" / path).read_text()
        for word in re.findall(r"\w+", words):
            assert re.search(rf"^def test_\w*{word}", text, re.MULTILINE), f"{path}: no test named *{word}*"
    cells = re.findall(r"scripts? (`[^(|]+)", page)
    scripts = {match for cell in cells for match in re.findall(r"`(\w+)[^`]*`", cell)}
    assert len(scripts) > 5
    for script in scripts:
        assert (ROOT / "tests/faults" / f"{script}.py").exists(), script
