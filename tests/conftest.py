"""Common ground of all tests: a clean environment and the fixtures for real servers."""

import os

from hypothesis import settings

# Settings of the person who runs the tests must not reach the code under test, at its import neither.
for _name in [name for name in os.environ if name.startswith("TAILRACE__")]:
    del os.environ[_name]

# The same examples each time, so that a failure is the change's own; TAILRACE_EXPLORE looks for new ones.
settings.register_profile("same", derandomize=True, database=None)
settings.register_profile("explore", derandomize=False)
settings.load_profile("explore" if "TAILRACE_EXPLORE" in os.environ else "same")

pytest_plugins = ["tests.fixtures.servers", "tests.fixtures.plant", "tests.fixtures.pipeline"]
