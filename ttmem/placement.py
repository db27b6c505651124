"""Placement: the L1 addresses that TT-Metal gives to a program's circular buffers.

Addresses are bytes, intervals half-open ``[address, address + size)``, core ranges inclusive at both corners.
"""

from __future__ import annotations

from collections.abc import Sequence

from ttmem.cores import CoreRange
from ttmem.model import CircularBuffer


def align_up(address: int, alignment: int) -> int:
    """Return the first multiple of ``alignment`` that is not below ``address``, both in bytes."""
    return -(-address // alignment) * alignment


def place(circular_buffers: Sequence[CircularBuffer], *, base: int, alignment: int) -> list[CircularBuffer]:
    """Return the circular buffers of one program with an address each, placed as TT-Metal places them.

    One allocator stands for each distinct rectangle of cores. A buffer starts at the highest end among the allocators
    of its own rectangles, aligned up, and is then marked in every allocator that shares a core with it. A scratchpad
    starts at the highest end among all allocators that it shares a core with. What has an address keeps it, and is
    marked too. What is globally allocated lies in an L1 buffer and takes no space here; without an address it stays so.

    Args:
        circular_buffers: in the order in which the program created them.
        base: the first L1 address in bytes that circular buffers may take.
        alignment: in bytes; DRAM's alignment, not L1's (see ``model.DRAM_ALIGNMENT``).

    Raises:
        InvalidIntervalError: a buffer would lie beyond the largest address that ttmem accepts.
        ValueError: the alignment is not positive.
    """
    if alignment <= 0:
        raise ValueError(f"alignment must be positive, got {alignment}")
    # TT-Metal makes the allocators when a buffer is created, before any is placed: a later buffer's rectangle is
    # therefore marked by the earlier buffers that share a core with it.
    ends: dict[CoreRange, int] = {
        core_range: 0
        for buffer in circular_buffers
        if not buffer.globally_allocated
        for core_range in buffer.core_ranges.ranges
    }
    placed: list[CircularBuffer] = []
    for buffer in circular_buffers:
        if buffer.globally_allocated:
            placed.append(buffer)
            continue
        ranges = buffer.core_ranges.ranges
        address = buffer.address
        if address is None:
            if buffer.kind == "scratchpad":
                before = (end for held, end in ends.items() if any(held.intersects(mine) for mine in ranges))
            else:
                before = (ends[mine] for mine in ranges)
            address = align_up(max(base, max(before, default=0)), alignment)
            buffer = CircularBuffer(
                address, buffer.size, buffer.core_ranges, index=buffer.index, kind=buffer.kind, globally_allocated=False
            )
        _mark(ends, ranges, address, address + buffer.size)
        placed.append(buffer)
    return placed


def _mark(ends: dict[CoreRange, int], ranges: tuple[CoreRange, ...], address: int, end: int) -> None:
    """Append ``[address, end)`` to every allocator that shares a core with ``ranges``."""
    for mine in ranges:
        for held, held_end in ends.items():
            # Another rectangle whose end lies above was filled by a buffer elsewhere; TT-Metal leaves it as it is.
            if held == mine:
                ends[held] = max(held_end, end)
            elif held.intersects(mine) and address >= held_end:
                ends[held] = end


def region_ends(circular_buffers: Sequence[CircularBuffer]) -> dict[CoreRange, int]:
    """Return the end of the CB region on each distinct rectangle of a program, as TT-Metal's allocators have it.

    Args:
        circular_buffers: in the order in which the program created them, each with an address; the globally allocated
            ones take no part.
    """
    local = [buffer for buffer in circular_buffers if not buffer.globally_allocated and buffer.address is not None]
    ends: dict[CoreRange, int] = {core_range: 0 for buffer in local for core_range in buffer.core_ranges.ranges}
    for buffer in local:
        assert buffer.address is not None
        _mark(ends, buffer.core_ranges.ranges, buffer.address, buffer.address + buffer.size)
    return ends
