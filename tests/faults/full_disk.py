"""A disk that is full under the warehouse and gets room again: nothing lost, nothing twice. Needs root, for a mount.

    python -m tests.faults.full_disk            # the disk of the tables: Postgres refuses what does not fit
    python -m tests.faults.full_disk --wal      # the disk of its write-ahead log: Postgres dies, and is started again later

It is not part of the tests that run for every change. The disk is a small memory disk of its own; a file takes most of its
room away and gives it back.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from demo.servers import PostgresServer, ServerFailed
from tests.fixtures.churn import Churn, assert_same
from tests.fixtures.pipeline import Pipeline
from tests.fixtures.scripts import open_folder, open_pipeline, open_servers

DISK_MB, LEFT_MB = 300, 24
ROWS = 40


def main() -> None:
    """Run it once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--wal", action="store_true")
    args = parser.parse_args()
    with open_folder() as folder, mount(folder / "disk") as disk, open_servers("mysql", folder) as (source, target):
        place = ""
        if args.wal:
            move_wal(target, disk)
        else:
            place = f" TABLESPACE {make_tablespace(target, disk)}"
        with open_pipeline(source, target, folder, "full_disk", place) as pipeline:
            fill_and_free(pipeline, target, disk, dies=args.wal)


@contextlib.contextmanager
def mount(disk: Path) -> Iterator[Path]:
    """A memory disk."""
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0777", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def own(path: Path, target: PostgresServer) -> Path:
    """Give a folder to the account that Postgres runs as."""
    if target.account is not None:
        subprocess.run(["chown", "-R", str(target.account.pw_uid), str(path)], check=True)
    return path


def make_tablespace(target: PostgresServer, disk: Path) -> str:
    """A tablespace on the disk; its name."""
    (disk / "space").mkdir()
    with connect(target) as conn:
        conn.execute(f"CREATE TABLESPACE small LOCATION '{own(disk / 'space', target)}'")
    return "small"


def move_wal(target: PostgresServer, disk: Path) -> None:
    """Have the write-ahead log on the disk."""
    target.stop()
    shutil.move(target.data / "pg_wal", disk / "wal")
    (target.data / "pg_wal").symlink_to(own(disk / "wal", target))
    target.options["max_wal_size"] = "64MB"
    target.start()


def connect(target: PostgresServer) -> Any:
    """A session of the superuser."""
    return psycopg.connect(
        host=target.host, port=target.port, user=target.user, password=target.password, dbname="postgres", autocommit=True
    )


def fill_and_free(pipeline: Pipeline, target: PostgresServer, disk: Path, *, dies: bool) -> None:
    """Fill the disk under load, see that the replicator waits, free it, compare."""
    pipeline.configure(retry={"budget_s": 600.0})
    origin, churn = pipeline.source, Churn(pipeline, 1)
    service = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: pipeline.status("state") == "Streaming")
    origin.execute("CREATE TABLE big (id INT PRIMARY KEY, pad LONGBLOB)")
    ballast = disk / "ballast"
    free_mb = int(subprocess.check_output(["df", "-m", "--output=avail", str(disk)]).split()[-1])
    ballast.write_bytes(bytes(max(0, free_mb - LEFT_MB) << 20))
    churn.start()
    with origin.connect() as conn, conn.cursor() as cursor:
        for number in range(ROWS):
            # 1 MB that does not compress
            cursor.execute("INSERT INTO big VALUES (%s, %s)", (number, os.urandom(1 << 20)))
    if dies:
        pipeline.wait_until(lambda: "No space left on device" in target.log.read_text(errors="replace"))
        with contextlib.suppress(ServerFailed):
            # What a supervisor does again and again; it does not help while there is no room.
            target.kill()
            target.start()
        print("full: Postgres is down, the replicator waits", flush=True)
    else:
        pipeline.wait_until(lambda: "WarehouseFull" in service.read_log())
        print("full: the replicator waits", flush=True)
    time.sleep(5)
    churn.stop()
    ballast.unlink()
    if dies:
        if not target.running:
            target.start()
        pipeline.reconnect()
        assert '"retry"' in service.read_log(), service.read_log()
    pipeline.sync()
    assert service.stop() == 0, service.read_log()
    assert "Traceback" not in service.read_log()
    assert_same(pipeline)
    pipeline.assert_equal("big", order="1")
    print(f"room again: equal, {churn.transactions} transactions beside {ROWS} large rows", flush=True)


if __name__ == "__main__":
    main()
