"""Tell what changed between two dumps or recordings, by device, type, program, process and buffer name.

A and B are files of ttmem-dump --json or of record (of a recording the last moment counts); - is stdin, and live is
this host as it is now. One recording alone is compared with itself, from its first moment to its last. Growth of DRAM,
L1, L1_SMALL and TRACE is called a leak: it is for you to choose two moments at which the same should be held. What the
program cache adds is listed apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from ttmem.cli import EXIT_CONDITION, EXIT_DONE
from ttmem.cli.screens import add_no_color, screen_of, write
from ttmem.cli.sources import (
    UnreadableError,
    UsageError,
    absent,
    add_device,
    device_filter,
    opened_recording,
    run,
    verb_parser,
)
from ttmem.diff import diff
from ttmem.dumps import Dump, DumpError, dump_of_text, kind_of_file, read_dump, read_live
from ttmem.units import format_bytes, parse_size
from ttmem.views.diff import render_diff

_EPILOG = """\
exit codes: 0 done; 1 nothing to read; 2 wrong usage; 3 a leak with --fail-on-leak; 4 unreadable

examples:
  ttmem-dump --json > a.json; python my_test.py; ttmem-dump --json > b.json
  python -m ttmem diff a.json b.json --fail-on-leak
  python -m ttmem diff a.json live
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = verb_parser("diff", __doc__, _EPILOG)
    add = parser.add_argument
    add("a", metavar="A", help="a dump, a recording, - or live")
    add("b", metavar="B", nargs="?", help="the same, later")
    add_device(parser)
    add("--fail-on-leak", action="store_true", help="exit 3 if any device holds more DRAM, L1, L1_SMALL or TRACE")
    add("--tolerance", metavar="SIZE", default="0", help="what --fail-on-leak lets pass per device and type")
    add("--json", action="store_true", help="the changes as JSON")
    add_no_color(parser)
    return parser


def _load(name: str, tell: Callable[[str], None]) -> Dump:
    if name == "live":
        return read_live()
    if name == "-":
        return dump_of_text(sys.stdin.read(), "stdin")
    kind = kind_of_file(name)
    if kind == "dump":
        return read_dump(name)
    if kind == "recording":
        with opened_recording(name, tell) as recording:
            return recording[-1]
    raise DumpError(f"{name} is a graph capture: replay it with --hold and dump it at two moments, or see explain")


def _both_ends(name: str, tell: Callable[[str], None]) -> tuple[Dump, Dump]:
    """Return the first and the last moment of a recording."""
    with opened_recording(name, tell) as recording:
        if len(recording) == 1 and recording.damage:
            raise UnreadableError(f"only one moment of {name} can be read: there is nothing to compare it with")
        if len(recording) == 1:
            tell(f"{name} holds one moment only: it is compared with itself")
        return recording[0], recording[-1]


def _body(args: argparse.Namespace, tell: Callable[[str], None]) -> int:
    try:
        tolerance = parse_size(args.tolerance)
    except ValueError as error:
        raise UsageError(f"argument --tolerance: {error}") from error
    if args.b is None:
        if args.a in ("-", "live") or kind_of_file(args.a) != "recording":
            raise UsageError("expected A and B; only a recording is compared with itself")
        a, b = _both_ends(args.a, tell)
    else:
        a, b = _load(args.a, tell), _load(args.b, tell)
    test = device_filter(args.device)
    a, b = (Dump([d for d in dump.devices if test(d)], dump.taken_ns, dump.host) for dump in (a, b))
    missing = absent(args.device, (*a.devices, *b.devices))
    if missing:
        tell(f"no such device: {', '.join(missing)}")
    found = diff(a, b)
    if not found:
        tell("neither side has a device to compare")
    unnamed = [f.device_id for f in found if f.leaks and f.buffers is None]
    if unnamed:
        tell("what leaked cannot be named: a side holds no list of buffers, as ttmem-dump --json writes it")
    for device in (*a.devices, *b.devices):
        if device.get("buffers_omitted"):
            tell(
                f"device {device.get('device_id')} does not list {device['buffers_omitted']} of its live buffers: "
                "the totals are exact, the names are not all there"
            )
    leaks = {(f.device_id, kind): size for f in found for kind, size in f.leaks.items() if size > tolerance}
    if args.json:
        whole = {
            "a": {"host": a.host, "taken_ns": a.taken_ns},
            "b": {"host": b.host, "taken_ns": b.taken_ns},
            "leak_bytes": sum(leaks.values()),
            "devices": [device.to_dict() for device in found],
        }
        write(json.dumps(whole, indent=2) + "\n")
    else:
        write(render_diff(found, screen_of(sys.stdout, no_color=args.no_color)))
    if args.fail_on_leak and leaks:
        for (device_id, kind), size in leaks.items():
            tell(f"device {device_id} holds {format_bytes(size)} more {kind} than before")
        return EXIT_CONDITION
    return EXIT_DONE if found else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    return run(build_parser(), _body, argv, empty={"leak_bytes": 0, "devices": []})
