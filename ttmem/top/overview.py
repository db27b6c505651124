"""The overview: a line for each device, and charts of the selected one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttmem.top.chart import area, spark, top_of
from ttmem.top.model import BUCKET_NS, SERIES, Shown, View
from ttmem.units import NOT_AVAILABLE, format_bytes
from ttmem.views.dump import format_age, grid_text, l1_parts, used_l1
from ttmem.views.notes import get, peak_text
from ttmem.views.tables import program_lines
from ttmem.views.text import Line, Piece, Screen, cell_width, clean, device_name, level, pad, percent, stacked

CHART_STYLES = {"cb": "cb", "l1": "buffers", "dram": "38;5;141"}
_SHORT = {"cb": "CB", "l1": "L1", "dram": "DRAM"}
TITLES = {"cb": "CB physical", "l1": "L1 buffers", "dram": "DRAM"}
_PATHS = {"cb": "memory.cb.physical_bytes", "l1": "memory.l1.used_bytes", "dram": "memory.dram.used_bytes"}
_TOTALS = {"cb": "memory.l1.total_bytes", "l1": "memory.l1.total_bytes", "dram": "memory.dram.total_bytes"}
GROUPS = (1, 2, 4, 8)
"""How many buckets of the history one column of a chart may join."""
CHARTS_LEAST = 9
"""Lines below which charts are not worth their place."""
_PANEL_LEAST = 15
"""Columns of a chart below which its figures have no room."""
CHARTS_MOST = 20
"""Lines beyond which charts are not better; what is left shows the largest programs."""


@dataclass(frozen=True, slots=True)
class OverviewOptions:
    """How the overview is laid out.

    Attributes:
        selected: index of the selected device.
        mode: ``auto`` (charts where there is room), ``full`` (charts at any rate), ``compact`` (only the lines).
        group: one of :data:`GROUPS`.
        capacity_scale: whether charts end at the capacity; else at the largest value in them.
    """

    selected: int = 0
    mode: str = "auto"
    group: int = 1
    capacity_scale: bool = False


def state_pieces(shown: Shown, width: int) -> list[Piece]:
    """Return a device's state in ``width`` columns, with a mark where it is a replay."""
    text, short = _state_texts(shown)
    text = text if cell_width(text) <= width else short
    style = {"live": "good", "idle": "dim"}.get(str(shown.device.get("state")), "warn")
    return [(pad(text, width)[:width], style)]


def _state_texts(shown: Shown) -> tuple[str, str]:
    """Return a device's state in full, and with the mark that :data:`ttmem.top.guide.MEANINGS` explains."""
    state = clean(shown.device.get("state") or NOT_AVAILABLE)
    replay = shown.device.get("origin") == "replay"
    return state + (" replay" if replay else ""), state + ("*" if replay else "")


def title_line(shown: Shown, about: Sequence[str], screen: Screen, *, chip: bool = False) -> Line:
    """Return a device's name, its state, and of what is said about it as much as fits."""
    state = clean(shown.device.get("state") or NOT_AVAILABLE)
    line: Line = [(f"{device_name(shown.device, chip=chip)}: ", "head"), *state_pieces(shown, cell_width(state))]
    for text in about:
        if sum(cell_width(part) for part, _ in line) + cell_width(text) + 2 > screen.width:
            break
        line.append((f", {text}", ""))
    return line


