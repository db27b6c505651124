"""Print the L1, circular-buffer and DRAM use of all Tenstorrent devices, once or again and again."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ttmem._version import __version__
from ttmem.cli import (
    EXIT_CONDITION,
    EXIT_DONE,
    EXIT_NOTHING,
    EXIT_UNREADABLE,
    EXIT_USAGE,
    all_unread,
    ends_well,
    holds_nothing,
    parse,
    seconds_between,
    sigterm_interrupts,
)
from ttmem.cli.page import PageFile
from ttmem.cli.screens import add_no_color, screen_of, write
from ttmem.cli.selection import (
    UsageError,
    absent,
    add_device,
    device_filter,
    moment_option,
    no_such,
    nothing_published,
    unusable,
)
from ttmem.errors import TtmemError
from ttmem.views import fields
from ttmem.views.address import render_map
from ttmem.views.cores import METRICS, grid_of
from ttmem.views.dump import grid_text, render_devices
from ttmem.views.explanation import render_explanation
from ttmem.views.heat import render_heat_map
from ttmem.views.holders import Holders
from ttmem.views.tables import render_list, render_processes, render_programs
from ttmem.views.text import Screen, clean, wrap

_EPILOG = """\
exit codes: 0 done; 1 nothing to read; 2 wrong usage; 3 a --fail-if condition is true; 4 files there, none readable

examples:
  ttmem-dump                                        all devices
  watch -n 0.5 'ttmem-dump | grep -E "Device|CB:"'  the CBs, live
  ttmem-dump --query device_id,memory.cb.physical,l1.core.min_headroom --format csv,nounits
  ttmem-dump --fail-if 'l1.core.min_headroom < 64KiB'
  ttmem-dump --html page.html run.ttmem             a recording as one page
"""


def _core(text: str) -> tuple[int, int]:
    x, comma, y = text.partition(",")
    if not comma or not x.strip().isdigit() or not y.strip().isdigit():
        raise argparse.ArgumentTypeError(f"expected X,Y as in 3,4, got {text!r}")
    return int(x), int(y)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``ttmem-dump``."""
    parser = argparse.ArgumentParser(
        prog="ttmem-dump", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "file",
        nargs="?",
        metavar="FILE",
        help="show this file in place of the host: a recording of python -m ttmem record, or what --json wrote",
    )
    add(
        "--at",
        type=moment_option,
        metavar="MOMENT",
        help="of FILE: fullest (default), first, last, or seconds after the first",
    )
    add_device(parser)
    add("-L", "--list-devices", action="store_true", help="one line for each device")
    add("--json", action="store_true", help="the device objects as JSON")
    add("--csv", action="store_true", help="all fields, a row for each device, plain bytes")
    add(
        "--cores",
        nargs="?",
        const="cb_physical",
        metavar="FIGURE",
        help=f"heat map of the core grid; FIGURE is one of {', '.join(METRICS)} (default cb_physical)",
    )
    add("--map", type=_core, metavar="X,Y", help="address map of one core")
    add("--processes", action="store_true", help="the processes of each device")
    add("--programs", action="store_true", help="the cached programs of each device, largest first")
    add("--explain", action="store_true", help="what the figures of each device mean")
    add("--html", metavar="PAGE", help="write all of it, with the timeline of FILE, to one HTML page; - is stdout")
    add("--query", metavar="FIELDS", help="these fields, comma-separated, a row for each device; see --help-query")
    add("--format", metavar="FORMAT", help="of --query: csv[,noheader][,nounits]")
    add("--help-query", action="store_true", help="list all fields")
    add(
        "--fail-if",
        action="append",
        metavar="EXPR",
        help="FIELD OP VALUE[unit]: exit 3 if true on any device",
    )
    add(
        "-w",
        "--watch",
        nargs="?",
        type=seconds_between(0.05, 86400),
        const=1.0,
        metavar="SEC",
        help="repeat every SEC seconds (default 1)",
    )
    add("--source", choices=("auto", "ttmem", "tt-metal"), default="auto", help="who published it (default auto)")
    add("--compact", action="store_true", help="one line for each device, as where a terminal is too low for labels")
    add_no_color(parser)
    add("-V", "--version", action="version", version=f"ttmem {__version__}")
    return parser


