"""What every command shares: the command line, signals, retries and exit codes.

Owns the mapping from errors to exit codes (0 done, 1 bug, 2 settings, 3 an operator must act, 75 try later).
Never does a service's own work.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
import tenacity

from warehouse.errors import TailraceError
from warehouse.log import configure_log
from warehouse.settings import RetrySettings, Settings
from warehouse.settings_file import DEFAULT_FILE, load_settings

log = structlog.get_logger()

Handler = Callable[[argparse.Namespace, Settings], None]


class Stop:
    """Set by SIGTERM or SIGINT: finish the unit of work at hand, then return."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        """True once somebody asked to stop."""
        return self._event.is_set()

    def request(self) -> None:
        """Ask to stop."""
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until somebody asks to stop; True if so."""
        return self._event.wait(seconds)

    def catch_signals(self) -> None:
        """Let SIGTERM and SIGINT ask to stop; a second SIGINT interrupts at once."""

        def request(number: int, frame: object) -> None:
            self._event.set()
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.default_int_handler)

        signal.signal(signal.SIGTERM, request)
        signal.signal(signal.SIGINT, request)


class Progress:
    """The moment of the last success; a retry budget counts from there."""

    def __init__(self) -> None:
        self.failures = 0
        self.since = time.monotonic()

    def note(self) -> None:
        """Some work succeeded."""
        self.failures = 0
        self.since = time.monotonic()


def keep_trying(work: Callable[[Progress], None], retry: RetrySettings, stop: Stop) -> None:
    """Run work, and run it again after retryable errors, with growing waits, until it returns.

    Args:
        work: called with a Progress; it notes each success there, which renews the budget.
        retry: waits and budget.
        stop: ends the waiting; then this returns.

    Raises:
        TailraceError: the last error, where it is not retryable or the budget is spent.
    """
    progress = Progress()

    def wait(state: tenacity.RetryCallState) -> float:
        progress.failures += 1
        longest = min(retry.longest_wait_s, retry.first_wait_s * 2 ** min(progress.failures - 1, 30))
        return float(tenacity.wait_random(longest / 2, longest)(state))

    def report(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("retry", error=str(error), kind=type(error).__name__, failures=progress.failures)

    def pause(seconds: float) -> None:
        stop.wait(seconds)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, TailraceError) and error.retryable),
        wait=wait,
        stop=lambda _: stop.requested or time.monotonic() - progress.since > retry.budget_s,
        sleep=pause,
        before_sleep=report,
        reraise=True,
    )
    try:
        retrying(work, progress)
    except TailraceError as error:
        if not (error.retryable and stop.requested):
            raise


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every command takes."""
    parser.add_argument(
        "-c", "--config", type=Path, default=None, metavar="FILE", help=f"settings file (default: ./{DEFAULT_FILE})"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def run_command(
    parser: argparse.ArgumentParser,
    handlers: Mapping[str, Handler],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, load the settings, run the handler of the chosen verb and turn errors into exit codes.

    Args:
        parser: has a sub-command stored as `verb`, each with the common arguments.
        handlers: a function for every verb.
        argv: the arguments; default: the process' own.

    Returns:
        The exit code.
    """
    args = parser.parse_args(argv)
    try:
        settings = load_settings(args.config)
        configure_log(settings.log.level, service=parser.prog)
        handlers[args.verb](args, settings)
    except TailraceError as error:
        _print_error(error, as_json=args.json)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    return 0


def _print_error(error: TailraceError, *, as_json: bool) -> None:
    if as_json:
        fields = {key: str(value) for key, value in error.context.items()}
        body = {"error": type(error).__name__, "message": error.message, "hint": error.hint, "context": fields}
        print_json(body, file=sys.stderr)
    else:
        sys.stderr.write(f"{error}\n")


def print_json(value: Mapping[str, Any], *, file: Any = None) -> None:
    """One JSON object on one line."""
    (file or sys.stdout).write(json.dumps(value, default=str) + "\n")
