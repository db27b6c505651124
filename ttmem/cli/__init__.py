"""The commands: the only code that prints, reads options and turns errors into exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable

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
