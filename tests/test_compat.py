"""New readers read old files, and old readers read new ones or say politely that they cannot."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from segment_files import GOLDEN, PAGE, Block, File, Section, figures, put_together, sealed, take_apart

from ttmem.errors import LayoutMismatchError

FILES = sorted(GOLDEN.glob("*.bin.gz"))


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def test_there_are_golden_files_of_each_version() -> None:
    assert {path.name.split("-")[0] for path in FILES} >= {"1.0", "1.1"}


def keeps(seen: Any, wanted: Any) -> bool:
    """Whether all that was there has its value still; what an object has besides is not known of an old file.

    But that where nothing ever was, nothing spans anything.
    """
    if isinstance(wanted, dict):
        nothing = {"peak_span_bytes": 0} if wanted.get("peak_bytes") == 0 else {}
        added = {name: seen[name] for name in seen.keys() - wanted.keys()}
        known = {name: value for name, value in added.items() if value is not None}
        return known in ({}, nothing) and all(keeps(seen[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return len(seen) == len(wanted) and all(map(keeps, seen, wanted))
    return bool(seen == wanted)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_golden_file_gives_its_figures_for_ever(path: Path) -> None:
    expected = json.loads(path.with_name(path.name.replace(".bin.gz", ".json")).read_text(encoding="utf-8"))
    seen = json.loads(json.dumps(figures(content(path))))
    # Fields may be added to the JSON; those that were there keep their values.
    assert len(seen) == len(expected)
    for device, wanted in zip(seen, expected, strict=True):
        assert keeps(device, wanted)


def test_taking_a_file_apart_and_together_changes_no_figure() -> None:
    for path in FILES:
        data = content(path)
        assert figures(put_together(take_apart(data))) == figures(data)


SMALL = content(GOLDEN / "1.0-small.bin.gz")


def block_of(file: File) -> Block:
    (block,) = file.blocks
    assert isinstance(block, Block)
    return block


def with_unknown_compatible_features(file: File) -> None:
    struct.pack_into("<Q", file.header, 16, 0xFF00FF)


def with_a_later_minor_version(file: File) -> None:
    struct.pack_into("<H", file.header, 14, 7)


def with_words_in_reserved_places(file: File) -> None:
    file.header[208:504] = bytes(range(1, 149)) * 2
    block_of(file).header[464:504] = bytes(range(1, 41))
    block_of(file).control = block_of(file).control[:48] + bytes(range(1, 17))


def with_longer_strides(file: File) -> None:
    for section in block_of(file).sections:
        section.stride = section.stride * 2 if section.words < 128 else section.stride + 64


def with_longer_records(file: File) -> None:
    for section in block_of(file).sections:
        extra = 4 if section.words < 500 else 0
        section.words += extra
        section.stride = -(-section.words * 8 // 64) * 64
        section.records = [
            [*words[:-1], *([0xABCDEF] * extra if words[-1] else [0] * extra), words[-1]] for words in section.records
        ]


def with_more_records(file: File) -> None:
    for section in block_of(file).sections:
        if section.kind in (0, 8, 9):
            section.records += [[0] * section.words for _ in range(16)]


def with_sections_of_unknown_kinds(file: File) -> None:
    sections = block_of(file).sections
    sections.insert(3, Section(99, 64, 8, [[5] * 7 + [1 << 32]] * 10))
    sections.append(Section(40000, 128, 16, [[6] * 15 + [1 << 32]]))


def with_sections_in_another_order(file: File) -> None:
    block_of(file).sections.reverse()


def with_blocks_of_unknown_types(file: File) -> None:
    unknown = struct.pack("<IIQ", 77, 9, 3 * PAGE).ljust(3 * PAGE, b"\x5a")
    file.blocks.insert(0, unknown)
    file.blocks.append(unknown)


FUTURES = [
    with_unknown_compatible_features,
    with_a_later_minor_version,
    with_words_in_reserved_places,
    with_longer_strides,
    with_longer_records,
    with_more_records,
    with_sections_of_unknown_kinds,
    with_sections_in_another_order,
    with_blocks_of_unknown_types,
]


@pytest.mark.parametrize("change", FUTURES, ids=lambda change: change.__name__)
def test_a_file_from_the_future_gives_the_figures_that_this_reader_knows(change: Callable[[File], None]) -> None:
    file = take_apart(SMALL)
    change(file)
    assert figures(put_together(file)) == figures(SMALL)


def test_a_file_with_all_of_the_future_gives_the_figures_that_this_reader_knows() -> None:
    file = take_apart(SMALL)
    for change in FUTURES:
        if change is not with_blocks_of_unknown_types:
            change(file)
    with_blocks_of_unknown_types(file)
    assert figures(put_together(file, header_bytes=3 * PAGE)) == figures(SMALL)


def test_more_ranges_than_this_reader_takes_are_unknown_and_nothing_else_is() -> None:
    file = take_apart(SMALL)
    for section in block_of(file).sections:
        if section.kind == 6:
            section.words, section.stride = 128, 1024
            for index, words in enumerate(section.records):
                ranges = [(2000 + 20 * i) | (2010 + 20 * i) << 32 for i in range(100)]
                section.records[index] = [100, *ranges, *[0] * 26, words[-1]] if words[-1] else [0] * 128
    (seen,) = figures(put_together(file))
    (before,) = figures(SMALL)
    assert seen["consistent"]
    assert seen["map"]["cb_ranges"] is None
    assert seen["map"]["l1_ranges"] == before["map"]["l1_ranges"]
    assert seen["memory"] == before["memory"]


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (12, "<H", 2, "layout 2.0, this ttmem reads 1.x: upgrade ttmem"),
        (24, "<Q", 1 << 40, "needs features that this ttmem lacks .*upgrade ttmem"),
        (8, "<I", 0x04030201, "byte order"),
    ],
)
def test_what_this_reader_cannot_read_it_refuses_in_words(at: int, form: str, value: int, message: str) -> None:
    data = bytearray(SMALL)
    struct.pack_into(form, data, at, value)
    data[:512] = sealed(data)
    with pytest.raises(LayoutMismatchError, match=message):
        figures(bytes(data))


def test_a_device_block_of_a_later_version_is_refused_in_words() -> None:
    file = take_apart(SMALL)
    struct.pack_into("<I", block_of(file).header, 4, 2)
    with pytest.raises(LayoutMismatchError, match=r"has version 2, this ttmem reads 1: upgrade ttmem"):
        figures(put_together(file))
