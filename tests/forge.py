"""Forges segment files from the bytes of a fuzzer: a sequence of edits of a true file, whose checksums are then put right.

A fuzzer that flips bytes never comes past the first checksum. Here its bytes are instructions: which word of which header,
descriptor or record becomes what, where the file is cut, and whether what was changed is sealed again. Two kinds of readers
look at each forged file: blocks one by one, whose figures must be bytes of the file, and a Host that reads a good file
beside it, across several rounds of edits under its open descriptors.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import ttmem
from ttmem._reading import BlockReading, block_offsets, cbs_of, read_header
from ttmem._segment import record_tag, static_check
from ttmem.errors import TtmemError
from ttmem.reader import Host
from ttmem.snapshot import Snapshot

PAGE = 4096
CONTROL = 512
SECTIONS_AT = 128
DESCRIPTOR = struct.Struct("<IIIIQ")
RANGES = (6, 7)
CBS, PEAKS = 12, 13
NAME = "ttmem1..0.1.1.0123456789abcdef"
SPECIAL = (0, 1, 2, 3, 7, 8, 62, 63, 64, 65, 4095, 4096, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1)
ROWS_SEALED = 4
"""Records of a section whose tags are put right; what lies behind is found damaged, which is a path of its own."""
ROUNDS_MAX = 4


class Bytes:
    """The fuzzer's bytes, taken one after the other; zeros after their end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def take(self, count: int) -> int:
        piece = self.data[self.at : self.at + count]
        self.at += count
        return int.from_bytes(piece, "little")

    def value(self, present: int) -> int:
        """Return a new value for a word: a special one, a random one of some width, or one near the present one."""
        kind = self.take(1)
        if kind < 128:
            return SPECIAL[kind % len(SPECIAL)]
        if kind < 192:
            return (present + self.take(1) - 128) % 2**64
        return self.take(1 << (kind % 4))


def true_file(directory: Path) -> bytes:
    """Return the bytes of a file with two devices on which all sorts of things happened."""
    before = os.environ.get("TTMEM_SHM_DIR")
    os.environ["TTMEM_SHM_DIR"] = str(directory)
    try:
        with (
            ttmem.publish(7, grid=(2, 2), arch="wormhole_b0", l1_cb_base=1024, l1_small_size=4096, asic_id=7) as first,
            ttmem.publish(8, grid=(3, 1), origin="replay") as second,
        ):
            for publisher in (first, second):
                for number in range(3):
                    cores = f"{{[0-0 - {number % 2}-0]}}"
                    publisher.add_program([ttmem.CircularBuffer(2048 * (number + 1), 512, cores)], name=f"p{number}")
                publisher.dispatch(1)
                publisher.allocate("L1", 4096, address=500_000, size_per_bank=1024, name="weights")
                publisher.allocate("DRAM", 1 << 20, name="activations")
                publisher.load_kernel(100)
            assert first.path is not None
            return first.path.read_bytes()
    finally:
        if before is None:
            del os.environ["TTMEM_SHM_DIR"]
        else:
            os.environ["TTMEM_SHM_DIR"] = before


