"""Cores and rectangles of cores, in TT-Metal's words and spellings.

Coordinates are logical. A :class:`CoreRange` is inclusive at both corners, as TT-Metal's is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Union

from ttmem.errors import InvalidIntervalError

MAX_COORDINATE = 255
"""The largest x or y that is accepted; the largest grid known has 14 x 10 cores."""


def _coordinate(value: object, axis: str) -> int:
    # bool is an int in Python, and "x=True" is a mistake in the caller.
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidIntervalError(f"{axis} of a core must be an integer, got {value!r}")
    number: int = value.__index__()
    if not 0 <= number <= MAX_COORDINATE:
        raise InvalidIntervalError(f"{axis} of a core must be between 0 and {MAX_COORDINATE}, got {number}")
    return number


@dataclass(frozen=True, slots=True, order=True)
class CoreCoord:
    """The logical coordinates of one core.

    Raises:
        InvalidIntervalError: a coordinate is no integer or outside 0 to 255.
    """

    x: int
    y: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", _coordinate(self.x, "x"))
        object.__setattr__(self, "y", _coordinate(self.y, "y"))

    def __iter__(self) -> Iterator[int]:
        return iter((self.x, self.y))

    def __str__(self) -> str:
        return f"{self.x}-{self.y}"


@dataclass(frozen=True, slots=True, order=True)
class CoreRange:
    """A rectangle of cores, inclusive at both corners.

    Args:
        start: the corner with the smallest x and y; a :class:`CoreCoord` or an (x, y) pair.
        end: the corner with the largest x and y; the same core as ``start`` when left out.

    Raises:
        InvalidIntervalError: the corners are swapped, or one is no core.
    """

    start: CoreCoord
    end: CoreCoord

    def __init__(self, start: "CoreLike", end: "CoreLike | None" = None) -> None:
        first = as_core(start)
        last = first if end is None else as_core(end)
        if first.x > last.x or first.y > last.y:
            raise InvalidIntervalError(f"the start of a core range must not lie beyond its end, got [{first} - {last}]")
        object.__setattr__(self, "start", first)
        object.__setattr__(self, "end", last)

    @property
    def num_cores(self) -> int:
        """The number of cores in the rectangle."""
        return (self.end.x - self.start.x + 1) * (self.end.y - self.start.y + 1)

    def intersects(self, other: "CoreRange") -> bool:
        """Tell whether the two rectangles share a core."""
        return (
            self.start.x <= other.end.x
            and other.start.x <= self.end.x
            and self.start.y <= other.end.y
            and other.start.y <= self.end.y
        )

    def __contains__(self, core: object) -> bool:
        x, y = as_core(core)  # type: ignore[arg-type]
        return self.start.x <= x <= self.end.x and self.start.y <= y <= self.end.y

    def __iter__(self) -> Iterator[CoreCoord]:
        """Iterate over the cores, row by row."""
        for y in range(self.start.y, self.end.y + 1):
            for x in range(self.start.x, self.end.x + 1):
                yield CoreCoord(x, y)

    def __str__(self) -> str:
        return f"[{self.start} - {self.end}]"


class CoreRangeSet:
    """Disjoint rectangles of cores.

    Args:
        ranges: what names cores in any accepted form (see :func:`as_core_range_set`).

    Raises:
        InvalidIntervalError: two rectangles share a core, or one is malformed.
    """

    __slots__ = ("_hash", "ranges")
    ranges: tuple[CoreRange, ...]

    def __init__(self, *ranges: "CoreRangesLike") -> None:
        parts: list[CoreRange] = []
        for item in ranges:
            parts.extend(_rectangles(item))
        for index, rectangle in enumerate(parts):
            for other in parts[:index]:
                if rectangle.intersects(other):
                    raise InvalidIntervalError(f"core ranges {other} and {rectangle} overlap")
        self.ranges = tuple(parts)
        self._hash = hash(self.ranges)

    @property
    def num_cores(self) -> int:
        """The number of cores in all rectangles."""
        return sum(rectangle.num_cores for rectangle in self.ranges)

    @property
    def bounding_box(self) -> CoreRange | None:
        """The smallest rectangle around all cores; None for an empty set."""
        if not self.ranges:
            return None
        return CoreRange(
            (min(r.start.x for r in self.ranges), min(r.start.y for r in self.ranges)),
            (max(r.end.x for r in self.ranges), max(r.end.y for r in self.ranges)),
        )

    def __iter__(self) -> Iterator[CoreCoord]:
        for rectangle in self.ranges:
            yield from rectangle

    def __len__(self) -> int:
        return len(self.ranges)

    def __contains__(self, core: object) -> bool:
        return any(core in rectangle for rectangle in self.ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CoreRangeSet) and self.ranges == other.ranges

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        return (CoreRangeSet, self.ranges)

    def __str__(self) -> str:
        return "{" + ", ".join(map(str, self.ranges)) + "}"

    def __repr__(self) -> str:
        return f"CoreRangeSet({str(self)!r})"


CoreLike = Union[CoreCoord, tuple[int, int], Mapping[str, int]]
CoreRangesLike = Union[CoreRangeSet, CoreRange, CoreCoord, str, Mapping[str, object], Iterable[object]]

_CORE = r"(?:\(\s*x\s*=\s*(\d{1,9})\s*,\s*y\s*=\s*(\d{1,9})\s*\)|(\d{1,9})-(\d{1,9}))"
_RANGE = re.compile(rf"\[\s*{_CORE}\s*-\s*{_CORE}\s*\]")


def as_core(value: CoreLike) -> CoreCoord:
    """Return ``value``, a CoreCoord, an (x, y) pair or ``{"x": .., "y": ..}``, as a CoreCoord."""
    if isinstance(value, CoreCoord):
        return value
    if isinstance(value, Mapping):
        if "x" not in value or "y" not in value:
            raise InvalidIntervalError(f"a core needs x and y, got {dict(value)!r}")
        return CoreCoord(value["x"], value["y"])
    if not hasattr(value, "x"):
        try:
            x, y = value
        except (TypeError, ValueError):
            raise InvalidIntervalError(f"a core must be a CoreCoord or an (x, y) pair, got {value!r}") from None
        return CoreCoord(x, y)
    # Any other object with x and y: ttnn has a CoreCoord of its own.
    return CoreCoord(value.x, value.y)  # type: ignore[attr-defined]


@lru_cache(maxsize=4096)
def parse_core_ranges(text: str) -> CoreRangeSet:
    """Return the core ranges that TT-Metal printed as ``text``.

    Accepts ``{[0-0 - 7-7], [0-8 - 3-8]}``, ``{[(x=0,y=0) - (x=7,y=7)]}``, one range without braces, ``{}``, and the
    JSON array ``[{"start": {"x": 0, "y": 0}, "end": {"x": 7, "y": 7}}]``.

    Raises:
        InvalidIntervalError: the text is none of these.
    """
    body = text.strip()
    if '"' in body:
        try:
            return CoreRangeSet(json.loads(body))
        except ValueError as error:
            if isinstance(error, InvalidIntervalError):
                raise
            raise InvalidIntervalError(f"core ranges are not JSON: {text!r}") from None
    if body.startswith("{") and body.endswith("}"):
        body = body[1:-1].strip()
    elif body == "[]":
        body = ""
    found = []
    for match in _RANGE.finditer(body):
        # Each corner is matched by one of two spellings; the other's groups are empty.
        x0, y0, x1, y1 = (int(text) for text in match.groups() if text is not None)
        found.append(CoreRange((x0, y0), (x1, y1)))
    if _RANGE.sub("", body).strip(", \t\n") or (body and not found):
        raise InvalidIntervalError(
            f"cannot read core ranges from {text!r}: expected TT-Metal's text, such as '{{[0-0 - 7-7]}}'"
        )
    return CoreRangeSet(*found)


def _rectangles(value: CoreRangesLike) -> tuple[CoreRange, ...]:
    if isinstance(value, CoreRange):
        return (value,)
    if isinstance(value, CoreRangeSet):
        return value.ranges
    if isinstance(value, CoreCoord):
        return (CoreRange(value, value),)
    if isinstance(value, str):
        return parse_core_ranges(value).ranges
    if isinstance(value, Mapping):
        if "start" not in value or "end" not in value:
            raise InvalidIntervalError(f"a core range needs start and end, got {dict(value)!r}")
        return (CoreRange(value["start"], value["end"]),)  # type: ignore[arg-type]
    if isinstance(value, Iterable):
        return tuple(part for item in value for part in _rectangles(item))  # type: ignore[arg-type]
    raise InvalidIntervalError(f"core ranges must be a CoreRangeSet, CoreRange, CoreCoord or text, got {value!r}")


def as_core_range_set(value: CoreRangesLike) -> CoreRangeSet:
    """Return what names cores as a :class:`CoreRangeSet`.

    Args:
        value: a CoreRangeSet, CoreRange or CoreCoord, TT-Metal's text in either spelling, its JSON array, or an
            iterable of these.

    Raises:
        InvalidIntervalError: it names no cores, or two rectangles overlap.
    """
    return value if isinstance(value, CoreRangeSet) else CoreRangeSet(value)


def rectangles_of(cores: Iterable[tuple[int, int]]) -> CoreRangeSet:
    """Return cores, given as (x, y), as few rectangles: each as wide as it goes, then as high."""
    left = set(cores)
    ranges = []
    while left:
        x, y = min(left, key=lambda core: (core[1], core[0]))
        end_x, end_y = x, y
        while (end_x + 1, y) in left:
            end_x += 1
        while all((column, end_y + 1) in left for column in range(x, end_x + 1)):
            end_y += 1
        ranges.append(CoreRange((x, y), (end_x, end_y)))
        left -= {(column, row) for column in range(x, end_x + 1) for row in range(y, end_y + 1)}
    return CoreRangeSet(*ranges)
