"""The files that carry statistics: where they lie, how one is published, who holds it, when it is collected.

One file per writer process, with a block for each device that the process publishes. A file appears under its name
fully initialised, is never shrunk and never reused under that name. See docs/segment.md for the bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import logging
import os
import re
import stat
import struct
import threading
import time
from functools import lru_cache
from pathlib import Path

from ttmem._segment import DeviceBlock, FileHeader, process_token
from ttmem._version import __version__
from ttmem.model import Geometry

log = logging.getLogger("ttmem")

PREFIX = "ttmem1."
HEADER_BYTES = 4096
CLOSED = 2
LOCK_NONE, LOCK_OFD = 0, 1
GRACE_NS = 600 * 10**9
"""How long a dead writer's file can still be read before it is collected."""

MAKING_NS = 60 * 10**9
"""After this long a file without its name is none that is being made."""

# What a reader that has never heard of a section may print of it: kind, name, then the words of a record in order.
SCHEMA = b"""ttmem 1: u64 words; a record's last word is its tag
0 totals[cb|dram|l1|system_memory|l1_small|trace|kernel|tables]
0.0 physical_bytes logical_bytes resident_bytes peak_physical_bytes programs program_rows
0.1-5 used_bytes peak_bytes buffers
0.6 used_bytes persistent_bytes kernels
0.7 program_row_high program_rows_omitted l1_row_high other_row_high buffers_omitted cb_class_high l1_class_high
1 cb_map u16 class[core]
2 l1_map u16 class[core]
3 resident u32 bytes[core]; record 1: floor of the core's cb peak
4 cb_class physical_bytes logical_bytes region_end lowest_address ranges_published peak_physical_bytes
5 l1_class physical_bytes logical_bytes region_end lowest_address
6 cb_ranges count|more<<32 (begin|end<<32)...
7 l1_ranges count|more<<32 (begin|end<<32)...
8 programs program_id count|cores<<32 bytes_per_core|region_end<<32 logical_bytes resident_bytes
9 program_names utf8[120]
10 buffers buffer_id type|flags<<8 size_bytes address size_per_bank allocated_ns cores
11 buffer_names utf8[120]
12 program_cbs count|more<<32 (begin|end<<32 x0|y0<<10|x1<<20|y1<<30|kind<<40|first<<44)...
13 peaks bytes ns id count name[120]
"""


def shm_directory() -> Path:
    """Return where segments lie: TTMEM_SHM_DIR, else /dev/shm."""
    return _path(os.environ.get("TTMEM_SHM_DIR") or "/dev/shm")


_path = lru_cache(maxsize=8)(Path)


def namespace() -> str:
    """Return TTMEM_NAMESPACE in the form that file names carry; empty for the default one."""
    return _component(os.environ.get("TTMEM_NAMESPACE", ""))


@lru_cache(maxsize=8)
def _component(given: str) -> str:
    # Names are one path component of bounded length, whatever the user chose.
    return re.sub(rb"[^A-Za-z0-9_-]", lambda m: b"=%02x" % m[0][0], os.fsencode(given)).decode()[:100]


def file_prefix(space: str) -> str:
    """Return how the names of a namespace's segments start."""
    return f"{PREFIX}{space}."


def _file_mode() -> int:
    text = os.environ.get("TTMEM_SHM_MODE", "0644")
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        log.warning("TTMEM_SHM_MODE must be an octal file mode such as 0644, got %r: using 0644", text)
        return 0o644
    # Without the owner's own bits this process could not add a device to its file later.
    return mode | 0o600


def _read(path: str) -> bytes:
    # Not open(): a file of /proc is read in one piece, and a start has some of them to read.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)


def start_ticks(pid: int | str) -> int:
    """Return when a process started, in clock ticks after boot (field 22 of its stat); 0 if it cannot be read."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[19]) if len(fields) > 19 else 0


@lru_cache(maxsize=1)
def boot_id() -> bytes:
    """Return the 16 bytes that name this boot of the machine; zeros if unknown."""
    return bytes.fromhex(_read("/proc/sys/kernel/random/boot_id").decode().strip().replace("-", "")).ljust(16, b"\0")


def pid_namespace() -> int:
    """Return the inode of this process's pid namespace; 0 if unknown."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


@lru_cache(maxsize=1)
def _oneself(owner: int) -> tuple[int, int]:
    """Return this process's start time and pid namespace, which stay as they are; ``owner``: its token."""
    return start_ticks("self"), pid_namespace()


_FLOCK = struct.Struct("hhqqi4x")


WRITER_BYTE, COLLECTOR_BYTE = 0, 1


