"""The commands: the only code that prints, reads options and turns errors into exit codes."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ParamSpec, TextIO

_P = ParamSpec("_P")

EXIT_DONE, EXIT_NOTHING, EXIT_USAGE, EXIT_CONDITION, EXIT_UNREADABLE = range(5)
"""What every command ends with: done; nothing to read; wrong usage; a condition was found; files there, none readable."""


def all_unread(states: Iterable[object]) -> bool:
    """Tell whether none of what was found could be read, by its states; so of nothing at all."""
    return all(state in ("foreign-version", "unreadable") for state in states)


def seconds_between(lowest: float, highest: float) -> Callable[[str], float]:
    """Return the type of an option that takes seconds within bounds."""

    def parse(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}") from None
        if not lowest <= seconds <= highest:
            raise argparse.ArgumentTypeError(f"expected {lowest} to {highest} seconds, got {text}")
        return seconds

    return parse


class OutputError(Exception):
    """Stdout does not take what is written to it."""


def ends_well(prog: str) -> Callable[[Callable[_P, int]], Callable[_P, int]]:
    """Return what makes of a command one that ends with a line and an exit code where stdout fails.

    A reader that went away (head, grep -q) has what it wants; a full disk or a closed stdout is an output that cannot be
    used, as a FILE that cannot be written is.

    Args:
        prog: what the command is called.
    """

    def wrap(main: Callable[_P, int]) -> Callable[_P, int]:
        @functools.wraps(main)
        def ended(*args: _P.args, **options: _P.kwargs) -> int:
            try:
                return main(*args, **options)
            except BrokenPipeError:
                drop_stdout()
                return EXIT_DONE
            except OutputError as error:
                drop_stdout()
                print(f"{prog}: {error}", file=sys.stderr)
                return EXIT_USAGE

        return ended

    return wrap


def write(text: str) -> None:
    """Write to stdout what its encoding has; a name of a process must not end the command.

    Raises:
        OutputError: stdout does not take it.
    """
    if text or sys.stdout is not None:
        with stdout() as out:
            encoding = getattr(out, "encoding", None) or "ascii"
            out.write(text.encode(encoding, "backslashreplace").decode(encoding))


@contextlib.contextmanager
def stdout() -> Iterator[TextIO]:
    """Give out stdout for writing, and flush it.

    Raises:
        BrokenPipeError: its reader went away.
        OutputError: it does not take what is written.
    """
    if sys.stdout is None:
        raise OutputError("stdout is closed: give it a file or a pipe")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write to stdout: {error.strerror or error}: give it a file or a pipe that can be written"
        ) from error


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM be what SIGINT is, a KeyboardInterrupt: both end what runs until it is stopped, and well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def holds_nothing(error: BaseException) -> bool:
    """Tell whether a file could not be read because there is none, or nothing in it: exit code 1 and not 4."""
    from ttmem.dumps import EmptyFileError  # so that --help costs nothing

    return isinstance(error, (FileNotFoundError, EmptyFileError)) or isinstance(error.__cause__, FileNotFoundError)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace | int:
    """Return the arguments, or, where there is nothing left to do, the exit code."""
    try:
        return parser.parse_args(argv)
    except SystemExit as stop:
        # The help may not have gone out yet.
        write("")
        return int(stop.code or 0) if not isinstance(stop.code, str) else EXIT_USAGE


def drop_stdout() -> None:
    """Write nothing more to stdout, which takes nothing."""
    # Python would complain at exit about what is still buffered.
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
