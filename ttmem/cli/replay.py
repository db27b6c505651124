"""Feed a ttnn graph capture, a report file or a recording through a publisher, as if its program ran now."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from types import FrameType
from typing import Any

from ttmem._version import __version__
from ttmem.cli import EXIT_DONE, EXIT_NOTHING, EXIT_UNREADABLE, EXIT_USAGE, ends_well, parse, write
from ttmem.units import parse_size

_EPILOG = """\
exit codes: 0 done; 1 no such file, or no moment in it; 2 wrong usage, or nothing can be published here; 4 the capture
cannot be read, or not to its end (what came before is published until the command ends)

examples:
  ttmem-replay capture.json.gz --grid 8x8 --arch wormhole_b0 --dump
  ttmem-replay capture.json --hold &            then: ttmem-dump, ttmem-top
  ttmem-replay capture.json --speed 0.1 --loop  at a tenth of the recorded speed, again and again
  ttmem-replay run.ttmem --speed 1              what python -m ttmem record -o run.ttmem saw, at its pace
"""


class _Stop(BaseException):
    """SIGTERM or SIGINT came: withdraw and end. No error, so that nothing takes it for one."""


def _grid(text: str) -> tuple[int, int]:
    x, cross, y = text.lower().partition("x")
    if not cross or not x.isdigit() or not y.isdigit():
        raise argparse.ArgumentTypeError(f"expected XxY as in 8x8, got {text!r}")
    return int(x), int(y)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``ttmem-replay``."""
    parser = argparse.ArgumentParser(
        prog="ttmem-replay", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("capture", metavar="CAPTURE", help="a graph capture or report of ttnn (.json, .json.gz), or a recording")
    add("--device-id", type=int, default=0, metavar="N", help="added to the chip ids of CAPTURE (default 0)")
    add("--arch", help="grayskull, wormhole_b0 or blackhole; tells the size of L1")
    add("--grid", type=_grid, metavar="XxY", help="the compute grid, as in 8x8")
    add("--worker-l1-size", type=_size, metavar="SIZE", help="L1 of a core (1464KiB, or bytes)")
    add("--l1-cb-base", type=_size, metavar="SIZE", help="the first L1 address of circular buffers")
    add("--l1-small-size", type=_size, metavar="SIZE", help="L1_SMALL of a core")
    add("--dram-size", type=_size, metavar="SIZE", help="DRAM of a device (12GiB, or bytes)")
    add("--speed", type=_positive, metavar="X", help="X times the recorded durations (default: as fast as it can)")
    add("--loop", action="store_true", help="again and again, until SIGINT or SIGTERM")
    add("--hold", nargs="?", type=_positive, const=0.0, metavar="SEC", help="stay after the end, for ever without SEC")
    add("--dump", action="store_true", help="print ttmem-dump of the result at the end")
    add("--json", action="store_true", help="print what was replayed as JSON; with --dump, the dump")
    add("-q", "--quiet", action="store_true", help="no progress and no notes on stderr")
    add("-V", "--version", action="version", version=f"ttmem {__version__}")
    return parser


def _say(text: str) -> None:
    print(f"ttmem-replay: {text}", file=sys.stderr)


class _ProgressBar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, wanted: bool) -> None:
        self._bar: Any = None
        if wanted and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("replaying", total=None)
            self._bar.start()

    def __call__(self, progress: Any) -> None:
        if self._bar is not None and not hasattr(progress, "nodes"):
            self._bar.update(
                self._task,
                total=progress.of,
                completed=progress.moments,
                description=f"{progress.moments} of {progress.of} moments",
            )
        elif self._bar is not None:
            self._bar.update(
                self._task,
                total=progress.size_bytes or None,
                completed=progress.position_bytes,
                description=f"{progress.nodes} nodes, {progress.dispatches} dispatches",
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _stop(signum: int, frame: FrameType | None) -> None:
    raise _Stop


def _hold(seconds: float) -> None:
    # An event that nobody sets: unlike input() it needs no terminal, and a signal ends it.
    threading.Event().wait(seconds or None)


def _summary_object(summary: Any) -> dict[str, Any]:
    counts = asdict(summary.counts) if hasattr(summary, "counts") else {"moments": summary.moments}
    return {
        **counts,
        "device_ids": summary.device_ids,
        "duration_ns": summary.duration_ns,
        "assumed": getattr(summary, "assumed", None),
        "warnings": summary.warnings,
        "error": None if summary.error is None else str(summary.error),
    }


def _run(args: argparse.Namespace) -> int:
    import ttmem
    from ttmem.dumps import DumpError, kind_of_file
    from ttmem.model import Geometry
    from ttmem.playback import Playback
    from ttmem.replay import Replay

    geometry = Geometry.of(
        arch=args.arch,
        grid=args.grid,
        worker_l1_size=args.worker_l1_size,
        l1_cb_base=args.l1_cb_base,
        l1_small_size=args.l1_small_size,
        dram_size=args.dram_size,
    )
    note = (lambda text: None) if args.quiet else _say
    bar = _ProgressBar(not args.quiet)
    published = False
    lost: dict[int, str] = {}

    def publish(device_id: int, **options: Any) -> Any:
        publisher = ttmem.publish(device_id, **{"origin": "replay", **options})
        if publisher.published:
            nonlocal published
            published = True
        else:
            lost[device_id] = _why_lost(publisher)
        return publisher

    def shown() -> list[int]:
        return [device_id for device_id in summary.device_ids if device_id not in lost]

    told: dict[str, Any] = {"device_id": args.device_id, "geometry": geometry, "speed": args.speed, "on_progress": bar}
    try:
        recorded = kind_of_file(args.capture) == "recording"
    except DumpError:
        # What is no file that anybody knows is explained by the reader of captures.
        recorded = False
    replay: Playback | Replay
    replay = (
        Playback(args.capture, publish, **told) if recorded else Replay(args.capture, publish, on_notice=note, **told)
    )
    with replay:
        try:
            try:
                summary: Any = replay.run()
                # What publishes nothing would turn round and round as fast as it can.
                while args.loop and summary.error is None and published:
                    summary = replay.run()
            finally:
                bar.close()
            for warning in summary.warnings:
                note(warning)
            if summary.error is not None:
                _say(f"{summary.error}" + ("; what came before it is published" if shown() else ""))
            if lost:
                _say(("" if published else "nothing is published: ") + next(iter(lost.values())))
            told_code = EXIT_DONE
            if args.dump:
                if not shown() and not lost and summary.error is None:
                    _say("no device is published at the end: there is nothing to show")
                told_code = _dump(shown(), args.json)
            elif args.json:
                write(json.dumps(_summary_object(summary), indent=2) + "\n")
            if args.hold is not None and (published or not lost):
                if not args.quiet:
                    ids = ", ".join(map(str, shown())) or "none"
                    what = f"{summary.moments} moments" if recorded else f"{summary.counts.nodes} nodes"
                    until = f"for {args.hold:g} s or until" if args.hold else "until"
                    _say(f"replayed {what}; holding device {ids} {until} SIGINT or SIGTERM")
                _hold(args.hold)
        except _Stop:
            # Asked to end: the devices are withdrawn on the way out.
            return EXIT_DONE
    if summary.error is not None:
        return EXIT_UNREADABLE
    if lost:
        return EXIT_USAGE
    return EXIT_NOTHING if recorded and not summary.moments else told_code


def _why_lost(publisher: Any) -> str:
    """Return why a publisher publishes nothing, and what helps."""
    problem = getattr(publisher, "problem", "")
    if not problem:
        return "TTMEM_DISABLE is set: run without it"
    return f"device {publisher.device_id}: {problem}: TTMEM_SHM_DIR names a directory that can be written"


def _dump(device_ids: Sequence[int], as_json: bool) -> int:
    from ttmem.cli import dump

    if not device_ids:
        # Without -d it would be every device of this host.
        if as_json:
            from ttmem.snapshot import whole

            write(json.dumps(whole([], taken_ns=time.time_ns()), indent=2) + "\n")
        return EXIT_NOTHING
    wanted = ["-d", ",".join(map(str, device_ids))]
    return dump.main([*wanted, "--source", "ttmem", *(["--json"] if as_json else [])])


@ends_well("ttmem-replay")
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ttmem-replay`` and return its exit code."""
    from ttmem.errors import CaptureError
    from ttmem.recording import RecordingError

    args = parse(build_parser(), argv)
    if isinstance(args, int):
        return args
    if not os.path.exists(args.capture):
        _say(f"no such file: {args.capture}")
        return EXIT_NOTHING
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _run(args)
    except _Stop:
        return EXIT_DONE
    except (CaptureError, RecordingError) as error:
        _say(str(error))
        return EXIT_UNREADABLE
    except ValueError as error:
        _say(str(error))
        return EXIT_USAGE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
