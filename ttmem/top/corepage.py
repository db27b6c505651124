"""A device's page: its cores as a heat map, and the address map of the selected one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttmem.top.model import Shown
from ttmem.top.overview import title_line
from ttmem.units import NOT_AVAILABLE, format_bytes
from ttmem.views.address import address_map, holding_lines
from ttmem.views.cores import CoreLayout, cores_of, grid_of, layout_of
from ttmem.views.dump import grid_text
from ttmem.views.heat import RAMP, heat_style, scale_of, shades, short_size, step_of
from ttmem.views.text import Line, Piece, Screen, cell_width, clean, pad, wrap

METRICS = {
    "cb_physical": ("cb_physical_bytes", "physical CB"),
    "cb_resident": ("cb_resident_bytes", "resident CB"),
    "cb_peak": ("cb_peak_bytes", "peak CB"),
    "l1_used": ("l1_used_bytes", "L1 buffers"),
    "headroom": ("headroom_bytes", "headroom"),
    "fragmentation": ("", "fragmentation"),
}
"""What the heat map can show: the JSON name of a core's figure, and a title. Fragmentation is made from the ranges."""
TABS_LINE = 1
"""The line of the page on which the metrics are named."""
SIDE_WIDTH = 58
"""Columns that the address map needs to stand beside the cores."""
_LABEL = 4


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """What the page shows.

    Attributes:
        metric: one of :data:`METRICS`.
        selected: the core whose address map is shown.
        whole: whether the address map has the page to itself.
        scroll: rows of the address map's table above the first shown, when it has the page to itself.
        capacity_scale: whether colours end at the room of a core; else at the largest value. Headroom always ends at
            the room.
    """

    metric: str = "cb_physical"
    selected: tuple[int, int] = (0, 0)
    whole: bool = False
    scroll: int = 0
    capacity_scale: bool = True


@dataclass(frozen=True, slots=True)
class HeatGeometry:
    """Where the cores stand on the page: for the mouse.

    Attributes:
        top: line of the first row of cores.
        cell: columns of a cell.
        box: first x, first y, last x, last y.
        tabs: for each metric its first and last column, on line :data:`TABS_LINE`.
    """

    top: int
    cell: int
    box: tuple[int, int, int, int]
    tabs: tuple[tuple[int, int, str], ...] = ()

    def core_at(self, column: int, row: int) -> tuple[int, int] | None:
        """Return the core under a cell of the screen."""
        x, y = self.box[0] + (column - _LABEL + 1) // self.cell, self.box[1] + row - self.top
        inside = column >= _LABEL - 1 and x <= self.box[2] and self.box[1] <= y <= self.box[3]
        return (x, y) if inside else None

    def metric_at(self, column: int, row: int) -> str | None:
        """Return the metric whose name is under a cell of the screen."""
        if row != TABS_LINE:
            return None
        return next((name for begin, end, name in self.tabs if begin <= column < end), None)


def fragmentation(layout: CoreLayout, ranges: Mapping[str, Any] | None) -> int | None:
    """Return how much of a core's free L1 lies outside the largest free stretch, in per mille.

    Args:
        layout: the core's fixed addresses.
        ranges: ``cb_ranges`` and ``l1_ranges``; None is unknown.

    Returns:
        0 where the free bytes above the CB base are in one piece or there are none; None where something is unknown.
    """
    if ranges is None or layout.size is None or layout.base is None or layout.small is None:
        return None
    top = layout.size - layout.small
    gaps = []
    at = layout.base
    taken = sorted((int(r[0]), int(r[1])) for name in ("cb_ranges", "l1_ranges") for r in ranges[name])
    for begin, end in [*taken, (top, top)]:
        if begin > at:
            gaps.append(min(begin, top) - at)
        at = max(at, end)
    free = sum(gaps)
    return 0 if free <= 0 else round(1000 * (free - max(gaps)) / free)


