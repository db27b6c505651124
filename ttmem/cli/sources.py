"""What the verbs that answer questions share: where their devices come from, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import select
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ttmem.cli import EXIT_NOTHING, EXIT_UNREADABLE, EXIT_USAGE, ends_well, holds_nothing, parse, write
from ttmem.cli.selection import UsageError as UsageError
from ttmem.cli.selection import absent as absent
from ttmem.cli.selection import add_device as add_device
from ttmem.cli.selection import device_filter as device_filter
from ttmem.cli.selection import no_such, nothing_published
from ttmem.cli.selection import unusable as unusable
from ttmem.dumps import Dump, read_dump, read_live
from ttmem.errors import TtmemError
from ttmem.model import Geometry
from ttmem.units import parse_size
from ttmem.views.text import clean

if TYPE_CHECKING:
    from ttmem.fragments import Suggestion
    from ttmem.recording import Recording

STDIN_WAIT_SECONDS = 5.0
"""How long a pipe on stdin that nobody asked for may stay silent before it is taken for nothing."""


class NothingError(Exception):
    """There was nothing to read."""


class UnreadableError(Exception):
    """There were files, and none was readable."""


def select_devices(
    dump: Dump,
    wanted: Sequence[str] | None,
    tell: Callable[[str], None],
    path: str | None = None,
    *,
    files: str = "a capture or a dump",
) -> list[dict[str, Any]]:
    """Return the devices that ``-d`` names, all without it.

    Args:
        dump: of them all.
        wanted: what ``-d`` says.
        tell: is told of names that are no device while others are.
        path: the file that the dump comes from, None for this host.
        files: what may be named in place of this host.

    Raises:
        NothingError: there is none.
        UsageError: a name is no id.
    """
    test = device_filter(wanted)
    found = [device for device in dump.devices if test(device)]
    missing = absent(wanted, dump.devices)
    if not found and dump.devices:
        raise NothingError(no_such(missing, dump.devices))
    if not found and path is not None:
        raise NothingError(f"{path} holds no device")
    if not found and dump.problems:
        raise UnreadableError("; ".join(dump.problems))
    if not found:
        raise NothingError(nothing_published(files=f"name {files}, or "))
    if missing:
        tell(no_such(missing, dump.devices))
    return found


def live_devices(
    wanted: Sequence[str] | None,
    tell: Callable[[str], None],
    *,
    buffers: bool = True,
    files: str = "a capture or a dump",
) -> Dump:
    """Return the devices of this host that ``-d`` names, with their live buffers.

    Args:
        wanted: what ``-d`` says.
        tell: is told what people should know.
        buffers: whether to list them.
        files: what may be named in place of this host.

    Raises:
        NothingError: there is none.
        UnreadableError: there are files, and none was readable.
        UsageError: a name is no id.
    """
    dump = read_live(buffers=buffers)
    selected = select_devices(dump, wanted, tell, files=files)
    for problem in dump.problems:
        tell(problem)
    return Dump(selected, dump.taken_ns, dump.host)


@contextlib.contextmanager
def opened_recording(path: str, tell: Callable[[str], None]) -> Iterator[Recording]:
    """Open a recording that has a moment; what of it is damaged is told.

    Raises:
        TtmemError: it holds no moment, or is no recording that can be read.
    """
    from ttmem.recording import open_recording

    with open_recording(path) as recording:
        recording.require_moments()
        if recording.damage:
            tell(recording.damage)
        yield recording


def recorded_moment(path: str, at: float | None, tell: Callable[[str], None], *, buffers: bool = False) -> Dump:
    """Return one moment of a recording.

    Args:
        path: the recording.
        tell: is told what of it is damaged.
        at: seconds after its first moment, negative before its last; None is the last.
        buffers: whether to go back to a moment that holds live buffers, which only key frames do.

    Raises:
        TtmemError: it holds no moment, or is no recording that can be read.
    """
    with opened_recording(path, tell) as recording:
        index = len(recording) - 1
        if at is not None:
            times = recording.times_ns
            index = recording.seek(round((times[0] if at >= 0 else times[-1]) + at * 1e9))
        dump = recording[index]
        while buffers and index and not any("buffers" in device for device in dump.devices):
            index = recording.key_before(index - 1)
            dump = recording[index]
        return dump


def dump_of_file(
    path: str,
    kind: str,
    wanted: Sequence[str] | None,
    tell: Callable[[str], None],
    at: float | None = None,
    *,
    buffers: bool = False,
) -> Dump:
    """Return the devices of a dump, or those of one moment of a recording, that ``-d`` names.

    Args:
        path: the file.
        kind: what :func:`ttmem.dumps.kind_of_file` says of it; a capture has no devices.
        wanted: what ``-d`` says.
        tell: is told what people should know.
        at: as of :func:`recorded_moment`.
        buffers: as of :func:`recorded_moment`.

    Raises:
        NothingError: there is no such device.
        TtmemError: it cannot be read.
        UsageError: a name is no id.
    """
    dump = recorded_moment(path, at, tell, buffers=buffers) if kind == "recording" else read_dump(path)
    return Dump(select_devices(dump, wanted, tell, path), dump.taken_ns, dump.host)


def select_chips(chips: Iterable[int], wanted: Sequence[str] | None, tell: Callable[[str], None]) -> set[int]:
    """Return the chips of a capture that ``-d`` names, all without it; of those that are none some are told.

    Raises:
        NothingError: there is none.
        UsageError: a name is no id.
    """
    test = device_filter(wanted)
    there = [{"device_id": chip} for chip in sorted(set(chips))]
    found = {chip["device_id"] for chip in there if test(chip)}
    missing = absent(wanted, there)
    if missing and not found:
        raise NothingError(no_such(missing, there, "chip in the capture"))
    if missing:
        tell(no_such(missing, there, "chip in the capture"))
    return found


def sizes_of_capture(
    path: str, wanted: Sequence[str] | None, tell: Callable[[str], None]
) -> dict[int, list[Suggestion]]:
    """Return what a capture says of the sizes of the regions set aside, for each chip that ``-d`` names.

    Raises:
        CaptureError: it cannot be read.
        UsageError: a name is no id.
    """
    from ttmem.capture import CaptureReader
    from ttmem.fragments import RegionWatch, suggest_of_capture
    from ttmem.interpreter import CaptureInterpreter

    test = device_filter(wanted)
    watch = RegionWatch()
    interpreter = CaptureInterpreter(watch)
    for node in CaptureReader(path).nodes():
        interpreter.feed(node)
    interpreter.finish()
    found = {chip: sizes for chip, sizes in suggest_of_capture(watch).items() if test({"device_id": chip})}
    if not found:
        where = f" on device {', '.join(wanted)}" if wanted else ""
        tell(f"{path} has neither L1_SMALL nor TRACE buffers{where}: 0 is enough for both")
    return found


def verb_parser(verb: str, description: str | None, epilog: str) -> argparse.ArgumentParser:
    """Return the parser of a verb, without its arguments.

    Args:
        verb: what it is called.
        description: its module's own.
        epilog: its exit codes and examples.
    """
    return argparse.ArgumentParser(
        prog=f"python -m ttmem {verb}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_at(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses a moment of a recording."""
    parser.add_argument(
        "--at",
        type=_moment,
        metavar="MOMENT",
        help="of a recording: first, last (default), or seconds after the first, negative before the last",
    )


