"""Tell how L1 and DRAM of each device are cut up by buffers, and what sizes the other regions would have needed.

SOURCE is a dump, a recording (the last moment with live buffers, or --at) or a capture (for l1_small_size and
trace_region_size only); without it the devices of this host are read. Banks are allocated in lockstep: one stands for
all. How many banks DRAM has follows from the architecture and its size, or is told with --dram-banks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ttmem.cli import EXIT_DONE
from ttmem.cli.screens import add_no_color, screen_of, write
from ttmem.cli.sources import (
    UsageError,
    add_at,
    add_device,
    dump_of_file,
    live_devices,
    run,
    sizes_of_capture,
    verb_parser,
)
from ttmem.dumps import kind_of_file
from ttmem.fragments import (
    DramFragments,
    Fragments,
    Suggestion,
    advice_lines,
    dram_fragments_of,
    fragments_of,
    suggest_of_device,
)
from ttmem.units import format_bytes, parse_size
from ttmem.views.text import Screen, wrap

SHOWN = 8
"""How many holes are shown as text, the largest."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = verb_parser("fragmentation", __doc__, "exit codes: 0 done; 1 nothing to read; 2 wrong usage; 4 unreadable")
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a dump, a recording or a capture")
    add_device(parser)
    add("--dram-banks", type=int, metavar="N", help="banks of DRAM, if the device has not those of its architecture")
    add("--dram-bank-size", metavar="SIZE", help="of one bank of DRAM, where the architecture is not known")
    add("--json", action="store_true", help="the figures as JSON")
    add_no_color(parser)
    add_at(parser)
    return parser


def _body(args: argparse.Namespace, tell: Callable[[str], None]) -> int:
    found: list[tuple[Any, Fragments | None, DramFragments | None, list[Suggestion]]] = []
    try:
        bank_bytes = None if args.dram_bank_size is None else parse_size(args.dram_bank_size)
    except ValueError as error:
        raise UsageError(f"argument --dram-bank-size: {error}") from error
    if (args.dram_banks is not None and args.dram_banks < 1) or (bank_bytes is not None and bank_bytes < 1):
        raise UsageError("--dram-banks and --dram-bank-size must be at least 1")
    kind = None if args.source is None else kind_of_file(args.source)
    if kind == "capture":
        sizes_of = sizes_of_capture(args.source, args.device, tell)
        found = [(chip, None, None, sizes) for chip, sizes in sizes_of.items()]
    else:
        if kind is None:
            devices = live_devices(args.device, tell).devices
        else:
            devices = dump_of_file(args.source, kind, args.device, tell, args.at, buffers=True).devices
        for device in devices:
            pieces = fragments_of(device)
            if pieces is None:
                tell(
                    f"device {device.get('device_id')}: the L1 buffers or the geometry are not known here; a live "
                    "device or a recording of one that was published with its geometry tells them"
                )
            dram = dram_fragments_of(device, num_banks=args.dram_banks, bank_bytes=bank_bytes)
            if dram is not None and not dram.end_known:
                tell(
                    f"device {device.get('device_id')}: where a bank of DRAM ends is not known (architecture, size of DRAM "
                    "or number of banks is missing): what is free above its buffers is not told; see --dram-banks"
                )
            found.append((device.get("device_id"), pieces, dram, suggest_of_device(device)))
    if args.json:
        whole = [
            {
                "device_id": device_id,
                "l1": None if pieces is None else pieces.to_dict(),
                "dram": None if dram is None else dram.to_dict(),
                "suggestions": [size.to_dict() for size in sizes],
            }
            for device_id, pieces, dram, sizes in found
        ]
        write(json.dumps({"devices": whole}, indent=2) + "\n")
    else:
        screen = screen_of(sys.stdout, no_color=args.no_color)
        write("".join(_text(device_id, pieces, dram, sizes, screen) for device_id, pieces, dram, sizes in found))
    return EXIT_DONE


def _text(
    device_id: Any, pieces: Fragments | None, dram: DramFragments | None, sizes: Sequence[Suggestion], screen: Screen
) -> str:
    lines = [f"Device {device_id}:"]
    if pieces is not None:
        lines += _bank("L1 per bank", pieces, screen, end_known=True)
    if dram is not None:
        banks = f" of {dram.num_banks}" if dram.num_banks else ""
        lines += _bank(f"DRAM per bank{banks}", dram.pieces, screen, end_known=dram.end_known)
        if not dram.begin_known:
            lines += wrap("what is free below the lowest DRAM buffer is not known", screen, first="    ", rest="    ")
    for text in advice_lines(sizes):
        lines += wrap(text, screen, first="  ", rest="    ")
    return "".join(line + "\n" for line in lines)


def _bank(title: str, pieces: Fragments, screen: Screen, *, end_known: bool) -> list[str]:
    """Return the lines of one bank."""
    used, free = format_bytes(pieces.used_bytes), format_bytes(pieces.free_bytes)
    segments = f"{len(pieces.holes)} segment{'' if len(pieces.holes) == 1 else 's'}"
    text = f"{title}: {used} used, {free} free in {segments}, the largest "
    text += f"{format_bytes(pieces.largest_free_bytes)}; fragmentation {100 * pieces.index:.1f} %"
    if not end_known:
        text = f"{title}: {used} used, {free} free between buffers in {segments}; N/A above them"
    lines = wrap(text, screen, first="  ", rest="    ")
    largest = sorted(pieces.holes, key=lambda hole: hole[0] - hole[1])[:SHOWN]
    lines += [f"    {begin:>10} - {end:<10} {format_bytes(end - begin):>10}" for begin, end in sorted(largest)]
    if len(pieces.holes) > SHOWN:
        lines.append(f"    and {len(pieces.holes) - SHOWN} smaller ones")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    return run(build_parser(), _body, argv, empty={"devices": []})
