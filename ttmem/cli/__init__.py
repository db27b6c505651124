"""The commands: the only code that prints, reads options and turns errors into exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

EXIT_DONE, EXIT_NOTHING, EXIT_USAGE, EXIT_CONDITION, EXIT_UNREADABLE = range(5)
"""What every command ends with: done; nothing to read; wrong usage; a condition was found; files there, none readable."""


def seconds_between(lowest: float, highest: float) -> Callable[[str], float]:
    """Return the type of an option that takes seconds within bounds."""

    def parse(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}") from None
        if not lowest <= seconds <= highest:
            raise argparse.ArgumentTypeError(f"expected {lowest} to {highest} seconds, got {text}")
        return seconds

    return parse


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace | int:
    """Return the arguments, or, where there is nothing left to do, the exit code."""
    try:
        return parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else EXIT_USAGE


def drop_stdout() -> None:
    """Write nothing more: the reader (head, grep -q) has what it wants."""
    # Python would complain at exit about what is still buffered.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
