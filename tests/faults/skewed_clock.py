"""A source whose clock is wrong: lag is right all the same, and never negative. Needs a C compiler, for the clock.

    python -m tests.faults.skewed_clock [--source mysql|mariadb] [--seconds 5 -5 60 -60]

It is not part of the tests that run for every change. The server runs with a library before the system's own that moves what
it is told of the time of day, and moves the moments it asks to be woken at back.
"""

import argparse
import subprocess
import time
from pathlib import Path
from typing import Any

from demo.servers import PostgresServer, cache_folder, provide
from tests.fixtures.pipeline import Pipeline
from tests.fixtures.scripts import KINDS, open_folder, open_pipeline

# Within this many ms lag and offset must be what they are, on a machine that does other things, too.
TOLERANCE_MS, WHOLE_SECOND_MS = 500, 1000
LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/time.h>
#include <time.h>

static const long ahead = SECONDS;

int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, at);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += ahead;
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

/* Only times of day are that large; a monotonic clock begins at the machine's start. */
int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, const struct timespec *restrict at) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec then = *at;
    if (then.tv_sec > 1000000000) then.tv_sec -= ahead;
    return real(cond, mutex, &then);
}
"""


def main() -> None:
    """One server after another, each with another clock."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", choices=tuple(KINDS), default="mysql")
    parser.add_argument("--seconds", type=int, nargs="+", default=[5, -5, 60, -60])
    args = parser.parse_args()
    programs = provide([args.source, "postgres"], cache_folder(), print)
    with open_folder() as folder, PostgresServer(programs, folder / "postgres") as target:
        for ahead in args.seconds:
            place = folder / f"ahead{ahead}"
            place.mkdir()
            source = make_skewed(KINDS[args.source], compile_clock(place, ahead))(programs, place / "source")
            with source, open_pipeline(source, target, folder, f"ahead_{ahead}") as pipeline:
                print(f"clock {ahead:+} s: {measure(pipeline, ahead, args.source)}", flush=True)


def compile_clock(folder: Path, ahead: int) -> Path:
    """The library for a clock that is so many seconds ahead."""
    code, library = folder / "clock.c", folder / "clock.so"
    code.write_text(LIBRARY)
    options = [f"-DSECONDS={ahead}", "-shared", "-fPIC", "-O1", "-ldl", "-pthread"]
    subprocess.run(["cc", str(code), "-o", str(library), *options], check=True)
    return library


def make_skewed(kind: Any, library: Path) -> Any:
    """The class of servers of a kind that run by this clock."""

    class Skewed(kind):  # type: ignore[misc]
        def _command(self) -> list[str]:
            return ["env", f"LD_PRELOAD={library}", *super()._command()]

    return Skewed


def measure(pipeline: Pipeline, ahead: int, kind: str) -> str:
    """Rows for a few seconds, each looked at; raises where lag or offset are not what they are."""
    (shown,) = pipeline.source.execute("SELECT UNIX_TIMESTAMP(UTC_TIMESTAMP(6))")
    assert abs(float(shown[0]) - time.time() - ahead) < 1, "the server's clock is not the one that was wanted"
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY)")
    service = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: pipeline.status("state") == "Streaming" and not pipeline.is_copying())
    lags = []
    for number in range(50):
        pipeline.source.execute(f"INSERT INTO t VALUES ({number})")
        pipeline.sync()
        lags.append(pipeline.status("lag_ms"))
        time.sleep(0.05)
    offset = pipeline.status("clock_offset_ms")
    assert abs(offset - 1000 * ahead) < TOLERANCE_MS, offset
    longest = TOLERANCE_MS + (WHOLE_SECOND_MS if kind == "mariadb" else 0)
    assert min(lags) >= 0, lags
    assert max(lags) < longest, lags
    # idle for longer than three heartbeats
    time.sleep(2)
    assert pipeline.status("lag_ms") == 0
    pipeline.assert_equal("t", order="1")
    assert service.stop() == 0, service.read_log()
    return f"offset {offset:.1f} ms, lag {min(lags):.1f} to {max(lags):.1f} ms, 0 once idle"


if __name__ == "__main__":
    main()