class Forger:
    """A directory with a good file and a forged one, which stays the same inode and is held like a living writer's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.true = true_file(directory)
        self.now = bytearray(self.true)
        # Only what is not zero has to be written anew after a cut.
        self.written = [at for at in range(0, len(self.true), PAGE) if any(self.true[at : at + PAGE])]
        self.touched: dict[int, bytes] = {}
        self.is_cut = False
        self.starts = [0]
        (committed,) = struct.unpack_from("<Q", self.true, CONTROL + 8)
        while (start := self._next(self.starts[-1])) < committed:
            self.starts.append(start)
        self.fd = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.pwrite(self.fd, self.true, 0)
        held = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, held)
        self.good = self._publish_good()
        self.expected = self._good_row(self._read())

    def _next(self, start: int) -> int:
        (size,) = struct.unpack_from("<Q", self.true, 32 if start == 0 else start + 8)
        return int(start + size)

    def _publish_good(self) -> ttmem.Publisher:
        os.environ["TTMEM_SHM_DIR"] = str(self.directory)
        os.environ["TTMEM_NAMESPACE"] = ""
        good = ttmem.publish(1, grid=(2, 2), l1_cb_base=1024, l1_small_size=0, arch="wormhole_b0", asic_id=1)
        good.add_program([ttmem.CircularBuffer(2048, 512, "{[0-0 - 1-0]}")], name="good")
        good.allocate("DRAM", 12345)
        return good

    def close(self) -> None:
        self.good.close()
        os.close(self.fd)
        (self.directory / NAME).unlink()

    # Edits

    def put(self, at: int, data: bytes) -> None:
        if at < 0 or at + len(data) > len(self.now):
            return
        first, last = at // PAGE * PAGE, (at + len(data) - 1) // PAGE * PAGE
        for page in range(first, last + 1, PAGE):
            self.touched.setdefault(page, self.true[page : page + PAGE])
        self.now[at : at + len(data)] = data
        os.pwrite(self.fd, data, at)

    def word(self, at: int) -> int:
        return int.from_bytes(self.now[at : at + 8], "little")

    def cut(self, size: int) -> None:
        os.ftruncate(self.fd, size)
        self.is_cut = True
        for page in {*self.written, *self.touched}:
            begin = max(page, min(size, len(self.true)))
            if begin < page + PAGE:
                self.touched.setdefault(page, self.true[page : page + PAGE])
                self.now[begin : page + PAGE] = bytes(page + PAGE - begin)

    def restore(self) -> None:
        if self.is_cut:
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, len(self.true))
        for at, page in self.touched.items():
            self.now[at : at + len(page)] = page
            if not self.is_cut:
                os.pwrite(self.fd, page, at)
        if self.is_cut:
            for at in self.written:
                os.pwrite(self.fd, self.true[at : at + PAGE], at)
        self.touched.clear()
        self.is_cut = False

    def sections(self, start: int) -> list[tuple[int, int, int, int, int]]:
        """Return the descriptors (kind, stride, count, words, offset) as they are now."""
        count = min(14, int.from_bytes(self.now[start + 120 : start + 124], "little"))
        return [DESCRIPTOR.unpack_from(self.now, start + SECTIONS_AT + 24 * i) for i in range(count)]

    def edit(self, source: Bytes) -> None:
        """Carry out one instruction."""
        kind = source.take(1) % 8
        start = self.starts[source.take(1) % len(self.starts)]
        if kind == 0:
            at = start + 8 * (source.take(1) % 63)
            self.put(at, struct.pack("<Q", source.value(self.word(at))))
        elif kind == 1:
            at = start + 4 * (source.take(1) % 126)
            present = int.from_bytes(self.now[at : at + 4], "little")
            self.put(at, struct.pack("<I", source.value(present) % 2**32))
        elif kind == 2:
            at = start + CONTROL + 8 * (source.take(1) % 5)
            self.put(at, struct.pack("<Q", source.value(self.word(at))))
        elif kind == 3:
            self.edit_descriptor(source, start or self.starts[1])
        elif kind in (4, 5):
            self.edit_record(source, start or self.starts[1])
        elif kind == 6:
            at = source.take(3) % len(self.now)
            self.put(at, source.take(8).to_bytes(8, "little")[: 1 + source.take(1) % 8])
        else:
            size = source.value(len(self.true))
            if source.take(1) % 2:
                size = min(size, len(self.true)) // PAGE * PAGE
            # The largest that every file system takes.
            self.cut(min(size, 2**43))

    def edit_descriptor(self, source: Bytes, start: int) -> None:
        at = start + SECTIONS_AT + 24 * (source.take(1) % 14)
        field = source.take(1) % 5
        width = 8 if field == 4 else 4
        at += 4 * field
        present = int.from_bytes(self.now[at : at + width], "little")
        value = source.value(present) % 2 ** (8 * width)
        if source.take(1) % 2:
            # What is not aligned ends at the first check.
            value = value // 64 * 64
        self.put(at, value.to_bytes(width, "little"))

    def edit_record(self, source: Bytes, start: int) -> None:
        sections = self.sections(start)
        if not sections:
            return
        _kind, stride, count, words, offset = sections[source.take(1) % len(sections)]
        index = source.take(1) % max(1, min(count, 256))
        word = source.take(1) % max(1, words)
        images = source.take(1) % 3
        image_offset, image_bytes = struct.unpack_from("<QQ", self.now, start + 104)
        for side in range(2):
            if images in (side, 2):
                at = start + image_offset + side * image_bytes + offset + index * stride + 8 * word
                self.put(at, struct.pack("<Q", source.value(self.word(at))))

    def seal(self, tags: bool) -> None:
        """Put the checksums of all headers right, and the tags of the first records as the descriptors now say."""
        for start in self.starts:
            self.put(start + 504, struct.pack("<Q", static_check(bytes(self.now[start : start + 504]))))
            if start == 0 or not tags:
                continue
            image_offset, image_bytes = struct.unpack_from("<QQ", self.now, start + 104)
            for kind, stride, count, words, offset in self.sections(start):
                if not 2 <= words <= 544:
                    continue
                for index in range(min(count, ROWS_SEALED)):
                    for side in range(2):
                        at = start + image_offset + side * image_bytes + offset + index * stride
                        if at + 8 * words <= len(self.now):
                            self.seal_record(kind, index, at, words)

    def seal_record(self, kind: int, index: int, at: int, words: int) -> None:
        record = bytes(self.now[at : at + 8 * words])
        used = words - 1
        if kind in RANGES:
            used = min(int.from_bytes(record[:4], "little"), used - 1) + 1
        elif kind == CBS:
            used = 2 * min(int.from_bytes(record[:4], "little"), (used - 1) // 2) + 1
        version = int.from_bytes(record[-4:], "little")
        tag = struct.pack("<Q", record_tag(record[: 8 * used], kind << 32 | index, version))
        if tag != record[-8:]:
            self.put(at + 8 * (words - 1), tag)

    # Readings

    def _read(self) -> list[dict[str, object]]:
        host = Host(self.directory, "")
        try:
            return self._devices(host)
        finally:
            host.close()

    def _devices(self, host: Host) -> list[dict[str, object]]:
        devices = []
        for _, parts in host.devices():
            for part in parts:
                assert part.reading.tries <= 32
                assert part.reading.bytes_read <= 34 * len(self.true)
            snapshot = Snapshot(parts, taken_ns=0)
            device = snapshot.to_dict()
            device["map"] = snapshot.core_map(0, 0)
            device["buffers"] = snapshot.buffers()
            json.dumps(device)
            devices.append(device)
        for name in host.problems:
            assert name == NAME
        return devices

    def _good_row(self, devices: list[dict[str, object]]) -> object:
        mine = [
            row
            for device in devices
            for row in device["processes"]  # type: ignore[attr-defined]
            if row["pid"] == os.getpid() and row["dram_bytes"] == 12345 and device["asic_id"] == "0x1"
        ]
        assert mine
        return mine[0]

    def check_blocks(self) -> None:
        """Read each block by itself: what it says are bytes of the file."""
        size = os.fstat(self.fd).st_size
        with contextlib.suppress(TtmemError):
            facts = read_header(self.fd, size)
            for offset in block_offsets(self.fd, size, facts.header_bytes):
                with contextlib.suppress(TtmemError):
                    reading = BlockReading(self.fd, offset, size)
                    reading.load(self.fd, offset)
                    if reading.live:
                        self.check_figures(reading, offset)

    def rows(self, start: int, kind: int, words: int) -> Iterator[tuple[int, ...]]:
        """Yield the first words of a section's records, of both images, as they stand in the file."""
        found = [d for d in self.sections(start) if d[0] == kind]
        if not found:
            return
        _kind, stride, count, _words, offset = found[-1]
        image_offset, image_bytes = struct.unpack_from("<QQ", self.now, start + 104)
        for side in range(2):
            # Right tags are only on records that the true file has or that were sealed: few, in each half of a table.
            for index in (*range(min(count, 16)), *range(count // 2, min(count, count // 2 + 16))):
                at = start + image_offset + side * image_bytes + offset + index * stride
                if at + 8 * words <= len(self.now):
                    yield struct.unpack_from(f"<{words}Q", self.now, at)

    def check_figures(self, reading: BlockReading, start: int) -> None:
        totals = set(self.rows(start, 0, 7))
        for index in range(8):
            words = reading.total(index)
            assert words is None or words in totals, (index, words)
        programs = reading.programs()
        if programs:
            known = {row[:4] for row in self.rows(start, 8, 4)}
            rectangles = {word for row in self.rows(start, CBS, 48) for word in row}
            for number, _name, cores, per_core, end, count, logical, buffers in programs:
                assert (number, count | cores << 32, per_core | end << 32, logical) in known
                for first, last, *_ in cbs_of(buffers or b""):
                    assert first | last << 32 in rectangles
        peaks = {row[:4] for row in self.rows(start, PEAKS, 4)}
        for index in range(8):
            peak = reading.peak(index)
            assert peak is None or peak[:4] in peaks
        buffers = reading.buffers()
        if buffers:
            known = {(row[0], row[1] & 0xFF, row[2]) for row in self.rows(start, 10, 3)}
            for number, kind, size, *_ in buffers:
                assert (number, kind, size) in known
        width, height = reading.record_grid
        for ranges_kind, ranges in zip(RANGES, reading.core_ranges(width - 1, height - 1), strict=True):
            if ranges:
                here = {word for row in self.rows(start, ranges_kind, 2) for word in row}
                assert ranges[0][0] | ranges[0][1] << 32 in here

    def run(self, data: bytes) -> None:
        """Carry out the instructions in some rounds, and read after each.

        Raises:
            AssertionError: a reading broke a promise; any other error is none that a reader may let through.
        """
        source = Bytes(data)
        host = Host(self.directory, "")
        try:
            for _ in range(ROUNDS_MAX):
                how = source.take(1)
                for _ in range(1 + how % 8):
                    self.edit(source)
                if how & 0x30:
                    self.seal(tags=bool(how & 0x20))
                assert self._good_row(self._devices(host)) == self.expected
                self.check_blocks()
                if not source:
                    break
        finally:
            host.close()
            self.restore()


@contextlib.contextmanager
def forger(directory: Path) -> Iterator[Forger]:
    """Make a forger in a directory, and clear up after it."""
    kept = {name: os.environ.get(name) for name in ("TTMEM_SHM_DIR", "TTMEM_NAMESPACE")}
    made = Forger(directory)
    try:
        yield made
    finally:
        made.close()
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
