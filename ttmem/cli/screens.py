"""What the stream that a command writes to can show."""

from __future__ import annotations

import argparse
import os
import shutil
from typing import TextIO

from ttmem.cli import write as write
from ttmem.views.text import Screen

_MIN_WIDTH, _MAX_WIDTH = 40, 200


def add_no_color(parser: argparse.ArgumentParser) -> None:
    """Add the option that :func:`screen_of` heeds."""
    parser.add_argument("--no-color", action="store_true", help="plain text; so does NO_COLOR")


def screen_of(stream: TextIO | None, *, no_color: bool = False) -> Screen:
    """Return what ``stream`` can show: its size, its colours, its characters; of one that is closed, the least."""
    terminal = stream is not None and stream.isatty()
    size = shutil.get_terminal_size((80, 24))
    color = terminal and not no_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "").replace("_", "")
    # The last line of a terminal is the prompt's.
    return Screen(
        width=max(_MIN_WIDTH, min(_MAX_WIDTH, size.columns)),
        height=max(1, size.lines - 1) if terminal else None,
        color=color,
        unicode=encoding.startswith("utf"),
    )