def lock(fd: int, byte: int = WRITER_BYTE) -> bool:
    """Take a byte's write lock for as long as the open file description lives; on byte 0 it says "the writer lives"."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except OSError:
        return False
    return True


def is_locked(fd: int) -> bool:
    """Tell whether some writer holds a file; needs only read permission and takes nothing."""
    # Asked as a reader's lock, which only a writer's contradicts: whoever may read a file can put such a lock on it,
    # and must not make a dead writer look alive by that.
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, WRITER_BYTE, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


class WriterFile:
    """The segment file of this process in one directory and namespace.

    Thread safety: all methods are called under :func:`registry_lock`.
    """

    def __init__(self, directory: Path, space: str) -> None:
        self.directory = directory
        self.space = space
        self.owner = process_token()
        self.path: Path | None = None
        self.inode = (0, 0)
        self.bytes = HEADER_BYTES
        self._header: FileHeader | None = None
        self._free: dict[int, list[int]] = {}
        self._blocks: dict[int, DeviceBlock] = {}

    def add(self, block: DeviceBlock, device_id: int, geometry: Geometry, origin: int) -> None:
        """Publish a device's block in the file, which is made with the first one.

        Raises:
            OSError: there is no room or no permission; the block stays in private memory.
        """
        if self._header is None:
            self._create(block, device_id, geometry, origin)
            return
        fd = os.open(self.path or "", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != self.inode:
                raise FileNotFoundError(errno.ENOENT, "the segment was replaced", str(self.path))
            offset = self._place(fd, block)
            block.describe(device_id, geometry, origin, time.time_ns())
            if offset == self.bytes:
                self.bytes = offset + block.block_bytes
                self._header.set_committed(self.bytes)
            self._blocks[offset] = block
        finally:
            os.close(fd)

    def _place(self, fd: int, block: DeviceBlock) -> int:
        recycled = self._free.get(block.block_bytes, [])
        offset = recycled[-1] if recycled else self.bytes
        if not recycled:
            os.ftruncate(fd, offset + block.block_bytes)
        block.map(fd, offset)
        if recycled:
            recycled.pop()
        return offset

    def _create(self, block: DeviceBlock, device_id: int, geometry: Geometry, origin: int) -> None:
        started, pidns_inode = _oneself(self.owner)
        name = f"{file_prefix(self.space)}{os.getuid()}.{os.getpid()}.{started}.{os.urandom(8).hex()}"
        path = self.directory / name
        # Not inherited across exec; a child forked before the close below holds the lock until it execs or ends.
        fd, hidden = self._open_nameless(path)
        try:
            os.ftruncate(fd, HEADER_BYTES + block.block_bytes)
            header = FileHeader(fd)
            header.describe(
                instance=os.urandom(16),
                boot_id=boot_id(),
                pid=os.getpid(),
                uid=os.getuid(),
                start_ticks=started,
                pidns_inode=pidns_inode,
                created_ns=time.time_ns(),
                lock_mode=LOCK_OFD if lock(fd) else LOCK_NONE,
                process_name=_read("/proc/self/comm").strip(),
                producer=f"ttmem {__version__}".encode(),
                schema=SCHEMA,
            )
            block.map(fd, HEADER_BYTES)
            try:
                block.describe(device_id, geometry, origin, time.time_ns())
                header.set_committed(HEADER_BYTES + block.block_bytes)
                os.fchmod(fd, _file_mode())
                self._link(fd, hidden, path)
            except BaseException:
                block.unmap()
                raise
            status = os.fstat(fd)
        finally:
            if hidden is not None:
                with contextlib.suppress(OSError):
                    os.unlink(hidden)
            os.close(fd)
        self._header, self.path = header, path
        self.inode = (status.st_dev, status.st_ino)
        self.bytes = HEADER_BYTES + block.block_bytes
        self._blocks[HEADER_BYTES] = block

    def _open_nameless(self, path: Path) -> tuple[int, Path | None]:
        try:
            return os.open(self.directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), None
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        # Readers pass over names that start with a dot.
        hidden = path.with_name(f".{path.name}")
        return os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), hidden

    def _link(self, fd: int, hidden: Path | None, path: Path) -> None:
        # linkat rather than rename: it fails where the name exists, and never replaces somebody's file.
        if hidden is not None:
            os.link(hidden, path)
        else:
            # Any descriptor will do: it is what makes this linkat, which can follow the link.
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)

    def lost(self) -> bool:
        """Tell whether the file is no longer there under its name: somebody deleted or replaced it."""
        if self.path is None:
            return False
        try:
            status = os.lstat(self.path)
        except OSError as error:
            return error.errno == errno.ENOENT
        return (status.st_dev, status.st_ino) != self.inode

    def withdraw(self, block: DeviceBlock) -> None:
        """Take a device out of the file; with the last one the file goes."""
        for offset, mine in list(self._blocks.items()):
            if mine is block:
                block.withdraw()
                block.unmap()
                del self._blocks[offset]
                self._free.setdefault(block.block_bytes, []).append(offset)
        if not self._blocks:
            self.close()

    def close(self) -> None:
        """Say that the file is done with and unlink it, if the name is still ours."""
        for block in self._blocks.values():
            block.withdraw()
            block.unmap()
        self._blocks.clear()
        # A file that is made later starts anew: these places are of the one that goes.
        self._free.clear()
        if self._header is None:
            return
        self._header.set_state(CLOSED)
        if self.path is not None and not self.lost():
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._header = None
        self.path = None

    def blocks(self) -> list[DeviceBlock]:
        """Return the blocks that are published in the file."""
        return list(self._blocks.values())


_registry: dict[tuple[Path, str], WriterFile] = {}
_locks: dict[int, threading.RLock] = {}
_hooked = False


def registry_lock() -> threading.RLock:
    """Return the lock of all that this process publishes.

    A forked child has one of its own: who held its parent's may not be there to release it.
    """
    return _locks.setdefault(os.getpid(), threading.RLock())


def writer_file(directory: Path, space: str) -> WriterFile:
    """Return this process's file for a directory and namespace; made anew in a forked child and when it was deleted."""
    global _hooked
    key = (directory, space)
    with registry_lock():
        if not _hooked:
            _hooked = True
            atexit.register(_close_all)
            # A child that is forked while another thread makes a file would inherit its descriptor, and with it the
            # lock that says that this process lives.
            os.register_at_fork(before=_hold, after_in_parent=_let_go)
        file = _registry.get(key)
        if file is None or file.owner != process_token() or file.lost():
            file = _registry[key] = WriterFile(directory, space)
    return file


