"""Tell whether circular buffers that do not exist yet would fit, and how large each may be; or size the regions set aside.

--cb is TILESxTILE_BYTES[xBUFFERS]: 8x2048x2 holds 8 tiles of 2048 bytes, double buffered, 32768 bytes on each core. A
plain size such as 64KiB will do, and @CORES behind either puts that one elsewhere. They are placed in the order given,
as one program. What they may take is --l1, the bytes of each core that CBs and L1 buffers share, or that of a device:
live (-d N), in a dump, at a moment of a recording, or in a capture, where the moment counts at which its L1 buffers
reached lowest.

--suggest tells instead what l1_small_size and trace_region_size would do for what ran: the peak of a device, live, in a
dump or a recording, or of a capture, with a margin and rounded up.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ttmem.clash import judge_capture
from ttmem.cli import EXIT_CONDITION, EXIT_DONE, EXIT_NOTHING, EXIT_UNREADABLE
from ttmem.cli.screens import add_no_color, screen_of, write
from ttmem.cli.sources import (
    NothingError,
    UsageError,
    add_at,
    add_geometry,
    dump_of_file,
    geometry_of,
    live_devices,
    run,
    select_chips,
    sizes_of_capture,
    verb_parser,
)
from ttmem.dumps import Dump, cb_base_of, kind_of_file, l1_limits_of
from ttmem.errors import InvalidIntervalError
from ttmem.fit import Room, fit, parse_cb, parse_cores
from ttmem.fragments import MARGIN, Suggestion, advice_lines, suggest_of_device
from ttmem.model import DRAM_ALIGNMENT, Geometry
from ttmem.replay import ASSUMED_CB_BASE
from ttmem.units import parse_size
from ttmem.views.fit import render_fit
from ttmem.views.text import wrap

_EPILOG = """\
exit codes: 0 it fits; 1 nothing to read, or not enough is known; 2 wrong usage; 3 it does not fit; 4 unreadable, or not to its
end

examples:
  python -m ttmem fit --cb 8x2048x2 --cores 0-0:7-7 --l1 1.3MiB
  python -m ttmem fit --cb 8x2048x2 --cb 64KiB@0-0:3-3 --cores 0-0:7-7 -d 0
  python -m ttmem fit --cb 8x2048x2 --cores 0-0:7-7 --buffer 512KiB --arch wormhole_b0
  python -m ttmem fit --suggest -d 0              what to open device 0 with the next time
