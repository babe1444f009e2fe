"""Whether a service is at work, for the health checks of containers: python -m warehouse.health replicator|scorer

Owns the question. Never starts, stops or changes anything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from warehouse.db import Connection, connect, wrap_errors
from warehouse.errors import TailraceError
from warehouse.settings import Settings
from warehouse.settings_file import load_settings

SERVICES = ("replicator", "scorer")
SILENCE_S = 60.0  # a source may be silent for longer than its heartbeats while a large batch is applied

# Containers of one network have addresses of their own, so a session from this address is this container's.
_HAS_SESSION = """
SELECT EXISTS (SELECT FROM pg_stat_activity
               WHERE datname = current_database() AND application_name LIKE 'tailrace ' || %s || '%%'
                 AND client_addr IS NOT DISTINCT FROM inet_client_addr())
"""
_READ_SOURCE = """
SELECT state, reason, extract(epoch FROM now() - heard_at), greatest(3 * heartbeat_s, %s)
FROM warehouse.sources WHERE source = %s
"""


def find_illness(conn: Connection, settings: Settings, service: str) -> str | None:
    """Say why a service is not at work, or None where it is.

    Args:
        conn: any connection to the warehouse from the machine or container that the service runs in.
        settings: names the source.
        service: replicator or scorer.
    """
    with wrap_errors():
        row = conn.execute(_HAS_SESSION, (service,)).fetchone()
        if row != (True,):
            return f"the {service} has no session in the warehouse"
        if service != "replicator":
            return None
        source = conn.execute(_READ_SOURCE, (SILENCE_S, settings.source.name)).fetchone()
    if source is None:
        return f"the source {settings.source.name} is not known yet"
    state, reason, silent_s, longest_s = source
    if state in ("Failed", "Stopped"):
        return f"the source {settings.source.name} is {state}{f': {reason}' if reason else ''}"
    if state == "Paused":
        return None
    if silent_s is None or silent_s > longest_s:
        return f"nothing was heard from the source {settings.source.name} for {silent_s or 0:.0f} s"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the illness, if any; 0 where there is none, else 1 (Docker knows only these two)."""
    parser = argparse.ArgumentParser(prog="python -m warehouse.health", description="Is the service of this container at work?")
    parser.add_argument("service", choices=SERVICES)
    service = parser.parse_args(argv).service
    try:
        settings = load_settings()
        with connect(settings.warehouse, "health") as conn:
            illness = find_illness(conn, settings, service)
    except TailraceError as error:
        illness = str(error)
    if illness is not None:
        sys.stderr.write(f"{illness}\n")
    return 0 if illness is None else 1


if __name__ == "__main__":
    sys.exit(main())
