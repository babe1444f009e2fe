"""A disk that is full under the warehouse's tables and gets room again: nothing lost, nothing twice. Needs root, for a mount.

    python -m tests.faults.full_disk

It is not part of the tests that run for every change. The tables lie in a tablespace on a small memory disk of its own; a
file takes most of its room away and gives it back.
"""

import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from demo.servers import MySQLServer, PostgresServer, cache_folder, provide
from tests.fixtures.churn import Churn, assert_same
from tests.fixtures.pipeline import make_pipeline
from tests.fixtures.servers import Database, make_source_database

DISK_MB, LEFT_MB = 200, 24


def main() -> None:
    """Run it once."""
    programs = provide(["mysql", "postgres"], cache_folder(), print)
    with tempfile.TemporaryDirectory(prefix="tailrace-full-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        disk = folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0777", "tmpfs", str(disk)], check=True)
        try:
            source: Any = MySQLServer(programs, folder / "source")
            with source, PostgresServer(programs, folder / "postgres") as target:
                fill_and_free(source, target, disk, folder)
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def fill_and_free(source: Any, target: PostgresServer, disk: Path, folder: Path) -> None:
    """Fill the disk under load, see that the replicator waits, free it, compare."""
    space = disk / "space"
    space.mkdir()
    if target.account is not None:
        subprocess.run(["chown", str(target.account.pw_uid), str(space)], check=True)
    login = Database(target.host, target.port, target.user, target.password, "postgres")
    with login.connect(autocommit=True) as conn:
        conn.execute(f"CREATE TABLESPACE small LOCATION '{space}'")  # type: ignore[arg-type]
        conn.execute("CREATE DATABASE full_disk TABLESPACE small")
    with make_source_database(source) as origin, make_pipeline(origin, replace(login, name="full_disk"), folder) as pipeline:
        churn = Churn(pipeline, 1)
        service = pipeline.start("replicator", "run")
        pipeline.wait_until(lambda: pipeline.status("state") == "Streaming")
        ballast = disk / "ballast"
        free_mb = int(subprocess.check_output(["df", "-m", "--output=avail", str(disk)]).split()[-1])
        ballast.write_bytes(bytes(max(0, free_mb - LEFT_MB) << 20))
        churn.start()
        origin.execute("CREATE TABLE big (id INT PRIMARY KEY, pad LONGBLOB)")
        with origin.connect() as conn, conn.cursor() as cursor:
            for number in range(40):
                # 1 MB that does not compress
                cursor.execute("INSERT INTO big VALUES (%s, %s)", (number, os.urandom(1 << 20)))
        pipeline.wait_until(lambda: "WarehouseFull" in service.read_log())
        print("full: the replicator waits", flush=True)
        churn.stop()
        ballast.unlink()
        pipeline.sync()
        assert service.stop() == 0, service.read_log()
        assert "Traceback" not in service.read_log()
        assert_same(pipeline)
        rows = origin.execute("SELECT COUNT(*), SUM(CRC32(pad)) FROM big")[0]
        print(f"room again: equal, {churn.transactions} transactions beside {rows[0]} large rows", flush=True)
        pipeline.assert_equal("big", order="1")


if __name__ == "__main__":
    main()
