"""Children of the demo and the tests that end with their parent."""

import os
import signal
import subprocess
import sys

from demo.leash import write_leash

START = """
import subprocess, sys
from demo.leash import write_leash
print(subprocess.Popen([*write_leash(), "sleep", "600"]).pid, flush=True)
sys.stdin.read()
"""


def test_a_command_runs_behind_its_leash() -> None:
    """The words before it change nothing in its arguments, output and status."""
    command = [*write_leash(), sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "a b", "$c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "['a b', '$c']\n", "")


def test_a_child_whose_parent_is_already_gone_does_not_begin() -> None:
    """Killed between starting the child and the leash's first step, the parent sends no signal any more."""
    done = subprocess.run([*write_leash(parent=os.getppid()), "echo", "begun"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_child_ends_when_its_parent_is_killed() -> None:
    """SIGKILL of the parent reaches the child as the signal that stops it."""
    with subprocess.Popen([sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) > 0
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        # the pipe's other end is the child's too, so this waits for its end
        assert parent.stdout.read() == ""
