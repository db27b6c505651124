"""What the figures of a device mean, said with its own numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ttmem.units import format_bytes
from ttmem.views.notes import cached_programs, get, peaks, peaks_add_up
from ttmem.views.text import Device, Line, Screen, clean, device_ranges, render, wrap


def render_explanation(devices: Sequence[Device], screen: Screen) -> str:
    """Return :func:`explain_figures` of all devices as text; devices of which the same is true share it."""
    shared: dict[tuple[str, ...], list[Device]] = {}
    for device in devices:
        shared.setdefault(tuple(explain_figures(device)), []).append(device)
    lines: list[Line] = []
    for sentences, alike in shared.items():
        lines.append([(f"{device_ranges(alike)}:", "head")])
        for sentence in sentences:
            lines += [[(text, "")] for text in wrap(clean(sentence), screen, first="  - ", rest="    ")]
    return render(lines, screen)


def explain_figures(device: Device) -> list[str]:
    """Return what the figures of this device mean, in sentences that its own numbers fill."""
    return [
        *_explain_cb(device),
        *_explain_total(device),
        *(peak.sentence for peak in peaks(device)),
        *_explain_kernels(device),
        *_explain_rest(device),
    ]


def _explain_cb(device: Device) -> list[str]:
    physical = get(device, "memory.cb.physical_bytes")
    if not physical:
        return []
    count = cached_programs(device)
    said = (
        f"CBs stay for as long as their programs are cached ({count} now)"
        if count
        else ("CBs stay for as long as their programs are cached")
    )
    found = [
        f"{said}: {format_bytes(physical)} of addresses are claimed, whether a program runs or not. "
        "Clearing the program cache gives them back."
    ]
    logical, resident = get(device, "memory.cb.logical_bytes"), get(device, "memory.cb.resident_bytes")
    if logical is not None and logical > physical:
        found.append(
            f"All cached CBs one after the other would be {format_bytes(logical)} (logical). They share addresses, for "
            f"programs on the same cores run one at a time: physical is {format_bytes(physical)}."
        )
    if resident is not None and resident != physical:
        found.append(
            f"What the last dispatched programs left configured is {format_bytes(resident)} (resident); the rest of "
            "the physical figure waits for its programs to run again."
        )
    return found


def _explain_total(device: Device) -> list[str]:
    peak, physical = get(device, "memory.cb.peak_bytes"), get(device, "memory.cb.physical_bytes")
    if peak is None or physical is None:
        return []
    if peaks_add_up(device):
        return [
            f"CB peaked at {format_bytes(peak)} at most: that adds up the peaks of several processes, which need not "
            f"have coincided; now it is {format_bytes(physical)}."
        ]
    if peak > physical:
        return [
            f"Total L1 rises while a model compiles, as each new program adds its CBs, and falls when programs leave "
            f"the cache: CB peaked at {format_bytes(peak)} and is {format_bytes(physical)} now."
        ]
    if physical:
        return [
            "Total L1 rises while a model compiles, as each new program adds its CBs, and stays there: CB is at its "
            f"peak of {format_bytes(peak)}."
        ]
    return []


def _explain_kernels(device: Device) -> list[str]:
    used, persistent = get(device, "memory.kernel.used_bytes"), get(device, "memory.kernel.persistent_bytes")
    if used is None or not (used or persistent):
        return []
    text = f"Kernels take {format_bytes(used)}; they lie in the reserved part and are not added to Total L1."
    if persistent:
        text += (
            f" Of them {format_bytes(persistent)} stay while the device is open (dispatch and fabric firmware): about "
            "0.2 MiB is normal and no leak."
        )
    return [text]


def _explain_rest(device: Device) -> list[str]:
    account = {
        name: get(device, f"l1_accounting.{name}_bytes")
        for name in ("total", "reserved", "cb", "buffer", "l1_small", "overlap", "free")
    }
    total, free = account["total"], account["free"]
    if total is None or free is None:
        return [
            "Where the rest of L1 is cannot be told: no writer gave the geometry (grid, L1 size, CB base, L1_SMALL)."
        ]
    text = (
        f"Of {format_bytes(total)} of L1, {format_bytes(account['reserved'])} lie below the CBs (firmware, kernels, "
        f"semaphores), {format_bytes(account['cb'])} are CBs, {format_bytes(account['buffer'])} buffers on cores, "
        f"{format_bytes(account['l1_small'])} set aside for L1_SMALL"
    )
    if account["overlap"]:
        text += f", less {format_bytes(account['overlap'])} that both CBs and buffers claim"
    found = [f"{text}; {format_bytes(free)} are free."]
    known = [c["headroom_bytes"] for c in device.get("cores") or () if c.get("headroom_bytes") is not None]
    if known and min(known) >= 0:
        found.append(
            f"The free bytes are spread over the cores: the next CB or buffer fits if it stays within the smallest "
            f"headroom, {format_bytes(min(known))} on one core."
        )
    return found
