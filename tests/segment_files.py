"""Segment files for tests of compatibility: the golden ones, and ones from the future.

``python tests/segment_files.py`` writes the golden files of the present layout under names that are not taken yet: a
golden file is never written again.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "segments"
PAGE = 4096
STATIC_BYTES = 512


@dataclass
class Section:
    """A section of a block: words of each record, the tag among them, by index."""

    kind: int
    stride: int
    words: int
    records: list[list[int]]


@dataclass
class Block:
    """A device block taken apart; the header stays bytes but for what says where things lie."""

    header: bytearray
    control: bytes
    seq: int
    sections: list[Section]


@dataclass
class File:
    """A segment file taken apart, to be put together in other ways."""

    header: bytearray
    blocks: list[Any] = field(default_factory=list)


BLOCK_IMAGE = struct.Struct("<QQI")
BLOCK_IMAGE_AT = 104
"""image_offset, image_bytes and section_count; the origin and, at 128, the sections follow."""


def take_apart(data: bytes) -> File:
    """Return a file's parts."""
    file = File(bytearray(data[:PAGE]))
    (offset,) = struct.unpack_from("<Q", data, 32)
    (committed,) = struct.unpack_from("<Q", data, 512 + 8)
    while offset < committed:
        (block_bytes,) = struct.unpack_from("<Q", data, offset + 8)
        block = data[offset : offset + block_bytes]
        image_offset, image_bytes, count = BLOCK_IMAGE.unpack_from(block, BLOCK_IMAGE_AT)
        (seq,) = struct.unpack_from("<Q", block, 512 + 16)
        base = image_offset + (seq & 1) * image_bytes
        sections = []
        for index in range(count):
            kind, stride, records, words, at = struct.unpack_from("<IIIIQ", block, 128 + 24 * index)
            rows = [list(struct.unpack_from(f"<{words}Q", block, base + at + i * stride)) for i in range(records)]
            sections.append(Section(kind, stride, words, rows))
        file.blocks.append(Block(bytearray(block[:STATIC_BYTES]), block[512:576], seq, sections))
        offset += block_bytes
    return file


