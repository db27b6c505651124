"""Workloads: programs as TT-Metal would lay them out, and programs made to hurt.

A workload holds ``cached`` programs that are there before a round starts and 256 more that come and go in the round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ttmem.interpreter import CaptureInterpreter
from ttmem.mesh import CaptureSink
from ttmem.model import CircularBuffer

ROUND_PROGRAMS = 256
TILE_BYTES = 2048
CAPTURES = Path(__file__).resolve().parent.parent / "tests" / "captures"


@dataclass(frozen=True, slots=True)
class Grid:
    """A device's cores and L1.

    Attributes:
        width: cores in x.
        height: cores in y.
        base: the first address that circular buffers may take, bytes.
        limit: bytes of L1 of one core.
    """

    width: int
    height: int
    base: int
    limit: int

    @property
    def num_cores(self) -> int:
        """The number of cores."""
        return self.width * self.height

    @property
    def mask_words(self) -> int:
        """Words of 64 bits in a mask of cores."""
        return (self.num_cores + 63) // 64

    def rectangle(self, x0: int, y0: int, x1: int, y1: int) -> int:
        """Return the mask of a rectangle, both corners inclusive; bit y * width + x."""
        row = ((1 << (x1 - x0 + 1)) - 1) << x0
        return sum(row << (y * self.width) for y in range(y0, y1 + 1))

    @property
    def full(self) -> int:
        """The mask of all cores."""
        return (1 << self.num_cores) - 1

    def first_cores(self, count: int) -> int:
        """Return the mask of the first cores, row by row."""
        return (1 << count) - 1

    def all_rectangles(self) -> list[int]:
        """Return the mask of every rectangle of the grid."""
        return [
            self.rectangle(x0, y0, x1, y1)
            for x0 in range(self.width)
            for x1 in range(x0, self.width)
            for y0 in range(self.height)
            for y1 in range(y0, self.height)
        ]


WORMHOLE = Grid(8, 8, 105664, 1499136)
BLACKHOLE = Grid(13, 10, 111488, 1572864)


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Programs, packed.

    Attributes:
        name: what it is called in the results.
        grid: the device.
        cached: programs ``[0, cached)`` are there before a round, the others come and go in it.
        first: uint64[programs + 1], the first range of each program.
        begin: uint32[ranges], first byte, inclusive.
        end: uint32[ranges], one past the last byte.
        mask_of: uint32[ranges], index of the range's core mask.
        masks: uint64[masks, words], core masks.
    """

    name: str
    grid: Grid
    cached: int
    first: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    mask_of: np.ndarray
    masks: np.ndarray

    @property
    def num_programs(self) -> int:
        """All programs, cached and of the round."""
        return len(self.first) - 1

    def program(self, index: int) -> list[tuple[int, int, int]]:
        """Return a program's ranges as (begin, end, mask)."""
        low, high = int(self.first[index]), int(self.first[index + 1])
        return [
            (
                int(self.begin[i]),
                int(self.end[i]),
                int.from_bytes(self.masks[self.mask_of[i]].astype("<u8").tobytes(), "little"),
            )
            for i in range(low, high)
        ]

    def on_core(self, core: int) -> list[list[tuple[int, int]]]:
        """Return each program's ranges (begin, end) on one core."""
        inside = ((self.masks[:, core // 64] >> np.uint64(core % 64)) & np.uint64(1)).astype(bool)[self.mask_of]
        begin, end = self.begin.tolist(), self.end.tolist()
        chosen = inside.tolist()
        bounds = self.first.tolist()
        return [[(begin[i], end[i]) for i in range(low, high) if chosen[i]] for low, high in pairwise(bounds)]

    def physical(self, programs: int) -> int:
        """Return the bytes covered by the first programs, summed over cores: the dumb model, byte by byte."""
        return sum(self.physical_of_cores(programs))

    def physical_of_cores(self, programs: int, cores: Iterable[int] | None = None) -> list[int]:
        """Return the bytes of each core that the first programs cover."""
        ranges = int(self.first[programs])
        begin, end, mask_of = self.begin[:ranges], self.end[:ranges], self.mask_of[:ranges]
        used = np.unique(mask_of)
        known: dict[bytes, int] = {}
        result = []
        for core in range(self.grid.num_cores) if cores is None else cores:
            inside = ((self.masks[:, core // 64] >> np.uint64(core % 64)) & np.uint64(1)).astype(bool)
            # Cores inside the same masks have the same bytes covered.
            key = inside[used].tobytes()
            if key not in known:
                chosen = inside[mask_of]
                steps = np.bincount(begin[chosen], minlength=self.grid.limit + 1)
                steps -= np.bincount(end[chosen], minlength=self.grid.limit + 1)
                known[key] = int(np.count_nonzero(np.cumsum(steps) > 0))
            result.append(known[key])
        return result


def pack(name: str, grid: Grid, cached: int, programs: Sequence[Sequence[tuple[int, int, int]]]) -> Workload:
    """Return a workload of programs given as lists of (begin, end, mask)."""
    masks: dict[int, int] = {}
    first, begin, end, mask_of = [0], [], [], []
    for program in programs:
        for low, high, mask in program:
            begin.append(low)
            end.append(high)
            mask_of.append(masks.setdefault(mask, len(masks)))
        first.append(len(begin))
    return _workload(name, grid, cached, first, begin, end, mask_of, list(masks))


def _workload(
    name: str, grid: Grid, cached: int, first: object, begin: object, end: object, mask_of: object, masks: Sequence[int]
) -> Workload:
    words = grid.mask_words
    packed = np.frombuffer(b"".join(mask.to_bytes(8 * words, "little") for mask in masks), dtype="<u8")
    return Workload(
        name,
        grid,
        cached,
        np.ascontiguousarray(first, dtype=np.uint64),
        np.ascontiguousarray(begin, dtype=np.uint32),
        np.ascontiguousarray(end, dtype=np.uint32),
        np.ascontiguousarray(mask_of, dtype=np.uint32),
        packed.reshape(len(masks), words).copy(),
    )


def _stacked(name: str, grid: Grid, cached: int, sizes: np.ndarray, mask_of: np.ndarray, masks: list[int]) -> Workload:
    """Lay out each row of sizes upward from the base, touching, as TT-Metal does."""
    ends = grid.base + np.cumsum(sizes, axis=1)
    if int(ends.max()) > grid.limit:
        raise ValueError(f"{name}: a program ends at {int(ends.max())}, beyond {grid.limit}")
    programs, count = sizes.shape
    first = np.arange(programs + 1) * count
    return _workload(name, grid, cached, first, (ends - sizes).ravel(), ends.ravel(), mask_of.ravel(), masks)


def stack(grid: Grid, cached: int, cbs: int) -> Workload:
    """Full grid, CBs of 1 to 12 tiles stacked from the base: how TT-Metal lays programs out."""
    rng = np.random.default_rng(cached + cbs)
    sizes = rng.integers(1, 13, (cached + ROUND_PROGRAMS, cbs)) * TILE_BYTES
    return _stacked("stack", grid, cached, sizes, np.zeros_like(sizes), [grid.full])


def stack32(grid: Grid, cached: int, cbs: int) -> Workload:
    """The same with sizes in steps of 32 bytes: nearly all footprints differ."""
    rng = np.random.default_rng(cached + cbs + 1)
    sizes = rng.integers(1, 1025, (cached + ROUND_PROGRAMS, cbs)) * 32
    return _stacked("stack32", grid, cached, sizes, np.zeros_like(sizes), [grid.full])


def unaligned(grid: Grid, cached: int, cbs: int) -> Workload:
    """Stacks whose sizes are any number of bytes: every end lies inside the smallest node."""
    rng = np.random.default_rng(cached + cbs + 2)
    sizes = rng.integers(1, 32769, (cached + ROUND_PROGRAMS, cbs))
    return _stacked("unaligned", grid, cached, sizes, np.zeros_like(sizes), [grid.full])


def split(grid: Grid, cached: int, cbs: int) -> Workload:
    """60 % full grid, 20 % two groups of cores as split_work_to_cores makes them, 20 % one of 16 rectangles."""
    rng = np.random.default_rng(cached + cbs + 3)
    programs = cached + ROUND_PROGRAMS
    rectangles = grid.all_rectangles()
    picked = [rectangles[i] for i in rng.choice(len(rectangles), 16, replace=False)]
    cuts = [int(c) for c in rng.choice(np.arange(1, grid.num_cores), 12, replace=False)]
    masks = [grid.full, *picked]
    for cut in cuts:
        masks += [grid.first_cores(cut), grid.full & ~grid.first_cores(cut)]
    sizes = rng.integers(1, 13, (programs, cbs)) * TILE_BYTES
    mask_of = np.zeros((programs, cbs), dtype=np.int64)
    kind = rng.random(programs)
    pairs = 1 + 16 + 2 * rng.integers(0, len(cuts), programs)
    for cb in range(cbs):
        mask_of[:, cb] = np.where(kind < 0.6, 0, np.where(kind < 0.8, pairs + cb % 2, 0))
    ones = 1 + rng.integers(0, 16, programs)
    mask_of[kind >= 0.8] = ones[kind >= 0.8, None]
    return _stacked("split", grid, cached, sizes, mask_of, masks)


def random(grid: Grid, cached: int, cbs: int) -> Workload:
    """Each CB anywhere in L1 on a rectangle of its own: all cores come to differ."""
    rng = np.random.default_rng(cached + cbs + 4)
    shape = (cached + ROUND_PROGRAMS, cbs)
    masks = grid.all_rectangles()
    sizes = rng.integers(1, 1025, shape) * 32
    begin = grid.base + 32 * rng.integers(0, (grid.limit - grid.base - 32768) // 32, shape)
    mask_of = rng.integers(0, len(masks), shape).ravel()
    first = np.arange(shape[0] + 1) * cbs
    return _workload("random", grid, cached, first, begin.ravel(), (begin + sizes).ravel(), mask_of, masks)


def staircase(grid: Grid, cached: int, cbs: int) -> Workload:
    """Nested ranges, each a little inside the one before, as many distinct ones as the memory has room for."""
    programs = cached + ROUND_PROGRAMS
    room = (grid.limit - grid.base) // cbs // 8 * 8
    step = np.arange(programs)[:, None] % (room // 2 - 1)
    low = grid.base + room * np.arange(cbs)[None, :]
    begin, end = low + step, low + room - step
    first = np.arange(programs + 1) * cbs
    return _workload(
        "staircase", grid, cached, first, begin.ravel(), end.ravel(), np.zeros(programs * cbs), [grid.full]
    )


def comb(grid: Grid, cached: int, cbs: int) -> Workload:
    """Disjoint teeth of 8 bytes with gaps of 8, in no order: as many separate ranges as can be."""
    rng = np.random.default_rng(cached + cbs + 5)
    programs = cached + ROUND_PROGRAMS
    teeth = (grid.limit - grid.base) // 16
    order = rng.permutation(teeth)
    begin = grid.base + 16 * order[np.arange(programs * cbs) % teeth]
    first = np.arange(programs + 1) * cbs
    return _workload("comb", grid, cached, first, begin, begin + 8, np.zeros(programs * cbs), [grid.full])


def cuts(grid: Grid, cached: int, cbs: int) -> Workload:
    """The cached programs fill the grid; those of the round are the first 1, 2, 3 ... cores: each splits a class."""
    rng = np.random.default_rng(cached + cbs + 6)
    programs = cached + ROUND_PROGRAMS
    sizes = rng.integers(1, 13, (programs, cbs)) * TILE_BYTES
    masks = [grid.full, *(grid.first_cores(count) for count in range(1, grid.num_cores))]
    mask_of = np.zeros((programs, cbs), dtype=np.int64)
    mask_of[cached:] = (1 + np.arange(ROUND_PROGRAMS) % (grid.num_cores - 1))[:, None]
    return _stacked("cuts", grid, cached, sizes, mask_of, masks)


def sweep(grid: Grid, cached: int, cbs: int) -> Workload:
    """One operation over shapes: rows of cores times block sizes, as a parameter sweep fills the cache."""
    programs = cached + ROUND_PROGRAMS
    number = np.arange(programs)
    rows = number % grid.height
    blocks = 1 + number // grid.height % 20
    share = 1 + np.arange(cbs)[None, :] % 2
    sizes = np.maximum(1, blocks[:, None] * share * 16 // max(16, cbs)) * TILE_BYTES
    masks = [grid.rectangle(0, 0, grid.width - 1, row) for row in range(grid.height)]
    return _stacked("sweep", grid, cached, sizes, np.repeat(rows[:, None], cbs, axis=1), masks)


class _Programs(CaptureSink):
    """A sink that keeps the programs of a capture's chips and the order of dispatches."""

    def __init__(self) -> None:
        self.programs: dict[int, dict[int, tuple[CircularBuffer, ...]]] = {}
        self.dispatches: dict[int, list[int]] = {}

    def add_program(self, chip: int, program_key: int, circular_buffers: tuple[CircularBuffer, ...], name: str) -> None:
        self.programs.setdefault(chip, {})[program_key] = circular_buffers

    def dispatch(self, chip: int, program_key: int) -> None:
        self.dispatches.setdefault(chip, []).append(program_key)


def captured(path: Path) -> list[tuple[CircularBuffer, ...]]:
    """Return the programs that a graph capture puts on its first chip, in order."""
    from ttmem.capture import CaptureReader

    sink = _Programs()
    interpreter = CaptureInterpreter(sink)
    for node in CaptureReader(path).nodes():
        interpreter.feed(node)
    interpreter.finish()
    return list(sink.programs[min(sink.programs)].values()) if sink.programs else []


def captures(grid: Grid, cached: int, cbs: int) -> Workload:
    """The programs of the captures of real models that lie in the tests, over and over."""
    del cbs
    programs = []
    board = "p150" if grid is BLACKHOLE else "n150"
    for path in sorted(CAPTURES.glob(f"{board}_*.json*")):
        if ".meta." in path.name:
            continue
        for circular_buffers in captured(path):
            ranges = [
                (b.address, b.address + b.size, _mask(grid, b))
                for b in circular_buffers
                if b.address and not b.globally_allocated
            ]
            if ranges and all(end <= grid.limit and mask <= grid.full for _, end, mask in ranges):
                programs.append(ranges)
    if not programs:
        raise ValueError(f"no capture in {CAPTURES} has programs with addresses")
    total = cached + ROUND_PROGRAMS
    return pack("captures", grid, cached, [programs[i % len(programs)] for i in range(total)])


def _mask(grid: Grid, buffer: CircularBuffer) -> int:
    mask = 0
    for area in buffer.core_ranges.ranges:
        if area.end.x >= grid.width:
            return grid.full + 1
        mask |= grid.rectangle(area.start.x, area.start.y, area.end.x, area.end.y)
    return mask


REALISTIC: dict[str, Callable[[Grid, int, int], Workload]] = {
    "stack": stack,
    "stack32": stack32,
    "split": split,
    "sweep": sweep,
    "captures": captures,
}
ADVERSARIAL: dict[str, Callable[[Grid, int, int], Workload]] = {
    "random": random,
    "staircase": staircase,
    "comb": comb,
    "unaligned": unaligned,
    "cuts": cuts,
}
ALL = {**REALISTIC, **ADVERSARIAL}