def values_of(shown: Shown, metric: str) -> dict[tuple[int, int], int | None]:
    """Return a metric's value for each listed core: bytes, or per mille for fragmentation."""
    cores = cores_of(shown.full)
    if metric != "fragmentation":
        column = METRICS[metric][0]
        return {xy: core.get(column) for xy, core in cores.items()}
    layout = layout_of(shown.full)
    return {xy: fragmentation(layout, shown.core_ranges(*xy)) for xy in cores}


def format_value(metric: str, value: int | None) -> str:
    """Return a metric's value in words."""
    if value is None:
        return NOT_AVAILABLE
    return f"{value / 10:.1f} %" if metric == "fragmentation" else format_bytes(value)


def _cell_text(metric: str, value: int | None) -> str:
    if value is not None and metric == "fragmentation":
        return f"{value / 10:.0f}%"
    return short_size(value, 1024)


def _cell_style(metric: str, value: int | None, scale: int | None) -> str:
    if value is None:
        return "dim"
    if metric == "headroom":
        # What is short of headroom burns: the scale runs the other way.
        left = None if scale is None else scale - value
        return "alarm" if value < 0 else heat_style(RAMP[step_of(left, scale, len(RAMP))])
    return heat_style(RAMP[step_of(value, scale, len(RAMP))])


def _shade(metric: str, value: int | None, scale: int | None, screen: Screen) -> str:
    """Return a character that stands for a colour."""
    marks = shades(screen)
    if value is None:
        return " "
    if metric == "headroom":
        left = None if scale is None else scale - value
        return "!" if value < 0 else marks[step_of(left, scale, len(marks))]
    return marks[step_of(value, scale, len(marks))]


def _cell(metric: str, value: int | None, scale: int | None, width: int, after: str, screen: Screen) -> Piece:
    """Return a core's cell: its number and what comes after all numbers; where it has no room, what stands for its size.

    In colour the cell's first column is left out: it is the gap before the number, where a mark stands without colour.
    """
    text, shade = _cell_text(metric, value), _shade(metric, value, scale, screen)
    style = _cell_style(metric, value, scale) if screen.color else ""
    if not _fits(text, width):
        # Without colour a core that has next to nothing is there, too.
        fill = "?" if value is None else "!" if value < 0 else " " if screen.color else shade.strip() or "_"
        return (fill * (width - 1) if width > 1 else fill), style
    text += after
    return (pad(text, width - 1, ">") if screen.color else pad(shade + text, width, ">")), style


def _fits(text: str, width: int) -> bool:
    """Tell whether a cell holds a number with a gap before it: a number is never cut, nor joined to the next."""
    return len(text) < width


def _marked(text: str, shade: str, width: int) -> str:
    """Return the selected core's cell with brackets where they fit, else an arrow, so that it is seen without colour."""
    if not _fits(text, width):
        return ">" + shade * (width - 1)
    if len(text) + 2 < width:
        return " [" + pad(text, width - 3, ">") + "]"
    return pad(">" + text, width, ">")


