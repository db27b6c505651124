"""Tell the most that was used of each device: when it was, and which programs and buffers took it there.

SOURCE is a dump of ttmem-dump --json or a recording; without it the devices of this host are read. What the writers
mark is exact, since publication. Of a recording, and with --for, the peaks begin with its first moment; what lay between
two readings may have been higher where it says "at least". Nothing of the processes that are watched is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence

from ttmem.cli import EXIT_DONE, EXIT_NOTHING, seconds_between, sigterm_interrupts
from ttmem.cli.screens import add_no_color, screen_of, write
from ttmem.cli.sources import (
    NothingError,
    UsageError,
    add_device,
    device_filter,
    dump_of_file,
    live_devices,
    opened_recording,
    run,
    verb_parser,
)
from ttmem.dumps import DumpError, kind_of_file
from ttmem.peaks import HostPeaks
from ttmem.views.peaks import render_peaks

_EPILOG = """\
exit codes: 0 done; 1 nothing to read; 2 wrong usage; 4 unreadable

examples:
  python -m ttmem peaks                       since each device was published
  python -m ttmem peaks --for 60              of the next minute
  python -m ttmem peaks run.ttmem --json      of a recording, core by core
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = verb_parser("peaks", __doc__, _EPILOG)
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a dump or a recording")
    add_device(parser)
    add(
        "--for",
        dest="seconds",
        type=seconds_between(0.01, 86400),
        metavar="SEC",
        help="the peaks of the next SEC seconds",
    )
    add(
        "-i",
        "--interval",
        type=seconds_between(0.01, 3600),
        default=0.1,
        metavar="SEC",
        help="between readings of --for",
    )
    add("--json", action="store_true", help="the peaks as JSON, with those of the cores")
    add_no_color(parser)
    return parser


def _of_recording(path: str, wanted: Sequence[str] | None, tell: Callable[[str], None]) -> HostPeaks:
    peaks = HostPeaks()
    with opened_recording(path, tell) as recording:
        test = device_filter(wanted)
        for index, dump in enumerate(recording):
            peaks.add([device for device in dump.devices if test(device)], dump.taken_ns)
            if not index:
                for device in peaks.devices.values():
                    # What was before the recording began is no peak of the recording.
                    device.reset()
        if not peaks.devices:
            raise NothingError(f"no moment of {path} has such a device: {', '.join(wanted or ('any',))}")
    return peaks


def _of_the_host(args: argparse.Namespace, tell: Callable[[str], None]) -> HostPeaks:
    peaks = HostPeaks()
    dump = live_devices(args.device, tell, files="a dump or a recording")
    peaks.add(dump.devices, dump.taken_ns)
    if args.seconds is None:
        return peaks
    for device in peaks.devices.values():
        device.reset()
    begin = time.monotonic()
    end = begin + args.seconds
    try:
        with sigterm_interrupts():
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, args.interval))
                # Those that went may come back.
                with contextlib.suppress(NothingError):
                    dump = live_devices(args.device, tell)
                    peaks.add(dump.devices, dump.taken_ns)
    except KeyboardInterrupt:
        tell(f"stopped after {time.monotonic() - begin:.1f} s: the peaks until then")
    return peaks


def _body(args: argparse.Namespace, tell: Callable[[str], None]) -> int:
    if args.source is None:
        peaks = _of_the_host(args, tell)
    elif args.seconds is not None:
        raise UsageError("--for watches this host: give it without SOURCE")
    else:
        kind = kind_of_file(args.source)
        if kind == "recording":
            peaks = _of_recording(args.source, args.device, tell)
        elif kind == "dump":
            dump = dump_of_file(args.source, kind, args.device, tell)
            peaks = HostPeaks()
            peaks.add(dump.devices, dump.taken_ns)
        else:
            raise DumpError(f"{args.source} is a graph capture: replay it with --hold and ask for the device")
    found = list(peaks.devices.values())
    if args.json:
        write(json.dumps({"devices": [device.to_dict() for device in found]}, indent=2) + "\n")
    else:
        write(render_peaks([device.to_dict() for device in found], screen_of(sys.stdout, no_color=args.no_color)))
    return EXIT_DONE if found else EXIT_NOTHING


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    return run(build_parser(), _body, argv, empty={"devices": []})
