"""Tables of programs and processes: sorted, filtered, cut to what the screen shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from typing import Any, Union

from ttmem.top.model import Shown
from ttmem.units import NOT_AVAILABLE, format_bytes
from ttmem.views.text import Line, Piece, Screen, clean, clip, pad

Cell = Union[int, str, None]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        key: the JSON name, or ``device_id``.
        width: columns on the screen; 0 takes what is left, None is only there to sort by.
        show: makes the text.
        rank: columns with the highest rank go first on a narrow screen.
        descending: whether the largest comes first at the start.
    """

    title: str
    key: str
    width: int | None
    show: Callable[[Any], str]
    rank: int = 0
    descending: bool = True


def _text(value: Cell) -> str:
    return NOT_AVAILABLE if value is None else clean(value)


def _name(value: Cell) -> str:
    return clean(value) if value else "(unnamed)"


def _address(value: Cell) -> str:
    return f"0x{value:06x}" if isinstance(value, int) else NOT_AVAILABLE


PROGRAMS = (
    Column("Dev", "device_id", 4, _text, 0, False),
    # As the JSON has them: each device's largest over all cores first.
    Column("cores x CB", "largest", None, lambda _: ""),
    Column("CB/core", "cb_bytes_per_core", 10, format_bytes),
    Column("Cores", "num_cores", 6, _text),
    Column("Count", "count", 6, _text, 1),
    Column("Program", "name", 0, _name, 0, False),
    Column("CB end", "cb_region_end", 8, _address, 2),
    Column("Id", "program_id", 7, _text, 4),
    Column("PID", "pid", 8, _text, 3, False),
)
PROCESSES = (
    Column("Dev", "device_id", 4, _text, 0, False),
    Column("PID", "pid", 8, _text, 0, False),
    Column("User", "user", 9, _text, 3, False),
    Column("Name", "name", 0, _text, 0, False),
    Column("State", "state", 8, _text, 0, False),
    Column("CB", "cb_physical_bytes", 11, format_bytes),
    Column("L1", "l1_bytes", 11, format_bytes, 1),
    Column("DRAM", "dram_bytes", 11, format_bytes, 2),
    Column("L1 small", "l1_small_bytes", 11, format_bytes, 5),
    Column("Trace", "trace_bytes", 11, format_bytes, 6),
    Column("Kernels", "kernel_bytes", 11, format_bytes, 4),
)
_LEFT = ("name", "user", "state")
_NAME_LEAST = 28
"""Columns that a name should have before figures that say less take their place."""


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What a table shows.

    Attributes:
        sort: index of the column.
        descending: largest first.
        filter: a row is shown if any of its texts contains this, whatever the case.
        cursor: index of the selected row.
    """

    sort: int = 1
    descending: bool = True
    filter: str = ""
    cursor: int = 0

    def by(self, columns: Sequence[Column], index: int) -> "TableOptions":
        """Return the options sorted by a column; by the same one again, the other way round."""
        index %= len(columns)
        descending = not self.descending if index == self.sort else columns[index].descending
        return replace(self, sort=index, descending=descending, cursor=0)


def rows_of(devices: Sequence[Shown], kind: str) -> list[dict[str, Any]] | None:
    """Return the rows of all devices, each with its ``device_id`` and ``device``, its key; None where no source tells any.

    Args:
        devices: whose rows.
        kind: ``programs`` or ``processes``.
    """
    lists = [(one, one.device.get(kind)) for one in devices]
    if lists and all(rows is None for _, rows in lists):
        return None
    told = [
        [{**row, "device_id": one.device.get("device_id"), "device": one.key} for row in rows or ()]
        for one, rows in lists
    ]
    if kind != "programs":
        return [row for rows in told for row in rows]
    # Each device's own order stays.
    found = list(merge(*told, key=lambda row: -(row.get("cb_bytes_per_core") or 0) * (row.get("num_cores") or 0)))
    for place, row in enumerate(found):
        row["largest"] = -place
    return found


def arranged(rows: Sequence[dict[str, Any]], columns: Sequence[Column], options: TableOptions) -> list[dict[str, Any]]:
    """Return the rows that pass the filter, in order; unknown values come last either way."""
    wanted = options.filter.casefold()
    kept = [
        row
        for row in rows
        if not wanted or any(wanted in column.show(row.get(column.key)).casefold() for column in columns)
    ]
    key = columns[options.sort].key
    known = [row for row in kept if row.get(key) is not None]
    unknown = [row for row in kept if row.get(key) is None]
    text = any(isinstance(row[key], str) for row in known)
    known.sort(key=lambda row: str(row[key]).casefold() if text else row[key], reverse=options.descending)
    return known + unknown


@dataclass(frozen=True, slots=True)
class TableGeometry:
    """Where things stand: for the mouse.

    Attributes:
        heads: for each shown column its index, first and last column on the screen.
        top: line of the first row.
        first: index of the row on it.
        count: rows that pass the filter.
        head_line: line of the headings.
    """

    heads: tuple[tuple[int, int, int], ...]
    top: int
    first: int
    count: int
    head_line: int

    def column_at(self, x: int) -> int | None:
        """Return the index of the table's column at a column of the screen."""
        return next((index for index, begin, end in self.heads if begin <= x < end), None)