def tagged(section: Section, index: int) -> list[int]:
    """Return a record with a tag that is right where it lies now; one that was never written stays so."""
    from ttmem._segment import record_tag

    words = section.records[index]
    if words[-1] == 0:
        return words
    used = len(words) - 1
    if section.kind in (6, 7):
        used = min(words[0] & 0xFFFFFFFF, used - 1) + 1
    elif section.kind == 12:
        used = 2 * min(words[0] & 0xFFFFFFFF, (used - 1) // 2) + 1
    packed = struct.pack(f"<{used}Q", *words[:used])
    return [*words[:-1], record_tag(packed, section.kind << 32 | index, words[-1] >> 32)]


def sealed(header: bytes) -> bytes:
    """Return a header's static part with its checksum."""
    from ttmem._segment import static_check

    return bytes(header[:504]) + struct.pack("<Q", static_check(bytes(header[:504])))


def put_together(file: File, *, header_bytes: int = PAGE) -> bytes:
    """Return the bytes of a file made of these parts."""
    body = b""
    for block in file.blocks:
        if isinstance(block, bytes):
            body += block
            continue
        image = b""
        for index, section in enumerate(block.sections):
            image += bytes(-len(image) % 64)
            struct.pack_into(
                "<IIIIQ",
                block.header,
                128 + 24 * index,
                section.kind,
                section.stride,
                len(section.records),
                section.words,
                len(image),
            )
            for number in range(len(section.records)):
                record = struct.pack(f"<{section.words}Q", *tagged(section, number))
                image += record.ljust(section.stride, b"\0")
        image += bytes(-len(image) % PAGE)
        BLOCK_IMAGE.pack_into(block.header, BLOCK_IMAGE_AT, PAGE, len(image), len(block.sections))
        struct.pack_into("<Q", block.header, 8, PAGE + 2 * len(image))
        body += (sealed(block.header) + block.control).ljust(PAGE, b"\0") + image + image
    struct.pack_into("<Q", file.header, 32, header_bytes)
    head = bytearray(sealed(file.header) + bytes(file.header[STATIC_BYTES:]))
    struct.pack_into("<Q", head, 512 + 8, header_bytes + len(body))
    return bytes(head).ljust(header_bytes, b"\0") + body


def figures(data: bytes) -> list[dict[str, Any]]:
    """Return what every block of a file says, as if its writer lived."""
    from ttmem._reading import BlockReading, block_offsets, read_header
    from ttmem.snapshot import Part, Snapshot

    fd = os.memfd_create("segment")
    try:
        os.write(fd, data)
        facts = read_header(fd, len(data))
        found = []
        for offset in block_offsets(fd, len(data), facts.header_bytes):
            reading = BlockReading(fd, offset, len(data))
            reading.load(fd, offset)
            if reading.live:
                part = Part(reading, facts.pid, facts.process_name, "user", "live")
                snapshot = Snapshot([part], taken_ns=0)
                found.append({**snapshot.to_dict(), "buffers": snapshot.buffers(), "map": snapshot.core_map(0, 0)})
        return found
    finally:
        os.close(fd)


def publish_empty(ttmem: Any) -> None:
    """Publish a device of which nothing is known and on which nothing happened."""
    ttmem.publish(0)


def publish_small(ttmem: Any) -> None:
    """Publish one device with one of everything."""
    publisher = ttmem.publish(
        0,
        arch="wormhole_b0",
        grid=(8, 8),
        l1_cb_base=105664,
        l1_small_size=32768,
        dram_size=12 << 30,
        trace_region_size=1 << 20,
        asic_id=0x1234567890ABCDEF,
    )
    use(publisher, ttmem)


def publish_two(ttmem: Any) -> None:
    """Publish two devices in one file, the first withdrawn and its block taken by a third."""
    first = ttmem.publish(0, arch="blackhole", grid=(14, 10), l1_cb_base=111488, l1_small_size=0)
    second = ttmem.publish(1, arch="blackhole", grid=(14, 10), l1_cb_base=111488, l1_small_size=0, origin="replay")
    use(first, ttmem)
    use(second, ttmem)
    first.close()
    third = ttmem.publish(2, arch="blackhole", grid=(14, 10), l1_cb_base=111488, l1_small_size=0)
    use(third, ttmem)


def use(publisher: Any, ttmem: Any) -> None:
    """Do one of everything."""
    everywhere = "{[0-0 - 7-7]}"
    first = publisher.add_program(
        [ttmem.CircularBuffer(120000, 8192, everywhere), ttmem.CircularBuffer(140000, 4096, "{[0-0 - 3-3]}")],
        name="matmul",
    )
    publisher.add_program([ttmem.CircularBuffer(120000, 2048, "{[4-4 - 7-7]}")], name="größer")
    publisher.remove_program(publisher.add_program([ttmem.CircularBuffer(200000, 64, everywhere)], name="gone"))
    publisher.dispatch(first)
    publisher.allocate("L1", 64 * 4096, address=900_000, size_per_bank=4096, name="weights")
    publisher.allocate("DRAM", 1 << 20, address=0, size_per_bank=1 << 17, name="activations")
    publisher.deallocate(publisher.allocate("DRAM", 1 << 22))
    publisher.allocate("L1_SMALL", 512)
    publisher.allocate("TRACE", 4096)
    publisher.load_kernel(1000, core_ranges=everywhere, persistent=True)


MADE: dict[str, Callable[[Any], None]] = {"empty": publish_empty, "small": publish_small, "two": publish_two}


def main() -> None:
    """Write the golden files that are not there yet, compressed, each with the figures that it must give for ever."""
    import gzip

    sys.path.insert(0, str(Path(__file__).parents[1]))
    import ttmem

    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, publish in MADE.items():
        path = GOLDEN / f"1.1-{name}.bin.gz"
        if path.exists():
            continue
        with tempfile.TemporaryDirectory() as directory:
            os.environ["TTMEM_SHM_DIR"] = directory
            publish(ttmem)
            (segment,) = Path(directory).iterdir()
            data = segment.read_bytes()
            ttmem.segment._close_all()
            ttmem._publisher._published.clear()
        # Written by a process that is nobody's: the hints of the header are made up.
        file = bytearray(data)
        file[112:176] = b"python3".ljust(64, b"\0")
        struct.pack_into("<II", file, 72, 4242, 1000)
        file[:512] = sealed(file)
        path.write_bytes(gzip.compress(bytes(file), mtime=0))
        text = json.dumps(figures(bytes(file)), indent=1, ensure_ascii=False)
        path.with_name(f"1.1-{name}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
