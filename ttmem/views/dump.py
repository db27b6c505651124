"""The breakdown of devices that ``ttmem-dump`` prints: one block for each, fewer lines or one where many must fit.

For each device a line starts with ``Device N:``, and labelled lines give first the used value, so that
``ttmem-dump | grep -E "Device|CB:"`` is useful; whatever a terminal adds comes after the value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ttmem.units import NOT_AVAILABLE, format_bytes, format_exact
from ttmem.views.notes import Note, get, notes, peak_text
from ttmem.views.text import (
    Device,
    Line,
    Piece,
    Screen,
    bar,
    cell_width,
    clean,
    device_name,
    device_ranges,
    level,
    pad,
    percent,
    render,
    stacked,
    wrap,
)

_LABEL = 12
"""Columns of the indented label."""
_VALUE = 10
"""Columns of a size: ``1023.9 MiB``."""
_PERCENT = 7
_NOTES = 30
"""Columns that the remarks behind a bar take when they stand on its line."""


def render_devices(
    devices: Sequence[Device], screen: Screen, *, compact: bool | None = None, now_ns: int | None = None
) -> str:
    """Return the breakdown of all devices as text.

    Args:
        devices: device objects of the contract's JSON.
        screen: width, height, colour and encoding.
        compact: one line for each device; None decides it: only for so many devices that even with several labelled
            figures on a line they do not fit the screen.
        now_ns: the clock (CLOCK_REALTIME) that ages are told by; None leaves ages out.
    """
    if compact:
        return render(compact_lines(devices, screen), screen)
    blocks = [device_lines(device, screen, now_ns=now_ns) for device in devices]
    lines = _join(blocks)
    if compact is None and len(devices) > 1 and screen.height is not None and len(lines) > screen.height:
        # A few devices may fit without the account of each, and with notes that they share.
        lines = _join([figure_lines(device, screen, now_ns=now_ns) for device in devices])
        lines += _shared_notes(devices, screen, 0)
        if len(lines) > screen.height:
            lines = labelled_lines(devices, screen)
        if len(lines) > screen.height:
            lines = compact_lines(devices, screen)
    return render(lines, screen)


def _join(blocks: Sequence[Sequence[Line]]) -> list[Line]:
    return [line for i, block in enumerate(blocks) for line in [*([[("", "")]] if i else []), *block]]


def format_age(age_ns: int) -> str:
    """Return a time span in its largest unit: ``0.4 s``, ``12 min``, ``3 h``, ``2 d``."""
    seconds = max(0, age_ns) / 1e9
    if seconds < 100:
        return f"{seconds:.1f} s"
    for unit, size, limit in (("min", 60, 100), ("h", 3600, 48)):
        if seconds < limit * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def grid_text(device: Device) -> str:
    """Return the grid as ``8x8``, or ``N/A``."""
    grid = device.get("grid")
    return f"{grid['x']}x{grid['y']}" if grid else NOT_AVAILABLE


def header_parts(device: Device, now_ns: int | None = None) -> list[str]:
    """Return what stands behind ``Device N:``: state, architecture, grid, chip, source, origin, age."""
    parts = [
        str(device.get("state") or f"state {NOT_AVAILABLE}"),
        str(device.get("arch") or f"arch {NOT_AVAILABLE}"),
        f"grid {grid_text(device)}",
        f"asic {device.get('asic_id') or NOT_AVAILABLE}",
        f"source {device.get('source') or NOT_AVAILABLE}",
    ]
    if device.get("origin") == "replay":
        parts.append("replay")
    updated = get(device, "updated_ns")
    if now_ns is not None:
        parts.append(
            f"changed {format_age(now_ns - updated)} ago" if updated is not None else f"last change {NOT_AVAILABLE}"
        )
    return [clean(part) for part in parts]


def _header(device: Device, screen: Screen, now_ns: int | None) -> list[Line]:
    name = f"{device_name(device)}:"
    parts = header_parts(device, now_ns)
    texts = [f"{name} {parts[0]}"]
    for part in parts[1:]:
        if cell_width(texts[-1]) + len(part) + 3 <= screen.width:
            texts[-1] += f", {part}"
        else:
            texts[-1] += ","
            texts.append(f"  {part}")
    state = str(device.get("state"))
    color = {"live": "good", "idle": "dim"}.get(state, "warn")
    first: list[Piece] = [(name, "head")]
    tail = texts[0][len(name) :]
    if tail.startswith(f" {state}"):
        first += [(f" {state}", color), (tail[len(state) + 1 :], "")]
    else:
        first.append((tail, ""))
    return [first, *([(text, "")] for text in texts[1:])]


def _bar_width(screen: Screen) -> int:
    fixed = _LABEL + _VALUE + 2 + 1 + _PERCENT
    beside = screen.width - fixed - 2 - _NOTES
    if beside >= 10:
        return min(40, beside)
    # No room for remarks beside the bar: they stand below it.
    below = min(24, screen.width - fixed)
    return below if below >= 8 else 0


def _figure(
    label: str,
    used: int | None,
    total: int | None,
    remarks: Sequence[str],
    screen: Screen,
    *,
    meter: list[Piece] | None = None,
) -> list[Line]:
    """Return the labelled line of one figure, and a line below for the remarks that do not fit on it."""
    width = _bar_width(screen)
    line: list[Piece] = [
        (pad(f"  {label}:", _LABEL), "bold"),
        (pad(format_bytes(used), _VALUE, ">"), "" if used is not None else "dim"),
        ("  ", ""),
    ]
    share = percent(used, total)
    if width:
        line += meter if meter is not None else bar(used, total, width, screen)
        line.append((" ", ""))
    line.append((pad(share, _PERCENT, ">"), level(used, total)))
    at = sum(cell_width(text) for text, _ in line)
    lines: list[list[Piece]] = [line]
    indent = _LABEL + _VALUE + 2 if screen.width >= 56 else 6
    started = False
    for remark in remarks:
        glue = ", " if started else "  " if len(lines) == 1 else ""
        if at + len(glue) + len(remark) + 1 > screen.width:
            if started:
                lines[-1].append((",", "dim"))
            lines.append([(" " * indent, "")])
            at, glue = indent, ""
        lines[-1].append((glue + remark, "dim"))
        at += len(glue) + len(remark)
        started = True
    return lines


def _remarks(device: Device, kind: str, screen: Screen, *, of: bool = True) -> list[str]:
    total, peak = get(device, f"memory.{kind}.total_bytes"), peak_text(device, kind, screen)
    found = [f"of {format_bytes(total)}"] if of and total is not None else []
    return found + ([peak] if peak else [])


def _memory_lines(device: Device, screen: Screen) -> list[Line]:
    def used(kind: str) -> int | None:
        return get(device, f"memory.{kind}.used_bytes")

    def total(kind: str) -> int | None:
        return get(device, f"memory.{kind}.total_bytes")

    room = total("l1")
    logical, resident = get(device, "memory.cb.logical_bytes"), get(device, "memory.cb.resident_bytes")
    cb = ([f"of {format_bytes(room)}"] if room is not None else []) + _remarks(device, "cb", screen, of=False)
    cb += [f"{name} {format_bytes(v)}" for name, v in (("logical", logical), ("resident", resident)) if v is not None]
    persistent = get(device, "memory.kernel.persistent_bytes")
    kernel = [f"{format_bytes(persistent)} persistent"] if persistent is not None else []
    return [
        *_figure("DRAM", used("dram"), total("dram"), _remarks(device, "dram", screen), screen),
        *_figure("L1", used("l1"), room, _remarks(device, "l1", screen), screen),
        *_figure("CB", get(device, "memory.cb.physical_bytes"), room, cb, screen),
        *_figure("Kernels", used("kernel"), None, kernel, screen),
        *_figure("L1 Small", used("l1_small"), total("l1_small"), _remarks(device, "l1_small", screen), screen),
        *_figure("Trace", used("trace"), total("trace"), _remarks(device, "trace", screen), screen),
    ]


def used_l1(device: Device) -> int | None:
    """Return "Total L1": reserved + cb + buffer + l1_small - overlap, in bytes; None where the geometry is unknown."""
    reserved, cb, buffers, small, overlap = (
        get(device, f"l1_accounting.{name}_bytes") for name in ("reserved", "cb", "buffer", "l1_small", "overlap")
    )
    if reserved is None or cb is None or buffers is None or small is None or overlap is None:
        return None
    return reserved + cb + buffers + small - overlap


def l1_parts(device: Device) -> list[tuple[str, int]]:
    """Return the disjoint parts of L1 in bytes, from the bottom of the account to free; empty where unknown."""
    used, total, free = (
        used_l1(device),
        get(device, "l1_accounting.total_bytes"),
        get(device, "l1_accounting.free_bytes"),
    )
    if used is None or total is None or free is None:
        return []
    account = device["l1_accounting"]
    overlap = account["overlap_bytes"]
    return [
        ("reserved", account["reserved_bytes"]),
        ("cb", account["cb_bytes"] - overlap),
        ("overlap", overlap),
        ("buffers", account["buffer_bytes"] - overlap),
        ("l1_small", account["l1_small_bytes"]),
        ("free", free),
    ]


_ACCOUNT: tuple[tuple[str, str, str, str, str], ...] = (
    (" ", "reserved", "reserved_bytes", "reserved", "firmware, kernels"),
    ("+", "CB", "cb_bytes", "cb", "of all cached programs"),
    ("+", "buffers", "buffer_bytes", "buffers", "on cores"),
    ("+", "L1 small", "l1_small_bytes", "l1_small", "region set aside"),
    ("-", "overlap", "overlap_bytes", "overlap", "CB and buffers both"),
)


def _total_lines(device: Device, screen: Screen) -> list[Line]:
    """Return Total L1 of capacity."""
    used, total = used_l1(device), get(device, "l1_accounting.total_bytes")
    free = get(device, "l1_accounting.free_bytes")
    if used is None or total is None or free is None:
        if total is not None:
            why = "part of it is unknown"
        elif device.get("source") == "ttmem":
            why = "unknown without grid, arch, l1_cb_base and l1_small_size"
        else:
            why = "the device's geometry is unknown"
        return _figure("Total L1", None, None, [why], screen)
    meter = stacked(l1_parts(device), _bar_width(screen), screen)
    remarks = [f"of {format_bytes(total)}", f"free {format_bytes(free)}"]
    return _figure("Total L1", used, total, remarks, screen, meter=meter)


def _account_lines(device: Device, screen: Screen) -> list[Line]:
    """Return the sum that makes Total L1, to the byte; nothing where the geometry is unknown."""
    used, total = used_l1(device), get(device, "l1_accounting.total_bytes")
    free = get(device, "l1_accounting.free_bytes")
    if used is None or total is None or free is None:
        return []
    lines: list[Line] = []
    account = device["l1_accounting"]
    rows = [(sign, name, account[key], part, text) for sign, name, key, part, text in _ACCOUNT]
    rows += [("=", "used", used, "", "Total L1"), ("+", "free", free, "free", ""), ("=", "capacity", total, "", "")]
    for sign, name, size, part, text in rows:
        line: list[Piece] = [
            (f"  {sign} ", "dim"),
            (pad(name, 9), "bold" if sign == "=" else ""),
            (pad(format_exact(size) + " B", 16 if screen.width >= 54 else 14, ">"), "bold" if sign == "=" else ""),
        ]
        if screen.width >= 54:
            line.append((pad(format_bytes(size), 12, ">"), "dim"))
        line.append((pad(percent(size, total), 9, ">"), "dim"))
        if part:
            line.append((f"  {screen.keys[part]}", part))
        if text and screen.width >= 72:
            line.append((f" {text}" if part else f"    {text}", "dim"))
        lines.append(line)
    return lines


def _note_lines(found: Sequence[Note], screen: Screen) -> list[Line]:
    lines: list[Line] = []
    for note in found:
        head = f"  {note.kind}: "
        texts = wrap(note.text, screen, first=head, rest="    ")
        lines.append([(head, "alarm" if note.kind == "warning" else "dim"), (texts[0][len(head) :], "")])
        lines += [[(text, "")] for text in texts[1:]]
    return lines


def figure_lines(device: Device, screen: Screen, *, now_ns: int | None = None) -> list[Line]:
    """Return the header and the labelled figures of one device."""
    return [
        *_header(device, screen, now_ns),
        *_memory_lines(device, screen),
        *_total_lines(device, screen),
    ]


def device_lines(device: Device, screen: Screen, *, now_ns: int | None = None) -> list[Line]:
    """Return the block of one device: header, figures, the account of L1, notes."""
    return [
        *figure_lines(device, screen, now_ns=now_ns),
        *_account_lines(device, screen),
        *_note_lines(notes(device), screen),
    ]


def _min_headroom(device: Device) -> int | None:
    known = [c["headroom_bytes"] for c in device.get("cores") or () if c.get("headroom_bytes") is not None]
    return min(known, default=None)


_COLUMNS: tuple[tuple[str, int, int, Callable[[Device], int | None]], ...] = (
    ("DRAM", 11, 3, lambda d: get(d, "memory.dram.used_bytes")),
    ("L1", 11, 2, lambda d: get(d, "memory.l1.used_bytes")),
    ("CB", 11, 1, lambda d: get(d, "memory.cb.physical_bytes")),
    ("CB res.", 11, 9, lambda d: get(d, "memory.cb.resident_bytes")),
    ("Kernels", 11, 7, lambda d: get(d, "memory.kernel.used_bytes")),
    ("L1 Small", 11, 5, lambda d: get(d, "memory.l1_small.used_bytes")),
    ("Trace", 11, 6, lambda d: get(d, "memory.trace.used_bytes")),
    ("Headroom", 12, 8, _min_headroom),
)
"""Title, columns, rank (the lowest stay on a narrow screen), and the figure."""
_TOTAL = 9
_METER = 24


def _summary(devices: Sequence[Device]) -> str:
    parts = [f"{len(devices)} device{'s' * (len(devices) != 1)}"]
    for texts in zip(*(header_parts(device)[:5] for device in devices), strict=True):
        values = sorted(set(texts))
        if len(values) == 1 and not values[0].startswith("asic"):
            parts.append(values[0])
    replays = sum(device.get("origin") == "replay" for device in devices)
    if replays:
        parts.append("replay" if replays == len(devices) else f"{replays} of them a replay")
    return ", ".join(parts)


def _names(devices: Sequence[Device], most: int) -> list[str]:
    """Return ``Device N:`` of all, with the chips of those without a number if ``most`` columns hold them."""
    names = [f"{device_name(device, chip=True)}:" for device in devices]
    return names if max(map(len, names), default=0) <= most else [f"{device_name(device)}:" for device in devices]


def labelled_lines(devices: Sequence[Device], screen: Screen) -> list[Line]:
    """Return two lines or more for each device, with several labelled figures on each, and notes that many may share."""
    states = [clean(device.get("state") or NOT_AVAILABLE) for device in devices]
    same = len(set(states)) == 1
    tail = 8
    across, columns = 1, _COLUMNS
    for across in (4, 3, 2, 1):
        # The last column has room on wide screens only: the resident CBs and the headroom.
        columns = _COLUMNS if across == 4 else tuple(c for c in _COLUMNS if c[0] not in ("CB res.", "Headroom"))
        widths = [max(len(title) for title, *_ in columns[i::across]) + 14 for i in range(across)]
        names = _names(devices, screen.width - sum(widths) - tail)
        name_width = max([*map(len, names), *(len(state) + 1 for state in states if not same)])
        left = screen.width - name_width - sum(widths) - tail
        if left >= 0:
            break
    meter_width = min(_METER, left - 2) if left >= 12 else 0
    lines: list[Line] = [[(text, "bold")] for text in wrap(_summary(devices), screen)]
    for device, name, state in zip(devices, names, states, strict=True):
        used, total = used_l1(device), get(device, "l1_accounting.total_bytes")
        color = {"live": "good", "idle": "dim"}.get(state, "warn")
        starts = [(name, "head"), ("" if same else f" {state}", color)]
        share = (percent(used, total) or NOT_AVAILABLE, level(used, total))
        ends: list[list[Piece]] = [[(pad(share[0], tail, ">"), share[1])], [(pad("of L1", tail, ">"), "dim")]]
        if meter_width:
            parts = l1_parts(device)
            meter = stacked(parts, meter_width, screen) if parts else bar(None, None, meter_width, screen)
            ends = [[("  ", ""), *meter, *ends[0]], [(" " * (meter_width + 2), ""), *ends[1]]]
        for number, first in enumerate(range(0, len(columns), across)):
            start, style = starts[number] if number < len(starts) else ("", "")
            line: list[Piece] = [(pad(start, name_width), style)]
            for (title, _, _, figure), width in zip(columns[first : first + across], widths, strict=False):
                value = figure(device)
                label = pad(f"  {title}:", width - 11)
                line += [(label, "bold"), (pad(format_bytes(value), 11, ">"), "dim" if value is None else "")]
            lines.append(line + (ends[number] if number < len(ends) else []))
    if meter_width:
        lines.append(_keys_line(screen))
    return lines + _shared_notes(devices, screen, len(lines))


def _keys_line(screen: Screen) -> Line:
    keys = screen.keys
    return [("  ", ""), *[(f"{keys[k]} {k.replace('_', ' ')}  ", k) for k in keys]]


def compact_lines(devices: Sequence[Device], screen: Screen) -> list[Line]:
    """Return a table with a line for each device, the columns that fit, and notes that many devices may share."""
    names = _names(devices, screen.width - _TOTAL - 1 - 11)
    states = [clean(device.get("state") or NOT_AVAILABLE) for device in devices]
    same = len(set(states)) == 1
    name_width = max(map(len, names), default=0)
    left = screen.width - name_width - _TOTAL - 1
    state_width = 0 if same else max(map(len, states)) + 2
    chosen = set()
    for rank in range(1, 10):
        _, width, _, _ = column = next((c for c in _COLUMNS if c[2] == rank), ("", 0, 0, _min_headroom))
        if rank == 4 and left >= state_width + 10:
            left -= state_width + 10
            chosen.add("meter")
        elif width and left >= width:
            left -= width
            chosen.add(column[0])
        elif width:
            break
    meter_width = min(_METER, 8 + max(0, left)) if "meter" in chosen else 0
    columns = [c for c in _COLUMNS if c[0] in chosen]

    def row(
        name: str, figures: Sequence[int | None], meter: list[Piece], share: Piece, state: Piece, style: str
    ) -> Line:
        cells: list[Piece] = [(pad(name, name_width), style)]
        cells += [
            (pad(format_bytes(v), c[1], ">"), "dim" if v is None else style and "bold")
            for c, v in zip(columns, figures, strict=True)
        ]
        if meter_width:
            cells += [("  ", ""), *meter]
        cells.append((pad(share[0], _TOTAL, ">"), share[1]))
        if meter_width and not same:
            cells += [("  ", ""), state]
        return cells

    lines: list[Line] = [[(text, "bold")] for text in wrap(_summary(devices), screen)]
    title = pad("", name_width) + "".join(pad(c[0], c[1], ">") for c in columns)
    title += pad("", meter_width + 2 if meter_width else 0) + pad("Total L1", _TOTAL, ">")
    lines.append([(title, "dim")])
    for device, name, state in zip(devices, names, states, strict=True):
        used, total = used_l1(device), get(device, "l1_accounting.total_bytes")
        parts = l1_parts(device)
        meter = stacked(parts, meter_width, screen) if parts else bar(None, None, meter_width, screen)
        color = {"live": "good", "idle": "dim"}.get(state, "warn")
        share = (percent(used, total) or NOT_AVAILABLE, level(used, total))
        lines.append(row(name, [c[3](device) for c in columns], meter, share, (state, color), "head"))
    if len(devices) > 1:
        sums = [
            None if c[0] == "Headroom" or any(c[3](d) is None for d in devices) else sum(c[3](d) or 0 for d in devices)
            for c in columns
        ]
        blank: list[Piece] = [(" " * meter_width, "")]
        lines.append(row("Sum:", sums, blank, ("", ""), ("", ""), "bold"))
    if meter_width:
        lines.append(_keys_line(screen))
    return lines + _shared_notes(devices, screen, len(lines))


def _shared_notes(devices: Sequence[Device], screen: Screen, above: int) -> list[Line]:
    """Return the notes of all devices, one for all that share it, as many as fit below ``above`` lines."""
    shared: dict[tuple[str, str], list[Device]] = {}
    for device in devices:
        for note in notes(device):
            shared.setdefault((note.kind, note.short), []).append(device)
    lines: list[Line] = []
    for (kind, short), noted in sorted(shared.items(), key=lambda item: item[0][0] != "warning"):
        whose = "All" if len(noted) == len(devices) else device_ranges(noted)
        for i, text in enumerate(wrap(f"{whose}: {short}", screen, first="  ", rest="    ")):
            lines.append([(text, "" if i or kind != "warning" else "warn")])
    room = None if screen.height is None else max(1, screen.height - above)
    if room is not None and len(lines) > room:
        hidden = len(lines) - room + 1
        lines = [*lines[: room - 1], [(f"  ... {hidden} more lines of notes: ttmem-dump -d N", "dim")]]
    return lines
