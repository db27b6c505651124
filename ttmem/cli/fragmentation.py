"""Tell how the L1 of each device is cut up by its buffers, and what sizes its other regions would have needed.

SOURCE is a dump, a recording (the last moment with live buffers, or --at) or a capture (for l1_small_size and
trace_region_size only); without it the devices of this host are read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ttmem.capture import CaptureReader
from ttmem.cli import EXIT_DONE
from ttmem.cli.dump import screen_of
from ttmem.cli.sources import add_at, live_devices, recorded_moment, run, select_devices, write
from ttmem.dumps import Dump, kind_of_file, read_dump
from ttmem.fragments import (
    Fragments,
    RegionWatch,
    Suggestion,
    advice_lines,
    fragments_of,
    suggest_of_capture,
    suggest_of_device,
)
from ttmem.interpreter import CaptureInterpreter
from ttmem.units import format_bytes
from ttmem.views.text import Screen, wrap

SHOWN = 8
"""How many holes are shown as text, the largest."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = argparse.ArgumentParser(
        prog="python -m ttmem fragmentation",
        description=__doc__,
        epilog="exit codes: 0 done; 1 nothing to read; 2 wrong usage; 4 unreadable",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a dump, a recording or a capture")
    add("-d", "--device", action="append", metavar="N", help="only these devices: ids or 0x asic ids, comma-separated")
    add("--json", action="store_true", help="the figures as JSON")
    add("--no-color", action="store_true", help="plain text; so does NO_COLOR")
    add_at(parser)
    return parser


def _of_capture(path: str) -> dict[int, list[Suggestion]]:
    watch = RegionWatch()
    interpreter = CaptureInterpreter(watch)
    for node in CaptureReader(path).nodes():
        interpreter.feed(node)
    interpreter.finish()
    return suggest_of_capture(watch)


def _body(args: argparse.Namespace, tell: Callable[[str], None]) -> int:
    found: list[tuple[Any, Fragments | None, list[Suggestion]]] = []
    kind = None if args.source is None else kind_of_file(args.source)
    if kind == "capture":
        found = [(chip, None, sizes) for chip, sizes in _of_capture(args.source).items()]
        if not found:
            tell(f"{args.source} has neither L1_SMALL nor TRACE buffers: 0 is enough for both")
    else:
        if kind == "dump":
            dump = read_dump(args.source)
        elif kind == "recording":
            dump = recorded_moment(args.source, args.at, buffers=True)
        else:
            dump = live_devices(args.device, tell)
        dump = Dump(select_devices(dump, args.device), dump.taken_ns, dump.host)
        for device in dump.devices:
            pieces = fragments_of(device)
            if pieces is None:
                tell(
                    f"device {device.get('device_id')}: the L1 buffers or the geometry are not known here; a live "
                    "device or a recording of one that was published with its geometry tells them"
                )
            found.append((device.get("device_id"), pieces, suggest_of_device(device)))
    if args.json:
        whole = [
            {
                "device_id": device_id,
                "l1": None if pieces is None else pieces.to_dict(),
                "suggestions": [size.to_dict() for size in sizes],
            }
            for device_id, pieces, sizes in found
        ]
        write(json.dumps({"devices": whole}, indent=2) + "\n")
    else:
        screen = screen_of(sys.stdout, no_color=args.no_color)
        write("".join(_text(device_id, pieces, sizes, screen) for device_id, pieces, sizes in found))
    return EXIT_DONE


def _text(device_id: Any, pieces: Fragments | None, sizes: Sequence[Suggestion], screen: Screen) -> str:
    lines = [f"Device {device_id}:"]
    if pieces is not None:
        lines += wrap(
            f"L1 per bank: {format_bytes(pieces.used_bytes)} used, {format_bytes(pieces.free_bytes)} free in "
            f"{len(pieces.holes)} segments, the largest {format_bytes(pieces.largest_free_bytes)}; fragmentation "
            f"{100 * pieces.index:.1f} %",
            screen,
            first="  ",
            rest="    ",
        )
        largest = sorted(pieces.holes, key=lambda hole: hole[0] - hole[1])[:SHOWN]
        lines += [f"    {begin:>10} - {end:<10} {format_bytes(end - begin):>10}" for begin, end in sorted(largest)]
        if len(pieces.holes) > SHOWN:
            lines.append(f"    and {len(pieces.holes) - SHOWN} smaller ones")
    for text in advice_lines(sizes):
        lines += wrap(text, screen, first="  ", rest="    ")
    return "".join(line + "\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    return run(build_parser(), _body, argv, empty={"devices": []})
