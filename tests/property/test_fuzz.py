"""Damaged streams: always a typed error or the right rows, never a crash, a hang, or a byte beyond an array."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.property.fuzz_decoder import fuzz_streams

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("seed", range(3))
def test_with_checksums_no_damage_yields_another_row(seed: int) -> None:
    """Truncated, flipped and random bytes: what comes out is a beginning of what is right."""
    errors = fuzz_streams(random.Random(seed), 700, checksum=True)
    assert errors > 300


@pytest.mark.long
def test_no_kernel_reaches_beyond_its_arrays(pytestconfig: pytest.Config) -> None:
    """Without checksums anything may be read, but only inside the arrays; the kernels run with bounds checks.

    Their compiled form lies in a cache of its own, because numba's cache does not tell the two apart.
    """
    cache = pytestconfig.rootpath / ".pytest_cache" / "kernels-with-bounds"
    done = subprocess.run(
        [sys.executable, "-m", "tests.property.fuzz_decoder", "1", "1500", "checked"],
        cwd=ROOT,
        env=os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rounds, with_checksums, without = map(int, done.stdout.split())
    assert rounds == 1500
    assert with_checksums > without > 300