def _hold() -> None:
    registry_lock().acquire()


def _let_go() -> None:
    registry_lock().release()


def _close_all() -> None:
    for file in list(_registry.values()):
        # A forked child inherits this table, and must not withdraw what its parent still publishes.
        if file.owner == process_token():
            file.close()
    _registry.clear()


def after_fork_in_child() -> None:
    """Give a forked child a registry of its own; its parent's mappings are not in it."""
    _registry.clear()


def collect(directory: Path, space: str, *, grace_ns: int = GRACE_NS, dry_run: bool = False) -> list[tuple[Path, str]]:
    """Unlink the files of dead writers of this user, never a live one's.

    Args:
        directory: where segments lie.
        space: the namespace.
        grace_ns: how long after a collector first found the writer dead its last state stays readable.
        dry_run: change nothing.

    Returns:
        Each dead writer's file and what was done: ``removed``, ``kept`` (within the grace time) or ``would remove``.
    """
    done = []
    # A writer that died before its file had its name left it under the hidden one, where nameless files are not to be had.
    prefixes = (file_prefix(space), f".{file_prefix(space)}")
    try:
        names = [name for name in os.listdir(directory) if name.startswith(prefixes)]
    except OSError:
        return []
    for name in sorted(names):
        path = directory / name
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                verdict = _collect_one(fd, path, grace_ns, dry_run)
            finally:
                os.close(fd)
            if verdict:
                done.append((path, verdict))
    return done


def _collect_one(fd: int, path: Path, grace_ns: int, dry_run: bool) -> str:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
        return ""
    if path.name.startswith("."):
        # Its making takes milliseconds, and there is nothing in it that anybody could still want to read.
        if is_locked(fd) or time.time_ns() - status.st_ctime_ns < MAKING_NS:
            return ""
        return _remove(fd, path, status, dry_run)
    if status.st_size < HEADER_BYTES:
        return ""
    head = os.pread(fd, 640, 0)
    if len(head) < 640:
        return ""
    (lock_mode,) = struct.unpack_from("<I", head, 104)
    # A file of a writer that could take no lock cannot be judged here; its own user may remove it by hand.
    if head[:6] != b"\x89TTMEM" or lock_mode != LOCK_OFD or is_locked(fd):
        return ""
    (buried_ns,) = struct.unpack_from("<Q", head, 512 + 16)
    now = time.time_ns()
    # A time to come is no time of burial: the clock was set back, or the file is damaged.
    if (not buried_ns or buried_ns > now) and grace_ns > 0:
        if not dry_run:
            os.pwrite(fd, struct.pack("<Q", now), 512 + 16)
        return "kept"
    if 0 <= now - buried_ns < grace_ns:
        return "kept"
    return _remove(fd, path, status, dry_run)


def _remove(fd: int, path: Path, status: os.stat_result, dry_run: bool) -> str:
    if dry_run:
        return "would remove"
    # The lock keeps a second collector away. Not the writer's byte: the dead would look alive to readers meanwhile.
    if not lock(fd, COLLECTOR_BYTE):
        return ""
    current = os.lstat(path)
    if (current.st_dev, current.st_ino) != (status.st_dev, status.st_ino):
        return ""
    os.unlink(path)
    return "removed"
