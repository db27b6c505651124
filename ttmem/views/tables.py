"""Tables of a device's processes and programs, and the list of devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ttmem.units import NOT_AVAILABLE, format_bytes
from ttmem.views.dump import grid_text
from ttmem.views.notes import cached_programs, get
from ttmem.views.text import Device, Line, Piece, Screen, cell_width, clean, clip, device_name, pad, render

Row = Mapping[str, Any]

_PROCESS_SIZES = (
    ("CB", "cb_physical_bytes"),
    ("L1", "l1_bytes"),
    ("DRAM", "dram_bytes"),
    ("L1 small", "l1_small_bytes"),
    ("Trace", "trace_bytes"),
    ("Kernels", "kernel_bytes"),
)


def _text(value: object) -> str:
    return NOT_AVAILABLE if value is None else clean(value)


def _table(
    titles: Sequence[str],
    aligns: str,
    rows: Sequence[Sequence[str]],
    screen: Screen,
    *,
    name_column: int,
    optional: Sequence[int],
) -> list[Line]:
    """Return aligned columns; on a narrow screen the optional ones go, last first, then the name is clipped."""
    shown = list(range(len(titles)))
    widths = [max([cell_width(title), *(cell_width(row[i]) for row in rows)]) for i, title in enumerate(titles)]

    def needed() -> int:
        return 2 + sum(widths[i] + 2 for i in shown) - 2

    minimum = min(16, widths[name_column])
    for column in reversed(optional):
        if needed() - widths[name_column] + minimum <= screen.width:
            break
        shown.remove(column)
    widths[name_column] = max(min(widths[name_column], 8), widths[name_column] - max(0, needed() - screen.width))

    def line(cells: Sequence[str], style: str) -> list[Piece]:
        pieces: list[Piece] = []
        for i in shown:
            text = pad(clip(cells[i], widths[i], screen), widths[i], aligns[i])
            pieces.append(("  " + text, style or ("dim" if cells[i] == NOT_AVAILABLE else "")))
        return pieces

    return [line(titles, "dim"), *(line(row, "") for row in rows)]


def _title(device: Device, what: str) -> Line:
    return [(f"{device_name(device, chip=True)}:", "head"), (f" {what}", "")]


def process_lines(device: Device, screen: Screen) -> list[Line]:
    """Return the processes of a device, the largest CB first, with what the dead left marked stale."""
    rows = device.get("processes")
    if rows is None:
        return [_title(device, f"processes {NOT_AVAILABLE}: the source does not tell them")]
    if not rows:
        return [_title(device, "no processes")]
    states = [row.get("state") for row in rows]
    gone = len(rows) - states.count("live")
    title = f"{len(rows)} process{'es' * (len(rows) != 1)}"
    if gone:
        title += f", {gone} of them counted in no total"
    ordered = sorted(
        rows, key=lambda r: (r.get("state") != "live", -(r.get("cb_physical_bytes") or 0), r.get("pid") or 0)
    )
    cells = [
        [_text(row.get(key)) for key in ("pid", "user", "name", "state")]
        + [format_bytes(row.get(key)) for _, key in _PROCESS_SIZES]
        for row in ordered
    ]
    titles = ["PID", "User", "Name", "State", *(title for title, _ in _PROCESS_SIZES)]
    return [
        _title(device, title),
        *_table(titles, "><<<>>>>>>", cells, screen, name_column=2, optional=(1, 6, 7, 8, 9)),
    ]


def cached_text(count: int, rows: Sequence[Row]) -> str:
    """Return how many programs are cached, and in how many rows those stand that are listed."""
    listed = sum(row.get("count") or 1 for row in rows)
    which = "" if listed == count else f", {listed} of them"
    return f"{count} cached program{'s' * (count != 1)}{which} in {len(rows)} row{'s' * (len(rows) != 1)}"


def program_lines(device: Device, screen: Screen, *, limit: int | None = None) -> list[Line]:
    """Return the cached programs of a device in the order of the JSON: the largest CBs over all cores first.

    Args:
        device: the device object.
        screen: what it is made for.
        limit: the most rows; what is left out is said.
    """
    rows = device.get("programs")
    if rows is None:
        return [_title(device, f"programs {NOT_AVAILABLE}: the source does not tell them")]
    omitted = get(device, "programs_omitted") or 0
    if not rows:
        left_out = f"; {omitted} count but are not listed" if omitted else ""
        return [_title(device, f"no programs listed{left_out}" if omitted else "no cached programs")]
    shown = rows if limit is None else rows[:limit]
    title = f"{cached_text(cached_programs(device) or 0, rows)}, largest first"
    cells = []
    for row in shown:
        end = row.get("cb_region_end")
        cells.append(
            [
                format_bytes(row.get("cb_bytes_per_core")),
                _text(row.get("num_cores")),
                _text(row.get("count")),
                _text(row.get("name") or "(unnamed)"),
                f"0x{end:06x}" if isinstance(end, int) else NOT_AVAILABLE,
                _text(row.get("program_id")),
                _text(row.get("pid")),
            ]
        )
    titles = ["CB per core", "Cores", "Count", "Program", "CB end", "Id", "PID"]
    lines = [_title(device, title), *_table(titles, ">>><>>>", cells, screen, name_column=3, optional=(4, 5, 6))]
    hidden = len(rows) - len(shown)
    if hidden:
        lines.append([(f"  and {hidden} more rows", "dim")])
    if omitted:
        lines.append([(f"  {omitted} more programs are not listed; the totals count them", "warn")])
    return lines


def _blocks(blocks: Sequence[Sequence[Line]], screen: Screen) -> str:
    return "\n".join(render(block, screen) for block in blocks)


def render_processes(devices: Sequence[Device], screen: Screen) -> str:
    """Return the table of processes of every device as text."""
    return _blocks([process_lines(device, screen) for device in devices], screen)


def render_programs(devices: Sequence[Device], screen: Screen, *, limit: int | None = None) -> str:
    """Return the table of programs of every device as text."""
    return _blocks([program_lines(device, screen, limit=limit) for device in devices], screen)


def render_list(devices: Sequence[Device]) -> str:
    """Return one line for each device, as ``nvidia-smi -L`` does."""
    lines = []
    for device in devices:
        inside = [f"ASIC: {_text(device.get('asic_id'))}", f"grid {grid_text(device)}", _text(device.get("state"))]
        inside.append(_text(device.get("source")))
        if device.get("origin") == "replay":
            inside.append("replay")
        lines.append(f"{device_name(device)}: {_text(device.get('arch'))} ({', '.join(inside)})\n")
    return "".join(lines)
