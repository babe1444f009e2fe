"""Logging set-up: people's lines on a terminal, one JSON object a line elsewhere.

Owns structlog's configuration. Never logs by itself.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import structlog

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_log(level: Literal["debug", "info", "warning", "error"], *, service: str) -> None:
    """Send log lines to standard error: coloured text on a terminal, JSON off it.

    Args:
        level: the lowest level that is shown.
        service: the command's name, written into every line.
    """
    on_terminal = sys.stderr.isatty()
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if on_terminal:
        processors.append(structlog.dev.ConsoleRenderer())
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        # Looked up for each line: while bars are drawn, standard error leads around them.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)