def _moment(text: str) -> float | None:
    if text in ("first", "last"):
        return 0.0 if text == "first" else None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise argparse.ArgumentTypeError(f"expected first, last or seconds, got {text!r}")
    return seconds


def piped_stdin() -> bool:
    """Tell whether something stands on stdin that was put there: a file, or a pipe that says something soon."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
        if stat.S_ISREG(mode):
            return os.fstat(sys.stdin.fileno()).st_size > 0
        if not stat.S_ISFIFO(mode):
            return False
        ready, _, _ = select.select([sys.stdin], [], [], STDIN_WAIT_SECONDS)
    except (OSError, ValueError, AttributeError):
        return False
    # At the end of an empty pipe select says ready; what is read is then the empty text.
    return bool(ready)


def add_geometry(parser: argparse.ArgumentParser) -> None:
    """Add the options that tell what a capture does not."""
    group = parser.add_argument_group("geometry, which captures do not tell")
    group.add_argument("--arch", metavar="NAME", help="grayskull, wormhole_b0 or blackhole")
    group.add_argument("--worker-l1-size", metavar="SIZE", help="L1 of one core")
    group.add_argument("--l1-cb-base", metavar="ADDRESS", help="the first address that CBs may take")
    group.add_argument("--l1-small-size", metavar="SIZE", help="the L1_SMALL region of each core")


def geometry_of(args: argparse.Namespace) -> Geometry:
    """Return what :func:`add_geometry` asked for.

    Raises:
        UsageError: a value is none, or they contradict each other.
    """
    try:
        return Geometry.of(
            arch=args.arch,
            worker_l1_size=None if args.worker_l1_size is None else parse_size(args.worker_l1_size),
            l1_cb_base=None if args.l1_cb_base is None else parse_size(args.l1_cb_base),
            l1_small_size=None if args.l1_small_size is None else parse_size(args.l1_small_size),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def teller(prog: str) -> Callable[[str], None]:
    """Return what says something on stderr, each text once."""
    told: set[str] = set()

    def tell(text: str) -> None:
        if text not in told:
            told.add(text)
            print(f"{prog}: {clean(text)}", file=sys.stderr)

    return tell


def run(
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace, Callable[[str], None]], int],
    argv: Sequence[str] | None,
    *,
    empty: Mapping[str, Any] | None = None,
) -> int:
    """Parse ``argv``, carry a verb out, and return its exit code: the contract's, for whatever went wrong.

    Args:
        parser: of the verb.
        body: carries it out, given the arguments and what tells people something; returns the exit code.
        argv: None takes the process's.
        empty: what stdout holds under ``--json`` when there was nothing.
    """
    return ends_well(parser.prog)(_run)(parser, body, argv, empty)


def _run(
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace, Callable[[str], None]], int],
    argv: Sequence[str] | None,
    empty: Mapping[str, Any] | None,
) -> int:
    args = parse(parser, argv)
    if isinstance(args, int):
        return args
    tell = teller(parser.prog)
    code = EXIT_UNREADABLE
    try:
        return body(args, tell)
    except UsageError as error:
        parser.print_usage(sys.stderr)
        print(f"{parser.prog}: error: {clean(error)}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 130
    except NothingError as error:
        tell(str(error))
        code = EXIT_NOTHING
    except (UnreadableError, TtmemError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        tell(f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error))
        if holds_nothing(error):
            code = EXIT_NOTHING
    if empty is not None and getattr(args, "json", False):
        import json

        write(json.dumps(empty) + "\n")
    return code
