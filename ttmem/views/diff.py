"""What changed between two dumps, as text."""

from __future__ import annotations

from collections.abc import Sequence

from ttmem.diff import Change, DeviceDiff, Row
from ttmem.units import NOT_AVAILABLE, format_bytes, format_exact
from ttmem.views.dump import format_age
from ttmem.views.text import Screen, clean, wrap

_LABELS = {"dram": "DRAM", "l1": "L1", "l1_small": "L1 Small", "trace": "Trace", "cb": "CB", "kernel": "Kernels"}
SHOWN = 12
"""How many rows of a kind are shown."""


def signed(size_bytes: int | None) -> str:
    """Return a change in binary units with its sign (``+1.0 MiB``), or ``N/A``."""
    if size_bytes is None:
        return NOT_AVAILABLE
    return ("+" if size_bytes > 0 else "") + format_bytes(size_bytes)


def render_diff(diffs: Sequence[DeviceDiff], screen: Screen) -> str:
    """Return the changes of all devices, a block for each."""
    return "\n".join("".join(line + "\n" for line in _device(found, screen)) for found in diffs)


def _device(found: DeviceDiff, screen: Screen) -> list[str]:
    only = {"both": "", "a": "only in A", "b": "only in B"}[found.presence]
    about = ",".join(f" {text}" for text in (found.asic_id and f"asic {found.asic_id}", only) if text)
    lines = [f"Device {NOT_AVAILABLE if found.device_id is None else found.device_id}:{about}"]
    for kind, change in found.memory.items():
        leak = "  held, not freed" if kind in found.leaks else ""
        lines.append(
            f"  {_LABELS[kind] + ':':<10}{format_bytes(change.before):>12} -> {format_bytes(change.after):<12}"
            f"{signed(change.delta):>12}{leak}"
        )
    for kind, size in found.leaks.items():
        lines += wrap(
            f"Leak: {format_exact(size)} byte{'s' * (size != 1)} of {_LABELS[kind]} more than before.",
            screen,
            first="  ",
        )
        for row in found.culprits(kind)[:SHOWN]:
            lines.append("    " + _buffer(row))
    delta = found.cached.delta
    if delta or found.programs:
        word = f"program{'s' * (abs(delta or 0) != 1)} {'more' if (delta or 0) >= 0 else 'fewer'}"
        lines += wrap(
            f"Program cache: {abs(delta or 0)} {word} ({found.cached.before} -> {found.cached.after}), CB "
            f"{signed(found.program_cache_growth)}: kept on purpose, no leak.",
            screen,
            first="  ",
            rest="    ",
        )
        for row in (found.programs or ())[:SHOWN]:
            lines.append(
                f"    {row.changes['count'].delta:+d}  {clean(row.key['name'])}, {row.key['num_cores']} cores, "
                f"{format_bytes(row.key['cb_bytes_per_core'])} per core"
            )
        if len(found.programs or ()) > SHOWN:
            lines.append(f"    and {len(found.programs or ()) - SHOWN} more")
    lines += _processes(found.processes)
    others = [row for row in found.buffers or () if (row.changes["size_bytes"].delta or 0) <= 0]
    if others:
        lines.append("  Buffers freed or replaced:")
        lines += ["    " + _buffer(row) for row in others[:SHOWN]]
    if found.oldest and found.leaks:
        lines.append("  Oldest live buffers:")
        for old in found.oldest[:5]:
            age = NOT_AVAILABLE if old["age_ns"] is None else format_age(old["age_ns"])
            lines.append(
                f"    {age:>8}  {format_bytes(old['size_bytes']):>10}  {old['buffer_type']}  {clean(old['name'])}"
            )
    return lines


def _processes(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows[:SHOWN]:
        before, after = row.key["state_before"], row.key["state_after"]
        state = (
            "came" if before is None else "left" if after is None else f"{before} -> {after}" if before != after else ""
        )
        changed = [
            f"{name.removesuffix('_bytes').replace('_physical', '').replace('_', ' ')} {signed(change.delta)}"
            for name, change in row.changes.items()
            if change.delta
        ]
        lines.append(
            f"    {row.key['pid']} {clean(row.key['name'])}: {', '.join([s for s in (state,) if s] + changed)}"
        )
    return ["  Processes:", *lines] if lines else []


def _buffer(row: Row) -> str:
    size: Change = row.changes["size_bytes"]
    count = row.changes["count"].delta or 0
    return f"{signed(size.delta):>12}  {count:+d} {row.key['buffer_type']}  {clean(row.key['name']) or 'unnamed'}"