"""
Tell = Callable[[str], None]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = verb_parser("fit", __doc__, _EPILOG)
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a dump, a recording or a capture whose device it is")
    add("--cb", action="append", metavar="CB", help="TILESxTILE_BYTES[xBUFFERS][@CORES] or SIZE[@CORES]")
    add("--cores", metavar="X-Y:X-Y", help="where they lie, corners inclusive; + joins rectangles")
    add("--l1", metavar="SIZE", help="bytes of each core that CBs and L1 buffers share")
    add("--buffer", action="append", metavar="SIZE", help="an L1 buffer to come, bytes on each core; may be repeated")
    add("--suggest", action="store_true", help="the sizes of the regions set aside, by what was used")
    add("--margin", type=float, default=100 * MARGIN, metavar="PERCENT", help="of --suggest, on top (default 10)")
    add("-d", "--device", action="append", metavar="N", help="these devices: ids or 0x asic ids, comma-separated")
    add("--json", action="store_true", help="the answer as JSON")
    add_no_color(parser)
    add_at(parser)
    add_geometry(parser)
    return parser


def _size(text: str, option: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(f"argument {option}: {error}") from error
    if size < 0:
        raise UsageError(f"argument {option}: must not be negative, got {text}")
    return size


def _thought_of(given: Geometry, shared: int | None) -> Room:
    """Return the room on a device of which only options tell."""
    alignment = DRAM_ALIGNMENT[given.arch] if given.arch else 64
    if shared is not None:
        base = given.l1_cb_base or 0
        return Room(base, alignment, base + shared)
    base = ASSUMED_CB_BASE[given.arch] if given.l1_cb_base is None and given.arch else given.l1_cb_base or 0
    assert given.worker_l1_size is not None
    return Room(base, alignment, given.worker_l1_size - (given.l1_small_size or 0))


def _of_device(device: Mapping[str, Any], given: Geometry, shared: int | None) -> Room:
    """Return the room on a device that is published or was dumped."""
    grid = device.get("grid")
    base = cb_base_of(device) if given.l1_cb_base is None else given.l1_cb_base
    if base is None:
        raise NothingError(f"device {device.get('device_id')} does not tell its CB base: give --l1-cb-base")
    if shared is not None:
        top: int | None = base + shared
    elif given.worker_l1_size is not None and given.l1_small_size is not None:
        top = given.worker_l1_size - given.l1_small_size
    else:
        top, _ = l1_limits_of(device)
    arch = given.arch or device.get("arch")
    lowest = {
        (row["x"], row["y"]): row["l1_lowest_address"]
        for row in device.get("cores") or ()
        if row.get("l1_lowest_address") is not None
    }
    return Room(
        base,
        DRAM_ALIGNMENT.get(str(arch), 64),
        top,
        (grid["x"], grid["y"]) if grid else None,
        lowest,
        device_id=device.get("device_id"),
    )


def _of_capture(args: argparse.Namespace, given: Geometry, shared: int | None, tell: Tell) -> tuple[list[Room], bool]:
    """Return the room on the chips of a capture, at the moment when its L1 buffers reached lowest.

    Returns:
        The room of each, and whether the capture was read to its end.
    """
    judgement = judge_capture(args.source, geometry=given)
    wide = any(_columns(finding.core_range) > 8 for finding in judgement.findings)
    rooms = []
    for chip, state in sorted(judgement.watch.chips.items()):
        laid = [
            cb.address
            for finding in judgement.findings
            if finding.device_id == chip
            for cb in finding.circular_buffers
            if cb.address is not None
        ]
        arch = state.arch or ("blackhole" if wide else "wormhole_b0")
        # The first CB of a program lies at the base.
        base = state.base if state.base is not None else min(laid, default=ASSUMED_CB_BASE[arch])
        top = base + shared if shared is not None else state.top
        rooms.append(Room(base, DRAM_ALIGNMENT[arch], top, None, {}, state.lowest_ever, chip))
    for notice in judgement.notices:
        tell(notice)
    if not rooms:
        raise NothingError(f"{args.source} has neither circular buffers nor L1 buffers")
    chosen = select_chips(judgement.watch.chips, args.device, tell)
    return [room for room in rooms if room.device_id in chosen], judgement.complete


def _columns(core_range: str | None) -> int:
    box = parse_cores(core_range).bounding_box if core_range else None
    return 0 if box is None else box.end.x + 1


def _rooms(args: argparse.Namespace, tell: Tell) -> tuple[list[Room], bool]:
    given = geometry_of(args)
    shared = None if args.l1 is None else _size(args.l1, "--l1")
    if args.source is not None:
        kind = kind_of_file(args.source)
        if kind == "capture":
            return _of_capture(args, given, shared, tell)
        devices = dump_of_file(args.source, kind, args.device, tell, args.at).devices
        return [_of_device(device, given, shared) for device in devices], True
    if args.device is None and (shared is not None or given.worker_l1_size is not None):
        return [_thought_of(given, shared)], True
    dump: Dump = live_devices(args.device, tell, buffers=False)
    return [_of_device(device, given, shared) for device in dump.devices], True


def _suggest(args: argparse.Namespace, tell: Tell) -> int:
    """Tell what the regions set aside would have needed."""
    if args.cb or args.cores or args.l1 or args.buffer:
        raise UsageError("--suggest goes without --cb, --cores, --l1 and --buffer")
    if not 0 <= args.margin <= 1000:
        raise UsageError(f"argument --margin: expected 0 to 1000 percent, got {args.margin}")
    kind = None if args.source is None else kind_of_file(args.source)
    found: dict[Any, list[Suggestion]]
    if kind == "capture":
        found = dict(sizes_of_capture(args.source, args.device, tell))
    else:
        if kind is None:
            devices = live_devices(args.device, tell, buffers=False).devices
        else:
            devices = dump_of_file(args.source, kind, args.device, tell, args.at).devices
        found = {device.get("device_id"): suggest_of_device(device) for device in devices}
        for device_id in [device_id for device_id, sizes in found.items() if not sizes]:
            tell(f"device {device_id} tells no peak of L1_SMALL or traces (TT-Metal's own regions do not)")
    margin = args.margin / 100
    if args.json:
        rows = [{"device_id": i, "suggestions": [size.to_dict(margin) for size in sizes]} for i, sizes in found.items()]
        write(json.dumps({"devices": rows}, indent=2) + "\n")
    else:
        screen = screen_of(sys.stdout, no_color=args.no_color)
        for device_id, sizes in found.items():
            lines = [wrap(text, screen, first="  ", rest="    ") for text in advice_lines(sizes, margin)]
            write("".join(f"{line}\n" for line in (f"Device {device_id}:", *(part for one in lines for part in one))))
    return EXIT_DONE


def _body(args: argparse.Namespace, tell: Tell) -> int:
    if args.suggest:
        return _suggest(args, tell)
    if not args.cb:
        raise UsageError("--cb is needed: what should fit; or --suggest")
    try:
        cores = None if args.cores is None else parse_cores(args.cores)
        specs = [parse_cb(text, cores) for text in args.cb]
    except ValueError as error:
        raise UsageError(str(error)) from error
    taken = sum(_size(text, "--buffer") for text in args.buffer or ())
    try:
        rooms, complete = _rooms(args, tell)
        answers = [fit(specs, room, taken=taken) for room in rooms]
    except InvalidIntervalError as error:
        raise UsageError(str(error)) from error
    fits = all(answer.fits for answer in answers)
    unknown = [answer for answer in answers if not answer.known and answer.fits]
    if unknown:
        tell("how far L1 reaches is not known: give --l1, or --worker-l1-size and --l1-small-size")
    if args.json:
        whole = {
            "fits": False if not fits else None if unknown else True,
            "devices": [answer.to_dict() for answer in answers],
        }
        write(json.dumps(whole, indent=2) + "\n")
    else:
        screen = screen_of(sys.stdout, no_color=args.no_color)
        write("\n".join(render_fit(answer, screen) for answer in answers))
    if not fits:
        return EXIT_CONDITION
    if not complete:
        return EXIT_UNREADABLE
    return EXIT_DONE if not unknown else EXIT_NOTHING


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    return run(build_parser(), _body, argv, empty={"fits": None, "devices": []})