def headroom_style(headroom: int | None, shown: Shown) -> str:
    """Return the style of a headroom: alarm where a program would clash, else by how much of the room is left."""
    if headroom is None:
        return "dim"
    if headroom < 0:
        return "alarm"
    grid = shown.device.get("grid")
    room = get(shown.device, "memory.l1.total_bytes")
    if not grid or room is None:
        return ""
    return level(room // (grid["x"] * grid["y"]) - headroom, room // (grid["x"] * grid["y"]))


def total_l1(shown: Shown) -> tuple[int | None, int | None]:
    """Return Total L1 and the capacity in bytes."""
    return used_l1(shown.device), get(shown.device, "l1_accounting.total_bytes")


def meter(shown: Shown, width: int, screen: Screen) -> list[Piece]:
    """Return the account of L1 as a bar; spaces where it is unknown."""
    parts = [(key, max(0, size)) for key, size in l1_parts(shown.device)]
    return stacked(parts, width, screen) if parts else [(" " * width, "")]


def list_lines(view: View, options: OverviewOptions, screen: Screen) -> list[Line]:
    """Return a title and a line for each device."""
    names = [device_name(one.device, chip=screen.width >= 80) for one in view.devices]
    name_width = max(map(len, names), default=8)
    wide = screen.width >= 108
    series = list(SERIES)
    while len(series) > 1 and 2 + name_width + 13 * len(series) + 2 + 5 > screen.width:
        series.pop()
    room = screen.width - 2 - name_width - 13 * len(series) - (13 + 9 + 17 if wide else 0) - 2
    texts = [_state_texts(one) for one in view.devices]
    state_width, short = (max([5, *map(cell_width, column)]) for column in zip(*texts, strict=True))
    if state_width > room:
        state_width = max(5, min(short, room))
    spark_width = max(0, (room - state_width) // len(series))
    lines: list[Line] = []
    head = " " * (2 + name_width)
    for name in series:
        head += "  " + pad(_SHORT[name], 10, ">") + " " * (1 + spark_width)
    if wide:
        head += pad("Headroom", 13, ">") + "  " + pad("Total L1", 24)
    lines.append([(head + "  State", "dim")])
    for index, one in enumerate(view.devices):
        here = index == options.selected
        mark = ("▸ " if screen.unicode else "> ") if here else "  "
        line: list[Piece] = [(mark, "head"), (pad(names[index], name_width), "1;7" if here else "bold")]
        for name in series:
            value = get(one.device, _PATHS[name])
            line.append(("  " + pad(format_bytes(value), 10, ">") + " ", "dim" if value is None else ""))
            values = one.history.series[name].window(view.taken_ns, spark_width, options.group)
            total = get(one.device, _TOTALS[name]) if options.capacity_scale else None
            line.append((spark(values, total or top_of(values), screen), CHART_STYLES[name]))
        if wide:
            headroom = one.min_headroom
            line.append((pad(format_bytes(headroom), 13, ">"), headroom_style(headroom, one)))
            used, total = total_l1(one)
            share = percent(used, total) or NOT_AVAILABLE
            line += [("  ", ""), *meter(one, 15, screen), (pad(share, 9, ">"), level(used, total))]
        line += [("  ", ""), *state_pieces(one, state_width)]
        lines.append(line)
    return lines


def _panel(
    shown: Shown, name: str, end_ns: int, width: int, height: int, options: OverviewOptions, screen: Screen
) -> list[Line]:
    """Return one chart with its figures: ``height`` lines of ``width`` columns."""
    device = shown.device
    value, total = get(device, _PATHS[name]), get(device, _TOTALS[name])
    peak = peak_text(device, name, screen) or f"peak {NOT_AVAILABLE}"
    peak_ns = get(device, f"memory.{name}.peak_at_ns")
    values = shown.history.series[name].window(end_ns, 2 * width, options.group)
    top = total if options.capacity_scale and total else top_of(values)
    share = percent(value, total)
    head = TITLES[name] if len(TITLES[name]) + 1 + len(format_bytes(value)) <= width else _SHORT[name]
    title: list[Piece] = [
        (head + " ", "bold"),
        (format_bytes(value), CHART_STYLES[name] if value is not None else "dim"),
    ]
    left = width - sum(cell_width(text) for text, _ in title)
    title.append((pad(share, left, ">") if left > len(share) else " " * left, level(value, total)))
    remarks = next(
        (
            text
            for text in (
                *(
                    [f"of {format_bytes(total)}, {peak} {format_age(end_ns - peak_ns)} ago"]
                    if peak_ns is not None
                    else []
                ),
                f"of {format_bytes(total)}, {peak}",
                f"{peak} /{format_bytes(total)}",
                peak,
            )
            if len(text) <= width
        ),
        "",
    )
    lines: list[Line] = [title, [(pad(remarks, width), "dim")]]
    rows = height - 3
    for row in area(values, top, rows, screen):
        lines.append([(row, CHART_STYLES[name])])
    seconds = 2 * width * BUCKET_NS * options.group // 10**9
    end = f"top {format_bytes(top if any(v is not None for v in values) else None)}"
    begin = next((text for text in (f"{seconds} s ago", f"{seconds} s") if len(text) + 1 + len(end) <= width), "")
    lines.append([(begin + pad(end, width - len(begin), ">"), "dim")])
    return lines


def chart_lines(shown: Shown, view: View, height: int, options: OverviewOptions, screen: Screen) -> list[Line]:
    """Return the charts of one device and its other figures, in ``height`` lines."""
    device = shown.device
    updated = get(device, "updated_ns")
    age = (
        f"changed {format_age(view.taken_ns - updated)} ago" if updated is not None else f"last change {NOT_AVAILABLE}"
    )
    about = [clean(device.get("arch") or f"arch {NOT_AVAILABLE}"), f"grid {grid_text(device)}"]
    about += [f"asic {clean(device.get('asic_id') or NOT_AVAILABLE)}"] if screen.width >= 100 else []
    about += [f"source {clean(device.get('source'))}"]
    about += ["replay"] if device.get("origin") == "replay" else []
    lines: list[Line] = [title_line(shown, [*about, age], screen, chip=screen.width < 100)]
    gap = 3
    series = list(SERIES)[: max(1, (screen.width + gap) // (_PANEL_LEAST + gap))]
    width = (screen.width + gap) // len(series) - gap
    rows = height - 4
    panels = [_panel(shown, name, view.taken_ns, width, rows, options, screen) for name in series]
    bar = " │ " if screen.unicode else " | "
    for parts in zip(*panels, strict=True):
        line: list[Piece] = []
        for number, part in enumerate(parts):
            line += [(bar, "free"), *part] if number else part
        lines.append(line)
    used, total = total_l1(shown)
    head = f"Total L1 {format_bytes(used)} "
    share = f" {percent(used, total)}" if used is not None else ""
    whole = f" of {format_bytes(total)}" if used is not None else ""
    tail = share + whole if len(head + share + whole) + 11 <= screen.width else share
    lines.append(
        [
            (head, "bold"),
            *meter(shown, max(10, screen.width - len(head) - len(tail) - 1), screen),
            (tail, level(used, total)),
        ]
    )
    keys = [(key, name) for key, name in (("reserved", "reserved"), ("cb", "cb"), ("buffers", "buffers"))]
    keys += [("overlap", "both"), ("l1_small", "l1 small"), ("free", "free")]
    legend: list[Piece] = []
    for key, name in keys:
        legend += [(f" {screen.keys[key]}", key), (f" {name} ", "dim")]
    lines.append(legend)
    lines.append(other_figures(shown, screen))
    return lines


def other_figures(shown: Shown, screen: Screen) -> Line:
    """Return the figures that have no chart."""
    line: list[Piece] = []
    named = (
        ("Resident", "memory.cb.resident_bytes"),
        ("Kernels", "memory.kernel.used_bytes"),
        ("L1 Small", "memory.l1_small.used_bytes"),
        ("Trace", "memory.trace.used_bytes"),
        ("Logical", "memory.cb.logical_bytes"),
    )
    headroom = shown.min_headroom
    line += [(" Headroom ", "dim"), (format_bytes(headroom), headroom_style(headroom, shown))]
    for name, path in named:
        pieces: list[Piece] = [(f"  {name} ", "dim"), (format_bytes(get(shown.device, path)), "")]
        if sum(cell_width(text) for text, _ in line + pieces) <= screen.width:
            line += pieces
    return line


def overview_lines(view: View, options: OverviewOptions, screen: Screen) -> tuple[list[Line], int, int]:
    """Return the overview in the screen's height.

    Returns:
        The lines, the line on which the first shown device stands, and that device's index.
    """
    height = screen.height or 24
    lines = list_lines(view, options, screen)
    head, rows = lines[0], lines[1:]
    charts = 0
    if rows and options.mode != "compact":
        # Many devices leave no room for charts beside them all; a full screen takes it from the list.
        spare = height - 1 - len(rows) - 1
        if spare >= CHARTS_LEAST:
            charts = spare if options.mode == "full" or spare <= CHARTS_MOST + 4 else CHARTS_MOST
        elif options.mode == "full" or (height >= 20 and len(rows) > height - 1):
            charts = max(CHARTS_LEAST, height // 2)
    space = max(1, height - 1 - (charts + 1 if charts else 0))
    first = min(max(0, options.selected - space // 2), max(0, len(rows) - space))
    shown = [head, *rows[first : first + space]]
    if charts:
        rule = "─" if screen.unicode else "-"
        above, below = first, max(0, len(rows) - first - space)
        more = f" {above} more above, {below} more below " if above or below else ""
        shown.append([(rule * 2 + more + rule * (screen.width - 2 - len(more)), "free")])
        one = view.devices[options.selected]
        shown += chart_lines(one, view, charts, options, screen)
        left = height - len(shown) - 1
        if left >= 3:
            # Room for the title, the headings, and one line that says how many rows are not shown.
            lines = program_lines(one.device, screen, limit=left - 3)
            shown += [[(rule * screen.width, "free")], *lines[:left]]
    return shown, 1, first


def nothing_lines(problems: Sequence[str], where: str, screen: Screen) -> list[Line]:
    """Return what stands there while no device is published."""
    lines: list[Line] = [
        [("", "")],
        [("  No device is published ", "bold"), (f"in {clean(where)}.", "")],
        [("", "")],
        [("  Start a program that uses ttmem.publish, ttmem-replay CAPTURE --loop,", "dim")],
        [("  or TT-Metal with its memory tracking on; it appears here by itself.", "dim")],
    ]
    return [*lines, [("", "")], *([(f"  {clean(text)}", "warn")] for text in problems)]
