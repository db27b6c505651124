"""Tell which devices of a mesh hold something else than the others, and by what.

SOURCE is a dump or a recording (whose last moment counts); without it the devices of this host are read several times,
and only what differs each time counts, for devices that work are never read at one instant.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence

from ttmem.cli import EXIT_CONDITION, EXIT_DONE
from ttmem.cli.screens import add_no_color, screen_of, write
from ttmem.cli.sources import (
    NothingError,
    UnreadableError,
    add_device,
    dump_of_file,
    live_devices,
    run,
    verb_parser,
)
from ttmem.dumps import kind_of_file
from ttmem.lockstep import Outlier, lasting, outliers
from ttmem.units import format_exact
from ttmem.views.text import Screen, wrap

_EPILOG = """\
exit codes: 0 all hold the same; 1 fewer than two devices; 2 wrong usage; 3 one is out of step; 4 unreadable
"""
LOOKS = 3
"""How often live devices are read."""
PAUSE_SECONDS = 0.2
SHOWN = 10
"""How many differences of a device are shown as text."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = verb_parser("lockstep", __doc__, _EPILOG)
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a dump or a recording")
    add_device(parser)
    add("--json", action="store_true", help="the outliers as JSON")
    add_no_color(parser)
    return parser


def _body(args: argparse.Namespace, tell: Callable[[str], None]) -> int:
    looks = 1
    if args.source is None:
        dump = live_devices(args.device, tell, buffers=False, files="a dump or a recording")
        looks = LOOKS
    else:
        kind = kind_of_file(args.source)
        if kind == "capture":
            raise UnreadableError(f"{args.source} is a graph capture: replay it with --hold and compare the devices")
        dump = dump_of_file(args.source, kind, args.device, tell)
    devices = dump.devices
    if len(devices) < 2:
        raise NothingError("lockstep needs two devices or more to compare")
    found = outliers(devices)
    for _ in range(looks - 1):
        if not found:
            break
        time.sleep(PAUSE_SECONDS)
        found = lasting(found, outliers(live_devices(args.device, tell, buffers=False).devices))
    if args.json:
        write(json.dumps({"devices": len(devices), "outliers": [o.to_dict() for o in found]}, indent=2) + "\n")
    else:
        write(_text(found, len(devices), screen_of(sys.stdout, no_color=args.no_color)))
    return EXIT_CONDITION if found else EXIT_DONE


def _text(found: Sequence[Outlier], count: int, screen: Screen) -> str:
    if not found:
        return f"{count} devices hold the same.\n"
    lines = []
    for outlier in found:
        chip = f" ({outlier.asic_id})" if outlier.asic_id else ""
        most = all(2 * difference.holders > count for difference in outlier.differences)
        number = len(outlier.differences)
        figures = f"{number} figure{'s' if number > 1 else ''}"
        lines.append(
            f"Device {outlier.device_id}:{chip} differs in {figures} from {'most' if most else 'others'} of {count}"
        )
        for difference in outlier.differences[:SHOWN]:
            value, expected = format_exact(difference.value), format_exact(difference.expected)
            have = "most have" if 2 * difference.holders > count else f"{difference.holders} of {count} have"
            have = have.replace("have", "has") if difference.holders == 1 else have
            lines += wrap(f"{difference.name}: {value}, {have} {expected}", screen, first="  ", rest="    ")
        if len(outlier.differences) > SHOWN:
            lines.append(f"  and {len(outlier.differences) - SHOWN} more; --json lists them")
    return "".join(line + "\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    return run(build_parser(), _body, argv, empty={"devices": 0, "outliers": []})
