"""Python libraries that keep intervals, each for ONE core; a device has 64 to 140 of them.

A library that cannot take one of several equal ranges away again (a plain set of points or intervals) is rebuilt from
what is left at each removal, as its user would have to.
"""

from __future__ import annotations

import importlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

Ranges = Sequence[tuple[int, int]]


class CorePeer(Protocol):
    """The union of the ranges on one core."""

    def load(self, programs: Iterable[Ranges]) -> None:
        """Add many programs at once."""

    def add(self, ranges: Ranges) -> None:
        """Add a program's ranges."""

    def remove(self, ranges: Ranges) -> None:
        """Remove a program's ranges, which were added."""

    def physical(self) -> int:
        """Return the bytes covered."""


def _merged_bytes(ranges: Iterable[tuple[int, int]]) -> int:
    total = 0
    low = high = 0
    for begin, end in sorted(ranges):
        if begin > high:
            total += high - low
            low, high = begin, end
        elif end > high:
            high = end
    return total + high - low


class IntervalTreePeer:
    """intervaltree: a tree of (begin, end, number); the query sorts and merges."""

    def __init__(self, limit: int) -> None:
        self._module = importlib.import_module("intervaltree")
        self._tree = self._module.IntervalTree()
        self._numbers: dict[tuple[int, int], list[int]] = {}
        self._next = 0

    def _interval(self, begin: int, end: int) -> Any:
        # Equal intervals are one in this set: a number keeps them apart.
        self._next += 1
        self._numbers.setdefault((begin, end), []).append(self._next)
        return self._module.Interval(begin, end, self._next)

    def load(self, programs: Iterable[Ranges]) -> None:
        """Add many programs at once."""
        self._tree.update(self._interval(begin, end) for ranges in programs for begin, end in ranges)

    def add(self, ranges: Ranges) -> None:
        """Add a program's ranges."""
        for begin, end in ranges:
            self._tree.add(self._interval(begin, end))

    def remove(self, ranges: Ranges) -> None:
        """Remove a program's ranges."""
        for begin, end in ranges:
            self._tree.removei(begin, end, self._numbers[begin, end].pop())

    def physical(self) -> int:
        """Return the bytes covered."""
        return _merged_bytes((interval.begin, interval.end) for interval in self._tree)


class PortionPeer:
    """portion: a union of intervals without counts, rebuilt at each removal."""

    def __init__(self, limit: int) -> None:
        self._module = importlib.import_module("portion")
        self._union = self._module.empty()
        self._live: list[tuple[int, int]] = []

    def load(self, programs: Iterable[Ranges]) -> None:
        """Add many programs at once."""
        self._live.extend(pair for ranges in programs for pair in ranges)
        self._build()

    def _build(self) -> None:
        self._union = self._module.Interval(*(self._module.closedopen(begin, end) for begin, end in self._live))

    def add(self, ranges: Ranges) -> None:
        """Add a program's ranges."""
        for begin, end in ranges:
            self._live.append((begin, end))
            self._union |= self._module.closedopen(begin, end)

    def remove(self, ranges: Ranges) -> None:
        """Remove a program's ranges."""
        for pair in ranges:
            self._live.remove(pair)
        self._build()

    def physical(self) -> int:
        """Return the bytes covered."""
        return sum(part.upper - part.lower for part in self._union if not part.empty)


class SortedBoundariesPeer:
    """sortedcontainers: a SortedDict from boundary to cover count, with the bytes covered kept."""

    def __init__(self, limit: int) -> None:
        self._counts = importlib.import_module("sortedcontainers").SortedDict({0: 0, limit: 0})
        self._covered = 0
        self._programs = 0

    def load(self, programs: Iterable[Ranges]) -> None:
        """Add many programs at once."""
        for ranges in programs:
            self.add(ranges)

    def _cut(self, address: int) -> None:
        if address not in self._counts:
            below = self._counts.keys()[self._counts.bisect_left(address) - 1]
            self._counts[address] = self._counts[below]

    def _change(self, ranges: Ranges, step: int) -> None:
        for begin, end in ranges:
            self._cut(begin)
            self._cut(end)
            bounds = list(self._counts.irange(begin, end))
            for low, high in pairwise(bounds):
                count = self._counts[low] + step
                self._counts[low] = count
                if count == (step == 1):
                    self._covered += step * (high - low)
            # A boundary between equal counts says nothing any more.
            for address in (begin, end):
                place = self._counts.bisect_left(address)
                if place and address in self._counts and address != self._counts.keys()[-1]:
                    below = self._counts.keys()[place - 1]
                    if self._counts[below] == self._counts[address]:
                        del self._counts[address]

    def add(self, ranges: Ranges) -> None:
        """Add a program's ranges."""
        self._change(ranges, 1)

    def remove(self, ranges: Ranges) -> None:
        """Remove a program's ranges."""
        self._change(ranges, -1)

    def physical(self) -> int:
        """Return the bytes covered."""
        return self._covered


