"""The core grid as a heat map, and the address map of one core's L1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ttmem.units import NOT_AVAILABLE, format_bytes, format_exact
from ttmem.views.dump import grid_text
from ttmem.views.notes import get
from ttmem.views.text import Device, Line, Piece, Screen, clean, clip, pad, render, wrap

METRICS = {
    "cb_physical": ("cb_physical_bytes", "physical CB of each core"),
    "cb_resident": ("cb_resident_bytes", "resident CB of each core"),
    "cb_logical": ("cb_logical_bytes", "logical CB of each core"),
    "l1_used": ("l1_used_bytes", "L1 buffers of each core"),
    "headroom": ("headroom_bytes", "headroom of each core: lowest L1 buffer (else top) minus CB region end"),
}
"""Figures that a heat map can show: the JSON name and a title."""

_RAMP = (236, 18, 24, 31, 37, 72, 107, 143, 179, 208, 196)
"""xterm colours from nothing to full; of headroom from enough to none."""
_UNICODE_SHADES = " ░▒▓█"
_ASCII_SHADES = " .:-=+*#%@"
_LABEL = 5
"""Columns of the y labels."""


def cores_of(device: Device) -> dict[tuple[int, int], Mapping[str, Any]]:
    """Return the listed cores of a device by (x, y)."""
    return {(core["x"], core["y"]): core for core in device.get("cores") or ()}


def grid_of(device: Device) -> tuple[int, int, int, int] | None:
    """Return (first x, first y, last x, last y) of the grid, or the box around the listed cores where it is unknown."""
    grid = device.get("grid")
    if grid:
        return 0, 0, grid["x"] - 1, grid["y"] - 1
    cores = cores_of(device)
    if not cores:
        return None
    xs, ys = [x for x, _ in cores], [y for _, y in cores]
    return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True, slots=True)
class CoreLayout:
    """The fixed addresses of a core's L1 in bytes; None is unknown.

    Attributes:
        size: the end of L1.
        base: where CBs may begin; below it lies what is reserved.
        small: the size of the L1_SMALL region at the top.
    """

    size: int | None
    base: int | None
    small: int | None


def layout_of(device: Device) -> CoreLayout:
    """Return a core's addresses, from the account of all cores."""
    grid = device.get("grid")
    count = grid["x"] * grid["y"] if grid else len(device.get("cores") or ())

    def each(name: str) -> int | None:
        total = get(device, f"l1_accounting.{name}_bytes")
        return total // count if total is not None and count and total % count == 0 else None

    return CoreLayout(each("total"), each("reserved"), each("l1_small"))


def _short(size_bytes: int | None, unit: int) -> str:
    """Return a size as a whole number of units; what is less than half of one but not nothing shows as ``<1``."""
    if size_bytes is None:
        return NOT_AVAILABLE
    value = round(size_bytes / unit)
    if value == 0 and size_bytes:
        return "<1" if size_bytes > 0 else "-1"
    return str(value)


def _step(value: int | None, scale: int, steps: int) -> int:
    """Return the step, 0 to ``steps`` - 1, of a value on a scale; only 0 and less is step 0."""
    if value is None or value <= 0 or scale <= 0:
        return 0
    return max(1, min(steps - 1, 1 + int((steps - 1) * value / (scale + 1))))


def _heat(color: int) -> str:
    ink = "38;5;231" if color in _RAMP[:4] else "38;5;16"
    return f"{ink};48;5;{color}"


def _scale(device: Device, values: Sequence[int]) -> tuple[int, str]:
    """Return the top of the scale in bytes and what it is: the room of a core if known, else the largest value."""
    layout = layout_of(device)
    largest = max(values, default=0)
    if layout.size is not None and layout.base is not None and layout.small is not None:
        room = layout.size - layout.base - layout.small
        if largest <= room:
            return room, "all that CBs and L1 buffers of a core may use"
    return largest, "the largest value here"


