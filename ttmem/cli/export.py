"""Write what is published, or what a dump, recording or report holds, for another tool."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from ttmem.cli import EXIT_DONE
from ttmem.cli.screens import write
from ttmem.cli.sources import (
    UnreadableError,
    UsageError,
    add_device,
    dump_of_file,
    live_devices,
    run,
    unusable,
    verb_parser,
)
from ttmem.dumps import Dump, kind_of_file

_EPILOG = """\
exit codes: 0 written; 1 nothing to read; 2 wrong usage; 4 files there, none readable

examples:
  python -m ttmem export --visualizer report/                  what is published on this host now
  python -m ttmem export run.ttmem --visualizer report/        the last moment of a recording
`record RECORDING --export chrome|csv` writes the figures of a whole recording.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = verb_parser("export", __doc__, _EPILOG)
    add = parser.add_argument
    add("source", nargs="?", metavar="FILE", help="a dump, recording or report (default this host)")
    add("--visualizer", metavar="DIR", help="a new folder that ttnn-visualizer opens as a report")
    add_device(parser)
    add("--json", action="store_true", help="at the end, what was written, as JSON")
    return parser


def _read(args: argparse.Namespace, tell: Callable[[str], None]) -> Dump:
    if args.source is None:
        return live_devices(args.device, tell, files="a dump or a recording")
    kind = kind_of_file(args.source)
    if kind == "capture":
        raise UnreadableError(f"{args.source} is a capture: `python -m ttnn.graph_report` makes a report of it")
    return dump_of_file(args.source, kind, args.device, tell)


def _body(args: argparse.Namespace, tell: Callable[[str], None]) -> int:
    if args.visualizer is None:
        raise UsageError("nothing to write: name a folder with --visualizer DIR")
    from ttmem.visualizer import write_visualizer

    dump = _read(args, tell)
    try:
        count = write_visualizer(dump, args.visualizer, name=str(args.source or "live"))
    except FileExistsError as error:
        raise UsageError(f"{error.filename} is there already: name a new folder") from error
    except OSError as error:
        raise unusable("--visualizer", args.visualizer, error) from error
    for device in dump.devices:
        if any(row.get("circular_buffers") is None for row in device.get("programs") or ()):
            tell(f"device {device['device_id']} does not tell the circular buffers of all its programs")
    told: dict[str, Any] = {"directory": args.visualizer, "operations": count}
    if args.json:
        write(json.dumps(told) + "\n")
    else:
        tell(f"{args.visualizer}: {count} operations")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    return run(build_parser(), _body, argv, empty={})
