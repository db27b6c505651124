"""The address map of one core's L1, to scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ttmem.units import NOT_AVAILABLE, format_bytes, format_exact
from ttmem.views.cores import cores_of, grid_of, layout_of
from ttmem.views.dump import grid_text
from ttmem.views.holders import Holding
from ttmem.views.text import (
    Device,
    Line,
    Piece,
    Screen,
    cell_width,
    clean,
    clip,
    device_name,
    pad,
    render,
    titled,
    wrap,
)

_RANGES = {"cb_ranges": "CBs", "l1_ranges": "L1 buffers"}
_PROGRAMS_MOST = 12
"""Lines of programs below a map."""


@dataclass(frozen=True, slots=True)
class _Range:
    """A part of L1, [begin, end), and what lies there: the largest names, of so many."""

    begin: int
    end: int
    part: str
    what: str
    names: tuple[str, ...] = ()
    total: int = 0

    def told(self, width: int) -> str:
        """Return what lies there with as many names as fit, at least one."""
        text = self.what
        for shown in range(min(len(self.names), self.total), 0, -1):
            more = f" and {self.total - shown} more" if self.total > shown else ""
            text = f"{self.what}{'' if self.what.endswith(' of') else ':'} {', '.join(self.names[:shown])}{more}"
            if cell_width(text) <= width:
                break
        return text


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of a core that is one thing: what it is drawn as, and the ranges behind it."""

    begin: int
    end: int
    part: str
    behind: tuple[_Range, ...]


def _ranges(device: Device, details: Mapping[str, Any] | None) -> tuple[list[_Range], int]:
    """Return what lies in a core's L1, and where its L1 ends as far as is known."""
    layout = layout_of(device)
    found: list[_Range] = []
    if layout.base:
        found.append(_Range(0, layout.base, "reserved", "reserved: firmware, kernels"))

    ends: dict[int, list[str]] = {}
    for row in device.get("programs") or ():
        name, region_end = row.get("name"), row.get("cb_region_end")
        if name and region_end is not None and row.get("circular_buffers") is None:
            names = ends.setdefault(region_end, [])
            if clean(name) not in names:
                names.append(clean(name))

    def add(key: str, part: str, what: str) -> None:
        for item in (details or {}).get(key) or ():
            begin, end, *rest = item
            label = rest[0] if rest else None
            names = [label] if isinstance(label, str) else list(label or ())
            total = rest[1] if len(rest) > 1 else len(names)
            text = what
            if part == "cb" and not names and end in ends:
                # Which programs are on this core is not told, but which of the device's reach just as far is.
                names, total, text = ends[end], len(ends[end]), f"{what}, up to the region end of"
            found.append(_Range(int(begin), int(end), part, text, tuple(map(clean, names)), total))

    add("cb_ranges", "cb", "CB")
    add("l1_ranges", "buffers", "L1 buffer")
    if layout.size is not None and layout.small:
        found.append(_Range(layout.size - layout.small, layout.size, "l1_small", "L1_SMALL region"))
    end = layout.size if layout.size is not None else max([r.end for r in found], default=0)
    return sorted(found, key=lambda r: (r.begin, r.end)), max(end, max([r.end for r in found], default=0))


def _parts(ranges: Sequence[_Range], end: int) -> list[_Part]:
    """Return [0, end) cut where anything begins or ends; what CBs and buffers both claim is ``overlap``."""
    cuts = sorted({0, end, *(r.begin for r in ranges), *(r.end for r in ranges)})
    parts: list[_Part] = []
    for begin, stop in pairwise(cuts):
        behind = tuple(r for r in ranges if r.begin < stop and r.end > begin)
        here = {r.part for r in behind}
        if {"cb", "buffers"} <= here:
            part = "overlap"
        else:
            part = next((p for p in ("cb", "buffers", "l1_small", "reserved") if p in here), "free")
        last = parts[-1] if parts else None
        if last is not None and last.part == part and _said(last.behind) == _said(behind):
            parts[-1] = _Part(last.begin, stop, part, behind)
        else:
            parts.append(_Part(begin, stop, part, behind))
    return parts


def _said(behind: Sequence[_Range]) -> tuple[tuple[str, tuple[str, ...], int], ...]:
    return tuple((r.what, r.names, r.total) for r in behind)