def heat_map_lines(device: Device, screen: Screen, *, metric: str = "cb_physical") -> list[Line]:
    """Return the grid of a device with a figure of each core, and a legend.

    Args:
        device: the device object.
        screen: what it is made for.
        metric: one of :data:`METRICS`.

    Raises:
        ValueError: there is no such metric.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown figure {metric!r}: expected one of {', '.join(METRICS)}")
    column, title = METRICS[metric]
    head: list[Piece] = [(f"Device {device['device_id']}:", "head")]
    box = grid_of(device)
    cores = cores_of(device)
    if box is None or device.get("cores") is None:
        return [[*head, (f" cores {NOT_AVAILABLE}: the source does not tell figures per core", "")]]
    if not cores:
        return [[*head, (f" no core has figures ({device.get('state')})", "")]]
    x0, y0, x1, y1 = box
    known = [v for v in (core.get(column) for core in cores.values()) if v is not None]
    scale, meaning = _scale(device, known)
    text = f" {title}, in KiB; grid {grid_text(device)}"
    if not device.get("grid"):
        text += ", listed cores only"
    lines = _titled(head, text, screen)
    shades = _UNICODE_SHADES if screen.unicode else _ASCII_SHADES
    longest = max([len(_short(v, 1024)) for v in known] + [2 if len(known) == len(cores) else 3])
    columns = x1 - x0 + 1
    room = (screen.width - _LABEL) // columns
    # A mark, a number and a space; without the mark where that fits, else bands of the grid stand below each other.
    tight = room == longest + 1
    width = min(max(longest + 3, 6), room) if room > longest else longest + 2
    ramp = _RAMP[::-1] if metric == "headroom" else _RAMP
    bands = -(-columns // max(1, (screen.width - _LABEL) // width))
    band = -(-columns // bands)
    for first in range(x0, x1 + 1, band):
        last = min(x1, first + band - 1)
        lines.append(
            [
                (pad("y\\x", _LABEL - 1, ">") + " ", "dim"),
                ("".join(pad(f"{x} ", width, ">") for x in range(first, last + 1)), "dim"),
            ]
        )
        for y in range(y0, y1 + 1):
            row: list[Piece] = [(pad(str(y), _LABEL - 1, ">") + " ", "dim")]
            for x in range(first, last + 1):
                core = cores.get((x, y))
                if core is None:
                    # Not listed: a core without figures, or none at all where the grid is a guess.
                    row.append((pad(". ", width, ">"), "dim"))
                    continue
                value = core.get(column)
                number = _short(value, 1024)
                if not screen.color:
                    mark = shades[_step(value, scale, len(shades))]
                    if value is not None and value < 0:
                        mark = "!"
                    row.append((pad(f"{'' if tight else mark}{number} ", width, ">"), ""))
                else:
                    style = "dim" if value is None else "alarm"
                    if value is not None and value >= 0:
                        style = _heat(ramp[_step(value, scale, len(ramp))])
                    row += [(pad(number if tight else f"{number} ", width - 1, ">"), style), (" ", "")]
            lines.append(row)
    if screen.color or not tight:
        lines.append(_legend(scale, shades, ramp, screen))
        full = f"full is {format_bytes(scale)}: {meaning}"
        lines += [[(text, "dim")] for text in wrap(full, screen, first="  ", rest="  ")]
    lines += [[(text, "")] for text in wrap(_range_text(known, cores, column), screen, first="  ", rest="  ")]
    return lines


def _titled(head: Sequence[Piece], text: str, screen: Screen) -> list[Line]:
    """Return a title behind ``Device N:``, on as many lines as it needs."""
    name = head[0][0]
    texts = wrap(text.strip(), screen, first=name + " ", rest="  ")
    return [[*head, (texts[0][len(name) :], "")], *([(rest, "")] for rest in texts[1:])]


def _legend(scale: int, shades: str, ramp: Sequence[int], screen: Screen) -> Line:
    pieces: list[Piece] = [("  0 ", "dim")]
    if screen.color:
        pieces += [("  ", f"48;5;{color}") for color in ramp]
    else:
        pieces += [(f"[{shades}]", "")]
    return [*pieces, (f" {format_bytes(scale)}", "dim")]


def _range_text(known: Sequence[int], cores: Mapping[tuple[int, int], Mapping[str, Any]], column: str) -> str:
    if not known:
        return f"every core is {NOT_AVAILABLE}"

    def where(value: int) -> str:
        at = [core for core, figures in cores.items() if figures.get(column) == value]
        return f"core {at[0][0]},{at[0][1]}" if len(at) == 1 else f"{len(at)} cores"

    low, high = min(known), max(known)
    mark = " (!)" if low < 0 else ""
    text = f"smallest {format_bytes(low)} on {where(low)}{mark}, largest {format_bytes(high)} on {where(high)}"
    if column.startswith(("cb_", "l1_used")):
        text += f", sum {format_bytes(sum(known))}"
    missing = len(cores) - len(known)
    return text + (f"; {missing} cores {NOT_AVAILABLE}" if missing else "")


def render_heat_map(device: Device, screen: Screen, *, metric: str = "cb_physical") -> str:
    """Return :func:`heat_map_lines` as text."""
    return render(heat_map_lines(device, screen, metric=metric), screen)


_RANGES = {"cb_ranges": "CBs", "l1_ranges": "L1 buffers"}


@dataclass(frozen=True, slots=True)
class _Range:
    """A part of L1, [begin, end), and what lies there."""

    begin: int
    end: int
    part: str
    name: str


def _some(names: Sequence[object], most: int = 3) -> str:
    """Return names as a list, the first few of many."""
    shown = ", ".join(clean(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _ranges(device: Device, details: Mapping[str, Any] | None) -> tuple[list[_Range], int]:
    """Return what lies in a core's L1, and where its L1 ends as far as is known."""
    layout = layout_of(device)
    found: list[_Range] = []
    if layout.base:
        found.append(_Range(0, layout.base, "reserved", "reserved: firmware, kernels"))

    ends: dict[int, list[str]] = {}
    for row in device.get("programs") or ():
        name, region_end = row.get("name"), row.get("cb_region_end")
        if name and region_end is not None and name not in ends.setdefault(region_end, []):
            ends[region_end].append(name)

    def add(key: str, part: str, what: str) -> None:
        for item in (details or {}).get(key) or ():
            begin, end, *rest = item
            label = rest[0] if rest else None
            names = [label] if isinstance(label, str) else list(label or ())
            text = f"{what}: {_some(names)}" if names else what
            if part == "cb" and not names and end in ends:
                # Which programs are on this core is not told, but which of the device's reach just as far is.
                text += f", up to the region end of {_some(ends[end])}"
            found.append(_Range(int(begin), int(end), part, text))

    add("cb_ranges", "cb", "CB")
    add("l1_ranges", "buffers", "L1 buffer")
    if layout.size is not None and layout.small:
        found.append(_Range(layout.size - layout.small, layout.size, "l1_small", "L1_SMALL region"))
    end = layout.size if layout.size is not None else max([r.end for r in found], default=0)
    return sorted(found, key=lambda r: (r.begin, r.end)), max(end, max([r.end for r in found], default=0))