def heat_lines(shown: Shown, options: CoreOptions, screen: Screen) -> tuple[list[Line], HeatGeometry | None]:
    """Return the heat map with the selected core marked, and where its cores stand."""
    device = shown.full
    box = grid_of(device)
    if device.get("cores") is None:
        return [[(f"cores {NOT_AVAILABLE}: the source does not tell figures per core", "")]], None
    values = values_of(shown, options.metric)
    if box is None or not values:
        return [[(f"no core has figures ({clean(device.get('state'))})", "")]], None
    known = [value for value in values.values() if value is not None]
    scale: int | None = 1000
    if options.metric != "fragmentation":
        scale, _ = scale_of(device, known)
        if not options.capacity_scale and options.metric != "headroom":
            scale = max(known, default=0) or None
    x0, y0, x1, y1 = box
    room = max(1, (screen.width - _LABEL + 1) // (x1 - x0 + 1))
    longest = max(len(_cell_text(options.metric, value)) for value in values.values())
    cell = min(room, max(6, longest + 3))
    # A cell begins with its gap, the first one with that of the label.
    lead = " " if cell > 1 else ""
    after = " " if longest < cell - 1 else ""
    numbers = "".join(_heading(x, cell, after) for x in range(x0, x1 + 1))
    unit = "%" if options.metric == "fragmentation" else "KiB"
    lines: list[Line] = [[(pad(unit, _LABEL - 1) + numbers, "dim")]]
    for y in range(y0, y1 + 1):
        row: list[Piece] = [(pad(str(y), _LABEL - 1, ">"), "dim")]
        for x in range(x0, x1 + 1):
            here = (x, y) == options.selected
            if (x, y) not in values:
                row += [(lead, ""), (pad(".", max(1, cell - 1), ">"), "7" if here else "dim")]
                continue
            value = values[x, y]
            if here:
                text, shade = _cell_text(options.metric, value), _shade(options.metric, value, scale, screen)
                row.append((_marked(text, shade, cell), "1;7"))
                continue
            text, style = _cell(options.metric, value, scale, cell, after, screen)
            row += [(lead if len(text) < cell else "", ""), (text, style)]
        lines.append(row)
    low, high = (format_value(options.metric, f(known) if known else None) for f in (min, max))
    about = f"smallest {low}, largest {high}; full is {format_value(options.metric, scale)}"
    if not all(_fits(_cell_text(options.metric, value), cell) for value in values.values()):
        about += "; a number without room is not shown"
    lines += [[(text, "dim")] for text in wrap(about, screen)]
    return lines, HeatGeometry(1, cell, box)


def _heading(x: int, cell: int, after: str) -> str:
    """Return the number of a column above its cells; spaces where it has no room."""
    text = str(x)
    if not _fits(text, cell):
        return " " * cell
    return pad(text + after, cell, ">")


def metric_line(options: CoreOptions, screen: Screen) -> tuple[Line, tuple[tuple[int, int, str], ...]]:
    """Return the names of the metrics, the shown one marked, and where they stand.

    Where they do not fit, the first ones go, so that the shown one stays.
    """
    names = list(METRICS)
    while (
        names[0] != options.metric
        and sum(len(METRICS[name][1]) + 2 for name in names[: names.index(options.metric) + 1]) > screen.width
    ):
        del names[0]
    line: list[Piece] = []
    tabs = []
    at = 0
    for name in names:
        _, title = METRICS[name]
        here = name == options.metric
        text = f"[{title}]" if here else f" {title} "
        line.append((text, "1;7" if here else "dim"))
        tabs.append((at, at + len(text), name))
        at += len(text)
    return line, tuple(tabs)


def selected_line(shown: Shown, options: CoreOptions, screen: Screen) -> Line:
    """Return the figures of the selected core, as many as fit."""
    x, y = options.selected
    core = cores_of(shown.full).get(options.selected)
    line: list[Piece] = [(f"Core {x},{y}:", "head")]
    if core is None:
        return [*line, (f" {NOT_AVAILABLE}", "dim")]
    share = fragmentation(layout_of(shown.full), shown.core_ranges(x, y))
    figures = (
        ("CB", core.get("cb_physical_bytes")),
        ("L1", core.get("l1_used_bytes")),
        ("headroom", core.get("headroom_bytes")),
        ("fragmented", share),
        ("resident", core.get("cb_resident_bytes")),
        ("peak", core.get("cb_peak_bytes")),
        ("logical", core.get("cb_logical_bytes")),
    )
    for title, value in figures:
        text = format_value("fragmentation" if title == "fragmented" else "", value)
        alarm = title == "headroom" and value is not None and value < 0
        pieces: list[Piece] = [(f"  {title} ", "dim"), (text, "alarm" if alarm else "")]
        if sum(cell_width(text) for text, _ in line + pieces) <= screen.width:
            line += pieces
    return line


def address_lines(shown: Shown, options: CoreOptions, screen: Screen, height: int) -> list[Line]:
    """Return the address map of the selected core in at most ``height`` lines.

    Where not all rows of its table fit, those that say least go, and how many is said; with the page to itself the
    table scrolls.
    """
    x, y = options.selected
    ranges = shown.holders.details(x, y, shown.snapshot.core_map(x, y))
    if ranges["cb_ranges"] is None and ranges["l1_ranges"] is None:
        return [[(f"address map {NOT_AVAILABLE}: the source does not tell what lies where on a core", "dim")]]
    made = address_map(shown.full, options.selected, ranges, screen, rows=max(2, min(8, height // 3)))
    if isinstance(made, str):
        return [[(made.strip(), "dim")]]
    # The core and its headroom stand above already.
    drawing = [list(line) for line in made.drawing]
    index = next((i for i, line in enumerate(drawing) if line[-1][0].startswith("end of")), -1)
    cell = f"; a cell is {format_bytes(made.cell)}"
    if sum(cell_width(text) for text, _ in drawing[index]) + len(cell) <= screen.width:
        drawing[index].append((cell, "dim"))
    space = height - len(drawing)
    rows = [line for _, line in made.rows]
    if space > len(rows):
        gap: list[Line] = [[("", "")]] if space > len(rows) + 1 else []
        lines = [*drawing, *gap, made.head, *rows]
        programs = holding_lines(shown.holders.on(x, y), screen, limit=height - len(lines) - 1)
        return [*lines, *([[("", "")], *programs] if programs else [])]
    if options.whole:
        first = max(0, min(options.scroll, len(rows) - (space - 2)))
        shown_rows = rows[first : first + space - 2]
        above, below = first, len(rows) - first - len(shown_rows)
        return [*drawing, made.head, *shown_rows, [(f"  {above} more above, {below} more below", "dim")]]
    kept = sorted(sorted(range(len(rows)), key=lambda i: made.rows[i][0])[: max(0, space - 1)])
    more = len(rows) - len(kept)
    lines = [*drawing, *(rows[i] for i in kept)]
    if more:
        lines.append([(f"  {more} more: Enter shows all", "dim")])
    return lines[:height]


def table_length(shown: Shown, options: CoreOptions) -> int:
    """Return how many rows the table of the selected core's address map has."""
    told = shown.snapshot.core_map(*options.selected)
    made = address_map(shown.full, options.selected, shown.holders.details(*options.selected, told), Screen())
    return 0 if isinstance(made, str) else len(made.rows)


def device_lines(shown: Shown, options: CoreOptions, screen: Screen) -> tuple[list[Line], HeatGeometry | None]:
    """Return the page in the screen's height, and where the cores stand on it."""
    height = screen.height or 24
    device = shown.device
    about = [clean(device.get("arch") or f"arch {NOT_AVAILABLE}"), f"grid {grid_text(device)}"]
    about.append(f"asic {clean(device.get('asic_id') or NOT_AVAILABLE)}")
    about += ["replay"] if device.get("origin") == "replay" else []
    tabs, places = metric_line(options, screen)
    head: list[Line] = [title_line(shown, about, screen), tabs]
    selected = selected_line(shown, options, screen)
    if options.whole:
        head[1] = selected
        return [*head, *address_lines(shown, options, screen, height - 2)], None
    heat, geometry = heat_lines(shown, options, screen)
    if geometry is None:
        return [*head, *heat], None
    map_width = screen.width - _LABEL - geometry.cell * (geometry.box[2] - geometry.box[0] + 1) - 2
    if map_width < SIDE_WIDTH:
        top = len(head)
        lines = [*head, *heat, selected]
        if height - len(lines) >= 4:
            lines += address_lines(shown, options, screen, height - len(lines))
    else:
        head.append(selected)
        top = len(head)
        side = Screen(map_width, screen.height, screen.color, screen.unicode)
        right = address_lines(shown, options, side, height - top)
        lines = list(head)
        for number in range(max(len(heat), len(right))):
            line = list(heat[number]) if number < len(heat) else []
            width = sum(cell_width(text) for text, _ in line)
            line.append((" " * (screen.width - map_width - width), ""))
            lines.append([*line, *(right[number] if number < len(right) else [])])
    return lines[:height], HeatGeometry(geometry.top + top, geometry.cell, geometry.box, places)