def _view(args: argparse.Namespace) -> None:
    """Refuse views that exclude each other.

    Raises:
        UsageError: two views that cannot stand in one output were asked for.
    """
    asked = [
        name
        for name, on in (
            ("--json", args.json),
            ("--csv", args.csv),
            ("--query", args.query is not None),
            ("-L", args.list_devices),
        )
        if on
    ]
    text = [
        name
        for name, on in (
            ("--cores", args.cores),
            ("--map", args.map),
            ("--processes", args.processes),
            ("--programs", args.programs),
            ("--explain", args.explain),
            ("--compact", args.compact),
        )
        if on
    ]
    # JSON holds cores, programs and processes anyway, so those only choose what text shows.
    if len(asked) > 1 or (asked and asked != ["--json"] and text):
        raise UsageError(f"{' and '.join((asked + text)[:2])} cannot be used together")
    if args.html == "-" and (asked or text):
        raise UsageError(f"--html - and {(asked + text)[0]} cannot be used together: both go to stdout")
    args.only_html = args.html is not None and not asked and not text
    if args.cores is not None and args.cores not in METRICS:
        # The FILE of `--cores FILE` looks like its FIGURE.
        if args.file is not None or not os.path.exists(args.cores):
            raise UsageError(f"argument --cores: {args.cores!r} is none of {', '.join(METRICS)}")
        args.file, args.cores = args.cores, "cb_physical"
    if args.file is not None and args.watch is not None:
        raise UsageError("a file does not change: -w is for what is published on this host")
    if args.at is not None and args.file is None:
        raise UsageError("--at needs a file")
    if args.format and args.query is None:
        raise UsageError("--format needs --query")
    if args.query is not None and not args.format:
        args.format = "csv"


def _text(
    args: argparse.Namespace, snapshots: Sequence[Any], devices: Sequence[Any], screen: Screen, now_ns: int
) -> str:
    parts = []
    if args.cores:
        parts.append("\n".join(render_heat_map(device, screen, metric=args.cores) for device in devices))
    if args.map:
        parts.append(_maps(args.map, snapshots, devices, screen))
    if args.processes:
        parts.append(render_processes(devices, screen))
    if args.programs:
        parts.append(render_programs(devices, screen))
    if args.explain:
        parts.append(render_explanation(devices, screen))
    if not parts:
        return render_devices(devices, screen, compact=args.compact or None, now_ns=now_ns)
    return "\n".join(parts)


def _maps(core: tuple[int, int], snapshots: Sequence[Any], devices: Sequence[Any], screen: Screen) -> str:
    """Return the address map of a core of every device.

    Raises:
        UsageError: no device has such a core.
    """
    boxes = [grid_of(device) for device in devices]
    inside = [box is None or (box[0] <= core[0] <= box[2] and box[1] <= core[1] <= box[3]) for box in boxes]
    if not any(inside):
        grids = ", ".join(sorted({grid_text(device) for device in devices}))
        raise UsageError(f"argument --map: core {core[0]},{core[1]} is outside the grid ({grids})")
    maps = []
    for snapshot, device, there in zip(snapshots, devices, inside, strict=True):
        if not there:
            maps.append(render_map(device, core, None, screen))
            continue
        holders = Holders(device, None if "buffers" in device else snapshot.buffers())
        details = holders.details(*core, snapshot.core_map(*core))
        maps.append(render_map(device, core, details, screen, holdings=holders.on(*core)))
    return "\n".join(maps)


