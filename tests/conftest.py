"""Common ground of all tests: a clean environment and the fixtures for real servers."""

import os

# Settings of the person who runs the tests must not reach the code under test, at its import neither.
for _name in [name for name in os.environ if name.startswith("TAILRACE__")]:
    del os.environ[_name]

pytest_plugins = ["tests.fixtures.servers", "tests.fixtures.plant", "tests.fixtures.pipeline"]
