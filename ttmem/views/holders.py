"""Whose circular buffers and L1 buffers lie where on a core: the names behind the ranges of an address map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from ttmem.cores import parse_core_ranges
from ttmem.views.notes import get
from ttmem.views.text import Device

PIECES_MAX = 8
"""Pieces that a range of CBs is cut into by what lies there; of more, the smallest are joined to a neighbour."""
NAMES_MAX = 6
"""Names that are told of a piece; how many there are is told too."""

Ranges = list[tuple[int, int]]
Labelled = tuple[int, int, list[str], int]
"""Begin, end, the largest names behind it, and how many there are."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What the CBs of programs of one name take on a core; those that take the same are one.

    Attributes:
        name: of the programs; with its kind where its CBs are of another one.
        count: how many cached programs take this.
        size: bytes covered.
        ranges: merged, sorted.
    """

    name: str
    count: int
    size: int
    ranges: tuple[tuple[int, int], ...]


def merged(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Return [begin, end) ranges sorted and with what touches joined."""
    found: Ranges = []
    for begin, end in sorted(ranges):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        elif end > begin:
            found.append((begin, end))
    return found


@lru_cache(maxsize=8192)
def _rectangles(text: str) -> tuple[tuple[int, int, int, int], ...]:
    try:
        return tuple((r.start.x, r.start.y, r.end.x, r.end.y) for r in parse_core_ranges(text).ranges)
    except ValueError:
        # A dump may hold anything: what names no cores lies on none.
        return ()


def _inside(text: object, x: int, y: int) -> bool:
    return isinstance(text, str) and any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in _rectangles(text))


class Holders:
    """What is known of one device; asked for many cores it is fast, for cores with the same CBs share the answer.

    Args:
        device: the device object.
        buffers: its live buffers, as ``Snapshot.buffers`` gives them; None takes those that the object holds.
    """

    def __init__(self, device: Device, buffers: Sequence[Mapping[str, Any]] | None = None) -> None:
        rows = device.get("programs")
        self.complete = (
            rows is not None
            and not get(device, "programs_omitted")
            and all(row.get("circular_buffers") is not None for row in rows)
        )
        """Whether the CBs of all cached programs are known."""
        self._rows = [(row, [cb for cb in row.get("circular_buffers") or () if _placed(cb)]) for row in rows or ()]
        self._where = [frozenset(str(cb.get("core_ranges")) for cb in cbs) for _, cbs in self._rows]
        # Of a program whose CBs lie on the same cores, as they mostly do, the answer is the same wherever it lies.
        self._whole: dict[int, Holding | None] = {}
        self._texts = sorted(frozenset().union(*self._where))
        self._known: dict[tuple[bool, ...], list[Holding]] = {}
        self._labels: dict[Any, list[Labelled]] = {}
        self._on_all, self._on_some, self._all_on_all = _placed_buffers(
            device, device.get("buffers") if buffers is None else buffers
        )

    def on(self, x: int, y: int) -> list[Holding]:
        """Return the programs whose CBs lie on a core, the largest there first."""
        key = tuple(_inside(text, x, y) for text in self._texts)
        if key not in self._known:
            self._known[key] = self._found({text for text, here in zip(self._texts, key, strict=True) if here})
        return self._known[key]

    def _found(self, here: set[str]) -> list[Holding]:
        counts: dict[tuple[str, tuple[tuple[int, int], ...]], int] = {}
        for number, ((row, cbs), texts) in enumerate(zip(self._rows, self._where, strict=True)):
            if texts <= here:
                if number not in self._whole:
                    self._whole[number] = _holding(row, cbs)
                held = self._whole[number]
            elif texts.isdisjoint(here):
                continue
            else:
                held = _holding(row, [cb for cb in cbs if str(cb.get("core_ranges")) in here])
            if held is not None:
                key = held.name, held.ranges
                counts[key] = counts.get(key, 0) + held.count
        found = [Holding(name, count, _covered(ranges), ranges) for (name, ranges), count in counts.items()]
        return sorted(found, key=lambda held: (-held.size, held.name))

    def details(self, x: int, y: int, told: Mapping[str, Any] | None) -> dict[str, list[Labelled] | None]:
        """Return the ranges of a core with the names behind them.

        Args:
            x: of the core.
            y: of the core.
            told: ``cb_ranges`` and ``l1_ranges`` as ``Snapshot.core_map`` gives them. One that is None is made of the
                programs or buffers, if all of them are known.
        """
        holdings = self.on(x, y)
        cbs, buffers = ((told or {}).get(name) for name in ("cb_ranges", "l1_ranges"))
        if cbs is None and self.complete:
            cbs = merged([found for held in holdings for found in held.ranges])
        if buffers is None and self._all_on_all:
            buffers = merged([(begin, end) for begin, end, _ in self._on_all])
        return {
            "cb_ranges": None if cbs is None else self._cbs(holdings, tuple((int(r[0]), int(r[1])) for r in cbs)),
            "l1_ranges": None if buffers is None else [self._buffers(int(r[0]), int(r[1])) for r in buffers],
        }

    def _cbs(self, holdings: list[Holding], ranges: tuple[tuple[int, int], ...]) -> list[Labelled]:
        key = id(holdings), ranges
        if key not in self._labels:
            self._labels[key] = [piece for begin, end in ranges for piece in _pieces(holdings, begin, end)]
        return self._labels[key]

    def _buffers(self, begin: int, end: int) -> Labelled:
        counted: dict[str, int] = {}
        for first, last, name in (*self._on_all, *self._on_some):
            if begin <= first and last <= end:
                counted[name] = counted.get(name, 0) + 1
        unnamed = counted.pop("", 0)
        names = [_counted(name, count) for name, count in counted.items()][:NAMES_MAX]
        # Those without a name are only worth telling of beside one.
        return begin, end, names, len(counted) + unnamed if names else 0


