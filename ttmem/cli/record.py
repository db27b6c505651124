"""Record all devices of this host into a compact file, or export such a file.

The file can be read at any time, also after the recorder was killed; an existing recording is continued. Every key
frame, at least one a minute, the first and the last, holds the live buffers too. Devices that come and go are recorded
as they do.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType

from ttmem.cli import EXIT_DONE, EXIT_NOTHING, stdout, write
from ttmem.cli.sources import UsageError, run, unusable, verb_parser
from ttmem.export import EXPORTS
from ttmem.recording import RecordingWriter, open_recording, read_host_for_recording
from ttmem.units import format_bytes

_EPILOG = """\
exit codes: 0 done; 1 there never was a device; 2 wrong usage; 4 unreadable

examples:
  python -m ttmem record -o run.ttmem --interval 0.1 --duration 60
  python -m ttmem record run.ttmem --export chrome -o run.json      for chrome://tracing and ui.perfetto.dev
  python -m ttmem diff run.ttmem                                    the first moment against the last
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = verb_parser("record", __doc__, _EPILOG)
    add = parser.add_argument
    add("recording", nargs="?", metavar="RECORDING", help="a recording to export")
    add("-o", "--output", metavar="FILE", help="the recording, or what is exported (default stdout)")
    add("-i", "--interval", type=_seconds, default=1.0, metavar="SEC", help="between two moments (default 1)")
    add("--duration", type=_seconds, metavar="SEC", help="stop after so long (default: when interrupted)")
    add("--source", choices=("auto", "ttmem", "tt-metal"), default="auto", help="who published it (default auto)")
    add("--export", choices=sorted(EXPORTS), help="write RECORDING as counter tracks or as a table")
    add("--json", action="store_true", help="at the end, what was recorded or what RECORDING holds, as JSON")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}") from None
    if not 0.01 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected at least 0.01 seconds, got {text}")
    return seconds


def _body(args: argparse.Namespace, tell: Callable[[str], None]) -> int:
    if args.recording is not None:
        return _export(args, tell)
    if args.export is not None:
        raise UsageError("--export needs a RECORDING")
    if args.output is None:
        raise UsageError("-o FILE is needed: where the recording goes")
    return _record(args, tell)


class _Stop(BaseException):
    """A signal asked for the end."""


def _record(args: argparse.Namespace, tell: Callable[[str], None]) -> int:
    from ttmem.reader import Host

    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        if sleeping:
            raise _Stop

    sleeping = False
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    seen = 0
    by = "" if args.source == "auto" else f" (--source {args.source})"
    begin = time.monotonic()
    due, late = begin, 0
    host = Host()
    try:
        with RecordingWriter(args.output) as recording:
            while True:
                ending = stopped or (args.duration is not None and due - begin >= args.duration)
                key = ending or recording.key_due(time.time_ns())
                dump = read_host_for_recording(host, source=args.source, buffers=key)
                for problem in dump.problems:
                    tell(problem)
                if not dump.devices and not recording.frames:
                    tell(f"no device is published yet{by}: recorded as soon as one is")
                seen = max(seen, len(dump.devices))
                recording.write(dump, key=key)
                if ending:
                    break
                due += args.interval
                now = time.monotonic()
                if now > due:
                    # A moment that was missed is not made up for: the file says when each was taken.
                    late += 1
                    due = now
                try:
                    sleeping = True
                    if not stopped:
                        time.sleep(max(0.0, due - now))
                except _Stop:
                    pass
                finally:
                    sleeping = False
            frames, size = recording.frames, recording.size_bytes
    except OSError as error:
        # Reading the host raises none: what it cannot read is among its problems.
        raise unusable("-o", args.output, error) from error
    finally:
        host.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if late:
        tell(f"{late} of {frames} moments were late: take a longer --interval")
    if args.json:
        whole = {"file": args.output, "moments": frames, "size_bytes": size, "devices": seen, "late": late}
        write(json.dumps(whole) + "\n")
    else:
        tell(f"{frames} moments of {seen} devices in {args.output}, {format_bytes(size)}")
    return EXIT_DONE if seen else EXIT_NOTHING


def _export(args: argparse.Namespace, tell: Callable[[str], None]) -> int:
    if args.export is None and not args.json:
        raise UsageError("say what to do with RECORDING: --export chrome, --export csv, or --json")
    with open_recording(args.recording) as recording:
        if recording.damage:
            tell(recording.damage)
        if args.export is not None and args.output is not None:
            try:
                with open(args.output, "w", encoding="utf-8", newline="") as out:
                    EXPORTS[args.export](recording, out)
            except OSError as error:
                raise unusable("-o", args.output, error) from error
        elif args.export is not None:
            with stdout() as out:
                EXPORTS[args.export](recording, out)
        if args.json:
            times = recording.times_ns
            whole = {
                "file": args.recording,
                "moments": len(recording),
                "begin_ns": times[0] if times else None,
                "end_ns": times[-1] if times else None,
                "size_bytes": recording.end_bytes,
                "damaged_bytes": recording.damaged_bytes,
            }
            write(json.dumps(whole) + "\n")
        # What holds nothing is told of as well as shown.
        recording.require_moments()
        return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    return run(build_parser(), _body, argv)