def _cells(parts: Sequence[_Part], end: int, bytes_per_cell: int) -> list[str]:
    """Return what fills most of each cell; a part that fills most of none still gets the cell of its middle."""
    count = -(-end // bytes_per_cell)
    cells: list[str] = []
    for i in range(count):
        begin, stop = i * bytes_per_cell, (i + 1) * bytes_per_cell
        covered = {p: min(p.end, stop) - max(p.begin, begin) for p in parts if p.begin < stop and p.end > begin}
        cells.append(max(covered, key=lambda p: covered[p]).part if covered else "free")
    for part in parts:
        # A gap too narrow to draw may vanish; memory that somebody holds may not.
        inside = range(part.begin // bytes_per_cell, -(-part.end // bytes_per_cell))
        if part.part != "free" and not any(cells[i] == part.part for i in inside):
            cells[(part.begin + part.end) // 2 // bytes_per_cell] = part.part
    return cells


@dataclass(frozen=True, slots=True)
class AddressMap:
    """The address map of one core as lines: a title, the drawing, and a table of what lies where.

    Attributes:
        title: the core and the size of its L1.
        drawing: L1 to scale, and where it ends.
        cell: the bytes that one character of the drawing stands for.
        head: the headings of the table.
        rows: a line for each part, top of L1 first, and how dispensable it is: where only some fit, the highest go.
        headroom: what is said of the core's headroom.
    """

    title: list[Line]
    drawing: list[Line]
    cell: int
    head: Line
    rows: list[tuple[int, Line]]
    headroom: list[Line]


def address_map(
    device: Device, core_xy: tuple[int, int], details: Mapping[str, Any] | None, screen: Screen, *, rows: int = 8
) -> AddressMap | str:
    """Return the address map of one core to scale, or a sentence on why there is none.

    Args:
        device: the device object.
        core_xy: the core.
        details: ``cb_ranges`` and ``l1_ranges`` of the core, lists of [begin, end), of [begin, end, names of the
            programs or buffers behind them], or with how many there are as a fourth; a list that is None is not all
            known. :meth:`ttmem.views.holders.Holders.details` makes them.
        screen: what it is made for.
        rows: the most lines of the drawing.
    """
    x, y = core_xy
    core = cores_of(device).get(core_xy)
    box = grid_of(device)
    if box is not None and not (box[0] <= x <= box[2] and box[1] <= y <= box[3]):
        return f" core {x},{y} is outside the grid {grid_text(device)}"
    missing = [what for key, what in _RANGES.items() if (details or {}).get(key) is None]
    if details is None or len(missing) == len(_RANGES) or (device.get("cores") is None and not any(details.values())):
        return f" core {x},{y}: {NOT_AVAILABLE}, the source does not tell figures per core"
    ranges, end = _ranges(device, details)
    if end <= 0:
        return f" core {x},{y}: nothing known of its L1"
    known = layout_of(device).size is not None
    parts = _parts(ranges, end)
    label = 10
    columns = max(16, (screen.width - label - 1) // 16 * 16)
    bytes_per_cell = 256
    while -(-end // bytes_per_cell) > columns * rows:
        bytes_per_cell *= 2
    title = f" core {x},{y}: L1 of {format_exact(end)} B" if known else f" core {x},{y}: L1 size {NOT_AVAILABLE}"
    head: list[Piece] = [(f"{device_name(device, chip=True)}:", "head")]
    drawing: list[Line] = []
    cells = _cells(parts, end, bytes_per_cell)
    for first in range(0, len(cells), columns):
        row: list[Piece] = [(pad(f"0x{first * bytes_per_cell:06x}", label), "dim")]
        for part in cells[first : first + columns]:
            if row[-1][1] == part and len(row) > 1:
                row[-1] = (row[-1][0] + screen.keys[part], part)
            else:
                row.append((screen.keys[part], part))
        drawing.append(row)
    drawing.append([(pad(f"0x{end:06x}", label), "dim"), ("end of L1" if known else "end of what is known", "dim")])
    if missing:
        text = f"{' and '.join(missing)} {NOT_AVAILABLE}: not all of them are known, so no gap is called free"
        drawing += [[(line, "warn")] for line in wrap(text, screen, first="  ", rest="  ")]
    return AddressMap(
        titled(head, f"{title}; a cell is {format_bytes(bytes_per_cell)}", screen),
        drawing,
        bytes_per_cell,
        [
            (
                "  "
                + pad("begin", 10)
                + (pad("end", 10) if _with_end(screen) else "")
                + pad("size", 11, ">")
                + "    what",
                "dim",
            )
        ],
        _table_rows(parts, None if missing else layout_of(device).base, screen),
        _headroom_lines(core, screen),
    )


def map_lines(
    device: Device, core_xy: tuple[int, int], details: Mapping[str, Any] | None, screen: Screen, *, rows: int = 8
) -> list[Line]:
    """Return :func:`address_map` as lines, whole."""
    made = address_map(device, core_xy, details, screen, rows=rows)
    if isinstance(made, str):
        return [[(f"{device_name(device, chip=True)}:", "head"), (made, "warn" if "outside" in made else "")]]
    return [
        *made.title,
        *made.drawing,
        [("", "")],
        made.head,
        *(line for _, line in made.rows),
        *made.headroom,
    ]


def _name_of(part: _Part, known: bool, width: int) -> str:
    if not part.behind:
        return "free" if known else "nothing known"
    # What has no names, as a buffer mostly, leaves its room to what has.
    plain = sum(cell_width(r.what) + 3 for r in part.behind if not r.names)
    room = (width - plain) // max(1, sum(bool(r.names) for r in part.behind))
    return " + ".join(dict.fromkeys(r.told(room) for r in part.behind))


def _with_end(screen: Screen) -> bool:
    """Tell whether a row has room for where its part ends; on a narrow screen what lies there says more."""
    return screen.width >= 56


def _row(begin: int, end: int, size: int, part: str, name: str, screen: Screen) -> Line:
    ends = pad(f"0x{end:06x}", 10) if _with_end(screen) else ""
    return [
        (f"  {pad(f'0x{begin:06x}', 10)}{ends}", "dim"),
        (pad(format_bytes(size), 11, ">"), ""),
        (f"  {screen.keys[part]}", part),
        (f" {clip(name, _name_width(screen), screen)}", "dim" if part == "free" else ""),
    ]


def _name_width(screen: Screen) -> int:
    return max(8, screen.width - (37 if _with_end(screen) else 27))


def _table_rows(parts: Sequence[_Part], base: int | None, screen: Screen) -> list[tuple[int, Line]]:
    """Return a row for each part of the core, top of L1 first, and how dispensable it is."""
    widest = max((part.end - part.begin for part in parts if part.part == "free"), default=0)
    cbs_end = max((part.end for part in parts if part.part in ("cb", "overlap")), default=None)
    found: list[tuple[int, Line]] = []
    for part in reversed(parts):
        name = _name_of(part, base is not None and part.begin >= base, _name_width(screen))
        rank = {"overlap": 0, "cb": 1, "buffers": 2, "l1_small": 4, "reserved": 5}.get(part.part, 3)
        if part.part == "free" and (part.begin == cbs_end or part.end - part.begin == widest):
            # What headroom tells of, and where the largest buffer would fit.
            rank = 0
        found.append((rank, _row(part.begin, part.end, part.end - part.begin, part.part, name, screen)))
    return found


def _headroom_lines(core: Mapping[str, Any] | None, screen: Screen) -> list[Line]:
    if core is None:
        return []
    headroom = core.get("headroom_bytes")
    text = f"headroom {format_bytes(headroom)}"
    if headroom is not None:
        text += f" ({format_exact(headroom)} B)" if abs(headroom) >= 1024 else ""
        if headroom < 0:
            text += ": a cached program would clash if dispatched now"
    style = "alarm" if (headroom or 0) < 0 else ""
    return [[(line, style)] for line in wrap(text, screen, first="  ", rest="    ")]


def holding_lines(holdings: Sequence[Holding], screen: Screen, *, limit: int) -> list[Line]:
    """Return the programs whose CBs lie on a core, largest first, in at most ``limit`` lines; empty without any."""
    if not holdings or limit < 2:
        return []
    count = sum(held.count for held in holdings)
    lines: list[Line] = [[(f"  {count} cached program{'s' * (count != 1)} with CBs here, largest first", "dim")]]
    shown = holdings if len(holdings) < limit else holdings[: limit - 2]
    for held in shown:
        many = f" ({held.count})" if held.count > 1 else ""
        name = clip(clean(held.name), _name_width(screen) - len(many), screen) + many
        lines.append(_row(held.ranges[0][0], held.ranges[-1][1], held.size, "cb", name, screen))
    if len(shown) < len(holdings):
        lines.append([(f"  and {len(holdings) - len(shown)} more", "dim")])
    return lines


def render_map(
    device: Device,
    core_xy: tuple[int, int],
    details: Mapping[str, Any] | None,
    screen: Screen,
    *,
    holdings: Sequence[Holding] = (),
) -> str:
    """Return :func:`map_lines` as text, and the largest of the programs that lie there."""
    lines = map_lines(device, core_xy, details, screen)
    programs = holding_lines(holdings, screen, limit=_PROGRAMS_MOST + 1)
    return render([*lines, *([[("", "")]] if programs else []), *programs], screen)