def _holding(row: Mapping[str, Any], cbs: Sequence[Mapping[str, Any]]) -> Holding | None:
    """Return what these CBs of a row of programs take; None if that is nothing."""
    ranges = merged([(cb["address"], cb["address"] + cb["size"]) for cb in cbs])
    if not ranges:
        return None
    kinds = {str(cb.get("kind")) for cb in cbs} - {"circular_buffer", "None"}
    name = str(row.get("name") or f"program {row.get('program_id')}")
    name += f" ({', '.join(sorted(kinds)).replace('_', ' ')})" if kinds else ""
    return Holding(name, row.get("count") or 1, _covered(ranges), tuple(ranges))


def _covered(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(end - begin for begin, end in ranges)


def _placed(cb: Mapping[str, Any]) -> bool:
    return all(isinstance(cb.get(key), int) and cb[key] >= 0 for key in ("address", "size"))


def _counted(name: str, count: int) -> str:
    return f"{name} ({count})" if count > 1 else name


def _pieces(holdings: Sequence[Holding], begin: int, end: int) -> list[Labelled]:
    """Return a merged range cut where what lies there changes."""
    here = []
    for held in holdings:
        inside = [one for one in held.ranges if one[0] < end and one[1] > begin]
        if inside:
            here.append((held, inside))
    # Not at every CB: programs are told apart by where their first begins and their last ends.
    ends = {cut for _, inside in here for cut in (inside[0][0], inside[-1][1]) if begin < cut < end}
    cuts = [begin, *sorted(ends), end]
    while len(cuts) > PIECES_MAX + 1:
        sizes = [last - first for first, last in pairwise(cuts)]
        smallest = sizes.index(min(sizes))
        # To the smaller neighbour: large pieces keep their ends.
        left = sizes[smallest - 1] if smallest else None
        right = sizes[smallest + 1] if smallest + 1 < len(sizes) else None
        del cuts[smallest + 1 if left is None or (right is not None and right < left) else smallest]
    found: list[Labelled] = []
    for first, last in pairwise(cuts):
        counts: dict[str, int] = {}
        for held, inside in here:
            if any(low < last and high > first for low, high in inside):
                counts[held.name] = counts.get(held.name, 0) + held.count
        names = [_counted(name, count) for name, count in counts.items()]
        if found and found[-1][2:] == (names[:NAMES_MAX], len(names)):
            found[-1] = found[-1][0], last, *found[-1][2:]
        else:
            found.append((first, last, names[:NAMES_MAX], len(names)))
    return found


_Buffer = tuple[int, int, str]
"""Begin, end and name of an L1 buffer; the name may be empty."""


def _placed_buffers(
    device: Device, held: Sequence[Mapping[str, Any]] | None
) -> tuple[list[_Buffer], list[_Buffer], bool]:
    """Return the L1 buffers on every core, those on some with that said, and whether the first are all that there are."""
    grid = device.get("grid")
    if held is None or not grid:
        return [], [], False
    cores = grid["x"] * grid["y"]
    of_l1 = [row for row in held if row.get("buffer_type") in (1, "L1")]
    everywhere: list[_Buffer] = []
    somewhere: list[_Buffer] = []
    for row in of_l1:
        if all(isinstance(row.get(key), int) for key in ("address", "size_per_bank", "num_cores")):
            name, count = str(row.get("name") or ""), row["num_cores"]
            # A writer that does not know the grid counts all cores that there may be.
            on_all = count >= cores
            where, said = (everywhere, name) if on_all else (somewhere, f"{name or 'unnamed'} (on {count} cores)")
            where.append((row["address"], row["address"] + row["size_per_bank"], said))
    whole = sum(row.get("size_bytes") or 0 for row in of_l1) == get(device, "memory.l1.used_bytes")
    return everywhere, somewhere, whole and len(everywhere) == len(of_l1)
