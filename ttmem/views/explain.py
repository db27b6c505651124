"""Clashes and headroom of programs as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ttmem.clash import Finding, advice
from ttmem.units import NOT_AVAILABLE, format_exact
from ttmem.views.text import Line, Screen, cell_width, clean, clip, exact_bytes, pad, render, wrap

SHOWN = 30
"""How many programs the table has unless all are asked for."""


def render_findings(findings: Sequence[Finding], screen: Screen, *, every: bool = False) -> str:
    """Return the clashes in full, then a table of the programs with the least room.

    Args:
        findings: those with the least room first.
        screen: width and encoding.
        every: whether to list all programs.
    """
    groups = _alike(findings)
    text = "".join(_clash(group, screen) for group in groups if group[0].clashes or group[0].too_large)
    if not groups:
        return "No program with circular buffers.\n"
    return text + render(_table(groups, screen, every=every), screen)


def _alike(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Return the findings, those that differ only in device or repeat a program joined."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        key = (
            finding.program,
            finding.core_range,
            finding.cb_region_end,
            finding.l1_lowest_address,
            finding.top,
            finding.threw,
        )
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def _devices(group: Sequence[Finding]) -> str:
    found = sorted({f.device_id for f in group if f.device_id is not None})
    if not found:
        return ""
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]}-{found[-1]}"
    return ",".join(map(str, found))


def _clash(group: Sequence[Finding], screen: Screen) -> str:
    finding = group[0]
    devices = _devices(group)
    where = f" on device {devices}" if devices else ""
    lines = []
    if finding.too_large:
        assert finding.l1_size is not None
        lines += wrap(
            f"TOO LARGE: the CBs of {finding.program} on {finding.core_range or 'cores not told'}{where} end at "
            f"{finding.cb_region_end}, {format_exact(finding.cb_region_end - finding.l1_size)} bytes beyond the end of "
            f"L1 at {finding.l1_size}.",
            screen,
            rest="  ",
        )
    if finding.clashes:
        head = "CLASH" if finding.certain else "POSSIBLE CLASH"
        lines += wrap(
            f"{head}: program {finding.program} on core range {finding.core_range or 'not told'}{where}: CB region "
            f"ends at {finding.cb_region_end}, lowest L1 buffer at {finding.l1_lowest_address}, "
            f"{exact_bytes(finding.shortfall_bytes)} too far.",
            screen,
            rest="  ",
        )
        if finding.threw:
            lines += wrap("TT-Metal threw here.", screen, first="  ")
        elif finding.dispatches is None:
            lines += wrap("TT-Metal throws when the program is dispatched now.", screen, first="  ")
        if not finding.certain:
            lines += wrap(
                "The source does not tell the program's cores, and only some that it may be on are short.",
                screen,
                first="  ",
                rest="  ",
            )
        if finding.binding_core is not None:
            lines.append(f"  Binding core: {finding.binding_core.x},{finding.binding_core.y}")
        lines += _involved(finding)
        lines.append("  What helps, the smallest change first:")
        for index, text in enumerate(advice(finding), 1):
            lines += wrap(text, screen, first=f"    {index}. ", rest="       ")
    return "".join(line + "\n" for line in [*lines, ""])


def _involved(finding: Finding) -> list[str]:
    lines = []
    if finding.buffers:
        lines.append(f"  L1 buffers that begin below {finding.cb_region_end}:")
        for buffer in finding.buffers[:8]:
            size = format_exact(buffer.size_per_bank)
            lines.append(f"    {buffer.address:>10}  {size:>10} bytes per core  {clean(buffer.name)}".rstrip())
        if finding.num_buffers > 8:
            lines.append(f"    and {finding.num_buffers - 8} more")
    if finding.circular_buffers:
        lines.append("  Circular buffers of the program there, largest first:")
        for cb in sorted(finding.circular_buffers, key=lambda cb: -cb.size)[:8]:
            kind = "" if cb.kind == "circular_buffer" else f"  {cb.kind}"
            lines.append(f"    {cb.address:>10}  {format_exact(cb.size):>10} bytes per core  {cb.core_ranges}{kind}")
        if len(finding.circular_buffers) > 8:
            lines.append(f"    and {len(finding.circular_buffers) - 8} more")
    return lines


def _table(groups: Sequence[Sequence[Finding]], screen: Screen, *, every: bool) -> list[Line]:
    titles = ("Headroom", "CB end", "Lowest L1", "Device", "Runs", "Core range", "Program")
    rows = []
    shown = groups if every else groups[:SHOWN]
    for group in shown:
        finding = group[0]
        runs = [f.dispatches for f in group if f.dispatches is not None]
        rows.append(
            (
                format_exact(finding.headroom_bytes),
                str(finding.cb_region_end),
                NOT_AVAILABLE if finding.l1_lowest_address is None else str(finding.l1_lowest_address),
                _devices(group),
                str(max(runs)) if runs else NOT_AVAILABLE,
                finding.core_range or NOT_AVAILABLE,
                clean(finding.program),
            )
        )
    widths = [max(cell_width(row[i]) for row in (titles, *rows)) for i in range(len(titles))]
    # The name gets what is left; a set of many rectangles must not push it out.
    widths[5] = min(widths[5], max(12, screen.width // 4))

    def line(cells: Sequence[str], style: str) -> Line:
        padded = [pad(cell, widths[i], ">") for i, cell in enumerate(cells[:5])]
        padded.append(pad(clip(cells[5], widths[5], screen), widths[5]))
        return [("  ".join([*padded, cells[6]]), style)]

    lines = [line(titles, "dim")]
    for row, group in zip(rows, shown, strict=True):
        lines.append(line(row, "alarm" if group[0].clashes or group[0].too_large else ""))
    if len(groups) > len(shown):
        lines.append([(f"{len(groups) - len(shown)} more with more room; --all lists them", "dim")])
    return lines
