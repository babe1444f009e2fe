"""Ties a child process to the life of its parent, even where the parent is killed.

Owns the words that go before a child's command. Never starts a process itself.
"""

import os
import shutil
import signal


def write_leash(stop_signal: signal.Signals = signal.SIGTERM, parent: int | None = None) -> list[str]:
    """Write what goes before a command so that it gets a signal when the thread that starts it ends.

    A program of util-linux does it: a preexec function would run Python between fork and exec, which is unsafe with threads.
    The kernel tells of a death only from then on, so the shell behind it looks whether the parent is still there.

    Args:
        stop_signal: what the child gets.
        parent: process id of who starts it; by default this process.

    Returns:
        The words; none where the system has no setpriv.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    name = stop_signal.name.removeprefix("SIG")
    look = 'test "$PPID" = "$0" && exec "$@"'
    return [setpriv, f"--pdeathsig={name}", "--", "/bin/sh", "-c", look, str(parent or os.getpid())]