class _Dump:
    """One command line, carried out as often as it is watched."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.keep = device_filter(args.device) if args.device else None
        self.header, self.units = fields.parse_format(args.format) if args.format else (True, True)
        self.page = None if args.html is None else PageFile(args.html)
        self.host: str | None = None
        self.timeline: Any = None
        """Of a file; the page makes its own while this host is watched."""
        self.paged = False
        """Whether the page was written; while this host is watched, it shows also that devices went."""
        self.first = True
        self.told: set[str] = set()
        self.messages: list[str] | None = None
        """Where messages go in place of stderr: a screen that is painted over shows them itself."""

    def tell(self, text: str) -> None:
        """Say something on stderr; while watching, only once."""
        message = f"ttmem-dump: {clean(text)}"
        if self.messages is not None:
            self.messages.append(message)
        elif message not in self.told:
            self.told.add(message)
            print(message, file=sys.stderr)

    def said(self, text: str) -> None:
        """Say what was done, at the first time only."""
        if text and self.first:
            self.tell(text)

    def render(self, snapshots: Sequence[Any], devices: Sequence[Any], now_ns: int, screen: Screen) -> str:
        """Return what stdout gets."""
        args = self.args
        unread = all_unread(device.get("state") for device in devices)
        if self.page is not None and unread and not self.paged and os.path.isfile(args.html):
            # A page that was made before says more than one of nothing.
            self.tell(f"{args.html} is left as it was: there is nothing to show")
        elif self.page is not None:
            self.paged = True
            try:
                self.said(self.page.write(snapshots, devices, now_ns, host=self.host, timeline=self.timeline))
            except OSError as error:
                raise unusable("--html", args.html, error) from error
        if args.only_html:
            return ""
        if args.json:
            from ttmem.dumps import buffers_of  # so that --help costs nothing
            from ttmem.snapshot import whole

            full = [{**device, **buffers_of(snapshot)} for snapshot, device in zip(snapshots, devices, strict=True)]
            told = whole(full, taken_ns=now_ns)
            if self.host is not None:
                told["host"] = self.host
            return json.dumps(told, indent=2 if args.watch is None else None) + "\n"
        header = self.header and self.first
        if args.csv:
            return fields.render_csv(devices, header=header) if devices else ""
        if args.query is not None:
            asked = fields.parse_fields(args.query, devices)
            return fields.render_query(devices, asked, header=header, units=self.units) if devices else ""
        if args.list_devices:
            return render_list(devices)
        return _text(args, snapshots, devices, screen, now_ns) if devices else ""

    def read(self) -> Any:
        """Return a reading of this host, or the moment of the file that was asked for.

        Raises:
            TtmemError: nothing can be read.
        """
        if self.args.file is None:
            from ttmem.reader import read_host  # so that --help costs nothing

            return read_host(source=self.args.source)
        from ttmem.cli.moments import read_moment

        moment = read_moment(self.args.file, self.args.at or "fullest", self.keep, timeline=self.args.html is not None)
        self.host, self.timeline = moment.host, moment.timeline
        self.said(moment.sentence)
        return moment

    def run(self, screen: Screen) -> tuple[str, int]:
        """Read everything once; return the text and the exit code.

        Raises:
            UsageError: a field or a condition does not exist.
        """
        args = self.args
        now_ns = time.time_ns()
        try:
            reading = self.read()
        except (TtmemError, OSError) as error:
            # --json promises the object, whatever happens to what it is read from.
            self.tell(str(error))
            code = EXIT_NOTHING if args.file is not None and holds_nothing(error) else EXIT_UNREADABLE
            return self.render((), (), now_ns, screen), code
        pairs = [(snapshot, snapshot.to_dict()) for snapshot in reading.devices]
        every = [device for _, device in pairs]
        now_ns = reading.taken_ns
        if self.keep is not None:
            pairs = [pair for pair in pairs if self.keep(pair[1])]
        snapshots, devices = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        try:
            conditions = [fields.parse_condition(text, devices) for text in args.fail_if or ()]
            text = self.render(snapshots, devices, now_ns, screen)
        except ValueError as error:
            raise UsageError(str(error)) from error
        for problem in reading.problems:
            self.tell(problem)
        self.first = False
        if not devices:
            return text, self.nothing(reading, every)
        missing = absent(args.device, every)
        if missing:
            self.tell(no_such(missing, every))
        if all_unread(device.get("state") for device in devices):
            return text, EXIT_UNREADABLE
        code = EXIT_DONE
        for condition in conditions:
            for device in devices:
                met, sentence = fields.evaluate(condition, device)
                if sentence:
                    self.tell(sentence)
                if met:
                    code = EXIT_CONDITION
        return text, code

    def nothing(self, reading: Any, every: Sequence[Any]) -> int:
        """Say why there is no device, and what helps; return the exit code."""
        if every:
            self.tell(no_such(absent(self.args.device, every), every))
            return EXIT_NOTHING
        if self.args.file is not None:
            self.tell(f"{self.args.file}: no device at that moment")
            return EXIT_NOTHING
        if reading.found:
            self.tell(f"{reading.found} file(s) found, none of them readable")
            return EXIT_UNREADABLE
        self.tell(nothing_published(self.args.source))
        return EXIT_NOTHING


def _frame(text: str, messages: Sequence[str], screen: Screen) -> str:
    """Return what repaints the terminal: at most as many lines as it has, each clearing what it covers."""
    lines = text.splitlines() + [line for message in messages for line in wrap(message, screen)]
    if screen.height is not None and len(lines) > screen.height:
        hidden = len(lines) - screen.height + 1
        lines = [*lines[: screen.height - 1], f"... {hidden} more lines"]
    return "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J"


def _nap() -> tuple[Callable[[float], bool], Callable[[], None]]:
    """Return a wait in seconds that tells whether a signal came, since when the wait was made, and what undoes it.

    A KeyboardInterrupt may be lost where Python ignores exceptions, and a signal right before a sleep waits for its end.
    """
    if threading.current_thread() is not threading.main_thread():

        def slept(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        return slept, lambda: None
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def woken(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while select.select([read], [], [], max(0.0, deadline - time.monotonic()))[0]:
            # Others, as of a resized window, do not end the wait.
            if {signal.SIGINT, signal.SIGTERM} & set(os.read(read, 4096)):
                return True
        return False

    def close() -> None:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)

    return woken, close


def _watch(dump: _Dump, interval: float, no_color: bool) -> int:
    """Repeat until interrupted: a terminal is painted over, a pipe gets one text after the other."""
    out = sys.stdout
    paint = (
        out is not None
        and out.isatty()
        and not (dump.args.json or dump.args.csv or dump.args.query is not None or dump.args.only_html)
    )
    due = time.monotonic()
    woken, close = _nap()
    try:
        while True:
            screen = screen_of(out, no_color=no_color)
            dump.messages = [] if paint else None
            text, code = dump.run(screen)
            if code == EXIT_CONDITION and paint:
                # The last screen stays, and what was found goes where a script looks for it.
                found, dump.messages = dump.messages or [], None
                write(_frame(text, (), screen))
                print(*found, sep="\n", file=sys.stderr)
                return code
            write(_frame(text, dump.messages, screen) if dump.messages is not None else text)
            if code == EXIT_CONDITION:
                return code
            due = max(due + interval, time.monotonic())
            if woken(max(0.0, due - time.monotonic())):
                return EXIT_DONE
    except KeyboardInterrupt:
        return EXIT_DONE
    finally:
        close()


@ends_well("ttmem-dump")
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ttmem-dump`` and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    parser = build_parser()
    args = parse(parser, argv)
    if isinstance(args, int):
        return args
    try:
        if args.help_query:
            write(fields.render_help(screen_of(sys.stdout)))
            return EXIT_DONE
        _view(args)
        try:
            dump = _Dump(args)
            if args.query is not None and not args.query.strip(", "):
                raise UsageError("--query needs a field; --help-query lists them")
        except ValueError as error:
            raise UsageError(str(error)) from error
        if args.watch is not None:
            with sigterm_interrupts():
                code = _watch(dump, args.watch, args.no_color)
        else:
            text, code = dump.run(screen_of(sys.stdout, no_color=args.no_color))
            write(text)
        return code
    except UsageError as error:
        parser.print_usage(sys.stderr)
        print(f"ttmem-dump: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
