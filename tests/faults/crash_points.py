"""`scorer ...` in a process that kills itself at a commit: `python -m tests.faults.crash_points NUMBER before|after ARGS`.

The kill is SIGKILL, just before or just after outermost transaction NUMBER commits. No code of the program knows of it.
"""

import os
import signal
import sys
from typing import Any

from psycopg.transaction import Transaction

from scorer.__main__ import main


def arm(number: int, moment: str) -> None:
    """Have this process killed at that commit."""
    commits = 0
    leave = Transaction.__exit__

    def leave_or_die(self: Transaction, *error: Any) -> Any:
        nonlocal commits
        # A transaction inside another one has a savepoint.
        outermost = not self.savepoint_name and error[0] is None
        commits += outermost
        if outermost and commits == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = leave(self, *error)
        if outermost and commits == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Transaction.__exit__ = leave_or_die  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(int(sys.argv[1]), sys.argv[2])
    sys.exit(main(sys.argv[3:]))