def _parts(ranges: Sequence[_Range], end: int) -> list[_Range]:
    """Return [0, end) cut where anything begins or ends; what CBs and buffers both claim is ``overlap``."""
    cuts = sorted({0, end, *(r.begin for r in ranges), *(r.end for r in ranges)})
    parts: list[_Range] = []
    for begin, stop in pairwise(cuts):
        here = {r.part for r in ranges if r.begin < stop and r.end > begin}
        if {"cb", "buffers"} <= here:
            part = "overlap"
        else:
            part = next((p for p in ("cb", "buffers", "l1_small", "reserved") if p in here), "free")
        if parts and parts[-1].part == part:
            parts[-1] = _Range(parts[-1].begin, stop, part, "")
        else:
            parts.append(_Range(begin, stop, part, ""))
    return parts


def _cells(parts: Sequence[_Range], end: int, bytes_per_cell: int) -> list[str]:
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


def map_lines(
    device: Device, core_xy: tuple[int, int], details: Mapping[str, Any] | None, screen: Screen, *, rows: int = 8
) -> list[Line]:
    """Return the address map of one core to scale, and a table of what lies where.

    Args:
        device: the device object.
        core_xy: the core.
        details: ``cb_ranges`` and ``l1_ranges`` of the core, lists of [begin, end) or of [begin, end, names of the
            programs or buffers behind them]; a list that is None is not all known.
        screen: what it is made for.
        rows: the most lines of the drawing.
    """
    x, y = core_xy
    core = cores_of(device).get(core_xy)
    head: list[Piece] = [(f"Device {device['device_id']}:", "head")]
    box = grid_of(device)
    if box is not None and not (box[0] <= x <= box[2] and box[1] <= y <= box[3]):
        return [[*head, (f" core {x},{y} is outside the grid {grid_text(device)}", "warn")]]
    missing = [what for key, what in _RANGES.items() if (details or {}).get(key) is None]
    if details is None or len(missing) == len(_RANGES) or (device.get("cores") is None and not any(details.values())):
        return [[*head, (f" core {x},{y}: {NOT_AVAILABLE}, the source does not tell figures per core", "")]]
    ranges, end = _ranges(device, details)
    if end <= 0:
        return [[*head, (f" core {x},{y}: nothing known of its L1", "")]]
    known = layout_of(device).size is not None
    parts = _parts(ranges, end)
    label = 10
    columns = max(16, (screen.width - label - 1) // 16 * 16)
    bytes_per_cell = 256
    while -(-end // bytes_per_cell) > columns * rows:
        bytes_per_cell *= 2
    title = f" core {x},{y}: L1 of {format_exact(end)} B" if known else f" core {x},{y}: L1 size {NOT_AVAILABLE}"
    lines = _titled(head, f"{title}; a cell is {format_bytes(bytes_per_cell)}", screen)
    cells = _cells(parts, end, bytes_per_cell)
    for first in range(0, len(cells), columns):
        row: list[Piece] = [(pad(f"0x{first * bytes_per_cell:06x}", label), "dim")]
        for part in cells[first : first + columns]:
            if row[-1][1] == part and len(row) > 1:
                row[-1] = (row[-1][0] + screen.keys[part], part)
            else:
                row.append((screen.keys[part], part))
        lines.append(row)
    lines.append([(pad(f"0x{end:06x}", label), "dim"), ("end of L1" if known else "end of what is known", "dim")])
    if missing:
        text = f"{' and '.join(missing)} {NOT_AVAILABLE}: not all of them are known, so no gap is called free"
        lines += [[(line, "warn")] for line in wrap(text, screen, first="  ", rest="  ")]
    lines.append([("", "")])
    return lines + _table_lines(parts, ranges, core, None if missing else layout_of(device).base, screen)


def _name_of(part: _Range, ranges: Sequence[_Range], known: bool) -> str:
    names: list[str] = []
    for r in ranges:
        if r.begin < part.end and r.end > part.begin and r.name not in names:
            names.append(r.name)
    if not names:
        return "free" if known else "nothing known"
    return " and ".join(names) + (" (overlap)" if part.part == "overlap" else "")


def _table_lines(
    parts: Sequence[_Range], ranges: Sequence[_Range], core: Mapping[str, Any] | None, base: int | None, screen: Screen
) -> list[Line]:
    """Return a row for each part of the core, top of L1 first, and its headroom."""
    lines: list[Line] = [[("  " + pad("begin", 10) + pad("end", 10) + pad("size", 11, ">") + "    what", "dim")]]
    for part in reversed(parts):
        name = _name_of(part, ranges, base is not None and part.begin >= base)
        lines.append(
            [
                (f"  {pad(f'0x{part.begin:06x}', 10)}{pad(f'0x{part.end:06x}', 10)}", "dim"),
                (pad(format_bytes(part.end - part.begin), 11, ">"), ""),
                (f"  {screen.keys[part.part]}", part.part),
                (f" {clip(name, max(8, screen.width - 37), screen)}", "dim" if part.part == "free" else ""),
            ]
        )
    if core is not None:
        headroom = core.get("headroom_bytes")
        text = f"  headroom {format_bytes(headroom)}"
        if headroom is not None:
            text += f" ({format_exact(headroom)} B)"
            if headroom < 0:
                text += ": a cached program would clash if dispatched now"
        style = "alarm" if (headroom or 0) < 0 else ""
        lines += [[(line, style)] for line in wrap(text.strip(), screen, first="  ", rest="    ")]
    return lines


def render_map(device: Device, core_xy: tuple[int, int], details: Mapping[str, Any] | None, screen: Screen) -> str:
    """Return :func:`map_lines` as text."""
    return render(map_lines(device, core_xy, details, screen), screen)
