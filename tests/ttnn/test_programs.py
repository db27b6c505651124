"""Random programs with circular buffers, laid out by TT-Metal itself and by ttmem."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import Environment
from stage import Player, Stage

from ttmem.cores import CoreRange, CoreRangeSet
from ttmem.model import DRAM_ALIGNMENT, CircularBuffer
from ttmem.placement import place

pytestmark = [pytest.mark.ttnn, pytest.mark.timeout(600)]

Area = tuple[int, int, int, int]
Buffer = tuple[int, list[Area]]
GRID = 7
"""Fits the compute grid of every cluster, with room to spare."""


class Laboratory:
    """A ttnn process that lays out what it is given."""

    def __init__(self, player: Player, arch: str) -> None:
        self.player = player
        self.alignment = DRAM_ALIGNMENT[arch]
        player.ask("open", "laboratory")
        assert player.ask("hook")["reason"] == ""
        self.base: int = player.ask("base")["base"]

    def lay_out(self, programs: list[list[Buffer]]) -> tuple[list[list[CircularBuffer]], int]:
        """Return the programs as TT-Metal lays them out, with its own sum of them."""
        self.player.ask("forget")
        self.player.ask("footprints")
        for program in programs:
            assert self.player.ask("circular", [[size, *areas] for size, areas in program], 16)["thrown"] == ""
        answer = self.player.ask("footprints")
        found = [
            [
                CircularBuffer(address, size, CoreRangeSet(*(range_of(area) for area in areas)))
                for _, address, size, _, areas in footprint
            ]
            for footprint in answer["footprints"]
        ]
        return found, answer["total_cb"]


@pytest.fixture(scope="module", params=[("n150", "wormhole_b0"), ("p150", "blackhole")], ids=lambda param: param[0])
def laboratory(
    ttnn: Environment, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    cluster, arch = request.param
    folder: Path = tmp_path_factory.mktemp("laboratory")
    with Stage(ttnn, folder, cluster) as stage:
        yield Laboratory(stage.start(knows_ttmem=True), arch)


def range_of(area: Area) -> CoreRange:
    x, y, end_x, end_y = area
    return CoreRange((x, y), (end_x, end_y))


def cores_of(area: Area) -> set[tuple[int, int]]:
    x, y, end_x, end_y = area
    return {(column, row) for column in range(x, end_x + 1) for row in range(y, end_y + 1)}


@st.composite
def areas(draw: st.DrawFn) -> Area:
    x, y = draw(st.integers(0, GRID - 1)), draw(st.integers(0, GRID - 1))
    return x, y, draw(st.integers(x, min(x + 3, GRID - 1))), draw(st.integers(y, min(y + 3, GRID - 1)))


def disjoint(found: list[Area]) -> bool:
    return sum(len(cores_of(area)) for area in found) == len(set().union(*map(cores_of, found)))


# TT-Metal wants whole pages of 16 bytes; DRAM's alignment is 32 or 64, so that most buffers end between two places.
buffers = st.tuples(
    st.integers(1, 2048).map(lambda n: 16 * n), st.lists(areas(), min_size=1, max_size=3).filter(disjoint)
)
programs = st.lists(buffers, min_size=1, max_size=6)


def covered(laid_out: list[list[CircularBuffer]]) -> int:
    """The bytes under at least one circular buffer, summed over the cores."""
    cores = collections.defaultdict(list)
    for program in laid_out:
        for buffer in program:
            for part in buffer.core_ranges.ranges:
                for core in part:
                    cores[core].append((buffer.address, buffer.address + buffer.size))
    return sum(union(intervals) for intervals in cores.values())


def union(intervals: list[tuple[int, int]]) -> int:
    total = reached = 0
    for begin, end in sorted(intervals):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def charged(laid_out: list[list[CircularBuffer]]) -> int:
    """What TT-Metal counts: a buffer on every core of every rectangle of its program that shares a core with its own.

    One list of intervals stands for each distinct rectangle of a program; an address below the list's end is left out
    unless the rectangle is the buffer's own.
    """
    cores = collections.defaultdict(list)
    for program in laid_out:
        lists: dict[CoreRange, list[tuple[int, int]]] = {
            part: [] for buffer in program for part in buffer.core_ranges.ranges
        }
        for buffer in program:
            for mine in buffer.core_ranges.ranges:
                for held, taken in lists.items():
                    end = taken[-1][1] if taken else 0
                    if held == mine or (held.intersects(mine) and buffer.address >= end):
                        taken.append((buffer.address, buffer.address + buffer.size))
        for held, taken in lists.items():
            for core in held:
                cores[core] += taken
    return sum(union(intervals) for intervals in cores.values())


def test_a_core_of_one_range_is_charged_for_every_range_that_touches_it(laboratory: Laboratory) -> None:
    # docs/ttnn.md explains this very program.
    program: list[Buffer] = [(4096, [(0, 0, 1, 0)]), (8192, [(1, 0, 2, 0)])]
    laid_out, total = laboratory.lay_out([program])
    base = laboratory.base
    assert [(buffer.address, buffer.size) for buffer in laid_out[0]] == [(base, 4096), (base + 4096, 8192)]
    assert covered(laid_out) == 4096 + 12288 + 8192 == 24576
    assert charged(laid_out) == total == 3 * 12288 == 36864


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(programs, min_size=1, max_size=3))
def test_random_programs_are_placed_and_counted_as_tt_metal_does(
    laboratory: Laboratory, given: list[list[Buffer]]
) -> None:
    laid_out, total = laboratory.lay_out(given)
    # Two equal programs are one in TT-Metal's cache.
    unique = list({repr(program): program for program in given}.values())
    assert len(laid_out) == len(unique)
    for theirs, program in zip(laid_out, unique, strict=True):
        mine = [CircularBuffer(None, size, CoreRangeSet(*map(range_of, areas))) for size, areas in program]
        placed = place(mine, base=laboratory.base, alignment=laboratory.alignment)
        assert [buffer.address for buffer in placed] == [buffer.address for buffer in theirs]
        assert [buffer.size for buffer in placed] == [buffer.size for buffer in theirs]
    assert charged(laid_out) == total
    assert covered(laid_out) <= total