def _fitting(columns: Sequence[Column], width: int) -> list[int]:
    shown = [i for i, column in enumerate(columns) if column.width is not None]

    def needed() -> int:
        return sum((columns[i].width or _NAME_LEAST) + 1 for i in shown)

    while needed() > width:
        worst = max(shown, key=lambda i: columns[i].rank)
        if columns[worst].rank == 0:
            break
        shown.remove(worst)
    return shown


def _counted(
    ordered: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], columns: Sequence[Column], more: int
) -> str:
    """Return how many rows the filter lets through; of programs how many these stand for."""
    if columns is not PROGRAMS:
        return f"{len(ordered)} of {len(rows)}" if len(ordered) < len(rows) else str(len(rows))
    shown, every = (sum(row.get("count") or 1 for row in some) for some in (ordered, rows))
    text = f"{shown} of {every + more}" if shown < every + more else str(shown)
    return f"{text} cached in {len(ordered)} row{'s' * (len(ordered) != 1)}"


def table_lines(
    title: str,
    rows: Sequence[dict[str, Any]] | None,
    columns: Sequence[Column],
    options: TableOptions,
    screen: Screen,
    *,
    more: int = 0,
) -> tuple[list[Line], TableGeometry]:
    """Return a table in the screen's height, and where its parts stand.

    Args:
        title: what it is a table of.
        rows: None where no source tells them.
        columns: of the table.
        options: what of it is shown.
        screen: what it is made for.
        more: programs that are cached and have no row.
    """
    height = screen.height or 24
    if rows is None:
        text = f" {NOT_AVAILABLE}: the source does not tell them"
        return [[(title, "head"), (text, "")]], TableGeometry((), 2, 0, 0, 1)
    ordered = arranged(rows, columns, options)
    shown = _fitting(columns, screen.width)
    rest = screen.width - sum((columns[i].width or 0) + 1 for i in shown if columns[i].width) - 1
    widths = {i: columns[i].width or max(8, rest) for i in shown}
    cursor = min(max(0, options.cursor), max(0, len(ordered) - 1))
    space = max(1, height - 2)
    first = min(max(0, cursor - space // 2), max(0, len(ordered) - space))
    head: list[Piece] = []
    heads = []
    at = 0
    for i in shown:
        arrow = ("▼" if options.descending else "▲") if screen.unicode else ("v" if options.descending else "^")
        text = columns[i].title + (arrow if i == options.sort else "")
        align = "<" if columns[i].key in _LEFT else ">"
        head.append((pad(clip(text, widths[i], screen), widths[i], align) + " ", "1;7" if i == options.sort else "7"))
        heads.append((i, at, at + widths[i] + 1))
        at += widths[i] + 1
    first_line: list[Piece] = [(f"{title}:", "head"), (f" {_counted(ordered, rows, columns, more)}", "bold")]
    if options.filter:
        first_line.append((f"  filter: {clean(options.filter)}", "warn"))
    order = "largest first" if options.descending else "smallest first"
    first_line.append((f"  by {columns[options.sort].title}, {order}", "dim"))
    lines: list[Line] = [first_line, head]
    for number, row in enumerate(ordered[first : first + space], first):
        line: list[Piece] = []
        for i in shown:
            text = columns[i].show(row.get(columns[i].key))
            align = "<" if columns[i].key in _LEFT else ">"
            style = "dim" if text == NOT_AVAILABLE or row.get("state") == "stale" else ""
            if number == cursor:
                style = "7"
            line.append((pad(clip(text, widths[i], screen), widths[i], align) + " ", style))
        lines.append(line)
    if not ordered:
        lines.append([("  none" + (" that the filter lets through" if options.filter else ""), "dim")])
    return lines, TableGeometry(tuple(heads), 2, first, len(ordered), 1)
