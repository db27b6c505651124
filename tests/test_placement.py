"""Placement gives each circular buffer the address that TT-Metal gives it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttmem.capture import CaptureReader
from ttmem.cores import CoreRange, CoreRangeSet
from ttmem.errors import InvalidIntervalError
from ttmem.model import CircularBuffer
from ttmem.placement import align_up, place

CAPTURES = Path(__file__).parent / "captures"
BASE = 105664


def cb(size, ranges, address=None, **options):
    return CircularBuffer(address, size, ranges, **options)


def addresses(*buffers, base=BASE, alignment=32):
    return [buffer.address for buffer in place(buffers, base=base, alignment=alignment)]


def test_buffers_on_the_same_cores_follow_each_other_aligned_to_dram():
    assert addresses(cb(100, "[0-0 - 7-7]"), cb(64, "[0-0 - 7-7]")) == [BASE, BASE + 128]
    assert addresses(cb(100, "[0-0 - 7-7]"), cb(64, "[0-0 - 7-7]"), base=111488, alignment=64) == [111488, 111616]


def test_the_base_is_aligned_up_too():
    assert addresses(cb(32, "[0-0 - 0-0]"), base=100, alignment=64) == [128]


def test_buffers_on_disjoint_cores_start_at_the_base_each():
    assert addresses(cb(4096, "[0-0 - 0-0]"), cb(4096, "[1-0 - 1-0]")) == [BASE, BASE]


def test_a_later_overlapping_range_starts_behind_the_earlier_one():
    # Measured with ttnn 0.77.0 (reference/tt_metal.md section 2.1).
    assert addresses(cb(4096, "[0-0 - 1-0]"), cb(8192, "[1-0 - 2-0]")) == [105664, 109760]


def test_only_allocators_with_an_equal_range_are_asked():
    # The wide range is marked by the narrow one, and again the narrow by the wide.
    assert addresses(cb(4096, "[0-0 - 0-0]"), cb(4096, "[0-0 - 7-0]"), cb(32, "[0-0 - 0-0]")) == [
        BASE,
        BASE + 4096,
        BASE + 8192,
    ]


def test_an_allocator_whose_end_lies_higher_is_left_as_it_is():
    first, second, wide = "[0-0 - 0-0]", "[1-0 - 1-0]", "[0-0 - 1-0]"
    assert addresses(cb(4096, first), cb(64, second), cb(32, wide), cb(32, second)) == [
        BASE,
        BASE,
        BASE + 4096,
        BASE + 4128,
    ]


def test_a_buffer_on_several_ranges_starts_behind_the_highest_of_them():
    assert addresses(cb(64, "[0-0 - 0-0]"), cb(128, "[2-0 - 2-0]"), cb(32, "{[0-0 - 0-0], [2-0 - 2-0]}")) == [
        BASE,
        BASE,
        BASE + 128,
    ]


def test_what_is_globally_allocated_takes_no_space():
    buffers = (cb(9999, "[0-0 - 7-7]", 1400000, globally_allocated=True), cb(32, "[0-0 - 7-7]"))
    assert addresses(*buffers) == [1400000, BASE]
    assert addresses(cb(64, "[0-0 - 7-7]", globally_allocated=True), cb(32, "[0-0 - 7-7]")) == [None, BASE]


def test_an_address_is_kept_and_the_next_buffer_comes_behind_it():
    assert addresses(cb(4096, "[0-0 - 7-7]", 200000), cb(32, "[0-0 - 7-7]")) == [200000, 204096]


def test_a_scratchpad_comes_behind_every_buffer_that_shares_a_core():
    buffers = (cb(4096, "[0-0 - 0-0]"), cb(32, "[0-0 - 7-7]", kind="scratchpad"))
    assert addresses(*buffers) == [BASE, BASE + 4096]


def test_index_kind_and_order_survive():
    (placed,) = place([cb(32, "[0-0 - 0-0]", index=7, kind="dataflow_buffer")], base=BASE, alignment=32)
    assert (placed.index, placed.kind, placed.address) == (7, "dataflow_buffer", BASE)
    assert place([], base=BASE, alignment=32) == []


def test_a_buffer_on_no_core_is_placed_at_the_base():
    assert addresses(cb(32, "{}")) == [BASE]


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(InvalidIntervalError):
        addresses(cb(2**31 - 1, "[0-0 - 0-0]"), cb(32, "[0-0 - 0-0]"))
    with pytest.raises(ValueError, match="alignment"):
        addresses(cb(32, "[0-0 - 0-0]"), alignment=0)


@pytest.mark.parametrize(
    ("name", "base", "alignment"),
    [
        ("n150_mlp.json", 105664, 32),
        ("n150_conv.json.gz", 105664, 32),
        ("p150_transformer.json.gz", 111488, 64),
        ("t3k_mesh_transformer.json.gz", 105664, 32),
    ],
)
def test_every_program_of_a_real_capture_is_placed_where_tt_metal_placed_it(name, base, alignment):
    """Of one chip; the address that TT-Metal gave is hidden from the placement."""
    programs, current = [], []
    for node in CaptureReader(CAPTURES / name).nodes():
        if node["node_type"] == "circular_buffer_allocate":
            params = node["params"]
            if params["device_id"] == 0:
                current.append(params)
        elif current:
            programs.append(current)
            current = []
    assert programs
    for program in programs:
        hidden = [
            cb(p["size"], p["core_range_set"], p["address"], globally_allocated=True)
            if p["globally_allocated"] == "1"
            else cb(p["size"], p["core_range_set"])
            for p in program
        ]
        assert addresses(*hidden, base=base, alignment=alignment) == [p["address"] for p in program]


ranges = st.builds(
    lambda x, y, width, height: CoreRangeSet(CoreRange((x, y), (x + width, y + height))),
    *[st.integers(0, 3)] * 2,
    *[st.integers(0, 2)] * 2,
)


@given(st.lists(st.tuples(st.integers(1, 5000), ranges), max_size=8), st.sampled_from([32, 64]))
@settings(max_examples=100, deadline=None)
def test_placed_buffers_are_aligned_above_the_base_and_follow_each_other_on_equal_ranges(items, alignment):
    # On ranges that only overlap TT-Metal's rule can give two buffers the same bytes.
    placed = place([cb(size, cores) for size, cores in items], base=1000, alignment=alignment)
    for index, buffer in enumerate(placed):
        assert buffer.address % alignment == 0
        assert buffer.address >= align_up(1000, alignment)
        for other in placed[:index]:
            if buffer.core_ranges == other.core_ranges:
                assert buffer.address >= other.address + other.size