class CoveragePeer:
    """NumPy: a count for every byte of L1, with the bytes covered kept."""

    def __init__(self, limit: int) -> None:
        self._counts = np.zeros(limit, dtype=np.int32)
        self._covered = 0

    def load(self, programs: Iterable[Ranges]) -> None:
        """Add many programs at once."""
        for ranges in programs:
            self.add(ranges)

    def add(self, ranges: Ranges) -> None:
        """Add a program's ranges."""
        for begin, end in ranges:
            part = self._counts[begin:end]
            self._covered += (end - begin) - int(np.count_nonzero(part))
            part += 1

    def remove(self, ranges: Ranges) -> None:
        """Remove a program's ranges."""
        for begin, end in ranges:
            part = self._counts[begin:end]
            part -= 1
            self._covered -= (end - begin) - int(np.count_nonzero(part))

    def physical(self) -> int:
        """Return the bytes covered."""
        return self._covered


class RoaringPeer:
    """pyroaring: a compressed bitmap of bytes without counts, rebuilt at each removal."""

    def __init__(self, limit: int) -> None:
        self._module = importlib.import_module("pyroaring")
        self._bitmap = self._module.BitMap()
        self._live: list[tuple[int, int]] = []

    def load(self, programs: Iterable[Ranges]) -> None:
        """Add many programs at once."""
        for ranges in programs:
            self.add(ranges)

    def add(self, ranges: Ranges) -> None:
        """Add a program's ranges."""
        for begin, end in ranges:
            self._live.append((begin, end))
            self._bitmap.add_range(begin, end)

    def remove(self, ranges: Ranges) -> None:
        """Remove a program's ranges."""
        for pair in ranges:
            self._live.remove(pair)
        self._bitmap = self._module.BitMap()
        for begin, end in self._live:
            self._bitmap.add_range(begin, end)

    def physical(self) -> int:
        """Return the bytes covered."""
        return len(self._bitmap)


class SuperIntervalsPeer:
    """superintervals: a static index; an addition appends, the query merges, a removal rebuilds."""

    def __init__(self, limit: int) -> None:
        self._module = importlib.import_module("superintervals")
        self._map = self._module.IntervalMap()
        self._live: list[tuple[int, int]] = []

    def load(self, programs: Iterable[Ranges]) -> None:
        """Add many programs at once."""
        for ranges in programs:
            self.add(ranges)

    def add(self, ranges: Ranges) -> None:
        """Add a program's ranges."""
        for begin, end in ranges:
            self._live.append((begin, end))
            self._map.add(begin, end - 1, None)

    def remove(self, ranges: Ranges) -> None:
        """Remove a program's ranges."""
        for pair in ranges:
            self._live.remove(pair)
        self._map = self._module.IntervalMap()
        for begin, end in self._live:
            self._map.add(begin, end - 1, None)

    def physical(self) -> int:
        """Return the bytes covered."""
        places = range(self._map.size())
        return _merged_bytes((self._map.starts_at(i), self._map.ends_at(i) + 1) for i in places)


class SortMergePeer:
    """A sorted list of ranges; the query merges it."""

    def __init__(self, limit: int) -> None:
        self._ranges: list[tuple[int, int]] = []

    def load(self, programs: Iterable[Ranges]) -> None:
        """Add many programs at once."""
        self._ranges.extend(pair for ranges in programs for pair in ranges)
        self._ranges.sort()

    def add(self, ranges: Ranges) -> None:
        """Add a program's ranges."""
        for pair in ranges:
            self._ranges.insert(bisect_left(self._ranges, pair), pair)

    def remove(self, ranges: Ranges) -> None:
        """Remove a program's ranges."""
        for pair in ranges:
            del self._ranges[bisect_left(self._ranges, pair)]

    def physical(self) -> int:
        """Return the bytes covered."""
        return _merged_bytes(self._ranges)


PEERS: dict[str, type[CorePeer]] = {
    "intervaltree": IntervalTreePeer,
    "portion": PortionPeer,
    "sortedcontainers": SortedBoundariesPeer,
    "numpy-coverage": CoveragePeer,
    "pyroaring": RoaringPeer,
    "superintervals": SuperIntervalsPeer,
    "sorted-list": SortMergePeer,
}
EAGER = frozenset(("portion", "sortedcontainers", "numpy-coverage", "pyroaring"))
"""Peers whose total is at hand after an update; the others merge everything when they are asked."""
