"""Show the memory of all Tenstorrent devices live: charts, heat maps of cores, address maps, programs, processes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ttmem._version import __version__
from ttmem.cli import (
    EXIT_DONE,
    EXIT_NOTHING,
    EXIT_UNREADABLE,
    EXIT_USAGE,
    ends_well,
    holds_nothing,
    parse,
    seconds_between,
)
from ttmem.cli.selection import PUBLISHERS, UsageError, add_device, device_filter
from ttmem.errors import TtmemError

_INTERVAL = 0.1
"""Seconds between two samples unless told."""
_SHARE = 0.125
"""The most of a core that sampling may take unless an interval is told."""
_EPILOG = """\
keys: 1-5 pages, arrows select, Enter opens, Space pauses, m figure of the heat map, , . sort, / filter, h help, q quit
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``ttmem-top``."""
    parser = argparse.ArgumentParser(
        prog="ttmem-top", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_device(parser)
    add(
        "--interval",
        type=seconds_between(0.02, 3600),
        metavar="SEC",
        help="seconds between two samples (default 0.1, longer where that would take more than an eighth of a core); the "
        "screen is painted at most 4 times a second",
    )
    add("--source", choices=("auto", "ttmem", "tt-metal"), default="auto", help="who published it (default auto)")
    add("--replay", metavar="FILE", help="play a file: a recording, or dumps of ttmem-dump --json")
    add("--no-color", action="store_true", help="plain text; so does NO_COLOR")
    add("-V", "--version", action="version", version=f"ttmem {__version__}")
    return parser


def asked_of(args: argparse.Namespace) -> str:
    """Return where devices are looked for, and which: nothing else is meant where none is found."""
    from ttmem.segment import shm_directory

    where = str(shm_directory()) if args.replay is None else str(args.replay)
    if args.replay is None and args.source != "auto":
        where += f" by {PUBLISHERS[args.source]}"
    return where + (f" that -d {','.join(args.device)} names" if args.device else "")


@ends_well("ttmem-top")
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ttmem-top`` and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    parser = build_parser()
    args = parse(parser, argv)
    if isinstance(args, int):
        return args
    keep = None
    if args.device:
        try:
            keep = device_filter(args.device)
        except UsageError as error:
            parser.print_usage(sys.stderr)
            print(f"ttmem-top: error: {error}", file=sys.stderr)
            return EXIT_USAGE
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        print(
            "ttmem-top: error: stdin, stdout and stderr must be a terminal; in pipes use ttmem-dump, or ttmem-dump -w",
            file=sys.stderr,
        )
        return EXIT_USAGE
    color = not (args.no_color or os.environ.get("NO_COLOR"))
    if not color:
        os.environ["NO_COLOR"] = "1"
    # Only now, so that --help and mistakes cost nothing.
    from ttmem.cli.screens import screen_of
    from ttmem.moments import open_frames
    from ttmem.top.model import Model
    from ttmem.top.source import LiveSource, ReplaySource, Sampler, Source

    player = None
    source: Source
    if args.replay is None:
        source = LiveSource(args.source, keep)
    else:
        try:
            source = player = ReplaySource(open_frames(args.replay), keep)
        except TtmemError as error:
            print(f"ttmem-top: error: {error}", file=sys.stderr)
            return EXIT_NOTHING if holds_nothing(error) else EXIT_UNREADABLE
    from ttmem.top.app import TopApp

    model = Model()
    interval = _INTERVAL if args.interval is None else args.interval
    app = TopApp(
        model,
        sampler=Sampler(source, model, interval, share=_SHARE if args.interval is None else 1.0),
        player=player,
        where=asked_of(args),
        color=color,
        unicode=screen_of(sys.stdout).unicode,
        interval=interval,
    )
    code = app.run()
    return EXIT_DONE if code is None else code


if __name__ == "__main__":
    sys.exit(main())
