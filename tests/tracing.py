"""A writer under ptrace: stopped after each instruction or at each system call, looked at, killed there."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ttmem.reader import Host
from ttmem.snapshot import Snapshot

TRACEME, CONT, KILL_OPTION, SINGLESTEP, SYSCALL, SETOPTIONS = 0, 7, 0x100000, 9, 24, 0x4200
PEEKTEXT, PEEKUSER, POKETEXT, POKEUSER = 1, 3, 4, 6
RIP = 16 * 8
"""Where the instruction pointer of x86-64 lies among the registers."""
SYSGOOD = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def mark() -> None:
    """Stop this process, which its tracer sees as a mark."""
    os.kill(os.getpid(), signal.SIGSTOP)


def needs_x86() -> None:
    """Skip a test that sets breakpoints."""
    if platform.machine() != "x86_64":
        pytest.skip(f"breakpoints are set for x86-64 only, this is {platform.machine()}")


class Tracee:
    """A forked child that runs ``body``, which calls :func:`mark` where it is to be taken over."""

    def __init__(self, body: Callable[[], None]) -> None:
        self.ended = False
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                if _libc.ptrace(TRACEME, 0, None, None):
                    status = 77
                else:
                    # Each of many writers is to take the same instructions.
                    gc.disable()
                    mark()
                    body()
                    status = 0
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(status)
        if not self._wait():
            pytest.skip("this process may not use ptrace, so no writer can be stepped")
        _libc.ptrace(SETOPTIONS, self.pid, None, SYSGOOD | KILL_OPTION)
        self.run_to_mark()

    def _wait(self) -> int:
        """Wait for the next stop; return its signal, 0 after the end."""
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSTOPPED(status):
            return os.WSTOPSIG(status)
        self.ended = True
        self.status = os.waitstatus_to_exitcode(status)
        return 0

    def _go(self, request: int) -> int:
        if _libc.ptrace(request, self.pid, None, None):
            raise OSError(ctypes.get_errno(), "ptrace")
        return self._wait()

    def step(self) -> bool:
        """Run one instruction; False at the next mark or the end."""
        return self._go(SINGLESTEP) == signal.SIGTRAP

    def to_system_call(self) -> bool:
        """Run to the next entry or exit of a system call; False at the next mark or the end."""
        return self._go(SYSCALL) == signal.SIGTRAP | 0x80

    def where(self) -> int:
        """Return the address of the next instruction."""
        return int(_libc.ptrace(PEEKUSER, self.pid, RIP, None)) % 2**64

    def run_to(self, address: int, count: int) -> bool:
        """Run until an instruction is to be executed for the ``count``-th time; False at the next mark or the end."""
        word = int(_libc.ptrace(PEEKTEXT, self.pid, address, None)) % 2**64
        while True:
            if self.where() == address:
                count -= 1
                if count == 0:
                    return True
                if not self.step():
                    return False
                continue
            _libc.ptrace(POKETEXT, self.pid, address, word & ~0xFF | 0xCC)
            if self._go(CONT) != signal.SIGTRAP:
                return False
            _libc.ptrace(POKETEXT, self.pid, address, word)
            _libc.ptrace(POKEUSER, self.pid, RIP, address)

    def run_to_mark(self) -> None:
        """Run on to the next mark or the end."""
        while self._go(CONT) not in (signal.SIGSTOP, 0):
            pass

    def kill(self) -> None:
        """End the process here, at once."""
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            while self._wait():
                pass

    def __enter__(self) -> "Tracee":
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(ChildProcessError):
            self.kill()


def figures_of(directory: Path) -> list[dict[str, Any]]:
    """Return what a fresh reader sees, without the time of the change; it must see it without a problem."""
    host = Host(directory, "")
    try:
        seen = [Snapshot(parts, taken_ns=0).to_dict() for _, parts in host.devices()]
        assert host.problems == {}
    finally:
        host.close()
    for device in seen:
        assert device["consistent"]
        del device["updated_ns"]
    return seen


def bytes_in_use(path: Path) -> list[tuple[int, int]]:
    """Return the (offset, count) of a file's parts that have memory."""
    found = []
    fd = os.open(path, os.O_RDONLY)
    try:
        end = os.fstat(fd).st_size
        at = 0
        while at < end:
            try:
                begin = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            found.append((begin, at - begin))
    finally:
        os.close(fd)
    return found


@dataclass(frozen=True)
class PathTaken:
    """What a writer executed between two marks.

    Attributes:
        addresses: of each instruction, in order.
        changes: before which of them the files had just changed.
    """

    addresses: list[int]
    changes: list[int]

    def points(self) -> list[tuple[int, int]]:
        """Return (address, how many times it was met) of each instruction."""
        met: dict[int, int] = {}
        found = []
        for address in self.addresses:
            met[address] = met.get(address, 0) + 1
            found.append((address, met[address]))
        return found


def path_taken(writer: Tracee, state: Callable[[], object]) -> PathTaken:
    """Step a writer to its next mark; ``state`` is asked after each instruction."""
    addresses = [writer.where()]
    changes = []
    before = state()
    while writer.step():
        now = state()
        if now != before:
            before = now
            changes.append(len(addresses))
        addresses.append(writer.where())
    return PathTaken(addresses, changes)
